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


@pytest.mark.parametrize(
    "ring",
    [
        InferRing(2**60, 127, 63, 2**31, None, b"12345678", 1234.5, 1233.5),
        InferRing(1, 0, 0, 0, 0, b"12345678", 0.0, 0.0),
        InferRing(1, 0, 0, 70_000, 65_000, b"12345678", 0.0, 0.0),
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
