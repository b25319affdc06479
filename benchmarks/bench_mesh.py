"""The mesh beside HashiCorp serf: joining, failure detection, rumors, cuts, and what idling costs.

Run: make bench-mesh        (or: python benchmarks/bench_mesh.py [--sizes 10 20 40] [--short] [--quick] [--only NAME])
Needs root (network namespaces, nft) and the packages serf, nftables, iproute2, which it installs with
apt-get where they are missing. Writes benchmarks/results/mesh.json and renews docs/status.md.

Both agents run on the same machine in the same run, on loopback in a private network namespace. Atoll
is its real control process (keys, TLS, SQLite with fsync) without gateway and model worker, see
``mesh_site``. Cuts and vanishing hosts are in two namespaces joined by a veth.
"""

import argparse
import asyncio
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rows import Row, commit, line, row

if TYPE_CHECKING:
    from mesh_agents import Agent

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
RESULTS = ROOT / "benchmarks" / "results" / "mesh.json"
IN_NAMESPACE = "ATOLL_BENCH_MESH_NAMESPACE"
PACKAGES = {"serf": "serf", "nft": "nftables", "ip": "iproute2"}
CUT_SITES, STALL_SITES = 20, 20
ONLY = ("join", "life", "cuts", "stall", "more")

Found = dict[tuple[str, int], dict[str, list[float]]]
"""(agent, sites) -> figures."""


def main() -> int:
    """Measure, write, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument(
        "--quick", action="store_true", help="one run of everything; nothing is written"
    )
    parser.add_argument(
        "--only", choices=ONLY, action="append", help="repeat for several; nothing is written"
    )
    parser.add_argument("--short", action="store_true", help="fewer runs of each; written")
    parser.add_argument("--no-serf", action="store_true", help="nothing is written")
    asked = parser.parse_args()
    _require_tools()
    if os.environ.get(IN_NAMESPACE) != "1":
        os.environ[IN_NAMESPACE] = "1"
        more = _others(asked.only)
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(more, file)
            file.flush()
            return subprocess.run(
                ["unshare", "-n", sys.executable, *sys.argv],
                env={**os.environ, "ATOLL_BENCH_MESH_MORE": file.name}, check=False,
            ).returncode  # fmt: skip
    began = time.monotonic()
    found = asyncio.run(_measure(asked))
    more = json.loads(Path(os.environ["ATOLL_BENCH_MESH_MORE"]).read_text())
    here = commit()
    made = [*_rows(found, asked.sizes, _serf_version()), *more]
    rows = [one | {"commit": here} for one in made]
    for one in rows:
        print(line(one))
    print(f"took {time.monotonic() - began:.0f} s")
    if asked.quick or asked.only or asked.no_serf:
        return 0
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


# --- measuring -----------------------------------------------------------------------------------
async def _measure(asked: argparse.Namespace) -> Found:
    import mesh_scenarios as scene
    from mesh_agents import Atoll, Serf, make_identities
    from mesh_world import set_up_network

    set_up_network()
    plan = scene.Plan()
    if asked.quick:
        plan = replace(
            plan, joins=1, idle_s=8.0, settle_s=3.0, rumors=5, kills=1, cuts=1, stall_s=15.0
        )
    if asked.short:
        plan = replace(plan, joins=2, idle_s=12.0, settle_s=10.0, rumors=8, kills=2, cuts=1)
    found: Found = {}
    with tempfile.TemporaryDirectory(prefix="atoll-mesh-") as folder:
        identities = Path(folder) / "identities"
        identities.mkdir()
        make_identities(identities, max(*asked.sizes, CUT_SITES, STALL_SITES))

        for name, kind, sites in _programme(asked, [Atoll] if asked.no_serf else [Serf, Atoll]):
            began = time.monotonic()
            try:
                figures = await scene.SCENES[name](kind, sites, identities, plan)
            except RuntimeError as error:
                print(f"{name}, {kind.peer}, {sites} sites FAILED: {error}", flush=True)
                continue
            found.setdefault((kind.peer, sites), {}).update(figures)
            short = {key: [round(v, 3) for v in values[:8]] for key, values in figures.items()}
            took_s = time.monotonic() - began
            print(f"{name:<6} {kind.peer:<6}{sites:>3}  {took_s:5.1f} s  {short}", flush=True)
        if "stall" in (asked.only or ONLY):
            both = [Atoll] if asked.no_serf else [Serf, Atoll]
            # At the same time: each needs little of the machine, and what counts is whether it errs.
            stalls = [scene.stall(kind, STALL_SITES, identities, plan) for kind in both]
            for kind, figures in zip(both, await asyncio.gather(*stalls), strict=True):
                found.setdefault((kind.peer, STALL_SITES), {}).update(figures)
                print(f"stall  {kind.peer:<6} {figures}", flush=True)
    return found


def _programme(
    asked: argparse.Namespace, kinds: Sequence["type[Agent]"]
) -> Iterator[tuple[str, "type[Agent]", int]]:
    """(scene, kind, sites) in order: both kinds follow each other, so that noise meets both."""
    wanted = asked.only or ONLY
    for sites in asked.sizes:
        for name in ("join", "life"):
            if name in wanted:
                yield from ((name, kind, sites) for kind in kinds)
    if "cuts" in wanted:
        yield from (("cuts", kind, CUT_SITES) for kind in kinds)


def _others(only: Sequence[str] | None) -> list[Row]:
    """Rows whose measurement is a module of its own; outside of the private namespace."""
    if only is not None and "more" not in only:
        return []
    with ThreadPoolExecutor() as pool:  # the one mostly waits, the other computes
        both = [
            pool.submit(_other, "wan", "measure_coordinates", 1),
            pool.submit(_other, "simulate_mesh"),
        ]
        rows = [made for one in both for made in one.result()]
    for module in ("mdns_pair", "mesh_attack"):
        rows += _other(module)
    return rows


def _other(module: str, call: str = "measure", *arguments: int) -> list[Row]:
    """What ``module`` measures, in this file's form; a failure costs its rows only, and is told."""
    began = time.monotonic()
    try:
        made: list[Row] = getattr(importlib.import_module(module), call)(*arguments)
    except Exception:  # noqa: BLE001 - the other rows are still worth having
        print(f"benchmarks/{module}.py FAILED, its rows are missing", flush=True)
        traceback.print_exc()
        return []
    print(f"{module}  {time.monotonic() - began:.1f} s", flush=True)
    return [{"peer": "", "peer_value": None, **one, "goal": _number(one["goal"])} for one in made]


