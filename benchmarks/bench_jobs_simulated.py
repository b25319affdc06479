"""Ten thousand whole jobs in the simulator: does any of them break a rule, and how fast is it?

Run: python benchmarks/bench_jobs_simulated.py [--jobs N]    writes benchmarks/results/jobs_simulated.json

Each seed is one job of 4 to 14 sites with troubles of its own (``agent.simulation.job_chaos``): loss,
repeats, cuts, pauses, clocks that jump, slow disks, killed aggregators, disks lost for ever, committees of
which up to four members are lost one after another. The rules are checked by ``job_checks``, which shares
no code with the machines. All cores, nine minutes on two; seeds of the tests (1 to 500) are left out.
"""

import json
import sys
import time
from argparse import ArgumentParser
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "simulation")]

from membership_pool import pool  # noqa: E402
from rows import commit, line, row  # noqa: E402

from agent.simulation.job_chaos import Ending, live_all, told  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "jobs_simulated.json"
FIRST = 501
SEEDS_EACH = 25


def main() -> None:
    """Everything, in one table."""
    parser = ArgumentParser()
    parser.add_argument("--jobs", type=int, default=10_000)
    jobs = parser.parse_args().jobs
    parts = [
        range(first, min(first + SEEDS_EACH, FIRST + jobs))
        for first in range(FIRST, FIRST + jobs, SEEDS_EACH)
    ]
    began = time.monotonic()
    with pool() as executor:
        endings: list[Ending] = list(chain.from_iterable(executor.map(live_all, parts)))
    took_s = time.monotonic() - began
    totals = told(endings)
    for ending in endings:
        if ending.broken:
            print(f"seed {ending.seed}: {ending.broken[:3]}")
    name = f"{jobs} whole jobs under every kind of trouble"
    rules = chain.from_iterable(ending.broken for ending in endings)
    late = [one for one in rules if "long after the last fault" in one]
    rows = [
        row(f"{name}: jobs that broke any rule", [totals["broken"]], "", 0),
        row(f"{name}: of these, did not end", [len(late)], "", 0),
        row(f"{name}: rounds committed", [totals["rounds"]], ""),
        row(f"{name}: aggregators elected", [totals["epochs"]], ""),
        row(f"{name}: committee members replaced", [totals["members replaced"]], ""),
        row(
            f"{name}: last fault until all sites have the whole history, slowest (virtual)",
            [max(ending.settled_s for ending in endings)], "s",
        ),
        row(f"{name}: simulated a second, all cores", [jobs / took_s], "/s"),
    ]  # fmt: skip
    for one in rows:
        print(line(one))
    RESULTS.write_text(json.dumps([one | {"commit": commit()} for one in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
