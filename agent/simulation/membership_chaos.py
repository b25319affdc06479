"""One life of a cluster with every kind of trouble at once, from one seed, and how it ended.

Trouble comes for a while (``seconds`` at most), then nothing new happens and all must agree. The rules of
``membership_rules`` are judged all the time, whatever happens.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from agent.foundation.ids import SiteId, short
from agent.identity.envelope import Sealer
from agent.membership.events import Introduced, LocalChanged
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.simulation.membership_attacker import Attacker
from agent.simulation.membership_checks import Violation
from agent.simulation.membership_rules import Broken
from agent.simulation.membership_sealed import LinkedSealer, RevokingNotary, SealedWorld
from agent.simulation.membership_world import Site
from agent.simulation.network import Faults

LAN = Faults(delay_min_s=0.0003, delay_mean_s=0.0005)
STALL_FORGIVEN_S = 4.0
"""The promise of the LAN preset (``Settings.suspicion_min_s``) in a network that loses nothing ..."""
STALL_FORGIVEN_DIRTY_S = 3.0
"""... and with loss, delay or a liar, who may accuse before anything has happened."""
CALM_DELAY_S = 0.02
AGREED_WITHIN_S = 30.0
QUIET_WITHIN_S = 5.0
"""For rumors to end when all agree; 1.5 s is the most that was seen."""
TROUBLE_S = 24.0
"""Two thousand seeds of ten sites then take about five minutes of one core."""
AUDIT_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What runs; tests put mutants here."""

    machine: Callable[..., Swim] = Swim
    sealer: Callable[..., Sealer] = LinkedSealer
    notary: Callable[[SealedWorld, Site], RevokingNotary] = RevokingNotary
    world: type[SealedWorld] = SealedWorld
    is_epoch_synced: bool = True


@dataclass(slots=True)
class Ending:
    """How one seed ended."""

    seed: int
    agreed_after_s: float | None = None
    broken: str = ""
    """The rule that was broken, with what happened; empty if none."""
    at: float = 0.0
    """Virtual time of the end."""
    trace: str = ""
    """Digest of every packet, start and step: equal if and only if the runs were."""
    account: list[str] = field(default_factory=list)
    packets_per_s: int = 0
    bytes_per_s: int = 0
    rumors_waiting: int = 0

    @property
    def rule(self) -> str:
        """Name of the broken rule."""
        return self.broken.partition(":")[0]