def _number(goal: float | str | None) -> float | None:
    """A goal that is written as text: ``<= 1.5``."""
    return (float(goal.strip("<>= ")) if goal else None) if isinstance(goal, str) else goal


# --- rows ----------------------------------------------------------------------------------------
def _row(
    name: str, values: Sequence[float] | None, unit: str, goal: float | None = None,
    peer: str = "", peer_values: Sequence[float] | None = None,
    of: Callable[[Sequence[float]], float] = statistics.median,
) -> Row:  # fmt: skip
    """``of`` makes one figure of all runs, the peer's as well."""
    peer_value = of(peer_values) if peer_values else None
    return row(name, values, unit, goal, peer=peer, peer_value=peer_value, of=of)


def _rows(found: Found, sizes: Sequence[int], serf: str) -> list[Row]:
    rows: list[Row] = []
    for sites in sizes:
        rows += _rows_at(found, sites, serf)
    ours, theirs = found.get(("atoll", CUT_SITES), {}), found.get(("serf", CUT_SITES), {})
    at = f"{CUT_SITES} sites"
    if "vanish_all_s" in ours:
        rows += [
            _row(f"host vanishes (black hole), all notice, p50, {at}", ours["vanish_all_s"], "s", 5.0,
                 f"{serf}, SIGKILL", theirs.get("kill_all_s")),
            _row(f"host vanishes (black hole), all notice, max, {at}", ours["vanish_all_s"], "s", 6.5,
                 f"{serf}, SIGKILL", theirs.get("kill_all_s"), max),
            _row(f"one against all, re-merged after heal, max, {at}", ours["one_healed_s"], "s", 10.0,
                 of=max),
            _row(f"half/half cut, re-merged after heal, {at}", ours["halves_healed_s"], "s", 1.5,
                 serf, theirs.get("halves_healed_s")),
            _row("dead uplink: says isolated after", ours["uplink_isolated_s"], "s", 5.0,
                 f"{serf}: never noticed", None),
            _row(f"wrong deaths during cuts, {at}", ours["cut_false_deaths"], "", 0.0, of=sum),
        ]  # fmt: skip
    if "stall_healthy_dead" in ours:
        rows.append(_row(
            f"a quarter frozen 4 s of every 5 s for 60 s: healthy members declared dead, {at}",
            ours["stall_healthy_dead"], "", 0.0, serf, theirs.get("stall_healthy_dead"),
        ))  # fmt: skip
    return rows


