"""Slots of sealed memory, mapped by two processes alike."""

import os

import pytest

from agent.drivers.shared_memory import HEADER_BYTES, SharedSlots, doorbell_pair
from agent.foundation.errors import Malformed
from agent.serving.doorbell import RING_BYTES_MAX


def test_both_sides_see_the_same_slots() -> None:
    ours = SharedSlots.create(4, 10_000)
    theirs = SharedSlots(os.dup(ours.fileno()))
    assert (theirs.slots, theirs.slot_bytes) == (4, 12_288)
    ours.slot(2)[:5] = b"hello"
    assert bytes(theirs.slot(2)[:5]) == b"hello"
    assert bytes(theirs.slot(1)[:5]) == bytes(5)
    theirs.runners = 3
    assert ours.runners == 3
    theirs.note_running(3, b"12345678")
    assert ours.running() == [b"12345678"]
    theirs.note_running(3, None)
    assert ours.running() == []
    ours.cancel(3, 77)
    assert theirs.is_cancelled(3, 77)
    assert not theirs.is_cancelled(3, 78)
    assert not theirs.is_cancelled(2, 77)
    for side in (ours, theirs):
        side.close()


def test_a_large_slot_gives_its_memory_back() -> None:
    slots = SharedSlots.create(2, 8 << 20)
    for index in range(2):
        slots.slot(index)[:] = bytes(8 << 20)
    full = os.fstat(slots.fileno()).st_blocks * 512
    slots.release(0, 8 << 20)
    slots.release(1, 1000)  # small: kept for the next request
    left = os.fstat(slots.fileno()).st_blocks * 512
    assert full >= 16 << 20
    assert (8 << 20) <= left < (9 << 20)
    slots.slot(0)[:3] = b"new"
    slots.close()


def test_nobody_can_cut_the_memory_off() -> None:
    slots = SharedSlots.create(2, 4096)
    with pytest.raises(PermissionError):
        os.ftruncate(slots.fileno(), HEADER_BYTES)
    slots.close()


def test_views_outlive_a_close() -> None:
    slots = SharedSlots.create(1, 4096)
    view = slots.slot(0)
    slots.close()
    view[:2] = b"ok"
    assert bytes(view[:2]) == b"ok"


def test_other_descriptors_are_refused() -> None:
    read_end, write_end = os.pipe()
    plain = os.memfd_create("plain", os.MFD_ALLOW_SEALING)
    os.ftruncate(plain, 8192)
    for descriptor in (read_end, write_end, plain):
        with pytest.raises(Malformed):
            SharedSlots(descriptor)
        os.close(descriptor)


@pytest.mark.parametrize(("slots", "size"), [(0, 4096), (257, 4096), (1, 0), (1, 2 << 30)])
def test_absurd_sizes_are_programming_errors(slots: int, size: int) -> None:
    with pytest.raises(ValueError, match="slots of"):
        SharedSlots.create(slots, size)


def test_a_doorbell_keeps_packets_apart_and_never_blocks_within_the_slots() -> None:
    ours, theirs = doorbell_pair()
    ours.setblocking(False)
    for number in range(256):
        ours.send(bytes([number]) * (1 + number % RING_BYTES_MAX))
    for number in range(256):
        assert theirs.recv(RING_BYTES_MAX) == bytes([number]) * (1 + number % RING_BYTES_MAX)
    ours.close()
    assert theirs.recv(RING_BYTES_MAX) == b""
    theirs.close()
