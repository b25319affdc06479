"""Rings are what they were; anything else is malformed."""

import pytest

from agent.foundation.errors import Malformed
from agent.serving.doorbell import (
    RING_BYTES_MAX,
    AnswerRing,
    InferRing,
    Ring,
    unpack_ring,
)
from agent.serving.fair import APPLICATIONS_MAX, WEIGHT_MAX, Priority, Turn

TURN = Turn(0, 1, Priority.NORMAL, 1000)


@pytest.mark.parametrize(
    "ring",
    [
        InferRing(
            2**60,
            127,
            63,
            2**31,
            None,
            b"12345678",
            1234.5,
            1233.5,
            Turn(APPLICATIONS_MAX, WEIGHT_MAX, Priority.LOW, 2**32 - 1),
        ),
        InferRing(1, 0, 0, 0, 0, b"12345678", 0.0, 0.0, TURN),
        InferRing(1, 0, 0, 70_000, 65_000, b"12345678", 0.0, 0.0, TURN),
        AnswerRing(2**60, 127, 504, None, 2**31, 12, 13),
        AnswerRing(1, 0, 200, 100, 5000, 0, 0),
    ],
)
def test_a_ring_arrives_as_it_was_sent(ring: Ring) -> None:
    packet = ring.pack()
    assert len(packet) <= RING_BYTES_MAX
    assert unpack_ring(packet) == ring


def test_no_packet_is_malformed() -> None:
    with pytest.raises(Malformed):
        unpack_ring(b"")
    no_priority = bytearray(InferRing(1, 0, 0, 0, 0, b"12345678", 0.0, 0.0, TURN).pack())
    no_priority[1] = 7
    with pytest.raises(Malformed):
        unpack_ring(bytes(no_priority))
