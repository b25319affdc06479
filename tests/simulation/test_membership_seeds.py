"""Two thousand clusters of ten sites under all kinds of trouble, and the mutants that prove the rules.

A broken rule is printed with its seed: ``python -m agent.simulation membership --seed N`` replays it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from membership_mutants import MUTANTS
from membership_pool import SEEDS_EACH, caught, endings, pool

from agent.simulation.membership_chaos import Ending

ROOT = Path(__file__).parents[2]
SEEDS = 2000
MUTANT_SEEDS = 1000

TRACES = """
from agent.simulation.membership_chaos import live
print([live(seed).trace for seed in range(1, 5)])
"""


@pytest.fixture(scope="module")
def lives() -> dict[int, Ending]:
    with pool() as executor:
        firsts = range(1, SEEDS + 1, SEEDS_EACH)
        parts = executor.map(endings, firsts, [SEEDS_EACH] * len(firsts))
        return {ending.seed: ending for part in parts for ending in part}


@pytest.mark.timeout(1200)
def test_two_thousand_clusters_keep_every_rule_and_agree_in_the_end(
    lives: dict[int, Ending],
) -> None:
    broken = [ending for ending in lives.values() if ending.broken]
    for ending in broken[:3]:
        sys.stdout.write("\n".join((f"seed {ending.seed}", *ending.account[-40:], "")))
    assert {ending.seed: ending.broken for ending in broken} == {}
    assert len(lives) == SEEDS
    assert len({ending.trace for ending in lives.values()}) == SEEDS, "no two seeds are alike"


@pytest.mark.timeout(1200)
def test_each_mutant_breaks_a_rule_within_a_thousand_seeds(lives: dict[int, Ending]) -> None:
    assert len(MUTANTS) >= 12
    with pool() as executor:
        hunted = [executor.submit(caught, name, MUTANT_SEEDS) for name in MUTANTS]
        found = dict(zip(MUTANTS, [future.result() for future in hunted], strict=True))
    for name, ending in found.items():
        told = "never" if ending is None else f"seed {ending.seed}: {ending.broken}"
        sys.stdout.write(f"{name}: {told}\n")
    assert [name for name, ending in found.items() if ending is None] == []
    # The same seeds break no rule without the mutation.
    last = max(ending.seed for ending in found.values() if ending is not None)
    assert [seed for seed in range(1, last + 1) if lives[seed].broken] == []


def test_one_seed_gives_one_trace_whatever_the_hash_seed() -> None:
    traces = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        ran = subprocess.run(
            [sys.executable, "-c", TRACES],
            cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
        )  # fmt: skip
        traces.add(ran.stdout)
    assert len(traces) == 1
    assert len(set(traces.pop().split())) == 4
