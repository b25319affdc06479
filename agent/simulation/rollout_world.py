"""A new version in waves at twenty sites that restart, lose messages, and are cut off from each other.

Each site runs the real ``Part`` of ``catalog/rollout.py``. Around it, as the daemon and membership have it:
records spread by gossip, newest wins; a site that is not heard of is a suspect, then away; what a part
decides is told at once and durable a little later; a crash loses what was not durable, and all counters.
What the version is like (``Scenario.version``) and what happens to sites and network follows from the seed.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Literal

from agent.catalog.gates import BOUNDS_S, Counts
from agent.catalog.rollout import (
    GONE_BACK,
    GONE_ON,
    Here,
    Part,
    Peer,
    Standing,
    restored,
    waves,
)
from agent.foundation.ids import SiteId
from agent.simulation.network import Faults, Network
from agent.wire.documents import Rollout
from agent.wire.records import Stage, Trial

ID, VERSION = b"rollout8", "m:2"
TICK_S = 0.5
"""How often a site looks, counts and gossips."""
SUSPECT_AFTER_S, AWAY_AFTER_S = 3.0, 6.0
LOAD_S, COMMIT_S = 0.7, 0.01
REQUESTS_A_TICK = 15
FANOUT = 3

Version = Literal["good", "refused", "failing", "slow", "odd"]
"""``odd``: good but at one site of the second wave, where it fails."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """How many, how long, how bad."""

    version: Version = "good"
    sites: int = 20
    terms: Rollout = Rollout("1", 1, (5.0, 40.0), observe_s=10.0, p99_ms_max=50.0)  # noqa: RUF009 - immutable
    trouble_s: float = 60.0
    """Virtual time of faults; calm follows."""
    patience_s: float = 120.0
    """All must be settled so long after the trouble."""
    loss: float = 0.2
    duplicate: float = 0.1
    crash_every_s: float = 6.0
    """On average, somewhere; 0: never."""
    cut_every_s: float = 15.0


def calm(version: Version) -> Scenario:
    """Without any trouble."""
    return Scenario(
        version, trouble_s=0.0, loss=0.0, duplicate=0.0, crash_every_s=0.0, cut_every_s=0.0
    )


@dataclass(slots=True)
class Told:
    """What is known of a site: its number of news, what it told, and when that was new here."""

    sequence: int
    trial: Trial | None
    heard_at: float


@dataclass(slots=True)
class SimulatedSite:
    """One site: what survives a crash (``disk``), and what does not."""

    id: SiteId
    part: Part
    disk: Standing = Standing()  # noqa: RUF009 - immutable
    is_up: bool = True
    boots: int = 0
    sequence: int = 0
    known: dict[SiteId, Told] = field(default_factory=dict)
    loading_since: float | None = None
    counts: Counts = Counts()  # noqa: RUF009 - immutable


class World:
    """The sites, their network, and what was seen of them."""

    def __init__(self, seed: int, scenario: Scenario, part: type[Part] = Part) -> None:
        """``part``: the machine under test, or a mutant of it."""
        self.scenario, self._part, self.rng = scenario, part, Random(seed)  # noqa: S311 - reproducible
        faults = Faults(loss=scenario.loss, duplicate=scenario.duplicate)
        self.network: Network[SiteId] = Network(self.rng, self._deliver, faults)
        ids = [SiteId(sha256(bytes([n])).digest()) for n in range(scenario.sites)]
        self.waves = waves(scenario.terms, VERSION, ids)
        self.wave_of = {s: number for number, wave in enumerate(self.waves) for s in wave}
        self.odd = self.waves[1][0] if len(self.waves) > 1 else None
        self.sites = {one: SimulatedSite(one, part(one, ID, VERSION)) for one in ids}
        for site in self.sites.values():
            site.known = {one: Told(0, None, 0.0) for one in ids if one != site.id}
        self.broken: list[str] = []
        """Rules that did not hold, in words."""
        self.began_at: dict[SiteId, float] = {}
        self.exposed: set[SiteId] = set()
        """Sites that have answered by the new version."""
        self.passed: set[SiteId] = set()
        self._back: set[SiteId] = set()
        """Sites that went back, durably."""
        self.failed_at: float | None = None
        self.back_at = 0.0
        """When a site last went back, or ceased to serve the new version."""

    # --- running ---------------------------------------------------------------------------------
    def run(self) -> "World":
        """Trouble, then calm, then judgement."""
        network, scenario, rng = self.network, self.scenario, self.rng
        for one in self.sites:
            network.call_at(rng.random() * TICK_S, self._tick, one, 0)
        if scenario.crash_every_s:
            network.call_at(rng.expovariate(1 / scenario.crash_every_s), self._crash)
        if scenario.cut_every_s:
            network.call_at(rng.expovariate(1 / scenario.cut_every_s), self._cut)
        network.run_until(scenario.trouble_s)
        network.heal()
        network.faults = Faults()
        for site in self.sites.values():
            if not site.is_up:
                self._start(site.id)
        network.run_until(scenario.trouble_s + scenario.patience_s)
        self._judge()
        return self

    def stages(self) -> dict[SiteId, Stage]:
        """How far each site is."""
        return {one: site.part.standing.stage for one, site in self.sites.items()}

    def _tick(self, one: SiteId, boot: int) -> None:
        site, now = self.sites[one], self.network.now
        if not site.is_up or site.boots != boot:
            return
        self._serve(site)
        before = site.part.standing
        while site.part.step(self.scenario.terms, self._peers(site), self._here(site), now):
            self._moved(site, before)
            before = site.part.standing
        site.sequence += 1
        trial = None if before.stage is Stage.WAITING else site.part.trial
        news = {other: (told.sequence, told.trial) for other, told in site.known.items()}
        news[one] = (site.sequence, trial)
        for other in self.rng.sample(sorted(site.known), min(FANOUT, len(site.known))):
            self.network.post(one, other, news)
        self.network.call_at(now + TICK_S, self._tick, one, boot)

    def _deliver(self, _: SiteId, target: SiteId, payload: object) -> None:
        site = self.sites[target]
        assert isinstance(payload, dict)
        if not site.is_up:
            return
        for other, (sequence, trial) in payload.items():
            known = site.known.get(other)
            if known is not None and sequence > known.sequence:
                site.known[other] = Told(sequence, trial, self.network.now)

    def _moved(self, site: SimulatedSite, before: Standing) -> None:
        standing, now = site.part.standing, self.network.now
        self._check(site, before)
        if standing.stage in GONE_BACK:
            self.back_at = now
            if self.failed_at is None:
                self.failed_at = now
        if standing.stage in GONE_ON:
            self.passed.add(site.id)
        if standing.stage is Stage.TRYING:
            self.began_at.setdefault(site.id, now)
        boot = site.boots

        def commit() -> None:
            if site.is_up and site.boots == boot:
                site.disk = standing
                if standing.stage in GONE_BACK:
                    self._back.add(site.id)

        self.network.call_at(now + COMMIT_S, commit)

    def _serve(self, site: SimulatedSite) -> None:
        """Load what is wanted, and answer by it once it is there."""
        if not site.part.serves_new:
            site.loading_since = None
            return
        if site.loading_since is None:
            site.loading_since = self.network.now
        if self._here(site).state != "ready":
            return
        self.exposed.add(site.id)
        times = [0] * (len(BOUNDS_S) + 1)
        version, errors = self._version_at(site), 0
        times[-1 if version == "slow" else 5] = REQUESTS_A_TICK
        if version == "failing":
            errors = sum(self.rng.random() < 0.3 for _ in range(REQUESTS_A_TICK))  # noqa: PLR2004 - a third
        site.counts = site.counts.plus(Counts(REQUESTS_A_TICK, errors, tuple(times)))

    def _version_at(self, site: SimulatedSite) -> Version:
        version = self.scenario.version
        if version == "odd":
            return "failing" if site.id == self.odd else "good"
        return version

    def _here(self, site: SimulatedSite) -> Here:
        if site.loading_since is None:
            return Here("absent", tried=site.counts)
        if self.network.now < site.loading_since + LOAD_S:
            return Here("loading", tried=site.counts)
        if self.scenario.version == "refused":
            return Here("refused", "it is broken")
        return Here("ready", tried=site.counts)

    def _peers(self, site: SimulatedSite) -> dict[SiteId, Peer]:
        found = {}
        for one, told in site.known.items():
            silence_s = self.network.now - told.heard_at
            presence: Literal["alive", "suspect", "away"] = "alive"
            if silence_s > SUSPECT_AFTER_S:
                presence = "suspect" if silence_s < AWAY_AFTER_S else "away"
            found[one] = Peer(one, one.hex()[:4], presence, told.trial)
        return found

    # --- trouble ---------------------------------------------------------------------------------
    def _crash(self) -> None:
        scenario, now = self.scenario, self.network.now
        if now > scenario.trouble_s:
            return
        site = self.rng.choice(sorted(self.sites.values(), key=lambda one: one.id))
        if site.is_up:
            site.is_up = False
            self.network.call_at(now + self.rng.uniform(0.1, 15.0), self._start, site.id)
        self.network.call_at(now + self.rng.expovariate(1 / scenario.crash_every_s), self._crash)

    def _start(self, one: SiteId) -> None:
        site, now = self.sites[one], self.network.now
        if site.is_up:
            return
        site.is_up, site.boots = True, site.boots + 1
        site.part = self._part(one, ID, VERSION, restored(ID, {ID: site.disk}))
        site.known = {other: Told(0, None, now) for other in site.known}
        site.loading_since, site.counts = None, Counts()
        site.sequence += 1_000  # its boot epoch
        self._tick(one, site.boots)

    def _cut(self) -> None:
        scenario, now = self.scenario, self.network.now
        if now > scenario.trouble_s:
            return
        some = self.rng.sample(sorted(self.sites), self.rng.randint(1, len(self.sites) // 2))
        rest = [one for one in self.sites if one not in some]
        self.network.cut(some, rest)
        if self.rng.random() < 0.7:  # noqa: PLR2004 - the others are one-way
            self.network.cut(rest, some)
        self.network.call_at(now + self.rng.uniform(1.0, 20.0), self.network.heal)
        self.network.call_at(now + self.rng.expovariate(1 / scenario.cut_every_s), self._cut)

    # --- rules -----------------------------------------------------------------------------------
    def _check(self, site: SimulatedSite, before: Standing) -> None:
        """Rules that hold at every change."""
        stage, wave = site.part.standing.stage, self.wave_of[site.id]
        name = f"site {site.id.hex()[:4]} of wave {wave + 1}"
        if before.stage in GONE_BACK or (site.id in self._back and stage not in GONE_BACK):
            self.broken.append(f"{name} had gone back and is {stage.name}")
        if stage is Stage.TRYING and wave and not self.passed.intersection(self.waves[wave - 1]):
            self.broken.append(f"{name} began and nobody of the wave before had passed")
        if stage is Stage.TRYING and self.scenario.version not in ("good", "odd") and wave:
            self.broken.append(f"{name} began a version that is {self.scenario.version}")

    def _judge(self) -> None:
        """Rules that hold in the end."""
        stages = self.stages()
        counted: Mapping[Stage, int] = {
            stage: sum(one is stage for one in stages.values()) for stage in Stage
        }
        serving = sum(site.part.serves_new for site in self.sites.values())
        told = ", ".join(f"{number} {stage.name}" for stage, number in counted.items() if number)
        if self.scenario.version == "good":
            if counted[Stage.ENDED] != len(self.sites):
                self.broken.append(f"a good version has not reached all: {told}")
        elif self.scenario.version == "odd":
            is_alone = counted[Stage.ALONE] == 1 and counted[Stage.ENDED] == len(self.sites) - 1
            if serving and not is_alone:
                self.broken.append(f"a version that failed at one site is still served: {told}")
        elif serving or counted[Stage.FAILED] < 1:
            self.broken.append(f"a {self.scenario.version} version is still served: {told}")


def add_arguments(parser: ArgumentParser) -> None:
    """``python -m agent.simulation rollout``."""
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=1, help="so many, from --seed on")
    parser.add_argument(
        "--version", choices=("good", "refused", "failing", "slow", "odd"), default="good"
    )
    parser.add_argument("--calm", action="store_true", help="no faults")


def run(args: Namespace) -> int:
    """Print what came of each seed; 1 if a rule was broken."""
    scenario = calm(args.version) if args.calm else Scenario(args.version)
    is_broken = False
    for seed in range(args.seed, args.seed + args.seeds):
        world = World(seed, scenario).run()
        is_broken |= bool(world.broken)
        names = sorted(stage.name for stage in world.stages().values())
        ended = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        back_s = (
            "" if world.failed_at is None else f", back in {world.back_at - world.failed_at:.1f} s"
        )
        print(f"seed {seed}: {ended}; {len(world.exposed)} sites answered by it{back_s}")
        for rule in world.broken:
            print(f"  broken: {rule}")
    return int(is_broken)
