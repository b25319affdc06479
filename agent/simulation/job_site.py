"""One simulated site of a job: what survives a crash, what does not, and how its machines are fed."""

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from agent.federation import events as job_events
from agent.federation.burial import TABLE, Tombstone, read
from agent.federation.events import JobEffect, JobEvent
from agent.federation.job import JobMachine
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Delete
from agent.site.workshop import Workshop
from agent.wire.mesh import Declined

JOB = JobId("simulated-00000001")
Row = dict[str, Any]


@dataclass(slots=True)
class SimulatedSite:
    """One site: what survives a crash (disk, blobs), and what does not."""

    index: int
    id: SiteId
    is_idle: bool
    workshop: Workshop | None = None
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
    read: Counter[JobId] = field(default_factory=Counter)
    """Committed rounds of each job that this site has read, in all its lives, as its rows tell."""
    knows_of_cancellation: bool = False
    is_over: bool = False
    wall_offset_s: float = 0.0
    """What the clock for people is wrong by; it jumps, and nothing may depend on it."""
    buried: list[Row] = field(default_factory=list)
    """Rounds whose rows are gone, for the judge."""
    at_once: tuple[float, int] = (-1.0, 0)
    second: tuple[int, Counter[tuple[int, str]]] = (-1, Counter())

    @property
    def machine(self) -> JobMachine | None:
        """Of the whole job."""
        return None if self.workshop is None else self.workshop.machines.get(JOB)

    def tombstones(self) -> dict[bytes, Tombstone]:
        """As ``daemon.restore`` reads them back."""
        return dict(read(row) for row in self.disk.get(TABLE, {}).values())

    def bury(self, write: Delete) -> None:
        """A row is gone; what was known of rounds is noted for the judge."""
        row = self.disk.get(write.table, {}).pop(write.key, None)
        if row is not None and write.table == "rounds":
            self.buried.append(row)

    def rows(self, table: str, job: JobId = JOB) -> list[Row]:
        """What its disk holds of ``job``, in order."""
        found = sorted(self.disk.get(table, {}).items())
        gone = self.buried if table == "rounds" else []
        return [row for row in (*gone, *(row for _, row in found)) if row["job"] == job]


def handed_over(workshop: Workshop, event: JobEvent, job: JobId, now: float) -> list[JobEffect]:
    """As ``site.Site`` does it."""
    effects: list[JobEffect] | None
    match event:
        case job_events.Called(call, _, message):
            name = JobId(getattr(message, "job", ""))
            stone = workshop.tombstone(name)
            unknown = Declined("this site knows no such job")
            if name in workshop.machines:
                effects = workshop.step(name, event, now)
            else:
                effects = [job_events.Answer(call, stone.told(name) if stone else unknown)]
        case job_events.Replied():
            effects = workshop.replied(event, now)
        case job_events.Persisted(token):
            effects = workshop.persisted(token, now)
        case job_events.BlobArrived() | job_events.BlobMissing() | job_events.BlobRead():
            effects = workshop.blob(event, now)
        case job_events.ViewChanged():
            effects = workshop.step_all(event, now)
        case Woke():
            effects = workshop.woke(now)
        case _:
            effects = workshop.step(job, event, now)
    return [effect for effect in effects or [] if not _is_needed(workshop, effect)]


def _is_needed(workshop: Workshop, effect: JobEffect) -> bool:
    """One job would forget a blob that another of this site still needs."""
    return isinstance(effect, job_events.ForgetBlob) and any(
        machine.needs(effect.digest) for machine in workshop.machines.values()
    )
