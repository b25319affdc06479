"""Sites that run the real ``JobMachine`` of one job, and what is not the machine, as the daemon does it.

Calls are request and reply with a time-out (a connection that breaks may repeat the request); effects
wait for the commit of the rows before them; a crash loses what was not yet committed, and memory,
labels and children. Everything that matters to a judge is noted as evidence on the way.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import count
from random import Random
from typing import Literal

from agent.election.committee import Seat, choose_committee
from agent.election.roster import Roster
from agent.federation import events as job_events
from agent.federation.burial import TABLE, Tombstone
from agent.federation.events import JobEffect, JobEvent
from agent.federation.history import read_back
from agent.federation.job import JobMachine
from agent.federation.participant import Update
from agent.federation.region import regional
from agent.federation.restored import Restored
from agent.federation.value import Contributions, JobValue
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Put
from agent.simulation.job_checks import (
    EFFECTS_AT_ONCE_MAX,
    Chosen,
    Evidence,
)
from agent.simulation.job_outside import Around, Outside, carries, parts_named
from agent.simulation.job_site import JOB, Row, SimulatedSite, handed_over
from agent.simulation.job_spy import Choice, Spy, named_by, value_of
from agent.simulation.network import Faults, Network
from agent.site.workshop import Workshop
from agent.wire.documents import Job, Region
from agent.wire.mesh import Accept, Call, Notice, Reply
from agent.wire.schema import unpack


@dataclass(frozen=True, slots=True)
class Scenario:
    """How big, how long, how bad."""

    sites: int = 8
    committee: int = 3
    rounds: int = 4
    seconds: float = 60.0
    """Virtual time of trouble."""
    patience_s: float = 400.0
    """The job must be over on all sites so long after the trouble."""
    loss: float = 0.03
    """Of a request or a reply: the call breaks, and the other site may have acted."""
    duplicate: float = 0.03
    delay_mean_s: float = 0.02
    commit_mean_s: float = 0.005
    fault_every_s: float = 4.0
    kills: int = 3
    """Times the aggregator is killed a few effects after some random moment."""
    gone: int = 1
    """Sites whose disks are lost for ever; never a majority of the committee."""
    train_mean_s: float = 2.0
    fetch_failure: float = 0.1
    attempt_failure: float = 0.05
    poison: float = 0.03
    """Updates that make the aggregation fail, naming them."""
    work_failure: float = 0.05
    idle_sites: float = 0.15
    """Share of sites that neither train nor aggregate."""
    publish: str = "model"
    cancel: bool = False
    recover: bool = False
    """A majority of the committee is lost for ever at once; an operator revokes it and takes over."""
    turnover: int = 0
    """Committee members whose disks are lost for ever and which are then revoked, each when the one
    before it has been replaced."""
    sites_min: int = 2
    staleness_max: int = 0
    regions: int = 0
    """With any, one more holds sites that take part by themselves."""
    local_rounds_max: int = 0
    has_loners: bool = True
    late: float = 0.3
    """Share of sites that start in the middle of it."""
    work_s: tuple[float, float] = (0.05, 1.0)
    """Least and greatest time of a mean, of first parameters and of an export."""
    jobs_kept: int = 500
    """0: a job is buried as soon as it is over and its history known."""
    link_bytes_per_s: float = 0.0
    """Of each site's link, one blob after the other; 0: fetches take random time and disturb nobody."""
    outer: Literal["none", "momentum"] = "none"
    ranges: int = 1
    correction: Literal["none", "scaffold"] = "none"


@dataclass(frozen=True, slots=True)
class Parts:
    """What is under test; each default is the real thing."""

    tombstones: Callable[[SimulatedSite], Mapping[bytes, Tombstone]] = SimulatedSite.tombstones
    """What a site reads back of jobs that were buried."""
    machine: type[JobMachine] = JobMachine
    outside: type[Outside] = Outside


@dataclass(frozen=True, slots=True)
class _Request:
    call: int
    message: Call


@dataclass(frozen=True, slots=True)
class _Response:
    call: int
    reply: Reply | None


KEYS = {
    "register": ("job",),
    "jobs": ("job",),
    "updates": ("job", "round"),
    "rounds": ("job", "round"),
    TABLE: ("job",),
}


class TightLoop(Exception):
    """A machine would never let time pass."""


