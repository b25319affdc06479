"""What is done to the agents and what is measured; every figure in the unit that its name says."""

import asyncio
import contextlib
import random
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh_agents import Agent, Atoll, Serf, now
from mesh_world import AtollWorld, Cut, SerfWorld, World, flows, packet_loss

Figures = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything."""

    joins: int = 3
    idle_s: float = 20.0
    settle_s: float = 12.0
    rumors: int = 12
    kills: int = 9
    cuts: int = 2
    hold_s: float = 8.0
    stall_s: float = 60.0
    chance: random.Random = field(default_factory=lambda: random.Random(1))


def world_of(kind: type[Agent], sites: int, identities: Path, *, mdns: bool = False) -> World[Any]:
    """Fresh agents of a kind."""
    return AtollWorld(sites, identities, mdns=mdns) if kind is Atoll else SerfWorld(sites)


@contextlib.asynccontextmanager
async def running(world: World[Any]) -> Any:
    """Ends the processes and removes their state whatever happens."""
    try:
        yield world
    finally:
        await world.stop()
        world.clean()  # type: ignore[attr-defined]


async def join(kind: type[Agent], sites: int, identities: Path, plan: Plan) -> Figures:
    """All are told the same seed at once, by serf's own benchmark method."""
    found: Figures = {"join_s": [], "join_cpu_ms": []}
    for _ in range(plan.joins):
        async with running(world_of(kind, sites, identities)) as world:
            took_s, cpu_s = await world.joined()
            found["join_s"].append(took_s)
            found["join_cpu_ms"].append(cpu_s * 1000)
    return found


async def life(kind: type[Agent], sites: int, identities: Path, plan: Plan) -> Figures:
    """One cluster: idle, rumors without and with loss, SIGKILL and restart."""
    async with running(world_of(kind, sites, identities, mdns=True)) as world:
        if kind is Atoll:
            began = now()
            await world.start()
            await world.met()
            found: Figures = {"mdns_join_s": [now() - began]}
        else:
            await world.joined()
            found = {}
        began = now()
        await asyncio.sleep(plan.settle_s)
        found |= await idle(world, plan)
        found |= await rumors(world, plan, "rumor")
        with packet_loss(10):
            found |= await rumors(world, plan, "lossy_rumor")
        await asyncio.sleep(3.0)
        found["false_deaths"] = [float(world.false_deaths(began))]
        found |= await kills(world, plan)
        return found


async def idle(world: World[Any], plan: Plan) -> Figures:
    """CPU, packets and memory while nothing happens."""
    flow, cpu, began = flows(), world.cpu_s(), now()
    await asyncio.sleep(plan.idle_s)
    after, busy, took_s = flows(), world.cpu_s(), now() - began
    memory = [agent.memory_mib() for agent in world.agents]

    def rate(counter: str) -> list[float]:
        return [(after[counter][1] - flow[counter][1]) / took_s / world.sites]

    port = 7411 if isinstance(world.agents[0], Atoll) else 7946
    return {
        "idle_cpu_pct": [100 * (b - a) / took_s for a, b in zip(cpu, busy, strict=True)],
        "idle_udp_bytes_s": rate(f"udp{port}"),
        "idle_tcp_bytes_s": rate(f"tcp{port}"),
        "idle_mdns_bytes_s": rate("udp5353"),
        "pss_mib": [pss for _, pss in memory],
        "rss_mib": [rss for rss, _ in memory],
    }


async def rumors(world: World[Any], plan: Plan, name: str) -> Figures:
    """A statement of one member reaches all others."""
    if isinstance(world.agents[0], Atoll):
        for agent in world.agents:
            agent.watch()
        await asyncio.sleep(1.0)
    took, missed = [], 0
    for number in range(plan.rumors):
        source = plan.chance.choice(world.agents)
        others = [one for one in world.agents if one is not source]
        for one in others:
            one.rumors.clear()
        began = now()
        word = await source.tell(number if name == "rumor" else number + 1000)
        at = await world.until(lambda: all(word in one.rumors for one in others), 20)  # noqa: B023 - awaited here
        missed += sum(word not in one.rumors for one in others)
        if at is not None:
            took.append(at - began)
        await asyncio.sleep(0.3)
    return {f"{name}_s": took, f"{name}_missed": [float(missed)]}