def _rows_at(found: Found, sites: int, serf: str) -> list[Row]:
    ours, theirs = found.get(("atoll", sites), {}), found.get(("serf", sites), {})
    at = f"{sites} sites"
    rows: list[Row] = []

    def add(name: str, key: str, unit: str, goal: float | None = None,
            of: Callable[[Sequence[float]], float] = statistics.median) -> None:  # fmt: skip
        if key in ours:
            rows.append(_row(f"{name}, {at}", ours[key], unit, goal, serf, theirs.get(key), of))

    add("simultaneous join, all see all, p50", "join_s", "s", {20: 0.30, 40: 0.80}.get(sites))
    if sites == 40:
        add("simultaneous join, all see all, max", "join_s", "s", 1.0, max)
    add("simultaneous join, CPU a site", "join_cpu_ms", "ms")
    add("started at once, met by mDNS alone, process start included", "mdns_join_s", "s")
    add("SIGKILL of a process, all notice, p50", "kill_all_s", "s", 2.0)
    add("SIGKILL of a process, all notice, max", "kill_all_s", "s", 3.0, max)
    add("restart to seen by all, process start included", "restart_s", "s", 0.6)
    add("restart until the site says it is ready", "restart_up_s", "s")
    add("restart with a new address, seen by all", "moved_s", "s", 0.6)
    add("a rumor reaches all, p50", "rumor_s", "s", {20: 0.30, 40: 0.45}.get(sites))
    add("a rumor reaches all, p50, 10 % loss", "lossy_rumor_s", "s")
    add("rumors missed, 10 % loss", "lossy_rumor_missed", "", 0.0, sum)
    add("idle CPU, mean, with mDNS", "idle_cpu_pct", "% of a core", 0.30, statistics.fmean)
    add("idle UDP (gossip)", "idle_udp_bytes_s", "B/s", 250.0)
    add("idle TCP (state sync)", "idle_tcp_bytes_s", "B/s")
    add("idle mDNS", "idle_mdns_bytes_s", "B/s")
    add("memory of the control process (PSS), mean", "pss_mib", "MiB", 45.0 if sites == 40 else None,
        statistics.fmean)  # fmt: skip
    add("memory of the control process (PSS), largest", "pss_mib", "MiB", None, max)
    add("memory of the control process (RSS), mean", "rss_mib", "MiB", None, statistics.fmean)
    add("wrong deaths, idle and rumors with loss", "false_deaths", "", 0.0, sum)
    add("wrong deaths, kills and restarts", "kill_false_deaths", "", 0.0, sum)
    return rows


# --- the machine ---------------------------------------------------------------------------------
def _require_tools() -> None:
    if os.geteuid() != 0:
        sys.exit(
            "bench-mesh needs root: it makes network namespaces. Run it with sudo, or in a virtual machine"
        )
    missing = [package for tool, package in PACKAGES.items() if shutil.which(tool) is None]
    if missing:
        done = subprocess.run(
            ["apt-get", "install", "-y", *missing], check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            sys.exit(
                f"bench-mesh needs {' '.join(missing)}, and apt-get cannot install them:\n"
                f"{done.stderr.strip()}\nInstall them by hand, or run with --no-serf if serf alone is missing"
            )


def _serf_version() -> str:
    done = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", "serf"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"serf {done.stdout.partition('~')[0].strip() or 'of unknown version'}"


if __name__ == "__main__":
    sys.exit(main())
