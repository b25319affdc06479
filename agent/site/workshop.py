"""The jobs of one site: their machines, their calls, and what they may look at.

Translates between the site (members, blobs, catalog) and each job's machine, which knows none of it.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from random import Random
from types import MappingProxyType

from agent.election.committee import Seat, choose_substitute
from agent.federation import burial, desk
from agent.federation import events as job_events
from agent.federation.burial import Tombstone
from agent.federation.events import JobEffect, JobEvent
from agent.federation.job import JobMachine
from agent.federation.region import Place, Within, region_of, regional
from agent.federation.restored import Restored
from agent.foundation.errors import NotFound
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Write
from agent.identity.certificates import Identity
from agent.identity.registry import Roll
from agent.membership.swim import Swim
from agent.site.stored import JOBS_KEPT, SiteSettings
from agent.wire.documents import Job
from agent.wire.residency import covers, is_within

JOBS_MAX = 10_000
"""As many jobs as the catalog may hold documents."""


class Surroundings:
    """What jobs may look at (implements ``federation.desk.Surroundings``)."""

    def __init__(
        self,
        identity: Identity,
        swim: Swim,
        roll: Roll,
        settings: SiteSettings,
        held: set[Digest],
        unix_s: Callable[[float], float],
    ) -> None:
        """``held`` is the site's own set, kept up to date by it."""
        self._unix_s = unix_s
        self._me, self._identity = identity.site, identity
        self._swim, self._roll, self._settings = swim, roll, settings
        self._held = held
        self.is_draining = False
        self.is_double = False
        """Another process uses this site's key, so two could run one round."""

    def alive(self) -> Mapping[SiteId, float]:
        """Capacity of living, not draining sites by id."""
        found = {
            site: member.record.capacity
            for site, member in self._swim.members().items()
            if member.state in ("alive", "suspect") and member.record.status == "alive"
        }
        if not self.is_draining:
            found[self._me] = self._settings.capacity
        return dict(sorted(found.items()))

    def is_held(self, digest: Digest) -> bool:
        """Whether the blob is complete here."""
        return digest in self._held

    def refusal(self, job: Job) -> str:
        """Why this site does not train for ``job``; empty if it does."""
        if not self._settings.can_train:
            return self._settings.why_not
        if not self.may_hold(job, self._me):
            return f"the job is restricted to {', '.join(job.residency)}"
        patterns = self._settings.datasets.get(job.dataset)
        if patterns is None:
            return (
                f"no data set '{job.dataset}' here; bind one with [datasets.{job.dataset}] path = "
                "... in the configuration"
            )
        if not any(fnmatchcase(job.id, pattern) for pattern in patterns):
            return f"the operator allows data set '{job.dataset}' to other jobs only"
        label = self._settings.dataset_labels.get(job.dataset, ())
        if label and not self._stays_within(job, label):
            asked = ", ".join(job.residency) or "anywhere"
            return (
                f"what is learned from data set '{job.dataset}' may be in {', '.join(label)} only; "
                f"the job's residency is {asked}"
            )
        return "this site is draining" if self.is_draining else ""

    def _stays_within(self, job: Job, label: tuple[str, ...]) -> bool:
        groups = self._roll.groups
        return bool(job.residency) and all(covers(label, one, groups) for one in job.residency)

    def can_aggregate(self) -> bool:
        """Whether this site may run rounds."""
        return self._settings.can_train and not self.is_draining and not self.is_double

    def unix_s(self, now: float) -> float:
        """Unix time, for people."""
        return self._unix_s(now)

    def may_hold(self, job: Job, site: SiteId) -> bool:
        """Residency, from the certificate of ``site``; unknown sites may hold nothing."""
        identity = self._identity if site == self._me else self._roll.get(site)
        return identity is not None and is_within(
            identity.claims.jurisdiction, job.residency, self._roll.groups
        )

    def region(self, site: SiteId) -> str:
        """From the certificate of ``site``; empty if it is not known."""
        identity = self._identity if site == self._me else self._roll.get(site)
        return "" if identity is None else identity.claims.region

    def is_gone(self, site: SiteId) -> bool:
        """Whether the trust log has revoked or retired ``site``."""
        return self._roll.is_gone(site)

    def substitute(self, job: Job, members: tuple[SiteId, ...], gone: SiteId) -> SiteId | None:
        """The living site that had best take the place of ``gone`` in the committee of ``job``."""
        kept = [seat for site in members if site != gone and (seat := self._seat(site)) is not None]
        seats = [
            seat
            for site in self.alive()
            if site not in members
            and self.may_hold(job, site)
            and (seat := self._seat(site)) is not None
        ]
        return choose_substitute(job.id, kept, seats)

    def _seat(self, site: SiteId) -> Seat | None:
        identity = self._identity if site == self._me else self._roll.get(site)
        if identity is None:
            return None
        return Seat(site, identity.claims.region, identity.claims.tier)


