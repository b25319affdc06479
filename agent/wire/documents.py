"""Catalog documents: what the operators want, signed by an admin key.

A document is identified by ``(kind, name)`` and replaced as a whole; the newer stamp wins
(hybrid logical clock, Kulkarni et al. 2014), ties go to the larger author, so every site that has
seen the same documents holds the same catalog.

Evolution: new fields have defaults (``wire/schema.py``), and sites pass a body on as the bytes that
were signed, so a site that does not know a field loses none. A new kind has a tag from 4 on, and its
first two fields are ``kind`` and ``name``: a site that does not know it keeps it and passes it on by
these (``Unknown``). A new value in a ``Literal`` needs a new kind: older sites refuse the document.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from agent.foundation.ids import Digest, JobId
from agent.wire.limits import DOCUMENT_BYTES_MAX
from agent.wire.records import Counter, Identifier, Jurisdictions, Name, Site
from agent.wire.schema import AtMost, Length, Range, Tagged, omitted

KIND_CHARS_MAX = 16
GOLDEN_CHARS_MAX = 24 << 10
"""Of a golden question with its answer; the document has 32 KiB in all."""
BlobDigest = Annotated[Digest, Length(32)]
Pattern = Annotated[str, AtMost(64)]
"""A name in which ``*`` stands for any letters, or none."""


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """A model's bytes under a name and a version."""

    name: Name
    version: Name
    manifest: BlobDigest
    """The digest of the blob's manifest: names the exact bytes."""
    bytes: Counter
    format: Literal["onnx"]
    residency: Jurisdictions
    """Jurisdictions in which the model may be held and run; empty = anywhere."""
    source: Annotated[str, AtMost(256)] = ""
    """For a person: a file name, or the job and round that made it."""
    golden: Annotated[str, AtMost(GOLDEN_CHARS_MAX)] = omitted("")
    """JSON: a request of the Open Inference Protocol with ``outputs``, the tensors it must be answered
    with. A site at which the model answers otherwise does not serve it. Empty: none."""
    is_retired: bool = omitted(False)
    """Nobody will want it again: sites that do not serve it need not keep its bytes."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How a new version takes the place of the one before it (``catalog/rollout.py``)."""

    previous: Name = ""
    """The version that serves until a site's turn has come; empty: everywhere at once."""
    attempt: Counter = 0
    """A number drawn anew when a version is to be tried, or tried again: what was told of another attempt
    does not count."""
    waves: Annotated[tuple[Annotated[float, Range(0.0, 100.0)], ...], AtMost(8)] = (
        5.0,
        25.0,
        100.0,
    )
    """Per cent of the sites, cumulative and ascending; the first wave has one site at least, and what
    the last one leaves follows in one more."""
    observe_s: Annotated[float, Range(1.0, 604_800.0)] = 60.0
    """How long each site must have served the version, with every gate held, before it counts."""
    error_rate_max: Annotated[float, Range(0.0, 1.0)] = 0.01
    """Share of requests that this version may fail (status 500 or 504), at each site."""
    p99_ms_max: Annotated[float, Range(0.0, 1e6)] = 0.0
    """Of the time a request takes at a site; 0: not judged."""
    p99_ratio_max: Annotated[float, Range(0.0, 1000.0)] = 0.0
    """The same as a multiple of the previous version's at that site; 0: not judged."""
    requests_min: Counter = 0
    """So many the sites of a wave must have answered together before the next one begins."""
    is_paused: bool = False
    """No further site begins; those that have begun go on."""
    accuracy_min: Annotated[float, Range(0.0, 1.0)] = omitted(0.0)
    """Least share of right answers on ``holdout``, at each site that has it; 0: not judged."""
    holdout: Name = omitted("")
    """The name of a data set that sites have bound, whose hold-out judges."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where a model is to be served. A site serves it if every non-empty list contains it."""

    model: Name
    version: Name
    sites: Annotated[tuple[Name, ...], AtMost(1024)]
    """Site names; empty = every site that matches the rest."""
    tiers: Annotated[tuple[Literal["edge", "regional", "core"], ...], AtMost(3)] = ()
    regions: Annotated[tuple[Name, ...], AtMost(64)] = ()
    is_active: bool = True
    """False withdraws the deployment (documents are never deleted, so that old news cannot revive them)."""
    replicas: Annotated[int, Range(0, 10_000)] = omitted(0)
    """So many of the sites that match, chosen by all alike (``catalog/replicas.py``); 0 = each of them."""
    jurisdictions: Jurisdictions = omitted(())
    """Only there, besides what the model's own residency label says; empty = anywhere it allows."""
    accelerator: Literal["", "gpu"] = omitted("")
    """Only on sites with one."""
    memory_bytes_min: Counter = omitted(0)
    """Only on sites with so much memory."""
    rollout: Rollout | None = omitted(None)
    """In waves; None: everywhere at once."""
    power_free_w_min: Annotated[float, Range(0.0, 1e6)] = omitted(0.0)
    """Only on sites with so much of their power supply free, watts; 0: not asked for."""


