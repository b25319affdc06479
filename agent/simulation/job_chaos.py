"""Whole jobs, each seed with troubles of its own: how many sites, how bad a network, how much is lost.

``job_world`` runs one and judges it; this chooses what it is to be, so that many seeds cover far more
than any one list of scenarios. One seed is one job: the same everywhere, every time.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

from agent.federation.value import EPOCH_JUMP
from agent.simulation.job_fleet import Scenario
from agent.simulation.job_world import simulate


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one seed."""

    seed: int
    broken: tuple[str, ...]
    """Rules that were broken; empty if none."""
    trace: str
    epochs: int
    rounds: int
    generation: int
    """Changes of the committee, twice each."""
    is_cancelled: bool
    regions: int
    counted: int
    """Updates in committed rounds."""
    settled_s: float
    """Virtual seconds from the last fault until every site had the whole history."""


def scenario_of(seed: int) -> Scenario:
    """The troubles of ``seed``."""
    rng = Random(f"job scenario {seed}")  # noqa: S311 - reproducible on purpose
    committee = rng.choice((1, 3, 3, 3, 5, 5))
    sites = rng.randint(max(committee, 4), 14)
    may_lose = committee > 1 and sites > committee
    kind = rng.random()
    turnover = rng.randint(1, 4) if may_lose and kind < 0.3 else 0  # noqa: PLR2004 - a share
    gone = rng.randint(0, min(committee // 2, sites - 4)) if may_lose and not turnover else 0
    scenario = Scenario(
        sites=sites, committee=committee, rounds=rng.randint(2, 6),
        seconds=rng.uniform(20.0, 70.0), loss=rng.choice((0.0, 0.03, 0.1)),
        duplicate=rng.choice((0.0, 0.03, 0.1)), delay_mean_s=rng.choice((0.005, 0.02, 0.1)),
        commit_mean_s=rng.choice((0.002, 0.005, 0.1)), fault_every_s=rng.uniform(1.0, 6.0),
        kills=rng.randint(0, 8), gone=gone, turnover=turnover,
        train_mean_s=rng.choice((0.5, 2.0, 5.0)), fetch_failure=rng.choice((0.0, 0.1, 0.3)),
        poison=0.03 if sites > 5 else 0.0,  # noqa: PLR2004 - enough are left for a round
        idle_sites=rng.choice((0.0, 0.15, 0.4)), publish=rng.choice(("model", "")),
        cancel=rng.random() < 0.05,  # noqa: PLR2004 - a share
        sites_min=rng.choice((1, 2, 2)), staleness_max=rng.choice((0, 0, 1, 3)),
        outer=rng.choice(("none", "none", "momentum")), ranges=rng.choice((1, 1, 2, 4)),
    )  # fmt: skip
    may_recover = committee > 1 and not turnover and not gone and not scenario.cancel
    if may_recover and sites >= 2 * committee and rng.random() < 0.2:  # noqa: PLR2004 - a share
        scenario = replace(scenario, recover=True)
    if turnover or gone or rng.random() < 0.5:  # noqa: PLR2004 - a share
        is_corrected = not scenario.staleness_max and rng.random() < 0.3  # noqa: PLR2004 - a share
        return replace(scenario, correction="scaffold" if is_corrected else "none")
    return replace(
        scenario, sites=max(sites, 8), regions=rng.randint(1, 3),
        local_rounds_max=rng.choice((0, 2)),
    )  # fmt: skip


def live(seed: int) -> Ending:
    """Run one seed to its end and judge it."""
    scenario = scenario_of(seed)
    report = simulate(seed, scenario)
    rosters = [choice.value.roster for choice in report.evidence.chosen]
    counted = max((len(rows) for rows in report.evidence.histories.values()), default=0)
    return Ending(
        seed, tuple(report.violations), report.trace, report.epochs, report.rounds,
        max((roster.generation for roster in rosters if roster is not None), default=0),
        scenario.cancel, scenario.regions, counted,
        0.0 if report.finished_at is None else report.finished_at - scenario.seconds,
    )  # fmt: skip


def live_all(seeds: Iterable[int]) -> list[Ending]:
    """For a process of a pool."""
    return [live(seed) for seed in seeds]


def told(endings: Iterable[Ending]) -> Counter[str]:
    """How much there was of what."""
    totals: Counter[str] = Counter()
    for ending in endings:
        totals["jobs"] += 1
        totals["broken"] += bool(ending.broken)
        totals["cancelled"] += ending.is_cancelled
        totals["regions"] += ending.regions
        totals["rounds"] += ending.rounds
        totals["epochs"] += ending.epochs % EPOCH_JUMP  # beside those that a recovery leaves out
        totals["members replaced"] += ending.generation % EPOCH_JUMP // 2
    return totals


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what ``run`` reads."""
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--runs", type=int, default=10, help="how many seeds, from the first on")


def run(args: Namespace) -> int:
    """``python -m agent.simulation chaos``: 0 if every seed's job kept every rule and ended."""
    endings = []
    for seed in range(args.seed, args.seed + args.runs):
        ending = live(seed)
        endings.append(ending)
        sys.stdout.write(
            f"seed {seed}: {'WRONG' if ending.broken else 'ok'} rounds={ending.rounds} "
            f"epochs={ending.epochs} replaced={ending.generation // 2} trace={ending.trace[:12]}\n"
        )
        for rule in ending.broken[:10]:
            sys.stdout.write(f"  {rule}\n")
    bad = told(endings)["broken"]
    sys.stdout.write(f"{args.runs - bad} of {args.runs} seeds are good\n")
    return 1 if bad else 0