class Chaos:
    """The troublemaker: draws actions, tells the checks what it did, keeps the account."""

    def __init__(self, seed: int, *, sites: int, seconds: float, parts: Parts) -> None:
        """Build the world of a seed; ``live`` runs it."""
        self.ending = Ending(seed)
        self.sites, self.seconds = sites, seconds
        self.world = parts.world(
            seed=seed,
            settings=Settings.lan(sites),
            faults=Faults(delay_min_s=LAN.delay_min_s, delay_mean_s=LAN.delay_mean_s),
            machine=parts.machine,
            sealer=parts.sealer,
            notary=parts.notary,
            is_epoch_synced=parts.is_epoch_synced,
        )
        self.rng: Random = self.world.rng
        self.checks = self.world.checks
        self.ids: list[SiteId] = []
        self.names: dict[SiteId, str] = {}
        self.attacker = Attacker(self.world)
        self._next_host = 0
        self._verdicts_told = 0
        self._actions: tuple[tuple[int, Callable[[], None]], ...] = (
            (4, self._kill),
            (5, self._restart),
            (3, self._cut),
            (2, self._cut_pair),
            (4, self._heal),
            (5, self._pause),
            (2, self._suspend),
            (2, self._stutter),
            (5, self._change),
            (1, self._lose_uplink),
            (2, self._move),
            (1, self._swap),
            (1, self._wipe),
            (2, self._leave),
            (1, self._revoke),
            (3, self._replay),
            (4, self._lie),
        )

    # --- the run ---------------------------------------------------------------------------------
    def live(self) -> Ending:
        """Run the seed to its end or to the first broken rule."""
        ending = self.ending
        try:
            self._begin()
            weights = [weight for weight, _ in self._actions]
            trouble_s = self.rng.uniform(1 / 3, 1.0) * self.seconds
            while self.world.now < trouble_s:
                self.rng.choices(self._actions, weights)[0][1]()
                self._run(self.rng.uniform(0.1, 2.5))
            self._end()
        except Violation as violation:
            ending.broken = str(violation)
        ending.at = self.world.now
        ending.trace = self.checks.trace
        ending.packets_per_s = self.checks.packets_per_s
        ending.bytes_per_s = self.checks.bytes_per_s
        ending.rumors_waiting = self.checks.rumors_waiting
        self._tell_verdicts()
        if ending.broken:
            self._tell(f"BROKEN {self._named(ending.broken)}")
        return ending

    def _begin(self) -> None:
        world, rng = self.world, self.rng
        for _ in range(self.sites):
            self._install(self._new_host(), self.ids[:1])
        if world.until_converged(20.0) is None:
            raise Broken("convergence", "sites that start together never agree")
        faults = world.network.faults
        faults.loss = rng.choice((0.0, 0.0, 0.1, 0.2, 0.3))
        faults.duplicate = rng.choice((0.0, 0.1))
        faults.delay_mean_s = rng.choice((LAN.delay_mean_s, LAN.delay_mean_s, 0.02, 0.1))
        self.checks.is_calm = faults.loss == 0.0 and faults.delay_mean_s <= CALM_DELAY_S
        self._tell(
            f"{self.sites} sites agree; from now on {faults.loss:.0%} loss, "
            f"{faults.duplicate:.0%} twice, {faults.delay_mean_s * 1000:g} ms mean delay"
        )
        if rng.random() < 1 / 3:
            self.attacker.turn(rng.choice(self.ids))
            assert self.attacker.traitor is not None, "just turned"
            self._tell(f"{self.names[self.attacker.traitor]} is a traitor")

    def _end(self) -> None:
        faults = self.world.network.faults
        faults.loss = faults.duplicate = 0.0
        faults.delay_mean_s = LAN.delay_mean_s
        self.checks.is_calm = False
        self._heal()
        self._tell("trouble ends")
        start = self.world.now
        while not self.world.has_converged():
            if self.world.now - start > AGREED_WITHIN_S:
                raise Broken("convergence", f"no agreement {AGREED_WITHIN_S:g} s after all trouble")
            self._run(0.5)
        self.ending.agreed_after_s = self.world.now - start
        self._tell(f"all agree after {self.ending.agreed_after_s:.1f} s")
        agreed_at = self.world.now
        while any(self.world.swim(me).waiting_rumors for me in self._standing()):
            if self.world.now - agreed_at > QUIET_WITHIN_S:
                raise Broken("quiet", f"rumors still travel {QUIET_WITHIN_S:g} s after all agree")
            self._run(0.5)
        self._tell(f"the last rumor is told after {self.world.now - agreed_at:.1f} s")

    def _run(self, for_s: float) -> None:
        """Advance, and audit on the way."""
        end = self.world.now + for_s
        while self.world.now < end:
            self.world.run(min(AUDIT_EVERY_S, end - self.world.now))
            self._discover()
            self.attacker.listen()
            self._tell_verdicts()
            swims = {me: self.world.swim(me) for me in self._standing()}
            self.checks.audit(swims, self.world.now)

    def _discover(self) -> None:
        """A site that reaches nobody greets one of the seeds it was configured with, for ever.

        Nor does one reach anybody whose one acquaintance has left.
        """
        for me in self._free():
            swim = self.world.swim(me)
            if swim.is_isolated or all(one.state == "left" for one in swim.members().values()):
                self._greet(me)

    def _greet(self, me: SiteId) -> None:
        world = self.world
        for other in self.rng.sample(self.ids, len(self.ids)):
            if other in self._standing() and other != me and world.network.is_connected(me, other):
                world.sites[me].known.add(other)
                world.step(me, Introduced((world.swim(other).signed,)))
                return

    # --- the account -----------------------------------------------------------------------------
    def _tell(self, text: str) -> None:
        self.ending.account.append(f"{self.world.now:9.3f}  {text}")

    def _tell_verdicts(self) -> None:
        for verdict in self.checks.verdicts[self._verdicts_told :]:
            subject = self.names[verdict.subject]
            truth = (
                "who runs" if verdict.was_running else f"gone {verdict.subject_down_for_s:.1f} s"
            )
            self.ending.account.append(
                f"{verdict.at:9.3f}    {self.names[verdict.observer]} buries {subject}, {truth}"
            )
        self._verdicts_told = len(self.checks.verdicts)

    def _named(self, text: str) -> str:
        for site, name in self.names.items():
            text = text.replace(short(site), name)
        return text

    def _all(self, sites: list[SiteId]) -> str:
        return "{" + " ".join(self.names[site] for site in sites) + "}"

    # --- who can be chosen -----------------------------------------------------------------------
    def _standing(self) -> list[SiteId]:
        """Running sites whose key nobody has revoked."""
        out = self._revoked()
        return [site for site in self.world.running() if site not in out]

    def _revoked(self) -> set[SiteId]:
        return set().union(*self.world.revoked.values())

    def _free(self) -> list[SiteId]:
        """Standing sites that do not stand still."""
        return [s for s in self._standing() if not self.world.network.paused_until(s)]

    def _stopped(self) -> list[SiteId]:
        return [
            site
            for site in self.ids
            if self.world.sites[site].swim is None and site not in self._revoked()
            and self.world.hosts.get(self.world.sites[site].endpoint.host) == site
        ]  # fmt: skip

    def _may_lose_one(self) -> list[SiteId]:
        standing = self._standing()
        return standing if len(standing) > (self.sites + 1) // 2 + 1 else []

    # --- actions ---------------------------------------------------------------------------------
    def _new_host(self) -> str:
        self._next_host += 1
        return f"10.0.{self._next_host >> 8}.{self._next_host & 255}"

    def _install(self, host: str, seeds: list[SiteId]) -> None:
        index = len(self.ids)
        self.names[self.world.install(index, host, seeds)] = f"s{index}"
        self.ids = list(self.names)

    def _kill(self) -> None:
        if may := self._may_lose_one():
            site, host = self.rng.choice(may), self.rng.choice((True, False))
            self.world.kill(site, host=host)
            self._tell(f"{self.names[site]} {'loses power' if host else 'is killed'}")

    def _restart(self) -> None:
        if stopped := self._stopped():
            site = self.rng.choice(stopped)
            is_bookless = self.rng.random() < 0.2  # noqa: PLR2004 - one in five
            if is_bookless:
                self.world.forget_peers(site)
            if self.rng.random() < 0.2:  # noqa: PLR2004 - one in five
                self.world.move(site, self._new_host())
            self.world.network.pause(site, 0.0)
            self.world.start(site)
            if is_bookless:
                self._greet(site)
            self._tell(f"{self.names[site]} starts{', without its peer book' * is_bookless}")

    def _cut(self) -> None:
        some = self.rng.sample(self.ids, self.rng.randint(1, len(self.ids) // 2))
        others = [site for site in self.ids if site not in some]
        self.world.network.cut(some, others)
        if is_both := self.rng.choice((True, False)):
            self.world.network.cut(others, some)
        for site in self.ids:
            self.checks.cut(site)
        way = "and" if is_both else "to"
        self._tell(f"cut: {self._all(some)} {way} {self._all(others)}")

    def _cut_pair(self) -> None:
        one, other = self.rng.sample(self.ids, 2)
        self.world.network.cut([one], [other])
        if is_both := self.rng.choice((True, False)):
            self.world.network.cut([other], [one])
        for site in (one, other):
            self.checks.cut_from_one(site)
        self._tell(f"cut: {self.names[one]} {'and' if is_both else 'to'} {self.names[other]}")

    def _heal(self) -> None:
        self.world.network.heal()
        for site in self.world.sites.values():
            site.has_dead_uplink = False
        self.checks.healed(self.world.now)
        self._tell("every cut and uplink is mended")

    def _pause(self) -> None:
        if free := self._free():
            site, for_s = self.rng.choice(free), self.rng.choice((1.0, 2.9, 3.9, 5.0, 8.0))
            self.world.pause(site, for_s)
            self._stands_still(site, for_s)
            self._tell(f"{self.names[site]} is stopped for {for_s:g} s")

    def _suspend(self) -> None:
        if free := self._free():
            site, for_s = self.rng.choice(free), self.rng.choice((1, 2, 8))
            self.world.suspend(site, for_s)
            self._stands_still(site, for_s)
            self._tell(f"{self.names[site]} and its clock are stopped for {for_s} s")

    def _stutter(self) -> None:
        """A blocked event loop: it runs one second of every five."""
        if free := self._free():
            site, times = self.rng.choice(free), self.rng.randint(2, 4)
            for period in range(times):
                at = self.world.now + 5.0 * period
                self.world.network.call_at(at, lambda: self._stall(site))
            self._stands_still(site, 5.0 * times)
            self._tell(f"{self.names[site]} runs 1 s of every 5 s, {times} times")

    def _stall(self, site: SiteId) -> None:
        if self.world.sites[site].swim is not None and not self.world.network.paused_until(site):
            self.world.pause(site, 4.0)

    def _stands_still(self, site: SiteId, for_s: float) -> None:
        is_clean = self.checks.is_calm and self.attacker.traitor is None
        forgiven_s = STALL_FORGIVEN_S if is_clean else STALL_FORGIVEN_DIRTY_S
        until = self.world.now + for_s
        (self.checks.troubled if for_s > forgiven_s else self.checks.stirred)(site, until)

    def _change(self) -> None:
        if free := self._free():
            site = self.rng.choice(free)
            status = self.rng.choice(("alive", "draining", None))
            change = LocalChanged(status=status, capacity=self.rng.uniform(1, 9))  # type: ignore[arg-type]
            self.world.change(site, change)

    def _lose_uplink(self) -> None:
        if may := self._may_lose_one():
            site = self.rng.choice(may)
            self.world.sites[site].has_dead_uplink = True
            self.checks.lost_uplink(site, self.world.now)
            self._tell(f"{self.names[site]} loses its uplink")

    def _move(self) -> None:
        if free := self._free():
            site = self.rng.choice(free)
            self._moved(site, self._new_host())

    def _swap(self) -> None:
        if len(free := self._free()) > 1:
            one, other = self.rng.sample(free, 2)
            hosts = [self.world.sites[site].endpoint.host for site in (one, other)]
            self._moved(one, self._new_host())
            self._moved(other, hosts[0])
            self._moved(one, hosts[1])

    def _moved(self, site: SiteId, host: str) -> None:
        self.checks.troubled(site, self.world.now)
        self._tell(f"{self.names[site]} moves to {host}")
        self.world.move(site, host)

    def _wipe(self) -> None:
        """A stopped site loses its disk: it returns as somebody else, at the same address."""
        if (stopped := self._stopped()) and len(self.ids) < 2 * self.sites:
            site = self.rng.choice(stopped)
            host = self.world.sites[site].endpoint.host
            self._install(host, [])
            self._greet(self.ids[-1])
            self._tell(f"{self.names[site]} has lost its disk and returns as s{len(self.ids) - 1}")

    def _leave(self) -> None:
        may = [site for site in self._may_lose_one() if site in self._free()]
        if may:
            site = self.rng.choice(may)
            if self.rng.choice((True, False)):  # it told something a moment ago: two records travel
                self.world.change(site, LocalChanged(status="draining"))
            self.world.leave(site)
            self._tell(f"{self.names[site]} leaves")

    def _revoke(self) -> None:
        traitor = self.attacker.traitor
        victims = self._may_lose_one()
        victim = traitor if traitor in victims else (self.rng.choice(victims) if victims else None)
        knowing = [site for site in self._free() if site != victim]
        if victim is not None and knowing and len(self._revoked()) < self.sites // 4:
            at = self.rng.choice(knowing)
            self.world.revoke(victim, at)
            self._tell(f"the key of {self.names[victim]} is revoked at {self.names[at]}")

    def _replay(self) -> None:
        sent = self.attacker.replay(20) + self.attacker.mutate(10)
        self._tell(f"an attacker sends {sent} old and damaged packets")

    def _lie(self) -> None:
        if told := self.attacker.lie():
            self._tell(f"the traitor {self._named(told)}")


def live(
    seed: int, *, sites: int = 10, seconds: float = TROUBLE_S, parts: Parts | None = None
) -> Ending:
    """Run one seed: trouble for at most ``seconds`` of virtual time, then peace; see ``Ending``."""
    return Chaos(seed, sites=sites, seconds=seconds, parts=parts or Parts()).live()


def digest(endings: list[Ending]) -> str:
    """One digest for the traces of many seeds."""
    return hashlib.sha256("".join(ending.trace for ending in endings).encode()).hexdigest()
