"""The mean of a round's updates, by the confined process that makes it: how fast, and in how much memory.

Run: make bench-aggregation     (or: python benchmarks/bench_aggregation.py [--updates 16] [--elements 25000000])
Writes benchmarks/results/aggregation.json and renews docs/status.md. Updates and the mean are files, in the page cache.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
from rows import Row, commit, line, row

if TYPE_CHECKING:
    from agent.drivers.trainers import Weighed

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
RESULTS = ROOT / "benchmarks" / "results" / "aggregation.json"
RUNS = 5
THREADS = min(4, len(os.sched_getaffinity(0)))


def main() -> int:
    """Measure, write, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--updates", type=int, default=16)
    parser.add_argument("--elements", type=int, default=25_000_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atoll-aggregation-") as folder:
        found = asyncio.run(_measure(Path(folder), asked.updates, asked.elements))
    here = commit()
    rows = [one | {"commit": here} for one in found]
    for one in rows:
        print(line(one))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


async def _measure(folder: Path, count: int, elements: int) -> list[Row]:
    from agent.drivers.trainers import Trainers
    from agent.foundation.ids import JobId, SiteId
    from agent.wire.documents import Job

    job = Job(
        JobId("bench-00000001"), "mnist-2nn", "d", (SiteId(bytes(32)),), 1, 1, 8, 0.1, 1, 1, 60.0, "", ()
    )  # fmt: skip
    updates = _updates(folder, count, elements)
    total_gb = count * elements * 4 / 1e9
    beside = _plain_add(elements)
    rows: list[Row] = []
    for is_float, what, goal in ((False, "exactly in integers", None), (True, "in float32", 10.0)):
        trainers = Trainers(jobs_dir=folder / "jobs", threads=THREADS)
        wanted = replace(job, is_float_mean=is_float)
        speeds, cpu, memory = [], [], []
        try:
            await trainers.aggregate(
                wanted, 0, updates[:1], updates[0].update
            )  # the process is there
            process = psutil.Process(next(one.pid for one in trainers.processes()))
            idle_mib = _anonymous_mib(process)
            for number in range(RUNS):
                before, began = sum(process.cpu_times()[:2]), time.perf_counter()
                watching = asyncio.create_task(_peak_mib(process))
                await trainers.aggregate(wanted, number + 1, updates, updates[0].update)
                took_s = time.perf_counter() - began
                watching.cancel()
                peak = await watching
                speeds.append(total_gb / took_s)
                cpu.append(total_gb / max(0.01, sum(process.cpu_times()[:2]) - before))
                memory.append((peak - idle_mib) / (elements * 4 / (1 << 20)))
        finally:
            await trainers.close()
        told = f"{count} updates of {elements / 1e6:g} million values, summed {what}, {THREADS} threads"
        rows += [
            row(f"{told}: of the updates", speeds, "GB/s", goal, is_least=True,
                peer="numpy, multiply and add, 1 thread", peer_value=beside),
            row(f"{told}: for a second of CPU", cpu, "GB", None),
            row(f"{told}: memory beside the files' pages at most, of one model", memory, "x", 2.0, of=max),
        ]  # fmt: skip
    return rows


async def _peak_mib(process: psutil.Process) -> float:
    """The most that it held until this is cancelled."""
    peak = 0.0
    while True:
        peak = max(peak, _anonymous_mib(process))
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            return peak


def _anonymous_mib(process: psutil.Process) -> float:
    """What the process holds that is not a page of a file, which the kernel may take at any time."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def _updates(folder: Path, count: int, elements: int) -> "list[Weighed]":
    from agent.drivers.trainers import Weighed
    from agent.workers.parameters import Parameters, write

    values = np.random.default_rng(0).standard_normal(elements, np.float32)
    found = []
    for number in range(count):
        path = folder / f"{number:02}"
        with path.open("wb") as file:
            write(Parameters("mnist-2nn/8", {"w": np.roll(values, 997 * number)}), file)
        found.append(Weighed(path, 600 + number))
    os.sync()  # as a site's blobs are on disk before they count: or that would be measured too
    return found


def _plain_add(elements: int) -> float:
    """Gigabytes a second of one thread that multiplies and adds, blocks in the cache and nothing checked."""
    values, total = np.ones(elements, np.float32), np.zeros(elements, np.float32)
    scaled = np.empty(1 << 15, np.float32)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for start in range(0, elements, scaled.size):
            block = values[start : start + scaled.size]
            np.multiply(block, np.float32(0.5), out=scaled[: block.size])
            part = total[start : start + block.size]
            np.add(part, scaled[: block.size], out=part)
        best = max(best, elements * 4 / 1e9 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    sys.exit(main())
