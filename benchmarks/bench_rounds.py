"""Election and rounds: how fast a register changes, and what becomes of rounds whose aggregator dies or stops.

Run: make bench-rounds      (or: python benchmarks/bench_rounds.py [--faults 200] [--cuts 50] [--only PART ...])
Writes benchmarks/results/rounds.json and renews the figures in docs/status.md. Cuts need root: a file system that is
shut down, and namespaces.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "process")]

from daemon_cluster import Daemon, submit_job, wait_for  # noqa: E402
from rounds_faults import Tally, five_sites, furthest, trouble, view  # noqa: E402
from rounds_power import cuts  # noqa: E402 - from the tests
from rows import Row, commit, line, row  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "rounds.json"
CHANGES = 120
CLIENT_KILLS = 12
IDLE_JOBS = 1000
TOGETHER = 10


def main() -> int:
    """Measure, write, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=50)
    parts: dict[str, Callable[[argparse.Namespace], list[Row]]] = {
        "register": _register, "faults": _faults, "client": _client, "minority": _minority,
        "together": _together, "idle": _idle, "power": _power,
    }  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=parts)
    asked = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    here = commit()
    for name in asked.only or parts:
        for one in parts[name](asked):
            print(line(one), flush=True)
            known = [old for old in known if _kind(old) != _kind(one)]
            known.append(one | {"commit": here})
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


def _kind(one: Row) -> str:
    """Its name without what is counted in it: a run replaces what the one before has counted."""
    return re.sub(r"\d{2,}", "", one["name"])


# --- the register --------------------------------------------------------------------------------
def _register(_: argparse.Namespace) -> list[Row]:
    """Every commit of a job of short rounds, as its aggregator counts it, disks synced."""
    rows = []
    with five_sites(samples=100) as sites:
        for size in (3, 5):
            living = sites[:size] if size == 3 else sites
            for site in sites[size:]:
                site.stop()
            job = submit_job(living[0], name=f"of-{size}", rounds=CHANGES, sites_min=2)
            wait_for(lambda j=job, s=living: furthest(s, j) >= CHANGES, 300, "all rounds", living)  # type: ignore[misc]
            views = [view(site, job) for site in living]
            assert len(views[0]["committee"]) == size, views[0]["committee"]
            took = max((one["changes_took_s"] for one in views), key=len)
            for site in sites[size:]:
                site.start().wait_ready()
            wait_for(lambda: all(len(s.alive()) == 5 for s in sites), 60, "all see all", sites)
            told = f"register change, committee of {size}, real daemons, disks synced"
            rows += [
                row(f"{told}, p50", [1000 * one for one in took], "ms", 15.0),
                row(f"{told}, p99", [1000 * one for one in took], "ms", None, of=_p99),
                row(f"round trips of a change, committee of {size}", [float(_trips(size))], "", 2.0),
            ]  # fmt: skip
    return [{**one, "runs": one["runs"][:20]} for one in rows]


def _trips(size: int) -> int:
    """Waves of questions that a lone proposer sends until its change is decided."""
    from agent.election.acceptor import Acceptor
    from agent.election.proposer import Ask, Proposer, Replied
    from agent.election.roster import pinned
    from agent.foundation.ids import JobId, SiteId

    sites = tuple(SiteId(bytes([number]) * 32) for number in range(size))
    job = JobId("bench-00000001")
    acceptors = {site: Acceptor(job) for site in sites}
    proposer = Proposer(
        job=job, committee=sites, me=sites[0], boot_epoch=1, rng=Random(1), now=0.0,
        change=lambda _: b"x", timeout_s=2.0, known=pinned(sites),
    )  # fmt: skip
    waves, asks = 0, [one for one in proposer.start() if isinstance(one, Ask)]
    while asks:
        waves += 1
        further = []
        for ask in asks:
            answer = acceptors[ask.site].step(ask.call, sites[0])
            acceptors[ask.site].saved(answer)
            further += proposer.step(Replied(ask.site, answer.reply), 0.0)
        asks = [one for one in further if isinstance(one, Ask)]
    return waves


