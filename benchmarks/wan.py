"""Five real sites across a simulated Europe: how well coordinates estimate round trips.

Run: python benchmarks/wan.py       (``bench_mesh.py`` calls ``measure_coordinates``)
Needs root and /dev/net/tun. Each site is a whole daemon in a network namespace of its own; one process
between them delays every frame as the pair's distance demands (``tests/process/wan_switch.py``), with
1 ms of jitter each way and 1 % loss. Truth is what that process was told, never what a site measured.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process")]

from wan_cluster import error_median, five_sites  # noqa: E402
from wan_switch import why_not  # noqa: E402

AFTER_S = (60.0, 120.0)
GOAL_PERCENT = 15.0

Row = dict[str, Any]


def measure_coordinates(runs: int = 3) -> list[Row]:
    """Median relative error of the estimates over all ordered pairs, some time after the last join."""
    if reason := why_not():
        print(f"the wide network is left out: {reason}", flush=True)
        return []
    found = [_run(number) for number in range(runs)]
    what = "median relative error of all pairs, five-site WAN"
    rows = [
        _row(
            f"coordinates {after_s:.0f} s after the last join, {what}",
            [run[index][0] for run in found],
        )
        for index, after_s in enumerate(AFTER_S)
    ]
    last = [run[-1][1] for run in found]
    return [*rows, _row(f"measured round trips, {what}", last, goal=None)]


def _row(name: str, values: list[float], goal: float | None = GOAL_PERCENT) -> Row:
    value = median(values)
    return {
        "name": name, "value": value, "unit": "%", "goal": goal,
        "held": None if goal is None else value <= goal, "runs": values,
        "peer": "", "peer_value": None,
    }  # fmt: skip


def _run(number: int) -> list[tuple[float, float]]:
    """(estimates, measured round trips): median errors in percent at each of ``AFTER_S``."""
    with five_sites(number + 1) as (_, daemons):
        began, result = time.monotonic(), []
        for after_s in AFTER_S:
            time.sleep(max(0.0, began + after_s - time.monotonic()))
            estimated, measured = (
                round(100 * error_median(daemons, key), 1) for key in ("estimated_rtt_ms", "rtt_ms")
            )
            result.append((estimated, measured))
        print(f"five-site WAN, run {number + 1}: {result}", flush=True)
    return result


if __name__ == "__main__":
    for row in measure_coordinates():
        print(json.dumps(row))
