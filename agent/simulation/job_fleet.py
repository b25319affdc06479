"""Sites that run the real ``JobMachine`` of one job, and what is not the machine, as the daemon does it.

Calls are request and reply with a time-out (a connection that breaks may repeat the request); effects
wait for the commit of the rows before them; a crash loses what was not yet committed, and memory,
labels and children. Everything that matters to a judge is noted as evidence on the way.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import count
from random import Random
from typing import Any, Literal

from agent.election.committee import Seat, choose_committee
from agent.election.roster import Roster
from agent.federation import events as job_events
from agent.federation.desk import Desk
from agent.federation.events import JobEffect, JobEvent
from agent.federation.history import Counted
from agent.federation.job import JobMachine, Restored
from agent.federation.participant import Update
from agent.federation.value import Contributions, JobValue, decode
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Put
from agent.simulation.job_checks import (
    ASKS_PER_SECOND_MAX,
    EFFECTS_AT_ONCE_MAX,
    Chosen,
    Dropped,
    Evidence,
)
from agent.simulation.job_outside import Around, Outside
from agent.simulation.network import Faults, Network
from agent.wire.documents import Job
from agent.wire.mesh import Accept, Call, Notice, Reply
from agent.wire.schema import unpack

JOB = JobId("simulated-00000001")
KEYS = {
    "register": ("job",),
    "jobs": ("job",),
    "updates": ("job", "round"),
    "rounds": ("job", "round"),
}
Row = dict[str, Any]


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
    outer: Literal["none", "momentum"] = "none"


@dataclass(frozen=True, slots=True)
class Parts:
    """What is under test; each default is the real thing."""

    machine: type[JobMachine] = JobMachine


@dataclass(frozen=True, slots=True)
class _Request:
    call: int
    message: Call


@dataclass(frozen=True, slots=True)
class _Response:
    call: int
    reply: Reply | None


@dataclass(slots=True)
class SimulatedSite:
    """One site: what survives a crash (disk, blobs), and what does not."""

    index: int
    id: SiteId
    is_idle: bool
    machine: JobMachine | None = None
    boot_epoch: int = 0
    is_up: bool = False
    is_gone: bool = False
    disk: dict[str, dict[tuple[Any, ...], Row]] = field(default_factory=dict)
    blobs: set[Digest] = field(default_factory=set)
    labels: set[Digest] = field(default_factory=set)
    forgotten: set[Digest] = field(default_factory=set)
    """Held no more for the machine, though the removal waits for the disk: as in the site."""
    view: set[int] = field(default_factory=set)
    queue: deque[list[JobEffect]] = field(default_factory=deque)
    is_writing: bool = False
    calls: Any = None
    asked: dict[int, int] = field(default_factory=dict)
    callers: dict[int, tuple[int, int]] = field(default_factory=dict)
    timer: int = 0
    timer_at: float = NEVER
    kill_after: int | None = None
    read: int = 0
    """Committed rounds that this site has read, in all its lives, as its rows tell."""
    knows_of_cancellation: bool = False
    is_over: bool = False
    wall_offset_s: float = 0.0
    """What the clock for people is wrong by; it jumps, and nothing may depend on it."""
    at_once: tuple[float, int] = (-1.0, 0)
    second: tuple[int, Counter[tuple[int, str]]] = (-1, Counter())


def value_of(data: bytes) -> JobValue:
    """What was put forward."""
    value = decode(data)
    assert value is not None
    return value


def _named_by(value: JobValue) -> set[Digest]:
    names = (value.parameters, value.contributions, value.exported, value.carried)
    return {name for name in names if name is not None}


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
        regions = [Seat(site, f"region-{n % 5}", "core") for n, site in enumerate(ids)]
        committee = choose_committee(JOB, regions, scenario.committee)
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
            sites_min=scenario.sites_min, round_timeout_s=120.0, publish=scenario.publish,
            residency=(), staleness_max=scenario.staleness_max, outer=scenario.outer,
        )  # fmt: skip
        self.evidence = Evidence(
            committee, scenario.rounds, scenario.staleness_max, scenario.outer != "none"
        )
        self._accepted: defaultdict[tuple[int, bytes], set[SiteId]] = defaultdict(set)
        self._taken_at: dict[tuple[tuple[int, bytes], SiteId], float] = {}
        self._chosen: set[tuple[int, bytes]] = set()
        self._outside = Outside(self)
        self.trace = sha256()
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
        self._log(site, "crash")
        site.is_up, site.machine, site.kill_after = False, None, None
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
        self._log(site, "start")
        # Fresh children and memory; the view starts empty and fills as members are heard.
        site.view = set()
        numbers = count(1)
        site.calls = numbers
        desk = Desk(lambda: next(numbers), site.id[:8] + site.boot_epoch.to_bytes(4, "big"))
        job = replace(self.job, is_cancelled=site.knows_of_cancellation)
        if self.is_cancelled and not site.knows_of_cancellation:
            self.tell_of_cancellation(site)
        site.machine = self._parts.machine(
            job, site.id, site.boot_epoch, desk, Around(self, site), self.rng, self.network.now,
            self._restored(site),
        )  # fmt: skip
        self.views_change()
        self._arm(site)

    def _restored(self, site: SimulatedSite) -> Restored:
        """As ``daemon.restore`` reads it back."""
        disk = site.disk
        value = next((row["value"] for row in disk.get("jobs", {}).values()), None)
        register = next(iter(disk.get("register", {}).values()), None)
        open_ = [r for _, r in sorted(disk.get("updates", {}).items()) if r["state"] == "open"]
        update = None
        if open_:
            row = open_[-1]
            update = Update(row["round"], row["base"], row["digest"], row["samples"], ())
        counted = tuple(
            Counted(
                row["contributions"],
                unpack(Contributions, self.evidence.blobs[row["contributions"]]),
            )
            for _, row in sorted(disk.get("rounds", {}).items())
            if row["contributions"] in site.blobs
        )
        return Restored(
            None if value is None else unpack(JobValue, value), register, update, counted
        )

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

    def feed(self, site: SimulatedSite, event: JobEvent) -> None:
        """Give the machine one event and carry out what it asks for."""
        machine, now = site.machine, self.network.now
        if machine is None:
            return
        effects = machine.step(event, now)
        if isinstance(event, Woke) and machine.wake_at() <= now:
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
        if site.machine is None:
            return
        at = site.machine.wake_at()
        if at == NEVER or at >= site.timer_at:
            return
        site.timer += 1
        site.timer_at = at
        number, boot = site.timer, site.boot_epoch

        def wake() -> None:
            if site.boot_epoch != boot or site.timer != number or site.machine is None:
                return
            if until := self.network.paused_until(site.index):
                self.network.call_at(until, wake)
                return
            site.timer_at = NEVER
            if site.machine.wake_at() <= self.network.now:
                self.feed(site, Woke())
            else:
                self._arm(site)

        self.network.call_at(at, wake)

    def _take(self, site: SimulatedSite, effects: list[JobEffect]) -> None:
        """The Ready rule of ``daemon.driver``: what follows a write waits for it, lists in order."""
        if not effects:
            return
        for effect in effects:
            self._spy(site, effect)
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
                    assert isinstance(write, Put), "jobs delete no rows"
                    self._persist(site, write)

    def _persist(self, site: SimulatedSite, write: Put) -> None:
        row: Row = dict(write.row)
        key = tuple(row[name] for name in KEYS[write.table])
        site.disk.setdefault(write.table, {})[key] = row
        if write.table == "register" and row["value"] is not None:
            ballot = (row["accepted_number"], row["accepted_proposer"])
            self._accepted[ballot].add(site.id)
            value = value_of(row["value"])
            # While a change is under way the members so far decide what can still be seen by all.
            members = self.job.committee if value.roster is None else value.roster.members
            voters = self._accepted[ballot] & set(members)
            if len(voters) > len(members) // 2 and ballot not in self._chosen:
                self._chosen.add(ballot)
                taken = {voter: self._taken_at[ballot, voter] for voter in sorted(voters)}
                self._choose(taken, ballot, value)

    def _choose(
        self, taken: Mapping[SiteId, float], ballot: tuple[int, bytes], value: JobValue
    ) -> None:
        names = _named_by(value)
        known = {name for name in names if self._is_new(name)}
        members = self.job.committee if value.roster is None else value.roster.members
        holders = sum(known <= self.sites[self.index[s]].blobs for s in members)
        self.evidence.chosen.append(Chosen(taken, ballot, value, holders, len(members)))
        if value.roster is not None and value.roster.generation > self.roster.generation:
            self.roster = value.roster
            if not value.roster.is_joint:
                full = sum(names <= self.sites[self.index[s]].blobs for s in members)
                handed_over = (value.roster.generation, full, len(members))
                self.evidence.handed_over.append(handed_over)

    def _is_new(self, name: Digest) -> bool:
        """Judged when first named: a later claim may find the disks of some gone."""
        return all(name not in _named_by(c.value) for c in self.evidence.chosen)

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

    def _perform(self, site: SimulatedSite, effect: JobEffect) -> None:  # noqa: C901 - one case an effect
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
            case job_events.Initialise() | job_events.Aggregate() | job_events.Export():
                self._outside.work(site, effect)
            case job_events.Finished():
                site.is_over = True
            case job_events.Persist() | job_events.ReleaseTrainer() | job_events.Progressed():
                pass

    # --- calls -----------------------------------------------------------------------------------
    def _ask(self, site: SimulatedSite, effect: job_events.Ask) -> None:
        self.asks += 1
        if isinstance(effect.message, Notice):
            self.evidence.invitations.add((effect.message.epoch, site.id))
        if isinstance(effect.message, Accept):
            self.evidence.proposed.append(value_of(effect.message.value))
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
            assert site.machine is not None
            call = next(site.calls)
            site.callers[call] = (source, payload.call)
            event = job_events.Called(call, self.sites[source].id, payload.message)
            self.feed(site, event)

    # --- evidence --------------------------------------------------------------------------------
    def _log(self, site: SimulatedSite, what: str) -> None:
        self.trace.update(f"{self.network.now:.6f} {site.index} {what}\n".encode())

    def _spy(self, site: SimulatedSite, effect: JobEffect) -> None:
        self._log(site, type(effect).__name__)
        match effect:
            case job_events.Ask(call, target, message):
                kind = type(message).__name__
                self._log(site, f"{call} {kind} {self.index[target]}")
                self._count(site, self.index[target], kind)
                if site.is_over and site.machine is not None and site.machine.is_over:
                    self.evidence.after_the_end.append(
                        f"site {site.index} sends {kind} after the end"
                    )
            case job_events.Train() if site.is_over:
                self.evidence.after_the_end.append(f"site {site.index} trains after the end")
            case job_events.FetchBlob(digest):
                self._count(site, -1, f"fetch {digest.hex()[:8]}")
            case job_events.ForgetBlob(digest):
                site.forgotten.add(digest)
                origin = self.evidence.updates.get(digest)
                if origin is not None and origin[0] == site.id:
                    self._drop(site, origin[1])
            case job_events.Persist(writes):
                for write in writes:
                    if isinstance(write, Put):
                        self._spy_row(site, write)
            case _:
                pass

    def _spy_row(self, site: SimulatedSite, write: Put) -> None:
        row: Mapping[str, Any] = write.row
        if write.table == "jobs":
            value = unpack(JobValue, row["value"])
            self.evidence.believed.append((site.index, value))
            is_over = value.state in ("finished", "failed")
            site.read = max(site.read, self.scenario.rounds + 1 if is_over else value.round)
        elif write.table == "rounds":
            site.read = max(site.read, row["round"])
        elif write.table == "register" and row["value"] is not None:
            self.evidence.proposed.append(value_of(row["value"]))
            ballot = (row["accepted_number"], row["accepted_proposer"])
            self._taken_at.setdefault((ballot, site.id), self.network.now)
        elif write.table == "updates" and row["state"] != "open":
            self._drop(site, row["round"])

    def _drop(self, site: SimulatedSite, round_: int) -> None:
        if not self.scenario.cancel:
            self.evidence.dropped.append(Dropped(site.index, round_, site.read))

    def _count(self, site: SimulatedSite, target: int, kind: str) -> None:
        second = int(self.network.now)
        if site.second[0] != second:
            site.second = (second, Counter())
        site.second[1][target, kind] += 1
        if site.second[1][target, kind] == ASKS_PER_SECOND_MAX:
            self.evidence.loops.append(
                f"site {site.index} asks {target} for {kind} without end at {second} s"
            )
