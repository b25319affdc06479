"""What the control process and its trainers say to each other, over an inherited socket pair.

Not part of the protocol between sites: both ends are always the same version. One request, one
reply; a trainer that cannot do what it is asked answers ``Failed`` and stays, one that dies closes
the channel. Files travel as open descriptors, read-only, so that a confined process needs no path
to them; what a trainer makes, it leaves under a fixed name in its job's folder.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from agent.foundation.errors import UsageError
from agent.wire.documents import RANGES_MAX, Job
from agent.wire.records import Counter
from agent.wire.schema import AtMost, Range, Tagged

Text = Annotated[str, AtMost(1000)]
FileName = Annotated[str, AtMost(80)]
Seed = Annotated[int, Range(0, 2**63 - 1)]
Samples = Annotated[int, Range(1, 2**40 - 1)]
"""As in a site's offer (``agent.wire.mesh.Offer``); a round's sum is bounded in the aggregation."""
HOLDOUT_PREFIXES = ("t10k", "test")
"""How the files of a data set's hold-out begin; see ``agent.workers.recipes_idx``."""
PathText = Annotated[str, AtMost(4096)]
"""Linux's PATH_MAX."""
UPDATES_MAX = 10_000
"""One from each member (``MEMBERS_MAX``)."""
Metrics = Annotated[tuple[tuple[Annotated[str, AtMost(32)], float], ...], AtMost(16)]


class AttemptFailed(UsageError):
    """One piece of training work ended without a result; the reason is for a person."""


class UpdatesRejected(AttemptFailed):
    """Some updates cannot be counted: drop them and aggregate the rest again."""

    def __init__(self, rejected: tuple[tuple[int, str], ...]) -> None:
        """``rejected``: index of the update in the order given, and what is wrong with it."""
        self.rejected = rejected
        told = "; ".join(f"update {index}: {reason}" for index, reason in rejected[:3])
        super().__init__(f"{len(rejected)} updates cannot be counted", why=told)


# --- control -> trainer --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Prepare:
    """Build the job's recipe and read the data, if this trainer has some; answer ``Prepared``."""

    job: Job


@dataclass(frozen=True, slots=True)
class Initialise:
    """Write first parameters, drawn from the job's seed; answer ``Written``."""

    file: FileName


@dataclass(frozen=True, slots=True)
class Train:
    """Train locally from the parameters given as descriptor; answer ``Attempted``.

    A second descriptor: what the round before has carried on, for a job whose sites correct their steps by it.
    """

    round: Annotated[int, Range(1, 10_000)]
    site_seed: Seed
    file: FileName


@dataclass(frozen=True, slots=True)
class Export:
    """Write the parameters given as descriptor as ONNX and compare; answer ``Written``."""

    file: FileName


# --- trainer -> control --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TrainerReady:
    """The libraries are loaded and the process is confined."""

    runtime: Text
    """For a person: ``torch 2.13.0``."""
    sandbox: Text
    """What confines it: ``landlock 7, seccomp`` or why not."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The recipe is built; 0 samples if this trainer was given no data."""

    samples: Counter
    holdout: Counter


@dataclass(frozen=True, slots=True)
class Written:
    """The file asked for is complete. ``error_max``: of an export, against PyTorch."""

    error_max: Annotated[float, Range(0.0, 1e9)] = 0.0


@dataclass(frozen=True, slots=True)
class Attempted:
    """The update (the parameters after local training) is complete in the job's folder."""

    samples: Samples
    metrics: Metrics
    """Of the base parameters on the hold-out: accuracy, loss; then holdout (samples), train_s."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The request cannot be carried out; the process goes on."""

    reason: Text


# --- control -> aggregation ----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Outer:
    """The outer optimizer; see ``agent.workers.outer``."""

    rule: Literal["momentum", "nesterov", "adam", "yogi"]
    rate: float
    momentum: float
    second: float
    floor: float


@dataclass(frozen=True, slots=True)
class Begin:
    """A new mean. Descriptor: the parameters all updates must be like, or none (the first is)."""

    is_float: bool = False
    """Sum in float32, in the order in which updates are included; else in integers, which have none."""
    part: Annotated[int, Range(0, RANGES_MAX - 1)] = 0
    parts: Annotated[int, Range(0, RANGES_MAX)] = 0
    """Not 0: of this part of the file only, of so many, and the updates are files of the same part."""
    has_controls: bool = False
    """Updates hold control variates beside the parameters."""


@dataclass(frozen=True, slots=True)
class Include:
    """Count the update given as descriptor; answer ``Included`` or ``Failed`` (not counted).

    A second descriptor: the parameters that it started from, where those are not the round's own.
    """

    samples: Samples


@dataclass(frozen=True, slots=True)
class Finish:
    """Write the mean to the file given as descriptor; answer ``Averaged``.

    With ``outer``: its step from the parameters given at the beginning. With it, or with control variates, the
    second descriptor takes what is carried on, the third has what the round before left (none: this is the first).
    """

    outer: Outer | None = None


@dataclass(frozen=True, slots=True)
class FinishRange:
    """Write the part of the mean that was begun to the file given as descriptor; answer ``Averaged``."""


@dataclass(frozen=True, slots=True)
class Join:
    """As ``Finish``, of a mean that was made in ranges, each given as ``Part`` before."""

    outer: Outer | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """The next range of the mean, as ``FinishRange`` wrote it, given as descriptor; answer ``Included``."""


# --- aggregation -> control ----------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Included:
    """The request was carried out."""


@dataclass(frozen=True, slots=True)
class Averaged:
    """The mean is written, unless some of the updates make that impossible."""

    bytes: Counter
    spoiled: Annotated[tuple[Counter, ...], AtMost(UPDATES_MAX)] = ()
    """Updates to blame, in the order in which they were included, from 0; nothing is written then."""
    reason: Text = ""


# --- control -> nursery --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Fork:
    """Become one worker more; answer ``Forked``. Descriptors: its channel, and its log."""

    kind: Literal["trainer", "aggregation"]
    folder: PathText
    """Where it may keep what it makes, and temporary files."""
    dataset: PathText = ""
    """Folder of the data that it may read; empty: none."""
    threads: Annotated[int, Range(1, 512)] = 1
    memory_bytes: Counter = 0
    """Bound of its private memory; 0: none."""


@dataclass(frozen=True, slots=True)
class Reap:
    """Say how a worker has ended, and let go of it; answer ``Reaped``, at once."""

    pid: Annotated[int, Range(1, 2**31 - 1)]


# --- nursery -> control --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Forked:
    """The worker is there; on its own channel it says ``TrainerReady``."""

    pid: Annotated[int, Range(1, 2**31 - 1)]


@dataclass(frozen=True, slots=True)
class Reaped:
    """How the worker has ended: its exit status, or the signal that killed it as a negative number."""

    status: Annotated[int, Range(-128, 255)] | None
    """None: it runs."""


TO_NURSERY = Tagged({1: Fork, 2: Reap})
FROM_NURSERY = Tagged({1: TrainerReady, 2: Forked, 3: Reaped, 4: Failed})
TO_TRAINER = Tagged({1: Prepare, 2: Initialise, 3: Train, 4: Export})
FROM_TRAINER = Tagged({1: TrainerReady, 2: Prepared, 3: Written, 4: Attempted, 5: Failed})
TO_AGGREGATION = Tagged({1: Begin, 2: Include, 3: Finish, 4: FinishRange, 5: Part, 6: Join})
FROM_AGGREGATION = Tagged({1: TrainerReady, 2: Included, 3: Averaged, 4: Failed})
