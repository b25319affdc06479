"""What a job's register holds, and the only ways in which it may change.

Rule: a change is a pure function of the present value, so it can be tried again on whatever the
register turns out to hold. Each checks the epoch it was made for (the fencing token): an aggregator
that was replaced can compute what it likes, its change is refused.

A value moves only forward: ``progress`` is a total order along any register's history.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from agent.distribution.manifest import build, digest_of, encode
from agent.election.proposer import Refusal
from agent.election.roster import Members, Roster, released, replaced
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest, SiteId
from agent.wire.documents import BlobDigest, Job
from agent.wire.limits import CHUNK_BYTES
from agent.wire.mesh import JobName
from agent.wire.records import Counter, Name, Site
from agent.wire.schema import AtMost, omitted, pack, unpack

OPERATIONS_KEPT = 8
"""Enough to recognise one's own change after an unknown outcome; a proposer has one under way."""

EPOCH_JUMP = 2**20
"""After the loss of a majority: what it may have decided unseen, or may still decide, stays below."""
ONE_FIELD = b"\x91"
"""How MessagePack begins an array of one."""

Operation = Annotated[bytes, AtMost(48)]
State = Literal["running", "exporting", "finished", "failed"]
ENDED: Final[tuple[State, ...]] = ("finished", "failed")
_RANK: dict[str, int] = {"running": 0, "exporting": 1, "finished": 2, "failed": 2}


@dataclass(frozen=True, slots=True)
class Above:
    """In the register of a region: which parameters of the whole job its rounds started from."""

    recoveries: Counter
    """Of the whole job's register at that time."""
    round: Counter
    """Rounds of the whole job that were committed then."""
    parameters: BlobDigest
    after: Counter
    """Rounds of the region that were committed before."""
    samples: Counter = 0
    """That the region's last round since was made of."""
    told: BlobDigest | None = None
    """The region went on alone from these parameters of its own, which the whole job may have counted."""
    told_round: Counter = 0
    """The region's round that made them."""
    alone_from: Counter = 0
    """The region's round from which it goes on alone at present; else it waits for the whole job."""


@dataclass(frozen=True, slots=True)
class JobValue:
    """The register's value: who aggregates, how far the job is, and digests of what was decided."""

    job: JobName
    epoch: Counter
    aggregator: Site
    round: Counter
    """Rounds committed so far."""
    parameters: BlobDigest | None
    """After ``round`` rounds; None until the first aggregator has initialised them."""
    contributions: BlobDigest | None
    """Names the exact updates counted in round ``round`` (see ``Contributions``)."""
    state: State
    exported: BlobDigest | None
    """The ONNX model, when finished and the job publishes one."""
    exported_bytes: Counter
    reason: Annotated[str, AtMost(400)]
    """Why it failed; empty otherwise."""
    operations: Annotated[tuple[Operation, ...], AtMost(OPERATIONS_KEPT)]
    roster: Roster | None = omitted(None)
    """Who holds the register; None: the committee pinned in the job."""
    recoveries: Counter = omitted(0)
    """How often an operator took the register over after the loss of a majority."""
    carried: BlobDigest | None = omitted(None)
    """What the outer optimizer needs in the next round; None before the first, after the last, without one."""
    above: Above | None = omitted(None)
    """Of a region only; None: it has not taken parameters of the whole job yet."""

    @property
    def progress(self) -> tuple[int, ...]:
        """Never decreases along the register's history; equal means the same state."""
        return (*self.achieved, self.epoch, self.roster.generation if self.roster else 0)

    @property
    def achieved(self) -> tuple[int, ...]:
        """The part of ``progress`` that is work done, whoever did it."""
        is_begun, up = self.parameters is not None, self.above
        above = (-1, -1, 0) if up is None else (up.recoveries, up.round, up.alone_from)
        return (self.recoveries, self.round, _RANK[self.state], is_begun, *above)

    @property
    def alone(self) -> int:
        """Rounds of a region since it took parameters of the whole job."""
        return 0 if self.above is None else self.round - self.above.after

    @property
    def is_waiting(self) -> bool:
        """Whether it is a region's, whose next round waits for parameters of the whole job."""
        return self.alone > 0 and self.above is not None and self.above.alone_from != self.round

    @property
    def is_between_rounds(self) -> bool:
        """Whether what comes next changes neither epoch nor round: first parameters, the model at the end."""
        return self.parameters is None or self.state != "running" or self.is_waiting

    @property
    def blobs(self) -> set[Digest]:
        """All that it names."""
        named = (self.parameters, self.contributions, self.exported, self.carried)
        up = self.above
        of_above = () if up is None else (up.parameters, up.told)
        return {digest for digest in (*named, *of_above) if digest is not None}


