"""A private network and a set of agents in it, with one observer.

The whole benchmark runs in a network namespace of its own: nothing of it reaches the machine's network.
``Cut`` puts two child namespaces into it, joined by a veth: there a host can vanish without a word (the
packets are dropped on arrival) or lose its uplink (sending fails).
"""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

from mesh_agents import MESH_PORT, SERF_PORT, Agent, Atoll, Serf, fresh_state, now

MDNS_PORT = 5353
Flow = tuple[int, int]
"""Packets and bytes (IP header included)."""


def sh(command: str) -> str:
    """Run a fixed shell line; its output."""
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done.stdout


def set_up_network() -> None:
    """Loopback up, and counters on everything that leaves."""
    sh("ip link set lo up")
    rules = "\n".join(
        f'meta l4proto {proto} {proto} {side} {port} counter name "{proto}{port}"'
        for proto, side, port in (
            ("udp", "dport", SERF_PORT), ("udp", "dport", MESH_PORT), ("udp", "dport", MDNS_PORT),
            ("tcp", "dport", SERF_PORT), ("tcp", "sport", SERF_PORT),
            ("tcp", "dport", MESH_PORT), ("tcp", "sport", MESH_PORT),
        )
    )  # fmt: skip
    counters = "".join(
        f"counter {proto}{port} {{ }}\n"
        for proto, port in (
            ("udp", SERF_PORT), ("udp", MESH_PORT), ("udp", MDNS_PORT), ("tcp", SERF_PORT),
            ("tcp", MESH_PORT),
        )
    )  # fmt: skip
    sh(
        f"nft -f - <<'X'\ntable ip b {{\n{counters}"
        f"chain out {{ type filter hook output priority 0;\n{rules}\n}}\n"
        "chain loss { type filter hook input priority 0; }\n}\nX"
    )


@contextlib.contextmanager
def packet_loss(percent: int) -> Any:
    """Drop this share of the gossip packets (UDP) on arrival."""
    for port in (SERF_PORT, MESH_PORT):
        sh(f"nft add rule ip b loss udp dport {port} numgen random mod 100 '<' {percent} drop")
    try:
        yield
    finally:
        sh("nft flush chain ip b loss")


def flows() -> dict[str, Flow]:
    """What has left so far, by counter."""
    listed = json.loads(sh("nft -j list counters table ip b"))["nftables"]
    found = (one["counter"] for one in listed if "counter" in one)
    return {one["name"]: (one["packets"], one["bytes"]) for one in found}


A = TypeVar("A", bound=Agent)


class World(Generic[A]):
    """Agents of one kind, and waiting for what they say."""

    def __init__(self, make: Callable[[int, Callable[[], None]], A], sites: int) -> None:
        """``make`` builds agent ``number``."""
        self._changed = asyncio.Event()
        self.agents = [make(number, self._changed.set) for number in range(sites)]
        self.sites = sites

    async def until(self, is_so: Callable[[], bool], limit_s: float) -> float | None:
        """When it first held, None if it did not in time."""
        end = now() + limit_s
        while not is_so():
            self._changed.clear()
            left_s = end - now()
            if left_s <= 0:
                return None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), min(left_s, 1.0))
        return now()

    def is_full(self) -> bool:
        """Everybody holds everybody to be alive."""
        return all(len(agent.alive) == self.sites for agent in self.agents)

    async def start(self) -> None:
        """Start all processes and wait until each is up."""
        await asyncio.gather(*(agent.start() for agent in self.agents))
        if await self.until(lambda: all(agent.is_up for agent in self.agents), 180) is None:
            silent = next(agent for agent in self.agents if not agent.is_up)
            raise RuntimeError(f"{silent.name} did not start:\n" + "\n".join(silent.tail[-20:]))

    async def stop(self) -> None:
        """End all processes."""
        await asyncio.gather(*(agent.gone() for agent in self.agents))

    def cpu_s(self) -> list[float]:
        """CPU time of each so far."""
        return [agent.cpu_s() for agent in self.agents]

    def false_deaths(self, since: float, dead: Sequence[str] = ()) -> int:
        """How often somebody declared a member dead that lived."""
        names = set(dead)
        return sum(name not in names for one in self.agents for _, name in one.downs(since))

    async def joined(self) -> tuple[float, float]:
        """All run alone, then all but one are told the same seed at once.

        Returns:
            Seconds until all see all, and CPU seconds a site.

        Raises:
            RuntimeError: they did not within two minutes.
        """
        await self.start()
        await asyncio.sleep(1.0)
        before = sum(self.cpu_s())
        began = now()
        await asyncio.gather(*(one.join(self.agents[0].ip) for one in self.agents[1:]))
        at = await self.until(self.is_full, 120)
        if at is None:
            raise RuntimeError(self._who_lacks())
        return at - began, (sum(self.cpu_s()) - before) / self.sites

    async def cold_joined(self) -> None:
        """Start all; those in other namespaces cannot be told over RPC, so serf gets its seed before."""
        seed = self.agents[0].ip
        for one in self.agents[1:]:
            if isinstance(one, Serf):
                one.seed = seed
        await self.start()
        for one in self.agents[1:]:
            if isinstance(one, Atoll):
                await one.join(seed)
        await self.met()

    async def met(self, limit_s: float = 180.0) -> None:
        """Wait until all see all.

        Raises:
            RuntimeError: they did not in time.
        """
        if await self.until(self.is_full, limit_s) is None:
            raise RuntimeError(self._who_lacks())

    def _who_lacks(self) -> str:
        lacking = {one.name: self.sites - len(one.alive) for one in self.agents}
        lacking = {name: number for name, number in lacking.items() if number}
        worst = max(self.agents, key=lambda one: self.sites - len(one.alive))
        return f"{self.agents[0].peer}: members not seen: {lacking}\n" + "\n".join(worst.tail[-30:])