# --- faults --------------------------------------------------------------------------------------
def _faults(asked: argparse.Namespace) -> list[Row]:
    tally = Tally()
    with five_sites() as sites:
        trouble(sites, Random(2026), asked.faults, tally)
    for text in tally.broken:
        print(f"BROKEN: {text}", flush=True)
    told = f"{tally.kills} aggregators killed, {tally.stops} stopped for up to 20 s, {tally.commits} rounds"
    lost = sum("lost" in one or "still offers" in one for one in tally.broken)
    twice = sum("times" in one or "twice" in one for one in tally.broken)
    stale = sum("epoch" in one for one in tally.broken)
    return [
        row("aggregator SIGKILL at a random moment to the next commit, p50", tally.to_commit_s, "s", 3.0),
        row("aggregator SIGKILL at a random moment to the next commit, max", tally.to_commit_s, "s", 3.0, of=max),
        row("aggregator SIGSTOP to the next commit, p50", tally.stopped_to_commit_s, "s"),
        row("aggregator SIGSTOP to the next commit, max", tally.stopped_to_commit_s, "s", of=max),
        row(f"{told}: updates lost", [float(lost)], "", 0.0),
        row(f"{told}: updates counted twice", [float(twice)], "", 0.0),
        row(f"{told}: stale commits", [float(stale)], "", 0.0),
        row(f"{told}: other rules broken", [float(len(tally.broken) - lost - twice - stale)], "", 0.0),
    ]  # fmt: skip


def _client(_: argparse.Namespace) -> list[Row]:
    """A participant is killed in mid-round; the round closes so long after the last living update."""
    chance, took = Random(7), []
    with five_sites() as sites:
        for _number in range(CLIENT_KILLS):
            job = submit_job(sites[0], name="client", rounds=4, epochs=6, sites_min=2)
            wait_for(lambda j=job: furthest(sites, j) >= 1, 60, "under way", sites)  # type: ignore[misc]
            aggregator = view(sites[0], job)["aggregator"]
            head = next(site for site in sites if site.name == aggregator)
            victim = chance.choice([site for site in sites if site is not head])
            time.sleep(chance.uniform(0.0, 0.3))
            victim.kill()
            at = _closed_after(head, [s for s in sites if s is not victim], job)
            if at is not None:
                took.append(at)
            victim.start().wait_ready()
            wait_for(
                lambda j=job: all(view(s, j)["state"] == "finished" for s in sites),
                120,
                "ended",
                sites,  # type: ignore[misc]
            )
    return [
        row("participant SIGKILL: last living update to the commit, p50", took, "s", 2.0),
        row("participant SIGKILL: last living update to the commit, max", took, "s", 2.0, of=max),
    ]


def _closed_after(head: Daemon, living: Sequence[Daemon], job: str) -> float | None:
    """Seconds from all living sites' updates being here to the commit; None: it was too quick to see."""
    names = {site.name for site in living}
    before, complete_at = int(view(head, job)["round"]), None
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        now = view(head, job)
        if now["round"] > before:
            return None if complete_at is None else time.monotonic() - complete_at
        here = {one["name"] for one in now["participants"] if one["state"] == "fetched"}
        if complete_at is None and names <= here:
            complete_at = time.monotonic()
    return 30.0


def _minority(_: argparse.Namespace) -> list[Row]:
    from rounds_cut import a_minority_is_cut_off

    commits, resumed = a_minority_is_cut_off()
    return [
        row("minority side of a cut: commits", [float(commits)], "", 0.0),
        row("minority side of a cut: goes on after the heal", resumed, "s", 5.0, of=max),
    ]


def _together(_: argparse.Namespace) -> list[Row]:
    from regions_cluster import killed_together

    took = killed_together(TOGETHER, Random(3))
    told = "aggregators of the whole job and of a region killed together, to the next commit"
    return [row(f"{told}, p50", took, "s", 10.0), row(f"{told}, max", took, "s", 10.0, of=max)]


def _idle(_: argparse.Namespace) -> list[Row]:
    """Finished jobs in the workshop of a site: what they ask for, and when they want to be woken."""
    from rounds_idle import idle_jobs

    effects, timers, step_us = idle_jobs(IDLE_JOBS)
    return [
        row(
            f"{IDLE_JOBS} finished jobs: calls and fetches they ask for", [float(effects)], "", 0.0
        ),
        row(f"{IDLE_JOBS} finished jobs: timers", [float(timers)], "", 0.0),
        row(
            f"{IDLE_JOBS} finished jobs: time that a change of the view takes them", [step_us], "us"
        ),
    ]


def _power(asked: argparse.Namespace) -> list[Row]:
    acknowledged, lost = cuts(asked.cuts, Random(11))
    told = f"power of an acceptor cut {asked.cuts} times under load, {acknowledged} answers acknowledged"
    return [row(f"{told}: promises and votes lost", [float(lost)], "", 0.0)]


def _p99(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=100)[98] if len(values) > 1 else values[0]


if __name__ == "__main__":
    raise SystemExit(main())