async def kills(world: World[Any], plan: Plan) -> Figures:
    """SIGKILL of one process; the host lives. Then it is started again, at last elsewhere."""
    found: Figures = {
        "kill_all_s": [], "restart_s": [], "restart_up_s": [], "moved_s": [], "kill_false_deaths": [],
    }  # fmt: skip
    # Serf takes three times as long to notice, and refuses a new address: once is enough to see it.
    times = plan.kills if isinstance(world.agents[0], Atoll) else 2
    for number in range(times + 1):
        await asyncio.sleep(plan.chance.uniform(2, 4))
        victim = plan.chance.choice(world.agents[1:])
        rest = [one for one in world.agents if one is not victim]
        began = now()
        victim.signal(signal.SIGKILL)
        at = await world.until(lambda: not _who_holds(victim, rest), 60)  # noqa: B023 - awaited here
        if at is not None:
            found["kill_all_s"].append(at - began)
        await victim.gone()
        await asyncio.sleep(1.5)
        false = world.false_deaths(began, [victim.name])
        is_moving = number == times
        if is_moving:
            victim.ip = f"{victim.ip.rpartition('.')[0]}.{200 + victim.number}"  # 40 sites at most
        if isinstance(victim, Serf):
            victim.seed = world.agents[0].ip
        began = now()
        await victim.start()
        if not is_moving:
            up_at = await world.until(lambda: victim.is_up, 30)  # noqa: B023 - awaited here
            if up_at is not None:
                found["restart_up_s"].append(up_at - began)
        at = await world.until(world.is_full, 8 if is_moving else 20)
        if at is not None:
            found["moved_s" if is_moving else "restart_s"].append(at - began)
        found["kill_false_deaths"].append(float(false))
    return found


def _who_holds(victim: Agent, rest: list[Agent]) -> list[str]:
    return [one.name for one in rest if victim.name in one.alive]


async def cuts(kind: type[Agent], sites: int, identities: Path, plan: Plan) -> Figures:
    """One against all (a host vanishes), half against half; each healed; then a dead uplink."""
    found: Figures = {
        "vanish_all_s": [], "one_healed_s": [], "halves_healed_s": [], "uplink_isolated_s": [],
        "cut_false_deaths": [],
    }  # fmt: skip
    if kind is Atoll:
        await _cut_one(kind, sites, identities, plan, found)
    world = world_of(kind, sites, identities)
    with Cut(world, sites // 2) as wire:
        async with running(world):
            await world.cold_joined()
            await asyncio.sleep(5.0)
            for _ in range(plan.cuts if kind is Atoll else 1):
                wire.cut()
                settled = await world.until(lambda: all(
                    len(one.alive) == len(side) for side in (wire.left, wire.right) for one in side
                ), 90)  # fmt: skip
                await asyncio.sleep(plan.hold_s if settled is not None else 0.0)
                began = now()
                wire.heal()
                at = await world.until(world.is_full, 120)
                if at is not None and settled is not None:
                    found["halves_healed_s"].append(at - began)
                await asyncio.sleep(3.0)
    return found


async def _cut_one(
    kind: type[Agent], sites: int, identities: Path, plan: Plan, found: Figures
) -> None:
    world = world_of(kind, sites, identities)
    with Cut(world, sites - 1) as wire:
        async with running(world):
            await world.cold_joined()
            (victim,) = wire.right
            await asyncio.sleep(5.0)
            for _ in range(plan.kills):
                began = now()
                wire.cut()
                at = await world.until(
                    lambda: all(victim.name not in one.alive for one in wire.left), 60
                )
                if at is not None:
                    found["vanish_all_s"].append(at - began)
                await asyncio.sleep(plan.hold_s)
                false = sum(
                    name != victim.name for one in wire.left for _, name in one.downs(began)
                )
                began = now()
                wire.heal()
                if (at := await world.until(world.is_full, 60)) is not None:
                    found["one_healed_s"].append(at - began)
                found["cut_false_deaths"].append(float(false))
                await asyncio.sleep(plan.chance.uniform(2, 4))
            victim.isolated_at = None
            began = now()
            wire.fail_sends()
            await world.until(lambda: victim.isolated_at is not None, 30)
            if victim.isolated_at is not None:
                found["uplink_isolated_s"].append(victim.isolated_at - began)
            wire.heal()


async def stall(kind: type[Agent], sites: int, identities: Path, plan: Plan) -> Figures:
    """A quarter is frozen 4 s of every 5 s: who else gets declared dead?"""
    async with running(world_of(kind, sites, identities)) as world:
        await world.joined()
        await asyncio.sleep(5.0)
        frozen = world.agents[-max(1, sites // 4) :]
        names = [one.name for one in frozen]
        began = now()
        while now() - began < plan.stall_s:
            for one in frozen:
                one.signal(signal.SIGSTOP)
            await asyncio.sleep(4.0)
            for one in frozen:
                one.signal(signal.SIGCONT)
            await asyncio.sleep(1.0)
        await asyncio.sleep(5.0)
        lived = world.false_deaths(began, names)
        every = world.false_deaths(began)
        return {"stall_healthy_dead": [float(lived)], "stall_frozen_dead": [float(every - lived)]}


Scene = Callable[[type[Agent], int, Path, Plan], Coroutine[Any, Any, Figures]]
SCENES: dict[str, Scene] = {"join": join, "life": life, "cuts": cuts, "stall": stall}
