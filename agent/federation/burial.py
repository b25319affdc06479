"""What is left of a job that is over: at most 64 bytes, in place of its register, rounds and updates.

Rule: only what is decided is buried. A value in which the job has ended is followed by no other, so whoever has
read it may forget what its acceptor has promised and accepted: it never votes in that register again, and
answers whatever is asked about the job with how it ended. A site that was away learns that from any member of the
committee; for a new promise or vote there is no majority, as each that might give one has either the ended
value or the tombstone. Job ids are never reused, and a tombstone is never removed.

Source: research/membership.md section 7, pitfall 1 (deleting a register revives its old values).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Final

import msgpack

from agent.federation.value import ENDED, JobValue
from agent.foundation.errors import Malformed
from agent.foundation.ids import ID_BYTES, Digest, JobId, SiteId
from agent.foundation.writes import Delete, Put, Scalar, Write
from agent.wire.mesh import Buried, End

TABLE: Final = "tombstones"
KEY_BYTES: Final = 16
"""128 bits of the id's hash: no two of 10,000 jobs share them by accident."""
BYTES_MAX: Final = 64
ENDS: Final[tuple[End, ...]] = ("finished", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Tombstone:
    """How a job ended."""

    end: End
    round: int
    """Rounds that were committed."""
    result: Digest | None
    """The exported model if the job made one, else the last parameters; None: it made neither."""
    model_bytes: int
    """Of the exported model; 0: ``result`` is none."""

    def told(self, job: str) -> Buried:
        """The answer to whoever asks about the job."""
        return Buried(job, self.end, self.round, self.result, self.model_bytes)

    def row(self, job: JobId) -> Mapping[str, Scalar]:
        """The row that stays; key and content together are at most ``BYTES_MAX``."""
        content = msgpack.packb(
            [ENDS.index(self.end), self.round, self.result, self.model_bytes], use_bin_type=True
        )
        return {"job": key_of(job), "content": content}


def key_of(job: JobId) -> bytes:
    """By what a tombstone is found."""
    return sha256(job.encode()).digest()[:KEY_BYTES]


def of(value: JobValue | None, *, is_cancelled: bool) -> Tombstone:
    """What is to stay of a job whose register holds ``value``."""
    if value is None:
        return Tombstone("cancelled", 0, None, 0)
    has_ended = value.state in ENDED
    assert has_ended or is_cancelled, "a job that runs is not buried"
    end: End = "cancelled"
    if has_ended:
        end = "finished" if value.state == "finished" else "failed"
    size = value.exported_bytes if value.exported is not None else 0
    return Tombstone(end, value.round, value.exported or value.parameters, size)


def ended(
    told: Buried, known: JobValue | None, job: JobId, me: SiteId, *, has_history: bool
) -> JobValue:
    """The value of a job that finished or failed, as far as a tombstone tells.

    Args:
        told: by a holder of the job's register; it was not cancelled.
        known: the newest value that was read here.
        job: whose.
        me: stands for the aggregator where nothing was read.
        has_history: all rounds are known here; else nobody names them any more.
    """
    assert told.end != "cancelled", "a cancelled job's register has not ended"
    base = known or JobValue(job, 1, me, 0, None, None, "failed", None, 0, "", ())
    is_model = told.model_bytes > 0
    return replace(
        base, state=told.end, round=told.round,
        parameters=base.parameters if is_model else told.result,
        exported=told.result if is_model else None, exported_bytes=told.model_bytes,
        contributions=base.contributions if has_history else None, carried=None,
    )  # fmt: skip


def read(row: Mapping[str, Scalar]) -> tuple[bytes, Tombstone]:
    """A row of table ``tombstones``: its key, and what it says.

    Raises:
        Malformed: it is none.
    """
    key, content = row["job"], row["content"]
    try:
        end, round_, result, model_bytes = msgpack.unpackb(content)
        found = Tombstone(
            ENDS[int(end)], int(round_), None if result is None else Digest(bytes(result)),
            int(model_bytes),
        )  # fmt: skip
    except (ValueError, TypeError, IndexError, msgpack.UnpackException) as error:
        raise Malformed("a tombstone does not decode", why=type(error).__name__) from None
    if not isinstance(key, bytes) or (found.result and len(found.result) != ID_BYTES):
        raise Malformed("a tombstone has another shape")
    return key, found


def writes(job: JobId, stone: Tombstone, rounds: int) -> tuple[Write, ...]:
    """In one transaction: the tombstone for all that the job's tables hold.

    ``rounds``: the last of which there may be a row.
    """
    return (Put(TABLE, stone.row(job)), *emptied(job, rounds))


def emptied(job: JobId, rounds: int) -> tuple[Write, ...]:
    """All that a job's tables hold is removed (of a region's, which has no tombstone of its own)."""
    numbers = range(1, rounds + 2)
    return (
        Delete("register", (job,)),
        Delete("jobs", (job,)),
        *(Delete("rounds", (job, number)) for number in numbers),
        *(Delete("updates", (job, number)) for number in numbers),
    )
