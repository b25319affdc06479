"""Many seeds on all cores: what runs in the processes of the pool."""

import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from membership_mutants import MUTANTS

from agent.simulation.membership_chaos import Ending, live

SEEDS_EACH = 20
"""Of one piece of work: small enough that no core waits long for another."""


def endings(first: int, count: int) -> list[Ending]:
    """What became of ``count`` seeds; accounts of the good ones are left out."""
    found = [live(seed) for seed in range(first, first + count)]
    for ending in found:
        if not ending.broken:
            ending.account.clear()
    return found


def caught(name: str, seeds: int) -> Ending | None:
    """The first of ``seeds`` seeds whose rules a mutant breaks."""
    for seed in range(1, seeds + 1):
        ending = live(seed, parts=MUTANTS[name])
        if ending.broken:
            return ending
    return None


@contextmanager
def pool() -> Iterator[ProcessPoolExecutor]:
    """One process for each core; fresh ones, which share nothing with this test's threads."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as executor:
        yield executor
