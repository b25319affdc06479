"""A round of a 10 MB model at eight sites on links of 200 Mbit/s: by one aggregator, and in ranges. Needs root.

Run: python benchmarks/bench_ranges.py    writes benchmarks/results/ranges.json and renews docs/status.md

Real daemons, each in a network namespace whose card sends and receives at 200 Mbit/s (TBF). The model is ``mnist-2nn`` for
images of 112 x 112 (2.5 million parameters); training takes a tenth of a second, so a round is what travels and
what is summed. Bytes are those at each site's card, from the second round's commit to the last one's.
"""

import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "process")]

from daemon_cluster import (  # noqa: E402
    Daemon,
    make_founder,
    running,
    scratch,
    submit_job,
    token_for,
    wait_for,
)
from mesh_network import Network, network, run, tool  # noqa: E402
from rows import Row, commit, line, row  # noqa: E402
from training_work import load  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "ranges.json"
SITES, ROUNDS, RANGES = 8, 7, 7
TIMES = 4
"""Each pixel of MNIST becomes so many in each direction."""
SAMPLES = 64
RATE = "200mbit"
MODEL_BYTES = 4 * ((28 * TIMES) ** 2 * 200 + 200 + 200 * 200 + 200 + 2000 + 10)


def main() -> int:
    """Everything, in one table."""
    rows: list[Row] = []
    with eight_sites() as (net, sites):
        for ranges in (1, RANGES):
            made = measured(net, sites, ranges)
            how = "one aggregator" if ranges == 1 else f"{ranges} ranges"
            told = f"8 sites on links of 200 Mbit/s, a model of 10 MB, {how}"
            rows += [
                row(f"{told}: a round", made["round_s"], "s"),
                row(
                    f"{told}: received in a round at the busiest site, models", [made["most"]], "x"
                ),
                row(f"{told}: received in a round by all sites, models", [made["all"]], "x"),
            ]
    here = commit()
    for one in rows:
        print(line(one))
    RESULTS.write_text(json.dumps([one | {"commit": here} for one in rows], indent=1) + "\n")
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


def measured(net: Network, sites: list[Daemon], ranges: int) -> dict[str, Any]:
    """One job from its second round on."""
    job = submit_job(
        sites[0], name="large", rounds=ROUNDS, sites_min=SITES, seed=1, ranges=ranges,
        round_timeout_s=120.0, learning_rate=0.01,
    )  # fmt: skip

    def view() -> dict[str, Any]:
        found: dict[str, Any] = sites[0].get(f"/1/jobs/{job}")
        assert found["state"] != "failed", found["reason"]
        return found

    wait_for(lambda: view()["round"] >= 2, 120, "two rounds", sites)
    before = received(net)
    began = view()["round"]
    while (seen := view())["state"] != "finished":
        if seen["round"] < ROUNDS:
            after, ended = received(net), seen["round"]
        time.sleep(0.1)
    at = [one["committed_at"] for one in view()["rounds_done"]]
    rounds = max(1, ended - began)
    models = [(b - a) / rounds / MODEL_BYTES for a, b in zip(before, after, strict=True)]
    return {
        "round_s": [b - a for a, b in pairwise(at[1:])], "most": max(models), "all": sum(models),
    }  # fmt: skip


def received(net: Network) -> list[int]:
    """Bytes at each card since it is there."""
    path = "/sys/class/net/eth0/statistics/rx_bytes"
    return [int(run(*net.within(index), "cat", path)) for index in range(SITES)]


@contextmanager
def eight_sites() -> Iterator[tuple[Network, list[Daemon]]]:
    """All with data, all know all."""
    with network(SITES) as net, scratch() as folder:
        for index in range(SITES):
            limit = ("root", "tbf", "rate", RATE, "burst", "256kb", "latency", "100ms")
            run(*net.within(index), tool("tc"), "qdisc", "add", "dev", "eth0", *limit)
            within = (tool("ip"), "netns", "exec", net.bridge)
            run(*within, tool("tc"), "qdisc", "add", "dev", f"p{index}", *limit)
        seeds = ", ".join(f'"{net.host(index)}:7411"' for index in range(SITES))
        sites = []
        for index in range(SITES):
            data = write_large(folder / f"data-{index}", index)
            settings = f"[discovery]\nmdns = false\nseeds = [{seeds}]\n"
            settings += f'[datasets.digits]\npath = "{data}"\n'
            sites.append(
                Daemon(
                    folder, f"s{index}", settings, host=net.host(index), within=net.within(index)
                )
            )
        founder, *others = sites
        make_founder(founder)
        with running(*sites):
            founder.start().wait_ready()
            for site in others:
                site.cli("join", token_for(founder, site.name))
            for site in others:
                site.start()
            wait_for(
                lambda: all(len(site.alive()) == SITES for site in sites), 120, "all see all", sites
            )
            yield net, sites


def write_large(folder: Path, part: int) -> Path:
    """Some of MNIST's images, each pixel as a square."""
    images, labels = load("train")
    folder.mkdir(parents=True)
    side = 28 * TIMES
    for name, start in (("train", part * SAMPLES), ("t10k", 0)):
        chosen = images[start : start + SAMPLES].reshape(-1, 28, 28)
        large = np.repeat(np.repeat(chosen, TIMES, axis=1), TIMES, axis=2)
        head = struct.pack(">4I", 0x803, SAMPLES, side, side)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + large.tobytes())
        head = struct.pack(">2I", 0x801, SAMPLES)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            head + labels[start : start + SAMPLES].tobytes()
        )
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
