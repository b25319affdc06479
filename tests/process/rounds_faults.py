"""Aggregators that die or stop in mid-round, at moments of chance, in a cluster of real daemons."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from daemon_cluster import (
    Daemon,
    admit,
    found,
    running,
    scratch,
    submit_job,
    wait_for,
    write_digits,
)
from rounds_check import evidence, problems

STOPPED_S_MAX = 20.0
"""Longer than an aggregator's lease (15 s); a test takes less time."""
ROUNDS = 24


@dataclass
class Tally:
    """What the faults came to."""

    kills: int = 0
    stops: int = 0
    commits: int = 0
    to_commit_s: list[float] = field(default_factory=list)
    """From each kill to the next commit."""
    stopped_to_commit_s: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


@contextlib.contextmanager
def five_sites(samples: int = 300) -> Iterator[list[Daemon]]:
    """All have data and all know all."""
    with scratch() as folder:
        data = [write_digits(folder / f"data-{n}", part=n, samples=samples) for n in range(5)]
        binds = [f'[datasets.digits]\npath = "{path}"' for path in data]
        first = found(folder, "site-0", extra=binds[0])
        with running(first):
            first.start().wait_ready()
            others = [admit(first, f"site-{n}", extra=binds[n]) for n in range(1, 5)]
            with running(*others):
                for site in others:
                    site.start()
                sites = [first, *others]
                wait_for(lambda: all(len(s.alive()) == 5 for s in sites), 60, "all see all", sites)
                yield sites


def view(site: Daemon, job: str) -> dict[str, Any]:
    return site.get(f"/1/jobs/{job}")


def furthest(sites: Sequence[Daemon], job: str) -> int:
    return max(int(view(site, job)["round"]) for site in sites)


def trouble(
    sites: list[Daemon], chance: Random, faults: int, tally: Tally,
    stopped_s_max: float = STOPPED_S_MAX,
) -> None:  # fmt: skip
    """One job after the other, each disturbed until it ends; then all are judged from all databases."""
    jobs: list[str] = []
    identities = {site.name: site.get("/1/status")["site"] for site in sites}
    while tally.kills + tally.stops < faults:
        job = submit_job(
            sites[0],
            name="faults",
            rounds=ROUNDS,
            epochs=2,
            sites_min=2,
            round_timeout_s=20.0,
            ranges=1 + len(jobs) % 2 * 2,
        )
        jobs.append(job)
        wait_for(partial(_has_begun, sites, job), 60, "the job is under way", sites)
        while furthest(sites, job) < ROUNDS and tally.kills + tally.stops < faults:
            _disturb(sites, job, chance, tally, stopped_s_max)
        wait_for(partial(_is_known, sites, job), 180, "all have read all of it", sites)
        tally.commits += ROUNDS
    for site in sites:
        site.stop()
    for job in jobs:
        books = [evidence(site, identities[site.name], job) for site in sites]
        tally.broken += problems(books, ROUNDS)


def _has_begun(sites: Sequence[Daemon], job: str) -> bool:
    return furthest(sites, job) >= 1


def _is_known(sites: Sequence[Daemon], job: str) -> bool:
    views = [view(site, job) for site in sites]
    if any(one["state"] != "finished" or len(one["rounds_done"]) < ROUNDS for one in views):
        return False
    rows = [row for site in sites for row in site.get(f"/1/jobs/{job}/audit")["rows"]]
    return all(row["standing"] != "open" for row in rows)


def _disturb(
    sites: list[Daemon], job: str, chance: Random, tally: Tally, stopped_s_max: float
) -> None:
    time.sleep(chance.uniform(0.0, 0.7))
    name = view(chance.choice(sites), job)["aggregator"]
    victim = next((site for site in sites if site.name == name), None)
    if victim is None:
        return
    others = [site for site in sites if site is not victim]
    before, at = furthest(others, job), time.monotonic()
    if before >= ROUNDS - 1:
        time.sleep(0.3)  # nothing is left to disturb
        return
    if chance.random() < 0.5:
        tally.kills += 1
        victim.kill()
        wait_for_more(others, job, before)
        tally.to_commit_s.append(time.monotonic() - at)
        victim.start().wait_ready()
        return
    tally.stops += 1
    assert victim.process is not None
    os.kill(victim.process.pid, signal.SIGSTOP)
    stopped_s = chance.uniform(0.5, stopped_s_max)
    try:
        wait_for_more(others, job, before)
        tally.stopped_to_commit_s.append(time.monotonic() - at)
        time.sleep(max(0.0, stopped_s - (time.monotonic() - at)))
    finally:
        os.kill(victim.process.pid, signal.SIGCONT)


def wait_for_more(sites: Sequence[Daemon], job: str, before: int) -> None:
    wait_for(lambda: furthest(sites, job) > before, 60, "another round is committed", sites)
