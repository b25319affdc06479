"""The catalog at twenty real sites: how soon a change is everywhere, a return after long, a lost replica.

Run: make bench-catalog     (or: python benchmarks/bench_catalog.py [--sites 20] [--quick])
Needs root (a network namespace) and nftables. Writes benchmarks/results/catalog.json and renews
docs/status.md.

The twenty sites are those of ``bench_mesh``: real control processes (keys, TLS, SQLite with fsync) without
gateway and model worker, on loopback in a network namespace of their own. The replicas are at four whole
sites (``tests/process/daemon_cluster.py``). All on this machine's cores at once.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rows import Row, commit, line, row

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process")]
RESULTS = ROOT / "benchmarks" / "results" / "catalog.json"
IN_NAMESPACE = "ATOLL_BENCH_CATALOG_NAMESPACE"
AWAY_DOCUMENTS = 5000
AWAY_SITES = 3
PER_REQUEST = 64
LIMIT_S = 120.0

if TYPE_CHECKING:
    from mesh_agents import Atoll
    from mesh_world import AtollWorld

    from agent.wire.documents import Body


def main() -> int:
    """Measure, write, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="little of all; nothing is written")
    asked = parser.parse_args()
    if os.environ.get(IN_NAMESPACE) != "1":
        os.environ[IN_NAMESPACE] = "1"
        return subprocess.run(
            ["unshare", "-n", sys.executable, *sys.argv], env=os.environ, check=False
        ).returncode
    found = asyncio.run(_mesh(asked.sites, is_quick=asked.quick))
    found += _replicas(1 if asked.quick else 3)
    here = commit()
    rows = [one | {"commit": here} for one in found]
    for one in rows:
        print(line(one))
    if not asked.quick:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


# --- twenty sites ----------------------------------------------------------------------------------
async def _mesh(sites: int, *, is_quick: bool) -> list[Row]:
    from mesh_agents import make_identities
    from mesh_scenarios import running
    from mesh_world import AtollWorld, set_up_network

    set_up_network()
    with tempfile.TemporaryDirectory(prefix="atoll-catalog-") as folder:
        identities = Path(folder) / "identities"
        identities.mkdir()
        make_identities(identities, sites)
        async with running(AtollWorld(sites, identities)) as world:
            await world.joined()
            for agent in world.agents:
                agent.watch()
            await asyncio.sleep(2.0)
            changed = [await _change(world, number) for number in range(3 if is_quick else 12)]
        # Whoever returns syncs with a few; more sites on two cores would measure the cores.
        count = 500 if is_quick else AWAY_DOCUMENTS
        async with running(AtollWorld(AWAY_SITES, identities)) as world:
            await world.joined()
            for agent in world.agents:
                agent.watch()
            spread_s, up_s, return_s = await _away(world, count)
    return [
        row(f"one change, signed until at all of {sites} sites", changed, "s", 2.0),
        row(f"one change, slowest of {len(changed)}", changed, "s", 2.0, of=max),
        row(
            f"{count} documents signed at one of {AWAY_SITES} sites until at another",
            [spread_s],
            "s",
        ),
        row(f"back after {count} changes: ready until up to date", [return_s], "s", 5.0),
        row(f"back after {count} changes: process start until up to date", [up_s], "s"),
    ]


async def _submit(agent: "Atoll", bodies: "Sequence[Body]") -> None:
    from agent.cli.client import AdminClient
    from agent.cli.signing import submit_bodies
    from agent.drivers.keystore import load_admin

    client = AdminClient(agent.folder / "run" / "agent.sock")
    signer = load_admin(agent.folder / "identity" / "admin.key")
    for first in range(0, len(bodies), PER_REQUEST):
        await asyncio.to_thread(submit_bodies, client, signer, bodies[first : first + PER_REQUEST])