@dataclass(frozen=True, slots=True)
class Contribution:
    """One site's update as it was counted."""

    site: Site
    update: BlobDigest
    samples: Counter
    metrics: Annotated[tuple[tuple[Annotated[str, AtMost(32)], float], ...], AtMost(16)] = ()
    """Of the parameters that it started from, on that site's hold-out."""
    round: Counter = omitted(0)
    """The earlier round that it was made for; 0: the one that counts it."""
    started_from: BlobDigest | None = omitted(None)
    """Of a late one; see ``agent.federation.lateness``."""
    region: Name = omitted("")
    """Whose it is, if it is a region's; ``site`` spoke for it."""
    after: Counter = omitted(0)
    until: Counter = omitted(0)
    """A region's: made of its rounds from the one after ``after`` up to this one."""


@dataclass(frozen=True, slots=True)
class Contributions:
    """The exact set of updates counted in a round; a blob, named by the register by digest.

    ``previous`` links to the round before, so the whole history can be checked from its last link.
    """

    job: JobName
    round: Counter
    epoch: Counter
    aggregator: Site
    base: BlobDigest
    parameters: BlobDigest
    entries: Annotated[tuple[Contribution, ...], AtMost(10_000)]
    previous: BlobDigest | None
    carried: BlobDigest | None = omitted(None)
    """What the outer optimizer left, made with ``parameters``."""
    above: Counter = omitted(0)
    """A region's: ``base`` is of the whole job, after one round less than this; 0: of the region's round before."""


Change = Callable[[bytes | None], bytes | Refusal]


