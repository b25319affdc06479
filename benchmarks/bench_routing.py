"""Routing: what passing on adds, whether the right site is chosen, and what a killed site costs.

Run: python benchmarks/bench_routing.py         writes benchmarks/results/routing.json (4 minutes)

The wide network needs root and /dev/net/tun: five whole daemons in namespaces of their own (``wan.py``).
magika is served in paris and lisbon; frankfurt, madrid and warsaw ask. The right site is the one with the
lesser true round trip, as the network was told. An answer is wrong if it is not what the same request
got before the kill.
"""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests" / "process")]

import bench_loop  # noqa: E402
from daemon_cluster import Daemon, wait_for  # noqa: E402
from rows import Row, commit, line, row  # noqa: E402
from wan_cluster import five_sites, truths_s  # noqa: E402
from wan_switch import WideNetwork, why_not  # noqa: E402

from agent.cli.demo.applications import FileTypes  # noqa: E402
from agent.simulation.routing_world import Plan, p99_s, run_world  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "routing.json"
SERVING, ASKING = ("paris", "lisbon"), ("frankfurt", "madrid", "warsaw")
ASKED = 60
"""Requests of each asking site, one after the other."""
AFTER_KILL_S = 8.0
SEEDS = (1, 2, 3)
SIMULATED = 10_000

CLIENT = r"""
import http.client, json, sys, time
host, port, many, for_s = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
body = json.dumps({"inputs": [{"name": "bytes", "datatype": "INT32", "shape": [1, 2048],
                               "data": [7] * 2048}]})
end, rows = time.monotonic() + for_s, []
while len(rows) < many and time.monotonic() < end:
    began = time.monotonic()
    try:
        connection = http.client.HTTPConnection(host, port, timeout=10)
        connection.request("POST", "/v2/models/magika/infer", body,
                           {"Content-Type": "application/json", "Atoll-Deadline-Ms": "5000"})
        response = connection.getresponse()
        content = response.read()
        status, by = response.status, response.getheader("Atoll-Served-By", "")
        outputs = json.loads(content)["outputs"][0]["data"] if status == 200 else []
        connection.close()
    except OSError as error:
        status, by, outputs = 0, str(error), []
    rows.append((began, time.monotonic(), status, by, outputs))
    time.sleep(0.02)
json.dump(rows, sys.stdout)
"""
Answer = tuple[float, float, int, str, list[float]]
"""Begun and answered (monotonic seconds), status, site, outputs."""
SAME = 1e-4
"""Outputs differ by less in the last digits: how many requests share a run changes the order of sums."""


def _start(daemon: Daemon, many: int, for_s: float) -> "subprocess.Popen[str]":
    words = [sys.executable, "-c", CLIENT, daemon.host, "8000", str(many), str(for_s)]
    return subprocess.Popen([*daemon.within, *words], stdout=subprocess.PIPE, text=True)


def _answers(process: "subprocess.Popen[str]") -> list[Answer]:
    told, _ = process.communicate(timeout=120)
    return [tuple(one) for one in json.loads(told)]  # type: ignore[misc]


def _is_same(found: list[float], expected: list[float]) -> bool:
    return len(found) == len(expected) and all(
        abs(a - b) < SAME for a, b in zip(found, expected, strict=True)
    )


def wide() -> list[Row]:
    """The right site's share, and what comes of a kill, across five cities."""
    if reason := why_not():
        print(f"the wide network is left out: {reason}", flush=True)
        return []
    with five_sites() as (network, daemons):
        return _wide(network, {daemon.name: daemon for daemon in daemons})


def _wide(_: WideNetwork, sites: dict[str, Daemon]) -> list[Row]:
    founder = sites["frankfurt"]
    push = ("model", "push", str(FileTypes.find().path), "--name", "magika", "--version", "1")
    founder.cli(*push, "--sites", ",".join(SERVING), "--no-wait")
    for name in ASKING:
        wait_for(
            lambda at=sites[name]: {  # type: ignore[misc]
                one["name"] for one in at.get("/1/route/explain", model="magika")["candidates"]
            } == set(SERVING),
            60.0, f"{name} knows who serves", [founder],
        )  # fmt: skip
    time.sleep(10.0)  # coordinates and first measurements
    truth_s = truths_s()
    right, asked, expected = 0, 0, {}
    for name in ASKING:
        nearest = min(SERVING, key=lambda at, name=name: truth_s[name, at])  # type: ignore[misc]
        answers = _answers(_start(sites[name], ASKED, 60.0))
        right += sum(one[2] == 200 and one[3] == nearest for one in answers)
        asked += len(answers)
        expected[name] = answers[-1][4]
        print(name, nearest, {by: sum(a[3] == by for a in answers) for by in SERVING}, flush=True)
    return [
        row(f"right site of two, five-site WAN, {asked} requests", [100 * right / asked], "%", 95.0,
            is_least=True),
        *_kill(sites, expected),
    ]  # fmt: skip


def _kill(sites: dict[str, Daemon], expected: dict[str, list[float]]) -> list[Row]:
    processes = {name: _start(sites[name], 100_000, AFTER_KILL_S) for name in ASKING}
    time.sleep(2.0)
    killed_at, victim = time.monotonic(), sites["paris"]
    for child in victim.children():
        child.kill()
    victim.kill()
    pauses_s, failed, wrong, total = [], 0, 0, 0
    for name, process in processes.items():
        answers = _answers(process)
        good = [one for one in answers if one[2] == 200]
        total += len(answers)
        failed += len(answers) - len(good)
        wrong += sum(not _is_same(one[4], expected[name]) for one in good)
        ends = [one[1] for one in good if one[1] > killed_at - 0.5]
        pauses_s.append(max((b - a for a, b in pairwise(ends)), default=AFTER_KILL_S))
    what = f"a serving site's SIGKILL, five-site WAN, {total} requests"
    return [
        row(f"longest time without an answer around {what}", pauses_s, "s", 3.0, of=max),
        row(f"wrong answers around {what}", [wrong], "", 0),
        row(f"failed requests around {what}", [failed], ""),
    ]


def simulated() -> list[Row]:
    """A hundred sites under a skewed load beside an oracle."""
    ratios = []
    for seed in SEEDS:
        plan = Plan(seed, requests=SIMULATED)
        oracle, ours = (p99_s(run_world(plan, is_oracle=which)) for which in (True, False))
        ratios.append(ours / oracle)
    return [
        row(f"p99 beside an oracle's, 100 simulated sites, {SIMULATED} requests", ratios, "x", 1.5)
    ]


def passing_on() -> list[Row]:
    """What passing on adds on loopback (audited, TLS), as ``bench_loop`` measures it."""
    return [one for one in bench_loop.inference() if "forward" in one["name"]]


def main() -> None:
    """Measure, print, write."""
    found: list[dict[str, Any]] = [*wide(), *simulated(), *passing_on()]
    for one in found:
        print(line({"peer_value": None, "peer": "", **one}))
    RESULTS.write_text(json.dumps([one | {"commit": commit()} for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