class Workshop:
    """Every job's machine at this site."""

    def __init__(
        self,
        me: SiteId,
        boot_epoch: int,
        next_call: Callable[[], int],
        surroundings: desk.Surroundings,
        rng: Random,
        stored: Mapping[JobId, Restored],
        barred_because: str,
        machine: type[JobMachine] = JobMachine,
        *,
        tombstones: Mapping[bytes, Tombstone] = MappingProxyType({}),
        jobs_kept: int = JOBS_KEPT,
    ) -> None:
        """``next_call``: numbers unique in this process, shared with the site.

        ``stored``: what the database holds of each job; a job whose document becomes known only
        later finds its promises there all the same. ``barred_because``: see ``Stored``. ``machine``: what
        runs a job. ``tombstones``: of jobs that are over; ``jobs_kept``: how many more of these are kept whole.
        """
        self._tombstones, self._jobs_kept = dict(tombstones), jobs_kept
        self._ended: dict[JobId, None] = {}
        self._machine = machine
        self._stored = dict(stored)
        self.barred_because = barred_because
        self._me, self._boot_epoch = me, boot_epoch
        self._next_call, self._surroundings, self._rng = next_call, surroundings, rng
        self.machines: dict[JobId, JobMachine] = {}
        self._around: dict[JobId, desk.Surroundings] = {}
        """What each may look at: a region's, its own sites only."""
        self._regions: dict[JobId, JobId] = {}
        """The job of this site's region, by the whole one."""
        self._busy: dict[JobId, JobMachine] = {}
        self._calls: dict[int, JobId] = {}
        self._tokens: dict[int, JobId] = {}

    def open(self, job: Job, now: float) -> None:
        """A job has become known (or was read back at start)."""
        if job.id in self.machines or len(self.machines) >= JOBS_MAX:
            return
        if self.tombstone(job.id) is not None:
            return
        own = region_of(job, self._surroundings.region(self._me))
        whole = self._open(job, self._surroundings, now, Place("" if own is None else own.name))
        if own is not None:
            within = Within(self._surroundings, job, own.name)
            place = Place(parent=job.id, is_over=whole.is_over)
            self._regions[job.id] = self._open(regional(job, own), within, now, place).job.id

    def _forgotten(self, job: JobId) -> JobMachine:
        self._busy.pop(job, None)
        del self._around[job]
        return self.machines.pop(job)

    def region(self, job: JobId) -> JobMachine | None:
        """The machine of this site's region, if that job has one for it."""
        return self.machines.get(self._regions[job]) if job in self._regions else None

    def is_whole(self, job: JobId) -> bool:
        """Whether it is a job of its own, not a region's part of one."""
        return job not in self._regions.values()

    def _open(
        self, job: Job, surroundings: desk.Surroundings, now: float, place: Place
    ) -> JobMachine:
        restored = self._stored.pop(job.id, Restored())
        restored = replace(restored, barred_because=self.barred_because)
        prefix = self._me[:8] + self._boot_epoch.to_bytes(4, "big")
        machine = self._machine(
            job, self._me, self._boot_epoch, desk.Desk(self._next_call, prefix), surroundings,
            self._rng, now, restored, place,
        )  # fmt: skip
        self.machines[job.id], self._around[job.id] = machine, surroundings
        self._busy[job.id] = machine
        return machine

    def bar(self, reason: str) -> None:
        """Vote and propose no more, in any job: another process uses this site's key."""
        self.barred_because = reason
        for machine in self.machines.values():
            machine.register.bar(reason)

    def refusal(self, job: Job) -> str:
        """Why this site does not train for ``job``; empty if it does."""
        return self._surroundings.refusal(job)

    def may_hold(self, job: Job, site: SiteId) -> bool:
        """Whether the job's residency lets its parameters go to ``site``."""
        return self._around.get(job.id, self._surroundings).may_hold(job, site)

    def substitute(self, job: Job, members: tuple[SiteId, ...], gone: SiteId) -> SiteId | None:
        """See ``Surroundings.substitute``."""
        return self._around.get(job.id, self._surroundings).substitute(job, members, gone)

    def step(self, job: JobId, event: JobEvent, now: float) -> list[JobEffect]:
        """Give one job one event; what it tells another of this site's jobs is handed on at once."""
        effects: list[JobEffect] = []
        told = deque([(job, event)])
        stepped: dict[JobId, None] = {}
        while told:
            name, one = told.popleft()
            stepped[name] = None
            for effect in self._step(name, one, now):
                if isinstance(effect, job_events.Tell):
                    told.append((effect.job, effect.event))
                else:
                    effects.append(effect)
        return [*effects, *(effect for name in stepped for effect in self._buried(name))]

    def find(self, job: str) -> JobMachine:
        """The machine of the job with that id.

        Raises:
            NotFound: there is none, or nothing but its end is kept.
        """
        if (machine := self.machines.get(JobId(job))) is not None:
            return machine
        if (stone := self.tombstone(JobId(job))) is not None:
            raise NotFound(
                f"job {job[:80]} is over ({stone.end} after {stone.round} rounds), and its rounds are not kept",
                why="of older jobs the end alone is kept: [training] jobs_kept",
            )
        raise NotFound(f"no job {job[:80]!r} in the catalog", mend="see atoll job list")

    def tombstone(self, job: JobId) -> Tombstone | None:
        """What is left of a job that was buried here."""
        return self._tombstones.get(burial.key_of(job)) if self._tombstones else None

    def _buried(self, job: JobId) -> list[JobEffect]:
        """When a job has ended and its history is here, the oldest of those beyond what is kept goes."""
        machine = self.machines.get(job)
        if machine is None or not machine.is_settled or not self.is_whole(job):
            return []
        self._ended.setdefault(job)
        if len(self._ended) <= self._jobs_kept:
            return []
        oldest = next(iter(self._ended))
        del self._ended[oldest]
        return [job_events.Persist(self._bury(oldest))]

    def _bury(self, job: JobId) -> tuple[Write, ...]:
        machine = self._forgotten(job)
        value = machine.value
        stone = burial.of(value, is_cancelled=machine.job.is_cancelled)
        self._tombstones[burial.key_of(job)] = stone
        writes = burial.writes(job, stone, 0 if value is None else value.round)
        if (region := self._regions.pop(job, None)) is not None:
            value = self._forgotten(region).value
            writes += burial.emptied(region, 0 if value is None else value.round)
        return writes

    def _step(self, job: JobId, event: JobEvent, now: float) -> list[JobEffect]:
        machine = self.machines.get(job)
        if machine is None:
            return []
        effects = machine.step(event, now)
        for effect in effects:
            if isinstance(effect, job_events.Ask):
                self._calls[effect.call] = job
            elif isinstance(effect, job_events.Persist) and effect.token is not None:
                self._tokens[effect.token] = job
        if machine.wake_at() == NEVER:
            self._busy.pop(job, None)
        else:
            self._busy[job] = machine
        return effects

    def step_all(self, event: JobEvent, now: float) -> list[JobEffect]:
        """Give every job that is under way the same news."""
        return [effect for job in list(self._busy) for effect in self.step(job, event, now)]

    def blob(self, event: JobEvent, now: float) -> list[JobEffect]:
        """News of a blob: any job may be waiting for it, ended ones for their history."""
        return [effect for job in list(self.machines) for effect in self.step(job, event, now)]

    def replied(self, event: job_events.Replied, now: float) -> list[JobEffect] | None:
        """A reply to a job's call; None if no job asked."""
        job = self._calls.pop(event.call, None)
        return None if job is None else self.step(job, event, now)

    def persisted(self, token: int, now: float) -> list[JobEffect]:
        """A job's rows are durable."""
        job = self._tokens.pop(token, None)
        return [] if job is None else self.step(job, job_events.Persisted(token), now)

    def woke(self, now: float) -> list[JobEffect]:
        """Give time to the jobs that want it."""
        due = [job for job, machine in self._busy.items() if machine.wake_at() <= now]
        return [effect for job in due for effect in self.step(job, Woke(), now)]

    def wake_at(self) -> float:
        """When the next job wants its time."""
        return min((machine.wake_at() for machine in self._busy.values()), default=NEVER)