def blob_digest(data: bytes) -> Digest:
    """The digest under which the blob store keeps ``data``."""
    chunks = (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
    return digest_of(encode(build(chunks)))


@dataclass(frozen=True, slots=True)
class _Moved:
    """Around a value that names its holders, so that it does not begin as a ``JobValue`` does.

    A version that knows of no holders but the pinned ones reads nothing, and writes nothing back.
    """

    value: JobValue


def encode_value(value: JobValue) -> bytes:
    """The bytes of ``value`` in a register."""
    return pack(value) if value.roster is None else pack(_Moved(value))


def decode(value: bytes | None) -> JobValue | None:
    """The value in a register; None for one never written. Raises ``Malformed``."""
    if value is None:
        return None
    if value[:1] == ONE_FIELD:
        return unpack(_Moved, value).value
    return unpack(JobValue, value)


def roster_of(value: bytes) -> Roster | None:
    """Who holds the register by ``value``; None: those pinned in the job, or no version of ours knows."""
    try:
        known = decode(value)
    except Malformed:
        return None
    return None if known is None else known.roster


def claim(job: Job, me: SiteId, expected_epoch: int, operation: bytes) -> Change:
    """Become the aggregator, if the epoch is still ``expected_epoch`` (0: nobody has claimed yet)."""

    def change(value: bytes | None) -> bytes | Refusal:
        now = decode(value)
        if now is None:
            return encode_value(
                JobValue(job.id, 1, me, 0, None, None, "running", None, 0, "", (operation,))
            )
        if operation in now.operations:
            return encode_value(now)
        if now.state in ENDED:
            return Refusal(f"the job has {now.state}", value)
        if now.epoch != expected_epoch:
            return Refusal(f"epoch is {now.epoch}, not {expected_epoch}", value)
        return encode_value(_with(now, operation, epoch=now.epoch + 1, aggregator=me))

    return change


def initialise(parameters: Digest, epoch: int, operation: bytes) -> Change:
    """Set the parameters before the first round."""

    def apply(now: JobValue) -> JobValue | str:
        if now.parameters is not None:
            return "the parameters are already initialised"
        return _with(now, operation, parameters=parameters)

    return _fenced(epoch, operation, apply)


def commit_round(
    round_: int,
    parameters: Digest,
    contributions: Digest,
    epoch: int,
    operation: bytes,
    *,
    rounds: int,
    publishes: bool,
    base: Digest,
    carried: Digest | None = None,
    samples: int = 0,
) -> Change:
    """Move from ``round_ - 1`` to ``round_`` committed rounds; the last one ends the training."""

    def apply(now: JobValue) -> JobValue | str:
        if now.state != "running" or now.round != round_ - 1:
            return f"round {now.round} is committed, state {now.state}"
        if now.parameters != base:
            return "the round starts from other parameters by now"
        last = round_ >= rounds
        state: State = "running" if not last else "exporting" if publishes else "finished"
        above = None if now.above is None else replace(now.above, samples=samples)
        return _with(
            now, operation,
            round=round_, parameters=parameters, contributions=contributions, state=state,
            carried=carried, above=above,
        )  # fmt: skip

    return _fenced(epoch, operation, apply)


def adopt_above(above: Above, epoch: int, operation: bytes) -> Change:
    """Have a region's next round start from parameters of the whole job."""

    def apply(now: JobValue) -> JobValue | str:
        known = now.above
        if known is not None and (above.recoveries, above.round) <= (known.recoveries, known.round):
            return f"the region starts from round {known.round} already"
        if now.round != above.after:
            return f"the region has committed round {now.round}"
        return _with(now, operation, parameters=above.parameters, above=above)

    return _fenced(epoch, operation, apply)


def go_on_alone(round_: int, epoch: int, operation: bytes) -> Change:
    """Have a region that is cut off start its next round from what its last one, ``round_``, made."""

    def apply(now: JobValue) -> JobValue | str:
        if now.above is None or now.round != round_ or not now.alone:
            return f"the region has committed round {now.round}"
        if not now.is_waiting:
            return "the region goes on alone already"
        above = replace(now.above, alone_from=round_)
        if above.told is None:
            above = replace(above, told=now.parameters, told_round=round_)
        return _with(now, operation, above=above)

    return _fenced(epoch, operation, apply)


def finish(exported: Digest, exported_bytes: int, epoch: int, operation: bytes) -> Change:
    """Name the exported model and end the job."""

    def apply(now: JobValue) -> JobValue | str:
        if now.state != "exporting":
            return f"the job is {now.state}"
        return _with(
            now, operation, state="finished", exported=exported, exported_bytes=exported_bytes
        )

    return _fenced(epoch, operation, apply)


def fail(reason: str, epoch: int, operation: bytes) -> Change:
    """End the job without a result."""

    def apply(now: JobValue) -> JobValue | str:
        if now.state in ENDED:
            return f"the job has {now.state}"
        return _with(now, operation, state="failed", reason=reason[:400])

    return _fenced(epoch, operation, apply)


def replace_member(
    job: Job, gone: SiteId, by: SiteId, kept: frozenset[Digest], operation: bytes
) -> Change:
    """Name ``by`` as the one to take the place of ``gone``; ``kept``: the blobs that ``by`` holds."""

    def apply(now: JobValue) -> JobValue | str:
        roster = now.roster or Roster(0, job.committee, ())
        if roster.is_joint:
            return "another change of the committee is under way"
        if gone not in roster.members or by in roster.members:
            return "the committee has changed"
        if not now.blobs <= kept:
            return "the register has moved on"
        return _with(now, operation, roster=replaced(roster, gone, by))

    return _known(operation, apply)


def release_member(kept: frozenset[Digest], operation: bytes) -> Change:
    """Put the members to come in place, of which the new one holds the blobs ``kept``.

    The proposer has a majority of them take the value with it.
    """

    def apply(now: JobValue) -> JobValue | str:
        if now.roster is None or not now.roster.is_joint:
            return "no change of the committee is under way"
        if not now.blobs <= kept:
            return "the register has moved on"
        return _with(now, operation, roster=released(now.roster))

    return _known(operation, apply)


def recover(
    best: JobValue,
    members: Members,
    me: SiteId,
    operation: bytes,
    nowhere: frozenset[Digest] = frozenset(),
) -> Change:
    """Take the register over at ``members``, whatever they hold, from the best that is left.

    Args:
        best: the furthest value that any survivor had accepted or this site had read.
        members: the new holders; every survivor is among them.
        me: becomes the aggregator, until somebody claims the next epoch.
        operation: see ``JobValue.operations``.
        nowhere: blobs that no living site has: a value that names one of them is as lost as its makers.
    """

    def change(value: bytes | None) -> bytes | Refusal:
        now = decode(value)
        if now is not None and operation in now.operations:
            return encode_value(now)
        if now is not None and now.recoveries > best.recoveries:
            return Refusal("another recovery came first", value)
        is_lost = now is not None and bool(now.blobs & nowhere)
        base = best if now is None or is_lost or now.progress < best.progress else now
        epoch = max(base.epoch, 0 if now is None else now.epoch)
        generation = 0 if base.roster is None else base.roster.generation
        roster = Roster((generation + EPOCH_JUMP) // 2 * 2, members, ())
        return encode_value(
            _with(
                base, operation, roster=roster, aggregator=me, epoch=epoch + EPOCH_JUMP,
                recoveries=base.recoveries + 1,
            )
        )  # fmt: skip

    return change


def under(change: Change, generation: int) -> Change:
    """``change``, if the holders are still those that keep what it names; else it is refused."""

    def apply(value: bytes | None) -> bytes | Refusal:
        after = change(value)
        if isinstance(after, Refusal) or after == value:
            return after
        now = decode(value)
        present = now.roster.generation if now is not None and now.roster is not None else 0
        if present != generation:
            return Refusal(f"the committee is of generation {present}, not {generation}", value)
        return after

    return apply


def _known(operation: bytes, apply: Callable[[JobValue], JobValue | str]) -> Change:
    """A change that any site may make, of a register that has been claimed."""

    def change(value: bytes | None) -> bytes | Refusal:
        now = decode(value)
        if now is None:
            return Refusal("nobody has claimed the job", None)
        if operation in now.operations:
            return encode_value(now)
        after = apply(now)
        return Refusal(after, value) if isinstance(after, str) else encode_value(after)

    return change


def _fenced(epoch: int, operation: bytes, apply: Callable[[JobValue], JobValue | str]) -> Change:
    def change(value: bytes | None) -> bytes | Refusal:
        now = decode(value)
        if now is None:
            return Refusal("nobody has claimed the job", None)
        if operation in now.operations:
            return encode_value(now)  # our own change, whose outcome was unknown
        if now.epoch != epoch:
            return Refusal(f"epoch is {now.epoch}, not {epoch}", value)
        after = apply(now)
        return Refusal(after, value) if isinstance(after, str) else encode_value(after)

    return change


def _with(now: JobValue, operation: bytes, **changes: object) -> JobValue:
    kept = (*now.operations, operation)[-OPERATIONS_KEPT:]
    return replace(now, operations=kept, **changes)  # type: ignore[arg-type]
