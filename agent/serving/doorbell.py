"""What gateway and model worker ring to each other: fixed-size messages beside the shared memory.

The body of a request lies in a slot of the shared memory; the ring names the slot. The answer takes
the same slot. Each ring is one packet of an ``AF_UNIX SOCK_SEQPACKET`` pair, so it arrives whole.
Deadlines are on the machine's monotonic clock, which both processes read alike.
"""

import struct
from dataclasses import dataclass

from agent.foundation.errors import Malformed
from agent.serving.fair import Priority, Turn

_INFER = struct.Struct("<BBHII q Q 8s d d HHI")
_PRIORITIES = {int(one): one for one in Priority}
_ANSWER = struct.Struct("<BBHHH q Q Q I I")
RING_BYTES_MAX = 64
"""Above the larger of the two."""

_INFER_TAG, _ANSWER_TAG = 1, 3


@dataclass(frozen=True, slots=True)
class InferRing:
    """Gateway to worker: a request lies in a slot."""

    number: int
    """Of this request on this doorbell; comes back in the answer."""
    slot: int
    offset: int
    """Where the body starts in the slot, bytes: chosen so that binary tensors are aligned."""
    body_bytes: int
    header_bytes: int | None
    """Length of the JSON part; None = all JSON, 0 = raw tensor."""
    key: bytes
    deadline: float
    """Monotonic seconds."""
    asked_at: float
    """Monotonic seconds: the waiting from then on, for a slot and for a runner, is told as one."""
    turn: Turn

    def pack(self) -> bytes:
        """The ring as bytes."""
        header = -1 if self.header_bytes is None else self.header_bytes
        turn = self.turn
        return _INFER.pack(
            _INFER_TAG,
            turn.priority,
            self.slot,
            self.offset,
            self.body_bytes,
            header,
            self.number,
            self.key,
            self.deadline,
            self.asked_at,
            turn.application,
            turn.weight,
            min(turn.cost_us, 0xFFFFFFFF),
        )


@dataclass(frozen=True, slots=True)
class AnswerRing:
    """Worker to gateway: the answer stands at the start of the request's slot."""

    number: int
    slot: int
    status: int
    json_bytes: int | None
    """Length of the JSON part of a binary answer; None = all JSON."""
    body_bytes: int
    queue_us: int
    """Time between ``asked_at`` and the start of the work, microseconds."""
    run_us: int
    """Time inside the model, microseconds; 0 if it did not run."""
    together: int = 1
    """Requests that shared this run; they all tell the same ``run_us``."""
    is_first: bool = True
    """One of those that shared a run is its first."""

    def pack(self) -> bytes:
        """The ring as bytes."""
        header = -1 if self.json_bytes is None else self.json_bytes
        return _ANSWER.pack(
            _ANSWER_TAG,
            self.is_first,
            self.slot,
            self.status,
            self.together,
            header,
            self.number,
            self.body_bytes,
            min(self.queue_us, 0xFFFFFFFF),
            min(self.run_us, 0xFFFFFFFF),
        )


Ring = InferRing | AnswerRing


def unpack_ring(data: bytes) -> Ring:
    """The ring in one packet.

    Raises:
        Malformed: of another size or tag; the two processes are not of one version.
    """
    tag = data[0] if data else 0
    if tag == _INFER_TAG and len(data) == _INFER.size and data[1] in _PRIORITIES:
        (
            _, priority, slot, offset, body_bytes, header, number, key, deadline, asked_at,
            application, weight, cost_us,
        ) = _INFER.unpack(data)  # fmt: skip
        turn = Turn(application, weight, _PRIORITIES[priority], cost_us)
        return InferRing(
            number, slot, offset, body_bytes, None if header < 0 else header, key, deadline,
            asked_at, turn,
        )  # fmt: skip
    if tag == _ANSWER_TAG and len(data) == _ANSWER.size:
        _, first, slot, status, together, header, *rest = _ANSWER.unpack(data)
        number, body_bytes, queue_us, run_us = rest
        return AnswerRing(
            number, slot, status, None if header < 0 else header, body_bytes, queue_us, run_us,
            together, bool(first),
        )  # fmt: skip
    raise Malformed(f"doorbell packet of {len(data)} bytes with tag {tag}")
