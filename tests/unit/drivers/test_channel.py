"""The channel between processes: whole frames, descriptors, back-pressure, end of stream."""

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
import uvloop

from agent.drivers.channel import (
    FRAME_BYTES_MAX,
    QUEUE_FRAMES_MAX,
    BlockingChannel,
    Channel,
    pair,
)
from agent.foundation.errors import Busy, Malformed, Unreachable


def run(work: Coroutine[Any, Any, None], *, with_uvloop: bool) -> None:
    factory = uvloop.new_event_loop if with_uvloop else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)


@pytest.mark.parametrize("with_uvloop", [False, True])
def test_frames_arrive_whole_and_in_order(with_uvloop: bool) -> None:  # noqa: FBT001
    async def work() -> None:
        left_end, right_end = pair()
        left, right = Channel(left_end), Channel(right_end)
        frames = [b"", b"x", os.urandom(3_000_000), b"y" * 70_000, b"end"]

        async def sender() -> None:
            for frame in frames:
                await left.send(frame)

        task = asyncio.create_task(sender())
        for frame in frames:
            assert await right.receive() == (frame, [])
        await task
        left.close()
        assert await right.receive() is None
        right.close()

    run(work(), with_uvloop=with_uvloop)


@pytest.mark.parametrize("with_uvloop", [False, True])
def test_descriptors_stay_with_their_frame(with_uvloop: bool) -> None:  # noqa: FBT001
    async def work() -> None:
        left_end, right_end = pair()
        left, right = Channel(left_end), Channel(right_end)
        files = [os.memfd_create(f"f{i}") for i in range(4)]
        for number, file in enumerate(files):
            os.write(file, b"%d" % number)
        await left.send(b"none")
        await left.send(b"one", files[:1])
        await left.send(b"none again")
        await left.send(b"three", files[1:])
        for file in files:
            os.close(file)
        got: dict[bytes, list[bytes]] = {}
        for _ in range(4):
            frame = await right.receive()
            assert frame is not None
            got[frame[0]] = []
            for descriptor in frame[1]:
                assert not os.get_inheritable(descriptor)
                got[frame[0]].append(os.pread(descriptor, 9, 0))
                os.close(descriptor)
        assert got == {b"none": [], b"one": [b"0"], b"none again": [], b"three": [b"1", b"2", b"3"]}
        left.close()
        right.close()

    run(work(), with_uvloop=with_uvloop)


async def test_a_send_waits_for_a_slow_reader() -> None:
    left_end, right_end = pair()
    left, right = Channel(left_end), Channel(right_end)
    waiting = asyncio.create_task(left.send(bytes(8_000_000)))
    await asyncio.sleep(0)
    assert not waiting.done()
    frame = await right.receive()
    assert frame is not None
    assert len(frame[0]) == 8_000_000
    await waiting
    left.close()
    right.close()


async def test_a_full_queue_refuses_and_a_closed_end_fails_the_waiting() -> None:
    left_end, right_end = pair()
    left = Channel(left_end)
    file = os.memfd_create("file")
    waiting = asyncio.create_task(left.send(bytes(8_000_000), [file]))
    await asyncio.sleep(0)
    os.close(file)
    for _ in range(QUEUE_FRAMES_MAX - 1):
        left.post(b"more")
    with pytest.raises(Busy):
        left.post(b"one too many")
    right_end.close()
    with pytest.raises(Unreachable):
        await waiting
    with pytest.raises(Unreachable):
        await left.send(b"after")
    assert await left.receive() is None


async def test_a_cancelled_send_leaves_the_stream_whole() -> None:
    left_end, right_end = pair()
    left, right = Channel(left_end), Channel(right_end)
    waiting = asyncio.create_task(left.send(bytes(2_000_000)))
    await asyncio.sleep(0)
    waiting.cancel()
    after = asyncio.create_task(left.send(b"after"))
    first, second = await right.receive(), await right.receive()
    await after
    assert first == (bytes(2_000_000), [])
    assert second == (b"after", [])
    left.close()
    right.close()


async def test_closing_wakes_a_waiting_receive() -> None:
    left_end, right_end = pair()
    left = Channel(left_end)
    waiting = asyncio.create_task(left.receive())
    await asyncio.sleep(0)
    left.close()
    assert await waiting is None
    right_end.close()


async def test_a_header_that_promises_too_much_is_malformed() -> None:
    left_end, right_end = pair()
    right = Channel(right_end)
    left_end.sendall((FRAME_BYTES_MAX + 1).to_bytes(4, "big") + b"\0")
    with pytest.raises(Malformed):
        await right.receive()
    left_end.sendall(b"\0")
    right.close()
    left_end.close()


async def test_missing_descriptors_are_malformed() -> None:
    left_end, right_end = pair()
    right = Channel(right_end)
    left_end.sendall(b"\0\0\0\0\2")
    with pytest.raises(Malformed):
        await right.receive()
    right.close()
    left_end.close()


async def test_an_oversized_frame_is_a_programming_error() -> None:
    left_end, right_end = pair()
    left = Channel(left_end)
    with pytest.raises(ValueError, match="frame of"):
        await left.send(bytes(FRAME_BYTES_MAX + 1))
    left.close()
    right_end.close()


def test_the_blocking_end_speaks_the_same_frames() -> None:
    left_end, right_end = pair()
    left, right = BlockingChannel(left_end), BlockingChannel(right_end)
    echo: list[int] = []

    def serve() -> None:
        while (frame := right.receive()) is not None:
            echo.append(len(frame[0]))
            right.send(frame[0][::-1], frame[1])
            for descriptor in frame[1]:
                os.close(descriptor)

    thread = threading.Thread(target=serve)
    thread.start()
    file = os.memfd_create("file")
    left.send(b"abc", [file])
    os.close(file)
    frame = left.receive()
    assert frame is not None
    assert frame[0] == b"cba"
    os.close(frame[1][0])
    left.send(bytes(1_000_000))
    assert left.receive() == (bytes(1_000_000), [])
    left.close()
    thread.join(5)
    assert echo == [3, 1_000_000]
    right.close()


def test_a_blocking_send_to_nobody_is_unreachable() -> None:
    left_end, right_end = pair()
    right_end.close()
    left = BlockingChannel(left_end)
    with pytest.raises(Unreachable):
        left.send(b"hello")
    assert left.receive() is None
    left.close()


def test_a_pair_is_not_inherited_by_accident() -> None:
    ends = pair()
    assert not any(end.get_inheritable() for end in ends)
    for end in ends:
        end.close()
