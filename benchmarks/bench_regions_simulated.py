"""Rounds of 8 to 1,000 simulated sites, at one aggregator, in ranges and by regions: how long, and how much it costs here.

Run: python benchmarks/bench_regions_simulated.py [--most N]    writes benchmarks/results/regions_simulated.json

The machines are real (``JobMachine`` of the whole job and of each region), and so is each mean: numpy adds up as many updates of
1 MB as the round counts, in ``workers.mean``. Virtual are the network (10 ms on average, 1 Gbit/s at each site,
where blobs queue), the disks (5 ms) and the training (0.02 s on average, some take ten times as long). A round is virtual seconds from commit to
commit; what it costs is seconds of this machine for all sites together.
"""

import argparse
import io
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from rows import Row, commit, line, row  # noqa: E402

from agent.federation import events as job_events  # noqa: E402
from agent.foundation.ids import Digest  # noqa: E402
from agent.simulation.job_fleet import Parts, Scenario  # noqa: E402
from agent.simulation.job_outside import PART, RANGE, Outside, Work  # noqa: E402
from agent.simulation.job_world import World  # noqa: E402
from agent.training.ranges import cut, parts_of  # noqa: E402
from agent.workers.mean import Mean, blocks, make_all  # noqa: E402
from agent.workers.parameters import Parameters, Stored, parse, write  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "regions_simulated.json"
SITES = (8, 25, 50, 100, 200, 500, 1000)
REGIONS = 8
RANGES = 4
"""As many as an update of 1 MB has chunks."""
ROUNDS = 6
ELEMENTS = 250_000
GIGABIT_BYTES_PER_S = 125e6


def _update(seed: int) -> Stored:
    values = np.random.default_rng(seed).standard_normal(ELEMENTS, np.float32)
    file = io.BytesIO()
    write(Parameters("bench/8", {"w": values}), file)
    return parse(file.getvalue())


ARRAYS = [_update(n) for n in range(8)]


class RealMeans(Outside):
    """Means of real arrays, timed: that long they take in the simulation, too."""

    def work_takes_s(self, effect: Work) -> float:
        """Adds up as many updates as are counted, or parts of them."""
        if not isinstance(effect, (job_events.Aggregate, job_events.AggregateRange)):
            return 0.05
        part, parts = effect.part if isinstance(effect, job_events.AggregateRange) else (0, 1)
        began = time.perf_counter()
        mean = Mean(ARRAYS[0])
        for number, one in enumerate(effect.updates):
            mean.include(ARRAYS[number % len(ARRAYS)], one.weight)
        chunks = cut(len(ARRAYS[0].content), parts)[part]
        make_all(mean, blocks(ARRAYS[0], chunks), 1)
        return time.perf_counter() - began

    def size(self, digest: Digest) -> float:
        """A part of an update, or of a mean, is that much less."""
        data = self._fleet.evidence.blobs.get(digest, b"")
        parts = parts_of(self._fleet.job) if data.startswith((PART, RANGE)) else 1
        return self.blob_bytes / parts


class Calm(World):
    """Nothing goes wrong; news of who lives spreads once for all that start at one time."""

    _views_at = -1.0

    def views_change(self) -> None:
        """Once in a tenth of a second."""
        if self.network.now >= self._views_at + 0.1:
            self._views_at = self.network.now
            self.network.call_at(self.network.now + 0.05, super().views_change)


def measured(sites: int, regions: int, ranges: int) -> tuple[list[float], float]:
    """Virtual seconds of each round but the first, and real seconds a round of all sites together."""
    scenario = Scenario(
        sites=sites, committee=5, rounds=ROUNDS, seconds=0.1, late=0.0, loss=0.0, duplicate=0.0,
        delay_mean_s=0.01, fault_every_s=1e9, kills=0, gone=0, train_mean_s=0.02, fetch_failure=0.0,
        attempt_failure=0.0, poison=0.0, work_failure=0.0, idle_sites=0.0, publish="", regions=regions,
        has_loners=False, link_bytes_per_s=GIGABIT_BYTES_PER_S, work_s=(0.01, 0.02), ranges=ranges,
    )  # fmt: skip
    began = time.perf_counter()
    world = Calm(Random(1), scenario, Parts(outside=RealMeans))
    report = world.run()
    took_s = time.perf_counter() - began
    assert not report.violations, report.violations[:5]
    assert report.rounds == ROUNDS
    first: dict[int, float] = {}
    for choice in world.evidence.chosen:
        first.setdefault(choice.value.round, min(choice.taken.values()))
    spans = [first[number + 1] - first[number] for number in range(1, ROUNDS)]
    return spans, took_s / ROUNDS


def main(arguments: Sequence[str] | None = None) -> int:
    """Everything, in one table and one plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--most", type=int, default=max(SITES), help="sites")
    most = parser.parse_args(arguments).most
    rows: list[Row] = []
    for sites in (number for number in SITES if number <= most):
        for regions, ranges in ((0, 1), (0, RANGES), (REGIONS, 1)):
            if regions and sites < 2 * REGIONS:
                continue
            spans, cost_s = measured(sites, regions, ranges)
            series = "one aggregator" if ranges == 1 else f"{ranges} ranges"
            series = f"{regions} regions" if regions else series
            is_goal = sites == 200 and regions == REGIONS
            told = f"{sites} simulated sites, {series}, 1 MB updates"
            rows.append(
                row(f"{told}: a round", spans, "s")
                | {"plot": "a round, virtual seconds", "series": series, "x": sites}
            )
            rows.append(
                row(
                    f"{told}: a round of all sites, on this machine",
                    [cost_s],
                    "s",
                    3.0 if is_goal else None,
                )
            )
            for one in rows[-2:]:
                print(line(one), flush=True)
    here = commit()
    RESULTS.write_text(json.dumps([one | {"commit": here} for one in rows], indent=1) + "\n")
    print(f"median round: {statistics.median(one['value'] for one in rows if 'plot' in one):.2f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
