"""Messages between the processes of one site (inherited socket pairs; file descriptors travel along).

Not part of the protocol between sites: both ends are always the same version.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

from agent.wire.documents import GOLDEN_CHARS_MAX, BlobDigest, Policy
from agent.wire.limits import DOCUMENTS_MAX, FLEET_TOKENS_MAX
from agent.wire.records import Counter, Identifier, Jurisdictions, Name, Port, Served, Site
from agent.wire.residency import GROUPS_MAX, Group, LawDigest
from agent.wire.schema import AtMost, Length, Range, Tagged

Text = Annotated[str, AtMost(1000)]
ModelKey = Annotated[bytes, Length(8)]
IdempotencyKey = Annotated[bytes, Length(16)]
"""Digest of an application and its key."""
KNOWN_MAX = 256
"""Entries of what was learned of other sites; more than anybody reads of ``atoll route explain``."""
Milliseconds = Annotated[float, Range(0.0, 1e9)]


# --- control -> gateway --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model version this site is to serve."""

    key: ModelKey
    name: Name
    version: Name
    is_ready: bool
    reason: Text
    """Why it is not ready; empty if it is."""
    residency: Jurisdictions
    metadata: Annotated[str, AtMost(65_536)]
    """Open Inference Protocol model metadata, JSON; empty until loaded."""
    service_us: Counter
    is_counted: bool = False
    """A rollout is about it: its requests here are told in ``Traffic``."""


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model version of the catalog, served here or elsewhere."""

    key: ModelKey
    name: Name
    version: Name
    is_default: bool
    """The deployed version: answers requests that name none."""
    residency: Jurisdictions
    unloaded: Text = ""
    """Who decided, and when, that this site does not serve it; empty if nobody did."""


@dataclass(frozen=True, slots=True)
class RemoteSite:
    """A member that may answer requests."""

    site: Site
    name: Name
    region: Name
    tier: Name
    jurisdiction: Name
    """From its certificate, never self-claimed."""
    host: Annotated[str, AtMost(64)]
    data_port: Port
    status: Literal["alive", "suspect"]
    is_draining: bool
    rtt_ms: Milliseconds
    load: Annotated[float, Range(0.0, 1e6)]
    serving: tuple[Served, ...]


@dataclass(frozen=True, slots=True)
class BlobLabel:
    """A blob that members may fetch here, and the jurisdictions it may go to (empty = any)."""

    manifest: BlobDigest
    residency: Jurisdictions


@dataclass(frozen=True, slots=True)
class View:
    """All the gateway needs to decide on its own; replaces the former view whole."""

    site: Site
    name: Name
    jurisdiction: Name
    is_draining: bool
    local: tuple[LocalModel, ...]
    known: tuple[KnownModel, ...]
    sites: tuple[RemoteSite, ...]
    blobs: tuple[BlobLabel, ...]
    revoked: tuple[Site, ...]
    groups: Annotated[tuple[Group, ...], AtMost(GROUPS_MAX)] = ()
    """Of jurisdictions, as the trust log has them."""
    vocabulary: Annotated[tuple[Name, ...], AtMost(64)] = ()
    """The only jurisdictions that certificates may name; empty = any."""
    policies: Annotated[tuple[Policy, ...], AtMost(DOCUMENTS_MAX)] = ()
    """Those that are active, by name."""


@dataclass(frozen=True, slots=True)
class AttachWorker:
    """A model worker is up. Descriptors: [doorbell socket (SOCK_SEQPACKET), shared memory]."""

    index: int


@dataclass(frozen=True, slots=True)
class DetachWorker:
    """The model worker is gone: fail its requests (503, or the next site) at once."""

    index: int
    is_blameless: bool = False
    """Somebody ended it: what it was running is not why, and may be run again."""


@dataclass(frozen=True, slots=True)
class WorkerHolds:
    """The models that a worker can answer for, all of them; said after each ``AttachWorker`` too."""

    index: int
    models: Annotated[tuple[ModelKey, ...], AtMost(DOCUMENTS_MAX)]


@dataclass(frozen=True, slots=True)
class Audited:
    """The audit entry of ``call`` is on disk (``error`` empty), or the request must not leave."""

    call: Counter
    error: Text


@dataclass(frozen=True, slots=True)
class KeyClaimed:
    """The key of ``call`` is on disk (``error`` empty), or nothing may be done in its name."""

    call: Counter
    is_new: bool
    error: Text


@dataclass(frozen=True, slots=True)
class RepositoryAnswered:
    """What came of ``RepositoryAsked``; the view that shows it was sent before."""

    call: Counter
    status: Annotated[int, Range(200, 599)]
    """200, or the HTTP status of ``error``."""
    error: Text


@dataclass(frozen=True, slots=True)
class ApplicationToken:
    """A token that is neither revoked nor ended: its hash, and what it is for."""

    name: Name
    """Of the application."""
    hash: Identifier
    """SHA-256 of the token."""
    scopes: Annotated[tuple[Annotated[str, AtMost(70)], ...], AtMost(64)]
    """As ``agent.serving.access`` lists them."""
    expires_at: float
    """Unix seconds; 0: never."""


@dataclass(frozen=True, slots=True)
class Applications:
    """All valid tokens; replaces the former ones whole. Comes before the first view.

    Not part of the view: the operator who revokes a token is told when it is refused, so the gateway
    answers each of these with ``ApplicationsTaken``.
    """

    call: Counter
    tokens: Annotated[tuple[ApplicationToken, ...], AtMost(256 + FLEET_TOKENS_MAX)]


@dataclass(frozen=True, slots=True)
class ControlFigures:
    """Counters of the control process, in the Prometheus text format."""

    text: Annotated[str, AtMost(16_384)]


@dataclass(frozen=True, slots=True)
class CertificateRenewed:
    """The identity folder holds a renewed certificate: show it on new connections."""


# --- gateway -> control --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class GatewayReady:
    """All listeners are bound."""

    http_port: Port
    data_port: Port
    grpc_port: Annotated[int, Range(0, 65_535)] = 0
    """0: this site does not speak gRPC."""
    metrics_port: Annotated[int, Range(0, 65_535)] = 0
    """0: the counters are at the applications' port only."""