async def _equal(world: "AtollWorld", agents: "Sequence[Atoll]", was: str) -> float:
    """When all of ``agents`` had the first one's catalog, and that was not ``was``."""
    at = await world.until(
        lambda: agents[0].catalog != was and len({one.catalog for one in agents}) == 1, LIMIT_S
    )
    if at is None:
        raise RuntimeError(f"not equal after {LIMIT_S} s: {[one.catalog for one in agents]}")
    return at


async def _change(world: "AtollWorld", number: int) -> float:
    """One deployment says something else, at a random moment of the gossip's period."""
    from agent.wire.documents import Deployment

    await asyncio.sleep(0.7 + 0.13 * number)
    was, began = world.agents[0].catalog, time.monotonic()
    await _submit(world.agents[0], [Deployment("m", f"{number}", ("elsewhere",))])
    return await _equal(world, world.agents, was) - began


async def _away(world: "AtollWorld", count: int) -> tuple[float, float, float]:
    """One site is killed, ``count`` documents change, it comes back.

    Returns:
        Seconds: the changes spread over the others; start to equal; ready to equal.
    """
    from agent.wire.documents import Deployment

    *rest, victim = world.agents
    bodies = [Deployment(f"d{number}", "1", ("elsewhere",)) for number in range(count)]
    victim.signal(signal.SIGKILL)
    await victim.gone()
    victim.catalog = ""
    began = time.monotonic()
    await _submit(rest[0], bodies)
    spread_s = await _equal(world, rest, "") - began
    await asyncio.sleep(5.0)  # dead to all, and nothing under way
    began = time.monotonic()
    await victim.start()
    if (ready_at := await world.until(lambda: victim.is_up, LIMIT_S)) is None:
        raise RuntimeError("the site did not start again:\n" + "\n".join(victim.tail[-20:]))
    victim.watch()
    at = await _equal(world, [rest[0], victim], "")
    return spread_s, at - began, max(0.0, at - ready_at)


# --- replicas --------------------------------------------------------------------------------------
def _replicas(times: int) -> list[Row]:
    """A holder of one of two replicas is killed: another serves it."""
    from daemon_cluster import Daemon, admit, found, running, scratch, wait_for
    from serving_site import MAGIKA

    def holders(sites: list[Daemon], model: str) -> set[str]:
        return {
            site.name
            for site in sites
            for one in site.get("/1/status")["models"]
            if (one["name"], one["state"]) == (model, "ready")
        }

    def is_dead(site: Daemon, name: str) -> bool:
        rows = site.get("/1/members")["members"]
        return any((one["name"], one["status"]) == (name, "dead") for one in rows)

    after_kill, after_death = [], []
    with scratch() as folder:
        berlin = found(folder, "berlin")
        with running(berlin):
            berlin.start().wait_ready()
            others = [admit(berlin, name) for name in ("munich", "hamburg", "bremen")]
            with running(*others):
                everybody = [berlin, *others]
                for site in others:
                    site.start()
                for number in range(times):
                    wait_for(lambda: all(len(s.alive()) == 4 for s in everybody), 40, "met")
                    name = f"m{number}"
                    berlin.cli(
                        "model", "push", str(MAGIKA), "--name", name, "--version", "1",
                        "--replicas", "2", "--no-wait",
                    )  # fmt: skip
                    wait_for(lambda: len(holders(everybody, name)) == 2, 30, "two serve")  # noqa: B023 - called here
                    held = holders(everybody, name) - {"berlin"}
                    lost = next(site for site in others if site.name in held)
                    left = [site for site in everybody if site is not lost]
                    lost.kill()
                    began = time.monotonic()
                    wait_for(lambda: is_dead(berlin, lost.name), 30, "dead")  # noqa: B023 - as above
                    dead_at = time.monotonic()
                    wait_for(lambda: len(holders(left, name)) == 2, 60, "two again")  # noqa: B023 - as above
                    after_kill.append(time.monotonic() - began)
                    after_death.append(time.monotonic() - dead_at)
                    lost.start().wait_ready()
    return [
        row("a replica's holder killed: dead to the others until another serves", after_death, "s", 10.0),
        row("a replica's holder killed: until another serves", after_kill, "s"),
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