class SerfWorld(World[Serf]):
    """Serf agents on 127.0.1.x."""

    def __init__(self, sites: int) -> None:
        super().__init__(lambda n, changed: Serf(n, f"127.0.1.{n + 1}", changed), sites)

    def clean(self) -> None:
        """Serf keeps nothing here."""


class AtollWorld(World[Atoll]):
    """Atoll sites on 127.0.2.x, with fresh state folders."""

    def __init__(self, sites: int, identities: Path, *, mdns: bool = False) -> None:
        self._folder = Path(f"{identities}-run{os.getpid()}-{id(self)}")
        self._folder.mkdir()

        def make(number: int, changed: Callable[[], None]) -> Atoll:
            state = fresh_state(identities, self._folder, number)
            return Atoll(number, f"127.0.2.{number + 1}", changed, state, sites, mdns=mdns)

        super().__init__(make, sites)

    def clean(self) -> None:
        """Remove the state folders."""
        shutil.rmtree(self._folder, ignore_errors=True)


class Cut:
    """Two child namespaces; the first ``left`` agents live in one, the rest in the other."""

    def __init__(self, world: World[Any], left: int) -> None:
        self.left, self.right = world.agents[:left], world.agents[left:]
        self._names = [f"atollbench{os.getpid()}{side}" for side in "LR"]

    def __enter__(self) -> Self:
        first, second = self._names
        for name in self._names:
            sh(f"ip netns add {name} && ip -n {name} link set lo up")
        sh(f"ip link add v0 netns {first} type veth peer name v0 netns {second}")
        for side, name in enumerate(self._names):
            sh(f"ip -n {name} link set v0 up")
            for agent in (self.left, self.right)[side]:
                agent.ip, agent.within = f"10.77.{side}.{agent.number + 1}", (
                    "ip", "netns", "exec", name,
                )  # fmt: skip
                sh(f"ip -n {name} addr add {agent.ip}/16 dev v0")
            sh(
                f"ip netns exec {name} nft 'add table ip c; "
                "add chain ip c in { type filter hook input priority 0; }; "
                "add chain ip c out { type filter hook output priority 0; }'"
            )
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def cut(self) -> None:
        """Drop, on arrival, whatever comes over the wire: both sides meet a black hole."""
        for name in self._names:
            sh(f"ip netns exec {name} nft add rule ip c in iifname v0 drop")

    def fail_sends(self) -> None:
        """On the right side, sending over the wire fails (a dead uplink)."""
        sh(f"ip netns exec {self._names[1]} nft add rule ip c out oifname v0 reject")

    def heal(self) -> None:
        """Undo both."""
        for name in self._names:
            sh(f"ip netns exec {name} nft flush chain ip c in")
            sh(f"ip netns exec {name} nft flush chain ip c out")
