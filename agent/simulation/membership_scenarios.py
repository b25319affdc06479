"""Whole stories in the membership world: a tour with figures, and chaos that must end in peace."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from agent.foundation.ids import SiteId
from agent.membership.events import LocalChanged
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.simulation.membership_chaos import TROUBLE_S, live
from agent.simulation.membership_world import MembershipWorld
from agent.simulation.network import Faults

LAN_DELAY_MIN_S, LAN_DELAY_MEAN_S = 0.0003, 0.0005
CONVERGED_WITHIN_S = 60.0


def lan_faults(loss: float = 0.0, duplicate: float = 0.0) -> Faults:
    """A switched network: a round trip takes about 1.6 ms."""
    return Faults(loss, duplicate, LAN_DELAY_MIN_S, LAN_DELAY_MEAN_S)


def fleet(
    sites: int,
    seed: int,
    *,
    settings: Settings | None = None,
    faults: Faults | None = None,
    measures_bytes: bool = False,
    machine: Callable[..., Swim] = Swim,
) -> tuple[MembershipWorld, list[SiteId]]:
    """``sites`` that have just started at once; all but the first join through the first."""
    world = MembershipWorld(
        seed=seed,
        settings=Settings.lan(sites) if settings is None else settings,
        faults=lan_faults() if faults is None else faults,
        measures_bytes=measures_bytes,
        machine=machine,
    )
    ids = [world.add(0)]
    ids += [world.add(index, seeds=ids[:1]) for index in range(1, sites)]
    return world, ids


def settled_fleet(
    sites: int, seed: int, *, settings: Settings | None = None, machine: Callable[..., Swim] = Swim
) -> tuple[MembershipWorld, list[SiteId]]:
    """A fleet in which all know all and the news of the start has died down."""
    world, ids = fleet(sites, seed, settings=settings, machine=machine)
    assert world.until_converged(CONVERGED_WITHIN_S) is not None, "a calm fleet converges"
    world.run(world.rng.uniform(4.0, 6.0))
    return world, ids


def chaos(  # noqa: C901 - one closure for each kind of trouble
    seed: int, *, sites: int = 12, seconds: float = 60.0
) -> float | None:
    """Random faults for ``seconds``, then calm: the time to agreement in calm, None if never.

    Hard rules are judged throughout (``Violation``); deaths declared during trouble are allowed.
    """
    world, ids = fleet(sites, seed)
    # Peer books are filled first: a site that nobody ever heard of cannot be found again.
    assert world.until_converged(CONVERGED_WITHIN_S) is not None, "a calm fleet converges"
    rng = world.rng
    world.network.faults.loss = rng.choice((0.0, 0.1, 0.3))
    world.network.faults.duplicate = rng.choice((0.0, 0.1))
    world.network.faults.delay_mean_s = rng.choice((0.0005, 0.02, 0.1))

    def kill() -> None:
        running = world.running()
        if len(running) > sites // 2:
            world.kill(rng.choice(running), host=rng.choice((True, False)))

    def restart() -> None:
        stopped = [site for site in ids if world.sites[site].swim is None]
        if stopped:
            world.start(rng.choice(stopped))

    def cut() -> None:
        some = rng.sample(ids, rng.randint(1, sites - 1))
        others = [site for site in ids if site not in some]
        world.network.cut(some, others)
        if rng.choice((True, False)):
            world.network.cut(others, some)

    def pause() -> None:
        world.pause(rng.choice(ids), rng.uniform(0.5, 8.0))

    def change() -> None:
        if running := world.running():
            world.change(rng.choice(running), LocalChanged(capacity=rng.uniform(1, 9)))

    def uplink() -> None:
        site = world.sites[rng.choice(ids)]
        site.has_dead_uplink = not site.has_dead_uplink

    actions = (kill, restart, cut, world.network.heal, pause, change, uplink)
    while world.now < seconds:
        rng.choice(actions)()
        world.run(rng.uniform(0.1, 4.0))
    world.network.heal()
    world.network.faults.loss = world.network.faults.duplicate = 0.0
    world.network.faults.delay_mean_s = LAN_DELAY_MEAN_S
    for site in world.sites.values():
        site.has_dead_uplink = False
    return world.until_converged(CONVERGED_WITHIN_S * 2, 0.5)


@dataclass(slots=True)
class Tour:
    """What the tour measured, in virtual seconds; None where it did not happen in time."""

    join_s: float | None = None
    bytes_per_s: float = 0.0
    death_first_s: float | None = None
    death_all_s: float | None = None
    restart_s: float | None = None
    heal_s: float | None = None
    false_deaths: int = 0

    @property
    def is_good(self) -> bool:
        """Whether everything happened and nobody was declared dead wrongly."""
        times = (self.join_s, self.death_all_s, self.restart_s, self.heal_s)
        return None not in times and self.false_deaths == 0


def tour(sites: int, seed: int, seconds: float) -> Tour:
    """Join; idle; a tenth vanishes and returns; half is cut off and healed. At least 60 s long."""
    assert sites >= 2, "membership needs somebody else"  # noqa: PLR2004
    world, ids = fleet(sites, seed, measures_bytes=True)
    idle_s = max(20.0, seconds - 60.0)
    result = Tour(join_s=world.until_converged(CONVERGED_WITHIN_S))
    world.run(10.0)
    before = sum(site.bytes_sent for site in world.sites.values())
    world.run(idle_s)
    sent = sum(site.bytes_sent for site in world.sites.values()) - before
    result.bytes_per_s = sent / idle_s / sites

    gone = ids[1 : 1 + max(1, sites // 10)]
    killed_at = world.now
    for site in gone:
        world.kill(site, host=True)
    if sites > 2:  # noqa: PLR2004 - the last one of two cannot tell who is gone
        world.until_converged(CONVERGED_WITHIN_S)
        times = [v.at - killed_at for v in world.checks.verdicts if not v.was_running]
        if len(times) >= len(gone) * (sites - len(gone)):
            result.death_first_s, result.death_all_s = median(times), max(times)
    else:
        result.death_all_s = 0.0
    for site in gone:
        world.start(site, seeds=ids[:1])
    result.restart_s = world.until_converged(CONVERGED_WITHIN_S)

    result.false_deaths = len(world.checks.false_deaths())
    half = ids[: sites // 2], ids[sites // 2 :]
    world.network.cut(*half)
    world.network.cut(*reversed(half))
    world.run(20.0)
    world.network.heal()
    result.heal_s = world.until_converged(CONVERGED_WITHIN_S)
    return result


def add_arguments(parser: ArgumentParser) -> None:
    """Options of ``python -m agent.simulation membership``."""
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from the first on")
    parser.add_argument("--seconds", type=float, default=TROUBLE_S, help="virtual time of trouble")
    parser.add_argument(
        "--tour",
        action="store_true",
        help="no chaos: join, idle, lose a tenth, cut in half; figures",
    )


def run(args: Namespace) -> int:
    """Tell what happened; 0 if every rule held (and, on the tour, every figure came in time)."""
    if args.tour:
        return _report(tour(args.sites, args.seed, args.seconds))
    bad = 0
    for seed in range(args.seed, args.seed + args.seeds):
        ending = live(seed, sites=args.sites, seconds=args.seconds)
        bad += bool(ending.broken)
        if args.seeds == 1:
            sys.stdout.write("\n".join(("virtual s  what happened", *ending.account)) + "\n\n")
        told = f"agreed after {ending.agreed_after_s:.1f} s" if not ending.broken else ending.broken
        sys.stdout.write(
            f"seed {seed}: {told}; ended at {ending.at:.3f} s; a site sent at most "
            f"{ending.packets_per_s} packets unasked and {ending.bytes_per_s} bytes in one second, "
            f"{ending.rumors_waiting} rumors waited at most; trace {ending.trace[:12]}\n"
        )
        if ending.broken:
            options = f"--seed {seed} --sites {args.sites} --seconds {args.seconds:g}"
            sys.stdout.write(f"  replay: python -m agent.simulation membership {options}\n")
    return 1 if bad else 0


def _report(result: Tour) -> int:
    lines = (
        ("all know all after", result.join_s, "s"),
        ("idle UDP, sent by each site", result.bytes_per_s, "B/s"),
        ("a tenth vanishes: median verdict after", result.death_first_s, "s"),
        ("a tenth vanishes: last verdict after", result.death_all_s, "s"),
        ("they restart: all agree after", result.restart_s, "s"),
        ("half is cut off 20 s: healed after", result.heal_s, "s"),
        ("deaths declared of running sites", float(result.false_deaths), ""),
    )
    for name, value, unit in lines:
        told = "never" if value is None else f"{value:.2f} {unit}".rstrip()
        sys.stdout.write(f"{name:<42}{told}\n")
    return 0 if result.is_good else 1
