"""Two hosts that know nothing of each other but the cluster: how soon multicast DNS makes them members.

Network namespaces on a bridge, real daemons. ``python benchmarks/mdns_pair.py`` prints the rows;
``measure()`` gives them to the mesh benchmark. Needs root and iproute2.
"""

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/process")]

import psutil  # noqa: E402 - after the path
from daemon_cluster import make_founder, running, scratch, token_for  # noqa: E402 - after the path
from namespaces import Machine, Site, lan  # noqa: E402 - after the path

RUNS = 5
BOTH = {"alpha", "beta"}
POLL_S = 0.005
Row = dict[str, Any]


def until(ask: Callable[[], object], timeout_s: float = 60.0) -> float:
    """The monotonic time at which ``ask`` was true first."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if ask():
                return time.monotonic()
        except Exception:  # noqa: BLE001 - it is starting
            pass
        time.sleep(POLL_S)
    raise TimeoutError(f"not within {timeout_s:g} s")


def said_at(site: Site, words: str) -> float:
    """Unix time of the last line of the log with ``words``."""
    lines = [line for line in site.log().splitlines() if words in line]
    return datetime.strptime(lines[-1][:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()  # noqa: DTZ007 - local, as logged


def meet(alpha: Site, beta: Site) -> tuple[float, float]:
    """Start beta: seconds from its process, and from its first announcement, to both verified."""
    began, began_unix = time.monotonic(), time.time()  # noqa: TID251 - compared with a log
    beta.start()
    done = until(lambda: alpha.alive() == beta.alive() == BOTH)
    done_unix = began_unix + done - began
    return done - began, done_unix - said_at(beta, "announced on")


def move(alpha: Site, beta: Site, machine: Machine, number: int) -> float:
    """Give beta another address: seconds until alpha holds it to be alive there."""
    old = beta.get("/1/members")["members"]
    was = next(row["endpoint"] for row in old if row["self"]).rpartition(":")[0]
    now = f"10.98.0.{number}"
    machine.ip("addr", "del", f"{was}/16", "dev", "eth0")
    machine.add(f"{now}/16")
    began = time.monotonic()
    return until(lambda: alpha.endpoint_of("beta") == f"{now}:7411") - began


def flooded(
    alpha: Site, beta: Site, mallory: Machine, senders: int
) -> tuple[float, float, float, int]:
    """Under 10,000 lies: seconds from ready to met, worst answer of the admin socket, MiB, hints."""
    assert alpha.process is not None
    process = psutil.Process(alpha.process.pid)
    before = process.memory_info().rss
    addresses = ",".join(f"10.98.1.{number}" for number in range(1, senders + 1))
    cluster = alpha.get("/1/status")["cluster"][:16]
    flood = subprocess.Popen(
        [*mallory.within, sys.executable, str(ROOT / "tests/process/mdns_flood.py"), cluster,
         addresses, "10000", "2000", "8"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert flood.stdout is not None
    flood.stdout.readline()
    worst = [0.0]

    def watch() -> None:
        while flood.poll() is None:
            began = time.monotonic()
            alpha.get("/1/jobs")
            worst[0] = max(worst[0], time.monotonic() - began)
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        beta.start()
        ready = until(beta.is_ready)
        met = until(lambda: alpha.alive() == beta.alive() == BOTH)
    finally:
        flood.wait()
        watcher.join()
        flood.stdout.close()
    grown = (process.memory_info().rss - before) / (1 << 20)
    return max(0.0, met - ready), worst[0], grown, alpha.get("/1/status")["discovery"]["hints"]


def row(name: str, values: list[float], unit: str, goal: str, most: float | None) -> Row:
    """One row of the results; ``held`` compares the median."""
    median = statistics.median(values)
    return {
        "name": name, "value": round(median, 4), "unit": unit, "goal": goal,
        "held": most is None or median <= most, "runs": [round(one, 4) for one in values],
    }  # fmt: skip


def measure(runs: int = RUNS) -> list[Row]:
    """Every row; about a minute."""
    process, announced, moved = [], [], []
    with lan("alpha", "beta", "mallory") as machines, scratch() as folder:
        machines["alpha"].add("10.98.0.1/16")
        machines["beta"].add("10.98.0.2/16")
        machines["mallory"].add(*(f"10.98.1.{number}/16" for number in range(1, 201)))
        alpha = Site(folder, "alpha", machines["alpha"])
        beta = Site(folder, "beta", machines["beta"])
        with running(alpha, beta):
            make_founder(alpha)
            alpha.start().wait_ready()
            beta.cli("join", token_for(alpha, "beta"))
            beta.forget_the_tokens_addresses()
            for _ in range(runs):
                alpha.stop()
                for site in (alpha, beta):  # strangers, but for the cluster
                    forget_peers(site)
                alpha.start().wait_ready()
                whole, since = meet(alpha, beta)
                process.append(whole)
                announced.append(since)
                beta.wait_ready()
                beta.stop()
            beta.start().wait_ready()
            until(lambda: alpha.alive() == beta.alive() == BOTH)
            for number in range(runs):
                moved.append(move(alpha, beta, machines["beta"], 20 + number))
                time.sleep(1.0)
            floods = []
            for senders in (1, 200):
                beta.stop()
                until(lambda: alpha.alive() == {"alpha"})
                forget_peers(beta)
                floods.append(flooded(alpha, beta, machines["mallory"], senders))
    rows = [
        row("mDNS: first announcement to verified member at both", announced, "s", "<= 1.5", 1.5),
        row("mDNS: process start to verified member at both", process, "s", "", None),
        row("address change, seen and alive at the other", moved, "s", "<= 0.6", 0.6),
    ]
    for (met, stall, grown, hints), senders in zip(floods, (1, 200), strict=True):
        of = f"10,000 fake adverts of {senders} sender{'s' * (senders > 1)}"
        rows += [
            row(f"{of}: real peer found after ready", [met], "s", "<= 5", 5.0),
            row(f"{of}: candidates kept", [float(hints)], "", "<= 64", 64.0),
            row(f"{of}: longest answer of the admin socket", [stall], "s", "<= 0.05", 0.05),
            row(f"{of}: memory grown", [grown], "MiB", "<= 12", 12.0),
        ]
    return rows


def forget_peers(site: Site) -> None:
    """Leave it nothing but multicast to find others by."""
    import sqlite3

    database = sqlite3.connect(site.state_dir / "atoll.db")
    with database:
        database.execute("DELETE FROM peers")
    database.close()


if __name__ == "__main__":
    for one in measure():
        print(json.dumps(one))