@dataclass(frozen=True, slots=True)
class AuditForward:
    """A request is about to leave to ``receiver``: write the audit entry, answer ``Audited``."""

    call: Counter
    request: Text
    model: Text
    receiver: Site
    label: Jurisdictions
    bytes: Counter
    trace: Text = ""
    """Id of the caller's trace; empty if there is none."""
    policy: LawDigest = b""
    """Digest of the jurisdictions and groups that it was decided by."""


@dataclass(frozen=True, slots=True)
class ClaimKey:
    """A request with this idempotency key is about to be run: write it down, answer ``KeyClaimed``."""

    call: Counter
    key: IdempotencyKey


@dataclass(frozen=True, slots=True)
class ReleaseKey:
    """The request of a claimed key did not run."""

    key: IdempotencyKey


@dataclass(frozen=True, slots=True)
class AuditBlob:
    """Parts of a blob are about to be given to ``receiver``: write the entry, answer ``Audited``."""

    call: Counter
    blob: BlobDigest
    receiver: Site
    label: Jurisdictions
    bytes: Counter
    """Of the whole blob."""
    policy: LawDigest = b""


@dataclass(frozen=True, slots=True)
class AuditOutcome:
    """What became of an ``AuditForward``, with the same request, receiver and label."""

    request: Text
    receiver: Site
    label: Jurisdictions
    bytes: Counter
    """Of the answer."""
    outcome: Text
    """HTTP status, or in a few words why there is none."""


@dataclass(frozen=True, slots=True)
class RepositoryAsked:
    """An application wants a model of the catalog loaded or unloaded here; ``RepositoryAnswered``."""

    call: Counter
    model: Name
    is_load: bool
    who: Text
    """Who asks, for a person."""


@dataclass(frozen=True, slots=True)
class ApplicationsTaken:
    """Requests that come from now on are judged by the tokens of ``call``."""

    call: Counter


@dataclass(frozen=True, slots=True)
class FiguresAsked:
    """Somebody reads the counters: ``ControlFigures``."""


@dataclass(frozen=True, slots=True)
class PeerKnown:
    """A site with trouble, as this one's requests met it."""

    site: Site
    breaker: Literal["closed", "open", "half-open"]
    rest_s: Annotated[float, Range(0.0, 1e6)]
    """For how long it is not asked before others; 0: it may be."""


