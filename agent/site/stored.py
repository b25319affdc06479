"""What a site reads back from its database at start."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.catalog.placement import Abilities
from agent.catalog.rollout import Standing
from agent.distribution.retention import UNNAMED_S
from agent.federation.burial import Tombstone
from agent.federation.restored import Restored
from agent.foundation.ids import Digest, JobId
from agent.site.overrides import Override
from agent.wire.documents import Document, Key, Stamp
from agent.wire.mesh import Introduction

JOBS_KEPT = 500
"""A few megabytes of rows in all; years of an operator's jobs."""
COORDINATE_KEY = "coordinate"
"""The ``meta`` row that holds it."""


VOTING_BARRED_KEY = "voting_barred"
"""The ``meta`` row that bars an identity: its site id in hex, a date, and why: ``lost``, ``copied``."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Everything durable, decoded; empty for a new site."""

    peers: tuple[Introduction, ...] = ()
    """The peer book: members ever met, never forgotten."""
    documents: tuple[Document, ...] = ()
    history: tuple[tuple[Key, int, Stamp], ...] = ()
    """Key, slot and stamp of each former document; its bytes stay in the database."""
    jobs: dict[JobId, Restored] = field(default_factory=dict)
    tombstones: dict[bytes, Tombstone] = field(default_factory=dict)
    """Of jobs that are over, by ``burial.key_of``."""
    crashes: dict[bytes, int] = field(default_factory=dict)
    """How often a model (by key) took its worker down."""
    overrides: tuple[Override, ...] = ()
    """What was decided here against the catalog."""
    rollouts: dict[str, tuple[bytes, Standing]] = field(default_factory=dict)
    """This site's part in the rollout of a model: which one, and how far it was."""
    blobs: frozenset[Digest] = frozenset()
    """Blobs complete on disk."""
    parts: frozenset[Digest] = frozenset()
    """Blobs of which something is on disk."""
    coordinate: bytes = b""
    """Where this site lay in the network when it last noted it; empty if it never did."""
    barred_because: str = ""
    """Why this identity must not vote: its database was lost, and promises with it."""


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """What the operator and the hardware say of this site."""

    datasets: dict[str, tuple[str, ...]]
    """Names bound to local data, and the jobs (glob patterns of ids) that may use each."""
    can_train: bool
    """PyTorch is installed and training is enabled."""
    why_not: str
    """Why it cannot train; for a person."""
    capacity: float
    """Relative strength, > 0."""
    dataset_labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Where what is learned from a data set may be, by its name; one that is not here: anywhere."""
    unnamed_s: float = UNNAMED_S
    """How long a blob is kept that nothing names."""
    jobs_kept: int = JOBS_KEPT
    """Jobs that are over whose rounds and updates are kept."""
    abilities: Abilities = Abilities()  # noqa: RUF009 - immutable