@dataclass(frozen=True, slots=True)
class Region:
    """A region whose sites run rounds of their own, of which the job counts the results."""

    name: Name
    """As in the certificates of its sites."""
    committee: Annotated[tuple[Site, ...], AtMost(5)]
    """Holds the region's register; sites of the region."""


RANGES_MAX = 64
"""The links of 64 sites together outrun any committee's disks."""


@dataclass(frozen=True, slots=True)
class Job:
    """One federated training job. Its committee is pinned here and never recomputed from gossip."""

    id: Annotated[JobId, AtMost(80)]
    """``name-xxxxxxxx``: never reused (8 hex digits of the hash of the rest and a nonce)."""
    recipe: Name
    """A shipped recipe: model, loss, local training and evaluation."""
    dataset: Name
    """The name to which each site's operator binds local data."""
    committee: Annotated[tuple[Site, ...], AtMost(5)]
    rounds: Annotated[int, Range(1, 10_000)]
    epochs: Annotated[int, Range(1, 1000)]
    """Local epochs a round."""
    batch: Annotated[int, Range(1, 65_536)]
    learning_rate: Annotated[float, Range(1e-9, 100.0)]
    seed: Counter
    sites_min: Annotated[int, Range(1, 10_000)]
    """A round is not committed with fewer updates."""
    round_timeout_s: Annotated[float, Range(1.0, 86_400.0)]
    publish: Name
    """Name under which the exported model is published; empty = do not publish."""
    residency: Jurisdictions
    """Jurisdictions in which parameters and updates may be held; empty = anywhere."""
    deploy_sites: Annotated[tuple[Name, ...], AtMost(1024)] = ()
    """Sites that serve the published model; empty = every site allowed by ``residency``."""
    is_cancelled: bool = False
    is_float_mean: bool = omitted(False)
    """Sum updates in float32, in the order of their digests, instead of exactly in integers."""
    staleness_max: Annotated[int, Range(0, 64)] = omitted(0)
    """An update that came too late for its round counts in one of so many later ones, for less."""
    outer: Literal["none", "momentum", "nesterov", "adam", "yogi"] = omitted("none")
    """What the aggregator makes of a round's mean step; see ``agent.workers.outer``."""
    outer_rate: Annotated[float, Range(1e-9, 100.0)] = omitted(1.0)
    outer_momentum: Annotated[float, Range(0.0, 0.99999)] = omitted(0.9)
    outer_second: Annotated[float, Range(0.0, 0.99999)] = omitted(0.99)
    """How much of the mean square step is kept from round to round (adam, yogi)."""
    outer_floor: Annotated[float, Range(1e-9, 1.0)] = omitted(1e-3)
    """What is added to its root; tau of Reddi et al. 2021."""
    regions: Annotated[tuple[Region, ...], AtMost(64)] = omitted(())
    """``sites_min`` counts each of them as one; sites of no region here take part by themselves."""
    region_sites_min: Annotated[int, Range(1, 10_000)] = omitted(1)
    """A region's round is not committed with fewer updates."""
    local_rounds_max: Annotated[int, Range(0, 1000)] = omitted(0)
    """So many rounds a region that is cut off goes on alone; counted late when it is back."""
    ranges: Annotated[int, Range(1, RANGES_MAX)] = omitted(1)
    """So many sites make a round's mean together, each of a part of the parameters."""
    correction: Literal["none", "scaffold"] = omitted("none")
    """What keeps sites with different data from drifting apart; see ``agent.workers.scaffold``."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Where requests may be answered, besides what their labels say: it narrows and never widens.

    It is about a request if every list that is not empty has something that fits. A new way to narrow needs a
    new kind: a site that does not know it must not take the policy for a weaker one.
    """

    kind: Literal["policy"]
    name: Name
    answer_in: Jurisdictions
    """Only there (jurisdictions or groups); empty = anywhere."""
    models: Annotated[tuple[Pattern, ...], AtMost(64)] = ()
    """Names of models, ``*`` for any letters; empty = every model."""
    origins: Jurisdictions = ()
    """Where the site is that the application asks; empty = anywhere."""
    applications: Annotated[tuple[Pattern, ...], AtMost(64)] = ()
    """Names of applications, as their tokens have them (``local``: without one); empty = every one."""
    needs_label: bool = False
    """A request without ``Atoll-Residency`` is refused."""
    is_active: bool = True
    """False takes it back (documents are never deleted)."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What an application may do at every site, by tokens that all of them know (``serving/access.py``)."""

    kind: Literal["scope"]
    name: Name
    """Of the application."""
    tokens: Annotated[tuple[Annotated[bytes, Length(32)], ...], AtMost(4)]
    """SHA-256 of each; two while one takes the other's place."""
    scopes: Annotated[tuple[Annotated[str, AtMost(70)], ...], AtMost(64)]
    expires_at_s: Counter = 0
    """Unix time; 0: never."""
    jurisdictions: Jurisdictions = ()
    """Only at sites there (jurisdictions or groups); empty = anywhere."""
    is_active: bool = True
    """False revokes all of it (documents are never deleted)."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """A document of a kind that a newer version made: kept and passed on, not understood."""

    kind: Annotated[str, AtMost(KIND_CHARS_MAX)]
    name: Name


Body = ModelVersion | Deployment | Job | Policy | Scope | Unknown
BODIES = Tagged({1: ModelVersion, 2: Deployment, 3: Job, 4: Policy, 5: Scope}, others=Unknown)


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """Hybrid logical clock reading: milliseconds of Unix time, then a counter."""

    wall_ms: Counter
    count: Annotated[int, Range(0, 2**31 - 1)]


@dataclass(frozen=True, slots=True)
class Document:
    """One signed decision. The signature covers ``pack(Unsigned(stamp, author, body))``."""

    stamp: Stamp
    author: Identifier
    """SHA-256 of the admin's public key (SPKI)."""
    body: Annotated[bytes, AtMost(DOCUMENT_BYTES_MAX)]
    """``BODIES.pack(...)``."""
    signature: Annotated[bytes, Length(64)] = field(default=b"")


@dataclass(frozen=True, slots=True)
class Unsigned:
    """What an admin signs."""

    stamp: Stamp
    author: Identifier
    body: Annotated[bytes, AtMost(DOCUMENT_BYTES_MAX)]


KINDS = ("model", "deployment", "job", "policy", "scope")
"""What this version understands."""


@dataclass(frozen=True, slots=True)
class Key:
    """What a document is about: two documents with one key replace each other."""

    kind: Annotated[str, AtMost(KIND_CHARS_MAX)]
    """One of ``KINDS``, or what a newer version has added."""
    name: Annotated[str, AtMost(160)]
    """``model:version`` of a ModelVersion, ``model`` of a Deployment, ``id`` of a Job, else ``name``."""


def key_of(body: Body) -> Key:
    """The identity of a document's body."""
    match body:
        case ModelVersion():
            return Key("model", f"{body.name}:{body.version}")
        case Deployment():
            return Key("deployment", body.model)
        case Job():
            return Key("job", body.id)
        case Policy() | Scope() | Unknown():
            return Key(body.kind, body.name)