class Fleet:
    """The sites of one run; ``job_world.World`` tells their story."""

    def __init__(self, rng: Random, scenario: Scenario, parts: Parts) -> None:
        """Nothing happens before ``run``."""
        self.rng, self.scenario, self._parts = rng, scenario, parts
        self.faults = Faults(scenario.loss, scenario.duplicate, 0.002, scenario.delay_mean_s)
        self.network: Network[int] = Network(rng, self._deliver, self.faults)
        ids = [SiteId(sha256(b"job site %d" % n).digest()) for n in range(scenario.sites)]
        self._regions = scenario.regions + scenario.has_loners if scenario.regions else 5
        seats = [Seat(site, self.region(n), "core") for n, site in enumerate(ids)]
        committee = choose_committee(JOB, seats, scenario.committee)
        regions = [
            Region(name, choose_committee(JOB, [s for s in seats if s.region == name], 3))
            for name in (self.region(n) for n in range(scenario.regions))
        ]
        idle = [rng.random() < scenario.idle_sites for _ in ids]
        workers = [n for n, is_idle in enumerate(idle) if not is_idle]
        enough = scenario.sites_min + scenario.gone + scenario.turnover + 1
        enough += scenario.committee if scenario.recover else 0
        for n in rng.sample(range(len(ids)), len(ids)):
            if len(workers) < min(len(ids), enough) and idle[n]:
                idle[n] = False
                workers.append(n)
        self.sites = [SimulatedSite(n, site, idle[n]) for n, site in enumerate(ids)]
        self.by_id = sorted(range(len(ids)), key=lambda n: ids[n])
        self.index = {site: n for n, site in enumerate(ids)}
        self.job = Job(
            id=JOB, recipe="simulated", dataset="simulated", committee=committee,
            rounds=scenario.rounds, epochs=1, batch=1, learning_rate=0.1, seed=1,
            sites_min=self._least(regions, idle), round_timeout_s=120.0, publish=scenario.publish,
            residency=(), staleness_max=scenario.staleness_max, outer=scenario.outer,
            regions=tuple(regions), local_rounds_max=scenario.local_rounds_max,
            ranges=scenario.ranges, correction=scenario.correction,
        )  # fmt: skip
        self.evidence = Evidence(
            committee, scenario.rounds, scenario.staleness_max, carries(self.job)
        )
        self.books = {JOB: self.evidence}
        """What is left of the whole job, and of each region."""
        self.committees = {JOB: committee}
        for one in regions:
            within = regional(self.job, one)
            self.committees[within.id] = one.committee
            self.books[within.id] = Evidence(
                one.committee, within.rounds, scenario.staleness_max,
                blobs=self.evidence.blobs, region=one.name,
            )  # fmt: skip
            self.evidence.regions[one.name] = self.books[within.id]
        self._accepted: defaultdict[Choice, set[SiteId]] = defaultdict(set)
        self._chosen: set[Choice] = set()
        self._outside = parts.outside(self)
        self.spy = Spy(self)
        self.is_calm = self.is_cancelled = False
        self.revoked: set[SiteId] = set()
        self.roster = Roster(0, committee, ())
        """The newest that was chosen."""
        self.cut: tuple[float, frozenset[SiteId]] | None = None
        self.asks = 0
        self.finished_at: float | None = None

    # --- start and crash -------------------------------------------------------------------------
    def crash(self, site: SimulatedSite) -> None:
        """SIGKILL: what is not on disk is gone; blobs on disk stay."""
        if not site.is_up:
            return
        self.spy.log(site, "crash")
        site.is_up, site.workshop, site.kill_after = False, None, None
        site.queue.clear()
        site.is_writing = False
        site.labels.clear()
        site.forgotten.clear()
        site.asked.clear()
        site.callers.clear()
        self.views_change()

    def start(self, site: SimulatedSite) -> None:
        """A new process of the site, from what is on its disk."""
        if site.is_up or site.is_gone:
            return
        site.boot_epoch += 1
        site.is_up = True
        site.timer_at = NEVER
        self.spy.log(site, "start")
        # Fresh children and memory; the view starts empty and fills as members are heard.
        site.view = set()
        # Connections die with a process: what answers a call of the last one is nobody's answer now.
        numbers = count(site.boot_epoch << 32)
        site.calls = numbers
        job = replace(self.job, is_cancelled=site.knows_of_cancellation)
        if self.is_cancelled and not site.knows_of_cancellation:
            self.tell_of_cancellation(site)
        stored = {name: self._restored(site, name) for name in self.books}
        site.workshop = Workshop(
            site.id, site.boot_epoch, lambda: next(numbers), Around(self, site), self.rng, stored, "",
            self._parts.machine, tombstones=self._parts.tombstones(site),
            jobs_kept=self.scenario.jobs_kept,
        )  # fmt: skip
        site.workshop.open(job, self.network.now)
        self.views_change()
        self._arm(site)

    def _restored(self, site: SimulatedSite, job: JobId) -> Restored:
        """As ``daemon.restore`` reads it back."""
        value = next((row["value"] for row in site.rows("jobs", job)), None)
        register = next(iter(site.rows("register", job)), None)
        open_ = [row for row in site.rows("updates", job) if row["state"] == "open"]
        update = None
        if open_:
            row = open_[-1]
            digest = row["digest"]
            parts = parts_named(self.evidence.blobs[digest]) if digest in site.blobs else ()
            update = Update(row["round"], row["base"], digest, row["samples"], (), parts)
        last = None if value is None else unpack(JobValue, value)
        named = {row["round"]: row["contributions"] for row in site.rows("rounds", job)}
        counted = read_back(
            {number: one for number, one in named.items() if one in site.blobs},
            last,
            lambda one: unpack(Contributions, self.evidence.blobs[one]),
        )
        return Restored(last, register, update, counted)

    def views_change(self) -> None:
        """Membership follows the truth, each site after its own delay."""
        for site in self.sites:
            if site.is_up:
                boot = site.boot_epoch
                later = self.network.now + self.rng.uniform(0.1, 2.0)
                self.network.call_at(later, lambda s=site, b=boot: self._see_truth(s, b))

    def _see_truth(self, site: SimulatedSite, boot: int) -> None:
        seen = {
            other.index
            for other in self.sites
            if other.is_up
            and other is not site
            and self.network.is_connected(site.index, other.index)
            and not self.network.paused_until(other.index)
        }
        self.see(site, boot, seen)

    def see(self, site: SimulatedSite, boot: int, seen: set[int]) -> None:
        """The site takes ``seen`` for the living."""
        if self.lives(site, boot) and seen != site.view:
            site.view = seen
            self.later(site, self.network.now, job_events.ViewChanged())

    def tell_of_cancellation(self, site: SimulatedSite) -> None:
        """The document reaches the site some time later, if it is up then."""
        boot = site.boot_epoch

        def tell() -> None:
            if self.lives(site, boot):
                site.knows_of_cancellation = True
                self.later(site, self.network.now, job_events.Cancelled())

        self.network.call_at(self.network.now + self.rng.uniform(0.0, 5.0), tell)

    def _least(self, regions: list[Region], idle: list[bool]) -> int:
        """As many updates as every round can have, though one of a site's may be spoilt."""
        spoilt = 1 if self.scenario.poison and regions else 0
        return min(self.scenario.sites_min, max(1, self._parties(regions, idle) - spoilt))

    def _parties(self, regions: list[Region], idle: list[bool]) -> int:
        """How many can have an update: regions, and sites that take part by themselves."""
        names = {region.name for region in regions}
        working = [n for n, is_idle in enumerate(idle) if not is_idle]
        alone = [n for n in working if self.region(n) not in names]
        return len({self.region(n) for n in working} & names) + len(alone)

    def region(self, number: int) -> str:
        """Where the site of that number stands."""
        return f"region-{number % self._regions}"

    # --- driving the machines --------------------------------------------------------------------
    def lives(self, site: SimulatedSite, boot: int) -> bool:
        """Whether the process of that boot still runs."""
        return site.is_up and site.boot_epoch == boot

    def later(self, site: SimulatedSite, at: float, event: JobEvent) -> None:
        """Feed ``event`` at ``at``, unless the site has died by then; a paused site sees it later."""
        boot = site.boot_epoch

        def feed() -> None:
            if not self.lives(site, boot):
                return
            if until := self.network.paused_until(site.index):
                self.network.call_at(until, feed)
                return
            self.feed(site, event)

        self.network.call_at(at, feed)

    def feed(self, site: SimulatedSite, event: JobEvent, job: JobId = JOB) -> None:
        """Give the machines one event and carry out what they ask for.

        ``job``: whose it is, where the event does not say so.
        """
        workshop, now = site.workshop, self.network.now
        if workshop is None:
            return
        effects = handed_over(workshop, event, job, now)
        if isinstance(event, Woke) and workshop.wake_at() <= now:
            self.evidence.loops.append(f"site {site.index} wants to be woken again at once")
            raise TightLoop
        at, number = site.at_once
        # An answer and its row for each of the calls that waited while the site was stopped.
        owed = 2 if isinstance(event, job_events.Called) else 0
        grown = max(0, len(effects) - owed)
        site.at_once = (now, grown + (number if at == now else 0))
        if site.at_once[1] > EFFECTS_AT_ONCE_MAX + 8 * len(self.sites):
            self.evidence.loops.append(f"site {site.index} has no end of effects at one instant")
            raise TightLoop
        self._take(site, list(effects))
        self._arm(site)

    def _arm(self, site: SimulatedSite) -> None:
        if site.workshop is None:
            return
        at = site.workshop.wake_at()
        if at == NEVER or at >= site.timer_at:
            return
        site.timer += 1
        site.timer_at = at
        number, boot = site.timer, site.boot_epoch

        def wake() -> None:
            if site.boot_epoch != boot or site.timer != number or site.workshop is None:
                return
            if until := self.network.paused_until(site.index):
                self.network.call_at(until, wake)
                return
            site.timer_at = NEVER
            if site.workshop.wake_at() <= self.network.now:
                self.feed(site, Woke())
            else:
                self._arm(site)

        self.network.call_at(at, wake)

    def _take(self, site: SimulatedSite, effects: list[JobEffect]) -> None:
        """The Ready rule of ``daemon.driver``: what follows a write waits for it, lists in order."""
        if not effects:
            return
        for effect in effects:
            self.spy.see(site, effect)
        needs_disk = any(
            isinstance(e, (job_events.Persist, job_events.StoreBytes)) for e in effects
        )
        if needs_disk or site.queue or site.is_writing:
            site.queue.append(effects)
            if not site.is_writing:
                self._write(site)
            return
        self._perform_all(site, effects)

    def _write(self, site: SimulatedSite) -> None:
        site.is_writing = True
        lists = list(site.queue)
        site.queue.clear()
        boot = site.boot_epoch
        commit_s = self.rng.expovariate(1 / self.scenario.commit_mean_s)
        if self.rng.random() < 0.01:  # noqa: PLR2004 - flash that cleans up
            commit_s += 0.5
        self.network.call_at(self.network.now + commit_s, lambda: self._written(site, boot, lists))

    def _written(self, site: SimulatedSite, boot: int, lists: list[list[JobEffect]]) -> None:
        if not self.lives(site, boot):
            return  # the crash came first
        if until := self.network.paused_until(site.index):
            self.network.call_at(until, lambda: self._written(site, boot, lists))
            return
        everything = [effect for effects in lists for effect in effects]
        self._make_durable(site, everything)
        for effects in lists:
            if not self._perform_all(site, effects):
                return
        for effect in everything:
            if isinstance(effect, job_events.Persist) and effect.token is not None:
                self.feed(site, job_events.Persisted(effect.token))
        if self.lives(site, boot):
            site.is_writing = False
            if site.queue:
                self._write(site)

    def _make_durable(self, site: SimulatedSite, effects: list[JobEffect]) -> None:
        for effect in effects:
            if isinstance(effect, job_events.StoreBytes):
                self._outside.hold(site, effect.digest, effect.data)
            elif isinstance(effect, job_events.Persist):
                for write in effect.writes:
                    if isinstance(write, Put):
                        self._persist(site, write)
                    else:
                        site.bury(write)

    def _persist(self, site: SimulatedSite, write: Put) -> None:
        row: Row = dict(write.row)
        key = tuple(row[name] for name in KEYS[write.table])
        if write.table == TABLE:
            self.evidence.buried += 1
            site.disk.setdefault(TABLE, {})[key] = row
            return
        site.disk.setdefault(write.table, {})[key] = row
        if write.table == "register" and row["value"] is not None:
            ballot = (row["job"], row["accepted_number"], row["accepted_proposer"])
            self._accepted[ballot].add(site.id)
            value = value_of(row["value"])
            # While a change is under way the members so far decide what can still be seen by all.
            members = self._members(value)
            voters = self._accepted[ballot] & set(members)
            if len(voters) > len(members) // 2 and ballot not in self._chosen:
                self._chosen.add(ballot)
                taken = {voter: self.spy.taken_at[ballot, voter] for voter in sorted(voters)}
                self._choose(taken, ballot, value)

    def _members(self, value: JobValue) -> tuple[SiteId, ...]:
        pinned = self.committees[JobId(value.job)]
        return pinned if value.roster is None else value.roster.members

    def _choose(self, taken: Mapping[SiteId, float], ballot: Choice, value: JobValue) -> None:
        book = self.books[ballot[0]]
        names = named_by(value)
        known = {n for n in names if all(n not in named_by(c.value) for c in book.chosen)}
        members = self._members(value)
        sites = [self.sites[self.index[member]] for member in members]
        # A region has nothing to keep any more where the end of the whole job is known.
        holders = sum(known <= site.blobs or (ballot[0] != JOB and site.is_over) for site in sites)
        book.chosen.append(Chosen(taken, ballot[1:], value, holders, len(members)))
        if ballot[0] != JOB:
            return
        if value.roster is not None and value.roster.generation > self.roster.generation:
            self.roster = value.roster
            if not value.roster.is_joint:
                full = sum(names <= self.sites[self.index[s]].blobs for s in members)
                handed_over = (value.roster.generation, full, len(members))
                self.evidence.handed_over.append(handed_over)

    def _perform_all(self, site: SimulatedSite, effects: list[JobEffect]) -> bool:
        boot = site.boot_epoch
        for effect in effects:
            if not self.lives(site, boot):
                return False
            if site.kill_after is not None:
                site.kill_after -= 1
                if site.kill_after <= 0:
                    self.crash(site)
                    later = self.network.now + self.rng.expovariate(1 / 6.0)
                    self.network.call_at(later, lambda: self.start(site))
                    return False
            self._perform(site, effect)
        return self.lives(site, boot)

    def _perform(self, site: SimulatedSite, effect: JobEffect) -> None:  # noqa: C901, PLR0912 - one case an effect
        match effect:
            case job_events.Ask():
                self._ask(site, effect)
            case job_events.Answer(call, reply):
                caller = site.callers.pop(call, None)
                if caller is not None:
                    self.network.post(site.index, caller[0], _Response(caller[1], reply))
            case job_events.FetchBlob(digest, sources):
                self._outside.fetch(site, digest, sources)
            case job_events.ReadBlob(digest):
                self._outside.read(site, digest)
            case job_events.StoreBytes(digest, _):
                self.feed(site, job_events.BlobArrived(digest))
            case job_events.Label(digest, _):
                site.labels.add(digest)
            case job_events.ForgetBlob(digest):
                site.blobs.discard(digest)
                site.labels.discard(digest)
                site.forgotten.discard(digest)
            case job_events.Train():
                self._outside.train(site, effect)
            case (
                job_events.Initialise() | job_events.Aggregate() | job_events.AggregateRange()
                | job_events.Join() | job_events.Export()
            ):  # fmt: skip
                self._outside.work(site, effect)
            case job_events.Finished():
                site.is_over = True
            case job_events.Tell():
                raise AssertionError("the workshop hands it on")
            case (
                job_events.Persist() | job_events.ReleaseTrainer() | job_events.Progressed()
                | job_events.Doubt()
            ):  # fmt: skip
                pass

    # --- calls -----------------------------------------------------------------------------------
    def _ask(self, site: SimulatedSite, effect: job_events.Ask) -> None:
        self.asks += 1
        if isinstance(effect.message, Notice):
            book = self.books[JobId(effect.message.job)]
            book.invitations.add((effect.message.epoch, site.id))
        if isinstance(effect.message, Accept):
            value = value_of(effect.message.value)
            self.books[JobId(value.job)].proposed.append(value)
        target = self.index[effect.site]
        site.asked[effect.call] = target
        boot = site.boot_epoch

        def gave_up() -> None:
            if (
                site.is_up
                and site.boot_epoch == boot
                and site.asked.pop(effect.call, None) is not None
            ):
                self.later(site, self.network.now, job_events.Replied(effect.call, None))

        self.network.call_at(self.network.now + effect.timeout_s, gave_up)
        is_reachable = self.sites[target].is_up and self.network.is_connected(site.index, target)
        if (not is_reachable and self.rng.random() < 0.7) or (  # noqa: PLR2004 - most connections are refused at once
            self.rng.random() < self.faults.loss
        ):
            self.network.call_at(self.network.now + self.rng.uniform(0.001, 0.5), gave_up)
        self.network.post(site.index, target, _Request(effect.call, effect.message))

    def _deliver(self, source: int, target: int, payload: object) -> None:
        site = self.sites[target]
        if not site.is_up:
            return
        if isinstance(payload, _Response):
            if site.asked.pop(payload.call, None) is not None:
                self.feed(site, job_events.Replied(payload.call, payload.reply))
        elif isinstance(payload, _Request):
            call = next(site.calls)
            site.callers[call] = (source, payload.call)
            event = job_events.Called(call, self.sites[source].id, payload.message)
            self.feed(site, event)
