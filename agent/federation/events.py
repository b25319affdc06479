"""What happens to a job's machine, and what it asks for."""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.federation.value import JobValue
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import Woke
from agent.foundation.writes import Write
from agent.wire.documents import Job
from agent.wire.mesh import Call, Reply

Metrics = tuple[tuple[str, float], ...]


# --- events --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Called:
    """Another site calls about this job; answer with ``Answer(call, ...)``."""

    call: int
    sender: SiteId
    message: Call


@dataclass(frozen=True, slots=True)
class Replied:
    """The answer to our ``Ask``; None: it did not come (the other site may have acted all the same)."""

    call: int
    reply: Reply | None


@dataclass(frozen=True, slots=True)
class ViewChanged:
    """Who seems alive has changed (a hint)."""


@dataclass(frozen=True, slots=True)
class BlobArrived:
    """The blob is complete on this site's disk."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class BlobMissing:
    """The blob could not be had from any source."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class BlobRead:
    """The bytes of a small blob asked for with ``ReadBlob``."""

    digest: Digest
    data: bytes


@dataclass(frozen=True, slots=True)
class Trained:
    """The attempt for ``round`` ended with an update (stored as a blob)."""

    round: int
    base: Digest
    update: Digest
    samples: int
    metrics: Metrics
    parts: tuple[Digest, ...] = ()
    """What ``update`` names, where it is cut."""


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The attempt for ``round`` gave no update."""

    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class WorkDone:
    """The result (stored as a blob) of Initialise, Aggregate, AggregateRange, Join or Export with this token."""

    token: int
    digest: Digest
    bytes: int = 0
    carried: Digest | None = None
    """What the job's outer optimizer carries on to the next round (a blob)."""


@dataclass(frozen=True, slots=True)
class WorkFailed:
    """The work with this token gave no result; ``culprits``: the updates, or parts, that made it fail."""

    token: int
    reason: str
    culprits: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class Persisted:
    """The rows of the ``Persist`` with this token are durable."""

    token: int


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The job's document says it is cancelled."""


@dataclass(frozen=True, slots=True)
class ReplaceMember:
    """An operator says that ``gone`` of the committee does not come back; ``by`` takes its place."""

    gone: SiteId
    by: SiteId


@dataclass(frozen=True, slots=True)
class RecoverRegister:
    """An operator says that of the committee only ``survivors`` are left; ``members`` follow it."""

    survivors: tuple[SiteId, ...]
    members: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True)
class FromWhole:
    """To a region's machine: what its delegate knows of the whole job."""

    value: JobValue | None
    """Of its register, the newest that was read."""
    settled_until: int
    """Up to which of its rounds the region is known to be counted; 0: not known."""
    silent_since: float | None
    """Since when that register cannot be read; None: it can."""
    sources: tuple[SiteId, ...] = ()
    """Where the parameters of the whole job may be had."""
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class FromRegion:
    """To the whole job's machine: what the region of this site has made."""

    value: JobValue | None
    speaks: bool
    """This site aggregates the region, so it speaks for it."""
    is_here: bool
    """What there is to be offered is on this site's disk."""
    metrics: Metrics = ()
    """Of the parameters of the whole job that its rounds have started from, over its sites."""


@dataclass(frozen=True, slots=True)
class LookAgain:
    """To the whole job's machine: nobody speaks for the region any more; perhaps the job is over."""


JobEvent = (
    Called | Replied | ViewChanged | BlobArrived | BlobMissing | BlobRead | Trained
    | AttemptEnded | WorkDone | WorkFailed | Persisted | Cancelled | ReplaceMember
    | RecoverRegister | FromWhole | FromRegion | LookAgain | Woke
)  # fmt: skip


# --- effects -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Persist:
    """Make these rows durable before any later effect; ``Persisted(token)`` follows if one is given."""

    writes: tuple[Write, ...]
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Call another site; the outcome comes back as ``Replied(call, ...)``."""

    call: int
    site: SiteId
    message: Call
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a ``Called``."""

    call: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Have the blob here: ``BlobArrived`` or ``BlobMissing`` follows."""

    digest: Digest
    sources: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True)
class ReadBlob:
    """Read a small held blob: ``BlobRead`` or ``BlobMissing`` follows."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class StoreBytes:
    """Keep these bytes as a blob; its digest is already known to the machine."""

    digest: Digest
    data: bytes


@dataclass(frozen=True, slots=True)
class Label:
    """The blob may go to members allowed by the job's residency."""

    digest: Digest
    residency: tuple[str, ...]
    is_own: bool = False
    """Made here of nothing that came from elsewhere: two jobs may make the same bytes (of one seed), each by right."""


@dataclass(frozen=True, slots=True)
class ForgetBlob:
    """The blob has served: it may be removed."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Train:
    """Start an attempt: ``Trained`` or ``AttemptEnded`` follows."""

    job: Job
    round: int
    base: Digest
    carried: Digest | None = None
    """What the round before left, where the job corrects the sites' steps by it."""


@dataclass(frozen=True, slots=True)
class Initialise:
    """Make the first parameters: ``WorkDone`` or ``WorkFailed`` follows."""

    token: int
    job: Job


@dataclass(frozen=True, slots=True)
class Counting:
    """An update as it is to be counted."""

    update: Digest
    weight: int
    started_from: Digest | None = None
    """Older parameters than the round's: what it changed is counted then."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Average the updates, in proportion to their weights; each must resemble ``base``."""

    token: int
    job: Job
    round: int
    base: Digest
    updates: Sequence[Counting]
    carried: Digest | None = None
    """What the outer optimizer left in the round before; None in the first, and without one."""


@dataclass(frozen=True, slots=True)
class AggregateRange:
    """As ``Aggregate``, without the outer optimizer, of one part of each update (``update`` is the part)."""

    token: int
    job: Job
    round: int
    base: Digest
    updates: Sequence[Counting]
    part: tuple[int, int]
    """Which, and of how many."""


@dataclass(frozen=True, slots=True)
class Join:
    """Make of the parts of a mean, in their order, what ``Aggregate`` would have made."""

    token: int
    job: Job
    round: int
    base: Digest
    ranges: tuple[Digest, ...]
    carried: Digest | None = None


@dataclass(frozen=True, slots=True)
class Export:
    """Export the parameters to ONNX and check the result against PyTorch."""

    token: int
    job: Job
    parameters: Digest


@dataclass(frozen=True, slots=True)
class ReleaseTrainer:
    """The job needs its trainer no more."""

    job: Job


@dataclass(frozen=True, slots=True)
class Progressed:
    """Something a person watching the job wants to see has changed."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Look at once whether the site is there: a round waits for it, and would not if it were gone."""

    site: SiteId


@dataclass(frozen=True, slots=True)
class Tell:
    """Give ``event`` to the machine of another job at this site: a region's, or the whole job's."""

    job: JobId
    event: FromWhole | FromRegion | LookAgain


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is over (finished, failed or cancelled); ``exported`` is to be published if given."""

    job: Job
    exported: Digest | None
    exported_bytes: int
    round: int


JobEffect = (
    Persist | Ask | Answer | FetchBlob | ReadBlob | StoreBytes | Label | ForgetBlob | Train | Initialise
    | Aggregate | AggregateRange | Join | Export | ReleaseTrainer | Progressed | Doubt | Tell
    | Finished
)  # fmt: skip


def finished(job: Job, value: JobValue | None) -> Finished:
    """What a job whose register holds ``value`` has come to."""
    if value is None:
        return Finished(job, None, 0, 0)
    return Finished(job, value.exported, value.exported_bytes, value.round)