@dataclass(frozen=True, slots=True)
class PairKnown:
    """How late a site was of late, of one model."""

    site: Site
    key: ModelKey
    late_ms: Annotated[float, Range(-1e9, 1e9)]
    """Beyond round trip and service time."""
    weight: Annotated[float, Range(0.0, 1.0)]
    """1: just now; 0: long ago."""
    service_ms: Annotated[float, Range(0.0, 1e9)]
    """The run time that the lateness was measured against."""
    runs: Annotated[float, Range(1.0, 1e9)] = 1.0
    """In how far that counts: the request's own run, and those of the sender's before it."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Requests that one model version has run here since the gateway started."""

    key: ModelKey
    requests: Counter
    """With the errors."""
    errors: Counter
    """Status 500 or 504, or lost with a worker."""
    times: Annotated[tuple[Counter, ...], AtMost(64)]
    """How many took up to each bound of ``catalog.gates.BOUNDS_S``."""
    invalid: Counter = 0
    """Status 400; not among the requests."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counters since the gateway started; sent at most once a second, when changed."""

    requests: Counter
    errors: Counter
    forwarded: Counter
    received: Counter
    in_flight: Counter
    slots: Counter
    service: tuple[tuple[ModelKey, Counter], ...]
    """Moving average of the run time of each local model, microseconds."""
    wait_us: Counter = 0
    """Predicted wait of a request here."""
    peers: Annotated[tuple[PeerKnown, ...], AtMost(KNOWN_MAX)] = ()
    pairs: Annotated[tuple[PairKnown, ...], AtMost(KNOWN_MAX)] = ()
    counted: Annotated[tuple[Counted, ...], AtMost(KNOWN_MAX)] = ()


# --- control -> model worker ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class AttachGateway:
    """The gateway's end. Descriptors: [doorbell socket, shared memory]. Replaces a former one."""

    slots: int
    slot_bytes: int


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Load the file given as descriptor; answer ModelLoaded or ModelRefused."""

    key: ModelKey
    name: Name
    version: Name
    site: Name
    """Name of this site, for the answers' ``served_by``."""
    sha256: Identifier
    """Of the file's bytes; checked again before loading."""
    providers: tuple[Name, ...]
    """Execution providers in order of preference."""
    golden: Annotated[str, AtMost(GOLDEN_CHARS_MAX)] = ""
    """See ``documents.ModelVersion``."""
    accuracy_min: float = 0.0
    """Asked of it; then two more descriptors are the images and labels of the site's hold-out."""


@dataclass(frozen=True, slots=True)
class UnloadModel:
    """Forget the model when its running requests have ended."""

    key: ModelKey


# --- model worker -> control ---------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class WorkerReady:
    """The worker is confined and waits for models."""

    pid: int
    runtime: Text
    """For a person: ``onnxruntime 1.31.1``."""
    sandbox: Text
    """What confines it: ``landlock 7, seccomp`` or why not."""


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The session exists and has run a warm-up; ``providers`` is what the session really got."""

    key: ModelKey
    providers: tuple[Name, ...]
    metadata: Annotated[str, AtMost(65_536)]
    load_ms: Milliseconds
    service_us: Counter
    passed_over: Annotated[tuple[Text, ...], AtMost(8)] = ()
    """Why it does not run on a provider that the hardware profile prefers, one each."""


@dataclass(frozen=True, slots=True)
class ModelRefused:
    """The model cannot be loaded."""

    key: ModelKey
    reason: Text


TO_GATEWAY = Tagged(
    {
        1: View,
        2: AttachWorker,
        3: DetachWorker,
        4: Audited,
        5: BlobLabel,
        6: CertificateRenewed,
        7: RepositoryAnswered,
        8: Applications,
        9: ControlFigures,
        10: WorkerHolds,
        11: KeyClaimed,
    }
)
FROM_GATEWAY = Tagged(
    {
        1: GatewayReady,
        2: AuditForward,
        3: Traffic,
        4: RepositoryAsked,
        5: ApplicationsTaken,
        6: FiguresAsked,
        7: AuditOutcome,
        8: ClaimKey,
        9: ReleaseKey,
        10: AuditBlob,
    }
)
TO_WORKER = Tagged({1: AttachGateway, 2: LoadModel, 3: UnloadModel})
FROM_WORKER = Tagged({1: WorkerReady, 2: ModelLoaded, 3: ModelRefused})


def model_key(name: str, version: str) -> bytes:
    """The 8-byte key of a model version (first bytes of SHA-256 of ``name:version``)."""
    return hashlib.sha256(f"{name}:{version}".encode()).digest()[:8]
