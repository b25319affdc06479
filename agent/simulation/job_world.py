"""One federated job on many sites: bad network, slow disks, sudden deaths; one seed gives one trace.

Each site runs the real ``JobMachine``. What is not the machine is modelled as the daemon does it: calls
are request and reply with a time-out (a connection that breaks may repeat the request), effects wait
for the commit of the rows before them, a crash loses what was not yet committed, memory, labels and
children; blobs are fetched from those who hold *and label* them. Training takes random time and may
fail or give a poisoned update; aggregation is a hash of its input. ``job_checks`` judges the evidence.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import count
from random import Random
from typing import Any

from agent.election.committee import Seat, choose_committee
from agent.federation import events as job_events
from agent.federation.desk import Desk
from agent.federation.events import JobEffect, JobEvent
from agent.federation.history import Counted
from agent.federation.job import JobMachine, Restored
from agent.federation.participant import Update
from agent.federation.value import Contributions, JobValue
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Put
from agent.simulation.job_checks import (
    ASKS_PER_SECOND_MAX,
    EFFECTS_AT_ONCE_MAX,
    Chosen,
    Cut,
    Dropped,
    Evidence,
    mean_of,
    named,
    violations,
)
from agent.simulation.network import Faults, Network
from agent.wire.documents import Job
from agent.wire.mesh import Accept, Call, Declined, Notice, Reply
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
    sites_min: int = 2


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
class _Site:
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
    is_over: bool = False
    at_once: tuple[float, int] = (-1.0, 0)
    second: tuple[int, Counter[tuple[int, str]]] = (-1, Counter())


class _Around:
    """``Surroundings`` of one site."""

    def __init__(self, world: "World", site: _Site) -> None:
        self._world, self._site = world, site

    def alive(self) -> Mapping[SiteId, float]:
        seen = self._site.view | {self._site.index}
        return {self._world.sites[index].id: 1.0 for index in self._world.by_id if index in seen}

    def is_held(self, digest: Digest) -> bool:
        return digest in self._site.blobs

    def refusal(self, job: Job) -> str:  # noqa: ARG002 - the protocol's shape
        return "no data set here" if self._site.is_idle else ""

    def can_aggregate(self) -> bool:
        return not self._site.is_idle

    def unix_s(self, now: float) -> float:
        return now

    def may_hold(self, job: Job, site: SiteId) -> bool:  # noqa: ARG002 - the protocol's shape
        return True


@dataclass(slots=True)
class Report:
    """What a run came to."""

    evidence: Evidence
    violations: list[str]
    trace: str
    """Hash of everything that happened, in order."""
    finished_at: float | None
    asks: int
    epochs: int
    rounds: int
    virtual_s: float


class World:
    """One run; ``simulate`` is the front door."""

    def __init__(self, rng: Random, scenario: Scenario, parts: Parts) -> None:
        """Nothing happens before ``run``."""
        self.rng, self.scenario, self._parts = rng, scenario, parts
        self._faults = Faults(scenario.loss, scenario.duplicate, 0.002, scenario.delay_mean_s)
        self.network: Network[int] = Network(rng, self._deliver, self._faults)
        ids = [SiteId(sha256(b"job site %d" % n).digest()) for n in range(scenario.sites)]
        regions = [Seat(site, f"region-{n % 5}", "core") for n, site in enumerate(ids)]
        committee = choose_committee(JOB, regions, scenario.committee)
        idle = [rng.random() < scenario.idle_sites for _ in ids]
        workers = [n for n, is_idle in enumerate(idle) if not is_idle]
        for n in rng.sample(range(len(ids)), len(ids)):
            if len(workers) < min(len(ids), scenario.sites_min + scenario.gone + 1) and idle[n]:
                idle[n] = False
                workers.append(n)
        self.sites = [_Site(n, site, idle[n]) for n, site in enumerate(ids)]
        self.by_id = sorted(range(len(ids)), key=lambda n: ids[n])
        self.index = {site: n for n, site in enumerate(ids)}
        self.job = Job(
            id=JOB, recipe="simulated", dataset="simulated", committee=committee,
            rounds=scenario.rounds, epochs=1, batch=1, learning_rate=0.1, seed=1,
            sites_min=scenario.sites_min, round_timeout_s=120.0, publish=scenario.publish,
            residency=(),
        )  # fmt: skip
        self.evidence = Evidence(committee, scenario.rounds)
        self._accepted: defaultdict[tuple[int, bytes], set[SiteId]] = defaultdict(set)
        self._chosen: set[tuple[int, bytes]] = set()
        self._poisoned: set[Digest] = set()
        self._nonces = count(1)
        self._trace = sha256()
        self._is_calm = False
        self._cut: tuple[float, frozenset[SiteId]] | None = None
        self._asks = 0
        self._finished_at: float | None = None

    # --- the story -------------------------------------------------------------------------------
    def run(self) -> Report:
        """Trouble, then calm, then silence."""
        scenario, rng = self.scenario, self.rng
        for site in self.sites:
            late_s = 0.0 if rng.random() < 0.7 else rng.uniform(0.0, scenario.seconds / 2)  # noqa: PLR2004 - most are there at once
            self.network.call_at(late_s, lambda site=site: self._start(site))  # type: ignore[misc]
        if scenario.fault_every_s < scenario.seconds:
            self.network.call_at(rng.expovariate(1 / scenario.fault_every_s), self._some_fault)
        for _ in range(scenario.kills):
            self.network.call_at(rng.uniform(0.0, scenario.seconds), self._mark_aggregator)
        for _ in range(scenario.gone):
            self.network.call_at(rng.uniform(0.0, scenario.seconds), self._lose_for_ever)
        if scenario.cancel:
            self.network.call_at(rng.uniform(0.0, scenario.seconds), self._cancel)
        self.network.run_until(scenario.seconds)
        self._calm()
        deadline = scenario.seconds + scenario.patience_s
        while self.network.now < deadline and not self._is_complete():
            self.network.run_until(self.network.now + 1.0)
        if self._is_complete():
            self._finished_at = self.network.now
        self._judge_end()
        return self._report()

    def _report(self) -> Report:
        evidence = self.evidence
        for site in self.sites:
            if not site.is_gone:
                rows = site.disk.get("rounds", {})
                evidence.histories[site.index] = {key[1]: row for key, row in sorted(rows.items())}
        epochs = max((c.value.epoch for c in evidence.chosen), default=0)
        rounds = max((c.value.round for c in evidence.chosen), default=0)
        return Report(
            evidence, violations(evidence), self._trace.hexdigest(), self._finished_at, self._asks,
            epochs, rounds, self.network.now,
        )  # fmt: skip

    def _is_complete(self) -> bool:
        wanted = 0 if self.scenario.cancel else self.scenario.rounds
        return all(
            site.is_gone
            or (
                site.machine is not None
                and site.machine.is_over
                and len(site.disk.get("rounds", {})) >= wanted
                and site.machine.wake_at() == NEVER
            )
            for site in self.sites
        )

    def _judge_end(self) -> None:
        evidence = self.evidence
        for site in self.sites:
            machine = site.machine
            if site.is_gone or machine is None:
                continue
            rounds = len(site.disk.get("rounds", {}))
            if not machine.is_over or (rounds < self.scenario.rounds and not self.scenario.cancel):
                evidence.unfinished.append(
                    f"site {site.index} has {rounds} rounds, "
                    f"{'over' if machine.is_over else 'not over'}, long after the last fault"
                )
            elif machine.wake_at() != NEVER:
                evidence.after_the_end.append(f"site {site.index} still wants to be woken")
        if evidence.unfinished:
            return
        self.network.run_until(self.network.now + 60.0)
        before = self._asks
        self.network.run_until(self.network.now + 120.0)
        if self._asks != before:
            evidence.after_the_end.append(f"{self._asks - before} calls after the end")
        for site in self.sites:
            if site.is_gone or site.machine is None:
                continue
            kinds = Counter(
                evidence.blobs[digest].split(b"\0", 1)[0]
                for digest in sorted(site.blobs)
                if evidence.blobs[digest].startswith((b"update\0", b"mean\0", b"initial\0"))
            )
            if kinds[b"update"] or kinds[b"mean"] + kinds[b"initial"] > 1:
                evidence.leftovers.append(f"site {site.index} keeps {dict(kinds)}")

    # --- faults ----------------------------------------------------------------------------------
    def _some_fault(self) -> None:
        if self._is_calm:
            return
        rng, now = self.rng, self.network.now
        self.network.call_at(now + rng.expovariate(1 / self.scenario.fault_every_s), self._some_fault)
        lasts_s = rng.expovariate(1 / (2 * self.scenario.fault_every_s))
        site = rng.choice(self.sites)
        match rng.randrange(7):
            case 0 | 1:
                self._crash(site)
                self.network.call_at(now + lasts_s, lambda: self._start(site))
            case 2:
                self.network.pause(site.index, now + lasts_s)
                self._views_change()
                self.network.call_at(now + lasts_s + 0.001, self._views_change)
            case 3 | 4 if self._cut is None:
                side = rng.sample(range(len(self.sites)), rng.randint(1, len(self.sites) - 1))
                others = [n for n in range(len(self.sites)) if n not in side]
                self.network.cut(side, others)
                if rng.random() < 0.7:  # noqa: PLR2004 - most cuts are two-way
                    self.network.cut(others, side)
                    self._note_cut(side, others)
                self._views_change()
                self.network.call_at(now + lasts_s, self._heal)
            case 5:
                wrong = set(rng.sample(range(len(self.sites)), len(self.sites) // 2))
                self._see(site, site.boot_epoch, site.view - wrong)
                self.network.call_at(now + lasts_s, self._views_change)
            case _:
                self._mark_aggregator()

    def _note_cut(self, side: Sequence[int], others: Sequence[int]) -> None:
        for part in (side, others):
            ids = frozenset(self.sites[n].id for n in part)
            if len(ids & set(self.job.committee)) <= len(self.job.committee) // 2:
                self._cut = (self.network.now, ids)

    def _heal(self) -> None:
        if self._cut is not None:
            began_at, minority = self._cut
            self.evidence.cuts.append(Cut(began_at, self.network.now, minority))
            self._cut = None
        self.network.heal()
        self._views_change()

    def _mark_aggregator(self) -> None:
        """Whoever aggregates now dies within a few effects; it comes back later."""
        acting = [s for s in self.sites if s.machine is not None and s.machine.aggregation]
        if acting and not self._is_calm:
            self.rng.choice(acting).kill_after = self.rng.randint(1, 25)

    def _lose_for_ever(self) -> None:
        committee = [self.index[site] for site in self.job.committee]
        lost = [s.index for s in self.sites if s.is_gone]
        may = [
            s for s in self.sites
            if not s.is_gone
            and (s.index not in committee or sum(n in committee for n in lost) < (len(committee) - 1) // 2)
            and len(self.sites) - len(lost) > self.scenario.sites_min + 1
        ]  # fmt: skip
        acting = [s for s in may if s.machine is not None and s.machine.aggregation]
        if may:
            site = self.rng.choice(acting or may)
            self._crash(site)
            site.is_gone = True
            site.labels.clear()

    def _cancel(self) -> None:
        for site in self.sites:
            later = self.network.now + self.rng.uniform(0.0, 5.0)
            self._later(site, later, job_events.Cancelled())
        self._cancelled_at = self.network.now

    def _crash(self, site: _Site) -> None:
        if not site.is_up:
            return
        self._log(site, "crash")
        site.is_up, site.machine, site.kill_after = False, None, None
        site.queue.clear()
        site.is_writing = False
        site.labels.clear()
        site.asked.clear()
        site.callers.clear()
        self._views_change()

    def _start(self, site: _Site) -> None:
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
        job = self.job
        site.machine = self._parts.machine(
            job, site.id, site.boot_epoch, desk, _Around(self, site), self.rng, self.network.now,
            self._restored(site),
        )  # fmt: skip
        self._views_change()
        self._arm(site)

    def _restored(self, site: _Site) -> Restored:
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

    def _calm(self) -> None:
        self._is_calm = True
        self._faults.loss = self._faults.duplicate = 0.0
        for site in self.sites:
            self.network.pause(site.index, 0.0)
            site.kill_after = None
            self._start(site)
        self._heal()

    def _views_change(self) -> None:
        """Membership follows the truth, each site after its own delay."""
        for site in self.sites:
            if site.is_up:
                boot = site.boot_epoch
                later = self.network.now + self.rng.uniform(0.1, 2.0)
                self.network.call_at(later, lambda s=site, b=boot: self._see_truth(s, b))  # type: ignore[misc]

    def _see_truth(self, site: _Site, boot: int) -> None:
        seen = {
            other.index
            for other in self.sites
            if other.is_up
            and other is not site
            and self.network.is_connected(site.index, other.index)
            and not self.network.paused_until(other.index)
        }
        self._see(site, boot, seen)

    def _see(self, site: _Site, boot: int, seen: set[int]) -> None:
        if site.is_up and site.boot_epoch == boot and seen != site.view:
            site.view = seen
            self._later(site, self.network.now, job_events.ViewChanged())

    # --- driving the machines --------------------------------------------------------------------
    def _later(self, site: _Site, at: float, event: JobEvent) -> None:
        """Feed ``event`` at ``at``, unless the site has died by then; a paused site sees it later."""
        boot = site.boot_epoch

        def feed() -> None:
            if not site.is_up or site.boot_epoch != boot:
                return
            if until := self.network.paused_until(site.index):
                self.network.call_at(until, feed)
                return
            self._feed(site, event)

        self.network.call_at(at, feed)

    def _feed(self, site: _Site, event: JobEvent) -> None:
        machine, now = site.machine, self.network.now
        if machine is None:
            return
        effects = machine.step(event, now)
        if isinstance(event, Woke) and machine.wake_at() <= now:
            self.evidence.loops.append(f"site {site.index} wants to be woken again at once")
            raise _TightLoop
        at, number = site.at_once
        site.at_once = (now, len(effects) + (number if at == now else 0))
        if site.at_once[1] > EFFECTS_AT_ONCE_MAX + 8 * len(self.sites):
            self.evidence.loops.append(f"site {site.index} has no end of effects at one instant")
            raise _TightLoop
        self._take(site, list(effects))
        self._arm(site)

    def _arm(self, site: _Site) -> None:
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
                self._feed(site, Woke())
            else:
                self._arm(site)

        self.network.call_at(at, wake)

    def _take(self, site: _Site, effects: list[JobEffect]) -> None:
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

    def _write(self, site: _Site) -> None:
        site.is_writing = True
        lists = list(site.queue)
        site.queue.clear()
        boot = site.boot_epoch
        commit_s = self.rng.expovariate(1 / self.scenario.commit_mean_s)
        if self.rng.random() < 0.01:  # noqa: PLR2004 - flash that cleans up
            commit_s += 0.5
        self.network.call_at(self.network.now + commit_s, lambda: self._written(site, boot, lists))

    def _written(self, site: _Site, boot: int, lists: list[list[JobEffect]]) -> None:
        if not site.is_up or site.boot_epoch != boot:
            return  # the crash came first
        if until := self.network.paused_until(site.index):
            self.network.call_at(until, lambda: self._written(site, boot, lists))
            return
        everything = [effect for effects in lists for effect in effects]
        for effect in everything:
            if isinstance(effect, job_events.StoreBytes):
                self._hold(site, effect.digest, effect.data)
            elif isinstance(effect, job_events.Persist):
                for write in effect.writes:
                    assert isinstance(write, Put)
                    self._persist(site, write)
        for effects in lists:
            if not self._perform_all(site, effects):
                return
        for effect in everything:
            if isinstance(effect, job_events.Persist) and effect.token is not None:
                self._feed(site, job_events.Persisted(effect.token))
        if site.is_up and site.boot_epoch == boot:
            site.is_writing = False
            if site.queue:
                self._write(site)

    def _persist(self, site: _Site, write: Put) -> None:
        row = dict(write.row)
        key = tuple(row[name] for name in KEYS[write.table])
        site.disk.setdefault(write.table, {})[key] = row
        if write.table == "register" and row["value"] is not None:
            ballot = (row["accepted_number"], row["accepted_proposer"])
            self._accepted[ballot].add(site.id)
            voters = self._accepted[ballot] & set(self.job.committee)
            if len(voters) > len(self.job.committee) // 2 and ballot not in self._chosen:
                self._chosen.add(ballot)
                self._choose(ballot, unpack(JobValue, row["value"]))

    def _choose(self, ballot: tuple[int, bytes], value: JobValue) -> None:
        names = [n for n in (value.parameters, value.contributions, value.exported) if n is not None]
        known = {name for name in names if self._is_new(value, name)}
        holders = sum(known <= self.sites[self.index[s]].blobs for s in self.job.committee)
        self.evidence.chosen.append(Chosen(self.network.now, ballot, value, holders))

    def _is_new(self, value: JobValue, name: Digest) -> bool:
        """Judged when first named: a later claim may find the disks of some gone."""
        return all(
            name not in (c.value.parameters, c.value.contributions, c.value.exported)
            for c in self.evidence.chosen
        )

    def _perform_all(self, site: _Site, effects: list[JobEffect]) -> bool:
        boot = site.boot_epoch
        for effect in effects:
            if not site.is_up or site.boot_epoch != boot:
                return False
            if site.kill_after is not None:
                site.kill_after -= 1
                if site.kill_after <= 0:
                    self._crash(site)
                    later = self.network.now + self.rng.expovariate(1 / 6.0)
                    self.network.call_at(later, lambda: self._start(site))
                    return False
            self._perform(site, effect)
        return site.is_up and site.boot_epoch == boot

    def _perform(self, site: _Site, effect: JobEffect) -> None:  # noqa: C901, PLR0912 - one case an effect
        match effect:
            case job_events.Ask():
                self._ask(site, effect)
            case job_events.Answer(call, reply):
                caller = site.callers.pop(call, None)
                if caller is not None:
                    self.network.post(site.index, caller[0], _Response(caller[1], reply))
            case job_events.FetchBlob(digest, sources):
                self._fetch(site, digest, sources)
            case job_events.ReadBlob(digest):
                self._read(site, digest)
            case job_events.StoreBytes(digest, _):
                self._feed(site, job_events.BlobArrived(digest))
            case job_events.Label(digest, _):
                site.labels.add(digest)
            case job_events.ForgetBlob(digest):
                site.blobs.discard(digest)
                site.labels.discard(digest)
            case job_events.Train():
                self._train(site, effect)
            case job_events.Initialise() | job_events.Aggregate() | job_events.Export():
                self._work(site, effect)
            case job_events.Finished():
                site.is_over = True
            case job_events.Persist() | job_events.ReleaseTrainer() | job_events.Progressed():
                pass

    # --- calls -----------------------------------------------------------------------------------
    def _ask(self, site: _Site, effect: job_events.Ask) -> None:
        self._asks += 1
        if isinstance(effect.message, Notice):
            self.evidence.invitations.add((effect.message.epoch, site.id))
        if isinstance(effect.message, Accept):
            self.evidence.proposed.append(unpack(JobValue, effect.message.value))
        target = self.index[effect.site]
        site.asked[effect.call] = target
        boot = site.boot_epoch

        def gave_up() -> None:
            if site.is_up and site.boot_epoch == boot and site.asked.pop(effect.call, None) is not None:
                self._later(site, self.network.now, job_events.Replied(effect.call, None))

        self.network.call_at(self.network.now + effect.timeout_s, gave_up)
        is_reachable = self.sites[target].is_up and self.network.is_connected(site.index, target)
        if (not is_reachable and self.rng.random() < 0.7) or (  # noqa: PLR2004 - most connections are refused at once
            self.rng.random() < self._faults.loss
        ):
            self.network.call_at(self.network.now + self.rng.uniform(0.001, 0.5), gave_up)
        self.network.post(site.index, target, _Request(effect.call, effect.message))

    def _deliver(self, source: int, target: int, payload: object) -> None:
        site = self.sites[target]
        if not site.is_up:
            return
        if isinstance(payload, _Response):
            if site.asked.pop(payload.call, None) is not None:
                self._feed(site, job_events.Replied(payload.call, payload.reply))
        elif isinstance(payload, _Request):
            assert site.machine is not None
            call = next(site.calls)
            site.callers[call] = (source, payload.call)
            event = job_events.Called(call, self.sites[source].id, payload.message)
            self._feed(site, event)

    # --- blobs and work --------------------------------------------------------------------------
    def _hold(self, site: _Site, digest: Digest, data: bytes) -> None:
        self.evidence.blobs[digest] = data
        site.blobs.add(digest)

    def _fetch(self, site: _Site, digest: Digest, sources: Sequence[SiteId]) -> None:
        takes_s = self.rng.expovariate(1 / 0.1)
        boot = site.boot_epoch
        fails = self.rng.random() < self.scenario.fetch_failure and not self._is_calm

        def end() -> None:
            if not site.is_up or site.boot_epoch != boot:
                return
            has_source = any(
                other.is_up
                and digest in other.blobs
                and digest in other.labels
                and self.network.is_connected(site.index, other.index)
                and not self.network.paused_until(other.index)
                for other in (self.sites[self.index[source]] for source in sources)
            )
            if digest in site.blobs or (has_source and not fails):
                site.blobs.add(digest)
                self._later(site, self.network.now, job_events.BlobArrived(digest))
            else:
                missing = job_events.BlobMissing(digest, "no source")
                self._later(site, self.network.now, missing)

        self.network.call_at(self.network.now + takes_s, end)

    def _read(self, site: _Site, digest: Digest) -> None:
        event: JobEvent = job_events.BlobMissing(digest, "not held")
        if digest in site.blobs:
            event = job_events.BlobRead(digest, self.evidence.blobs[digest])
        self._later(site, self.network.now + 0.001, event)

    def _train(self, site: _Site, effect: job_events.Train) -> None:
        takes_s = self.rng.expovariate(1 / self.scenario.train_mean_s)
        if self.rng.random() < 0.03:  # noqa: PLR2004 - now and then a straggler
            takes_s *= 10
        boot = site.boot_epoch
        has_failed = self.rng.random() < self.scenario.attempt_failure and not self._is_calm
        if effect.base not in site.blobs:
            self.evidence.unheld.append(f"site {site.index} trains on parameters it does not hold")
            has_failed = True

        def end() -> None:
            if not site.is_up or site.boot_epoch != boot:
                return
            if until := self.network.paused_until(site.index):
                self.network.call_at(until, end)
                return
            if has_failed:
                self._feed(site, job_events.AttemptEnded(effect.round, "it failed"))
                return
            data = b"update\0%d %d %d" % (site.index, effect.round, next(self._nonces))
            digest, samples = named(data), self.rng.randint(1, 1000)
            origin = (site.id, effect.round, effect.base, samples)
            self.evidence.updates[digest] = origin
            if self.rng.random() < self.scenario.poison and not self._is_calm:
                self._poisoned.add(digest)
            self._hold(site, digest, data)
            self._feed(site, job_events.BlobArrived(digest))
            if site.is_up and site.boot_epoch == boot:
                trained = job_events.Trained(effect.round, effect.base, digest, samples, ())
                self._feed(site, trained)

        self.network.call_at(self.network.now + takes_s, end)

    def _work(
        self,
        site: _Site,
        effect: job_events.Initialise | job_events.Aggregate | job_events.Export,
    ) -> None:
        culprits: tuple[Digest, ...] = ()
        is_missing = False
        match effect:
            case job_events.Initialise():
                data = b"initial\0" + self.job.id.encode()
            case job_events.Aggregate():
                data = mean_of(effect.base, list(effect.updates))
                missing = [u for u, _ in effect.updates if u not in site.blobs]
                is_missing = bool(missing) or effect.base not in site.blobs
                if is_missing:
                    what = "updates" if missing else "base"
                    self.evidence.unheld.append(f"site {site.index} aggregates without the {what}")
                culprits = tuple(u for u, _ in effect.updates if u in self._poisoned)
            case job_events.Export():
                data = b"onnx\0" + effect.parameters
                is_missing = effect.parameters not in site.blobs
                if is_missing:
                    self.evidence.unheld.append(f"site {site.index} exports what it does not hold")
        digest = named(data)
        fails = self.rng.random() < self.scenario.work_failure and not self._is_calm
        boot = site.boot_epoch

        def end() -> None:
            if not site.is_up or site.boot_epoch != boot:
                return
            if until := self.network.paused_until(site.index):
                self.network.call_at(until, end)
                return
            if culprits or fails or is_missing:
                self._feed(site, job_events.WorkFailed(effect.token, "it failed", culprits))
                return
            self._hold(site, digest, data)
            self._feed(site, job_events.BlobArrived(digest))
            if site.is_up and site.boot_epoch == boot:
                self._feed(site, job_events.WorkDone(effect.token, digest, len(data)))

        self.network.call_at(self.network.now + self.rng.uniform(0.05, 1.0), end)

    # --- evidence --------------------------------------------------------------------------------
    def _log(self, site: _Site, what: str) -> None:
        self._trace.update(f"{self.network.now:.6f} {site.index} {what}\n".encode())

    def _spy(self, site: _Site, effect: JobEffect) -> None:
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
                origin = self.evidence.updates.get(digest)
                if origin is not None and origin[0] == site.id:
                    self._drop(site, origin[1])
            case job_events.Persist(writes):
                for write in writes:
                    if isinstance(write, Put):
                        self._spy_row(site, write)
            case _:
                pass

    def _spy_row(self, site: _Site, write: Put) -> None:
        row: Mapping[str, Any] = write.row
        if write.table == "jobs":
            value = unpack(JobValue, row["value"])
            is_over = value.state in ("finished", "failed")
            site.read = max(site.read, self.scenario.rounds + 1 if is_over else value.round)
        elif write.table == "rounds":
            site.read = max(site.read, row["round"])
        elif write.table == "register" and row["value"] is not None:
            self.evidence.proposed.append(unpack(JobValue, row["value"]))
        elif write.table == "updates" and row["state"] != "open":
            self._drop(site, row["round"])

    def _drop(self, site: _Site, round_: int) -> None:
        if not self.scenario.cancel:
            self.evidence.dropped.append(Dropped(site.index, round_, site.read))

    def _count(self, site: _Site, target: int, kind: str) -> None:
        second = int(self.network.now)
        if site.second[0] != second:
            site.second = (second, Counter())
        site.second[1][target, kind] += 1
        if site.second[1][target, kind] == ASKS_PER_SECOND_MAX:
            self.evidence.loops.append(
                f"site {site.index} asks {target} for {kind} without end at {second} s"
            )


class _TightLoop(Exception):
    """A machine would never let time pass."""


def simulate(seed: int, scenario: Scenario | None = None, parts: Parts | None = None) -> Report:
    """Run one seed to its end and judge it."""
    world = World(
        Random(seed),  # noqa: S311 - reproducible on purpose
        scenario if scenario is not None else Scenario(),
        parts if parts is not None else Parts(),
    )
    try:
        return world.run()
    except _TightLoop:
        return world._report()  # noqa: SLF001 - the front door of this very class


def add_arguments(parser: ArgumentParser) -> None:
    """Declare what ``run`` reads."""
    parser.add_argument("--seed", type=int, default=1, help="first seed")
    parser.add_argument("--runs", type=int, default=10, help="how many seeds, from the first on")
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--committee", type=int, default=3, choices=(1, 3, 5))
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="virtual seconds of trouble")
    parser.add_argument("--cancel", action="store_true", help="cancel the job on the way")


def run(args: Namespace) -> int:
    """``python -m agent.simulation job``: 0 if every seed's job kept every rule and ended."""
    scenario = Scenario(
        sites=args.sites, committee=args.committee, rounds=args.rounds, seconds=args.seconds,
        cancel=args.cancel, gone=1 if args.sites > 3 else 0,  # noqa: PLR2004 - three sites need all
    )  # fmt: skip
    bad = 0
    for seed in range(args.seed, args.seed + args.runs):
        report = simulate(seed, scenario)
        bad += bool(report.violations)
        ended = "never" if report.finished_at is None else f"{report.finished_at:.0f} s"
        sys.stdout.write(
            f"seed {seed}: {'WRONG' if report.violations else 'ok'} rounds={report.rounds} "
            f"epochs={report.epochs} calls={report.asks} ended={ended} trace={report.trace[:12]}\n"
        )
        for violation in report.violations[:10]:
            sys.stdout.write(f"  {violation}\n")
    sys.stdout.write(f"{args.runs - bad} of {args.runs} seeds are good\n")
    return 1 if bad else 0
