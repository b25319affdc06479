"""What happens to a site, and what it asks its drivers to do.

Events and effects of the parts (membership, federation) that pass through unchanged are named in
``agent.membership.events`` and ``agent.federation.events``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.catalog.gates import Counts
from agent.federation import events as job
from agent.federation.events import JobEvent
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import Woke
from agent.foundation.writes import Write
from agent.identity.certificates import Identity
from agent.membership import events as swim
from agent.site.causes import Cause
from agent.wire.documents import Document, ModelVersion
from agent.wire.mesh import Call, Reply
from agent.wire.records import Endpoint, Passport


# --- events --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class CallReceived:
    """A member calls over TLS; answer with ``Answer(call, ...)``."""

    call: int
    sender: SiteId
    message: Call


@dataclass(frozen=True, slots=True)
class CallEnded:
    """What came of an ``Ask``; ``site`` is who answered (known only now after a greeting)."""

    call: int
    site: SiteId | None
    reply: Reply | None
    error: str = ""
    cause: Cause = Cause.OTHER
    """Of the error."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """A hint that a member may be at ``endpoint``; ``mechanism``: mdns, seed, token or book."""

    endpoint: Endpoint
    mechanism: str
    site: SiteId | None = None
    sender: str = ""
    """The host that announced it."""
    sequence: int = 0
    """Of the announced site's record; a larger one than before is news."""


@dataclass(frozen=True, slots=True)
class NetworkChanged:
    """Interfaces or addresses of this machine have changed; this site is at ``endpoint`` now."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class WallClock:
    """Unix time is ``now + offset_s``; only display, stamps and certificates use it."""

    offset_s: float


@dataclass(frozen=True, slots=True)
class Submitted:
    """An admin's documents arrived at this site; ``Resolved(token, ...)`` answers."""

    token: int
    documents: tuple[Document, ...]


@dataclass(frozen=True, slots=True)
class TrustSubmitted:
    """An operator's entries of the trust log arrived at this site; ``Resolved(token, ...)`` answers."""

    token: int
    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TrustFetched:
    """Entries of the trust log that came with the answer to a renewal."""

    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BlobStored:
    """The blob is complete on this site's disk."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class BlobFailed:
    """The blob could not be fetched or read."""

    digest: Digest
    reason: str


@dataclass(frozen=True, slots=True)
class BlobsFull:
    """Something did not fit into the room for blobs."""


@dataclass(frozen=True, slots=True)
class CollectRequested:
    """The operator wants blobs that nothing names to go; ``Resolved(token, ...)`` has them in hex."""

    token: int


@dataclass(frozen=True, slots=True)
class BlobLoaded:
    """The bytes asked for with ``ReadBlob``."""

    digest: Digest
    data: bytes


@dataclass(frozen=True, slots=True)
class JobEnded:
    """Work for a job ended: an event of that job's machine."""

    job: JobId
    event: JobEvent


@dataclass(frozen=True, slots=True)
class ModelReady:
    """The model worker has a session and has run it once."""

    key: bytes
    providers: tuple[str, ...]
    metadata: str
    service_us: int


@dataclass(frozen=True, slots=True)
class ModelFailed:
    """The model worker refused the model, or died of it (``is_crash``)."""

    key: bytes
    reason: str
    is_crash: bool = False


@dataclass(frozen=True, slots=True)
class ModelReleased:
    """The operator wants a refused or quarantined model version tried again here."""

    key: bytes


@dataclass(frozen=True, slots=True)
class ModelOverridden:
    """A model is to be served here, or not, against the catalog; ``Resolved(token, ...)`` answers.

    Checked before by ``Holdings.check_loadable``.
    """

    token: int
    name: str
    version: str
    """Empty: all versions."""
    is_served: bool
    who: str


@dataclass(frozen=True, slots=True)
class WorkerUp:
    """A fresh model worker waits for models; there may be others."""


@dataclass(frozen=True, slots=True)
class WorkerDown:
    """A model worker is gone, and every session with it."""

    reason: str
    lost: frozenset[bytes]
    """Keys of the models that no other worker holds."""
    is_any_up: bool
    """Whether another worker can load them."""


@dataclass(frozen=True, slots=True)
class LoadMeasured:
    """How busy inference is (0 idle, 1 full) and the run time of each model, microseconds."""

    load: float
    service_us: Mapping[bytes, int]
    counts: Mapping[bytes, Counts] = field(default_factory=dict)
    """Requests of the versions that a rollout is about, since the gateway started."""


@dataclass(frozen=True, slots=True)
class PowerMeasured:
    """How much of this machine's supply is free, watts, steadied; None: not known."""

    free_w: float | None


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The operator wants this site to take no new work from others (or to take it again)."""

    is_draining: bool


@dataclass(frozen=True, slots=True)
class Recertified:
    """This site's certificate was renewed; the new one is on disk."""

    identity: Identity
    passport: Passport


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """The operator wants this site to leave the mesh in good order."""


SiteEvent = (
    CallReceived | CallEnded | Discovered | NetworkChanged | WallClock | Submitted | BlobStored | BlobFailed
    | TrustSubmitted | TrustFetched | BlobsFull | CollectRequested
    | BlobLoaded | JobEnded | ModelReady | ModelFailed | ModelReleased | ModelOverridden
    | WorkerUp | WorkerDown | LoadMeasured | PowerMeasured
    | DrainRequested | Recertified | LeaveRequested | swim.Heard | swim.SendFailed | swim.PortRefused
    | swim.LoopLagged | job.Persisted | Woke
)  # fmt: skip


# --- effects -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Persist:
    """Make durable before any later effect; ``Persisted(token)`` follows if one is given."""

    writes: tuple[Write, ...]
    token: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Call the site at ``endpoint``; ``site`` None: whichever member is there (a greeting)."""

    call: int
    site: SiteId | None
    endpoint: Endpoint
    message: Call
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Answer a ``CallReceived``."""

    call: int
    reply: Reply


@dataclass(frozen=True, slots=True)
class FetchBlob:
    """Fetch from these members, in this order of preference."""

    digest: Digest
    sources: tuple[tuple[SiteId, Endpoint], ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """By which of this site's data a version is judged, and how good it must be."""

    holdout: str
    accuracy_min: float


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Have the model worker load this version (its blob is held)."""

    key: bytes
    version: ModelVersion
    judged: Judged | None = None


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """The model worker may forget this version."""

    key: bytes


@dataclass(frozen=True, slots=True)
class GatewayChanged:
    """What the gateway decides by has changed: push ``Site.view()`` to it."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The answer to ``Submitted``: an error text for each document, empty if it was taken."""

    token: int
    errors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustChanged:
    """The trust log has grown, durably: close what is open to revoked sites, at both ports."""


@dataclass(frozen=True, slots=True)
class IsolationChanged:
    """Nobody is heard (or somebody is again)."""

    is_isolated: bool


@dataclass(frozen=True, slots=True)
class Noted:
    """Something an operator wants in the log."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class MeshLeft:
    """Call no other site and answer none from now on: another process uses this site's key."""

    reason: str


JobWork = (
    job.Train | job.Initialise | job.Aggregate | job.AggregateRange | job.Join | job.Export
    | job.ReleaseTrainer
)  # fmt: skip
SiteEffect = (
    swim.SendGossip | Persist | Ask | Answer | FetchBlob | job.ReadBlob | job.StoreBytes
    | job.ForgetBlob | JobWork | LoadModel | UnloadModel | GatewayChanged | Resolved | Noted | IsolationChanged
    | job.Progressed | job.Label | TrustChanged | MeshLeft
)  # fmt: skip
