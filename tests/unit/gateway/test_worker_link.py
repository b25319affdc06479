"""Slots and answers between the gateway and a worker, here a script in the same loop."""

import asyncio
import os
import socket
import time
from typing import Self

import pytest

from agent.drivers.shared_memory import SharedSlots, doorbell_pair
from agent.foundation.errors import Unreachable
from agent.gateway import worker_link
from agent.gateway.worker_link import WorkerGone, WorkerLink
from agent.serving.doorbell import RING_BYTES_MAX, AnswerRing, InferRing, unpack_ring
from agent.serving.failures import DeadlineExceeded, TooLarge
from agent.serving.fair import Priority, Turn

KEY = b"12345678"
TURN = Turn(0, 1, Priority.NORMAL, 1000)


class Script:
    """The worker's side, step by step."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = SharedSlots.create(slots, 8192)
        ours, self.doorbell = doorbell_pair()
        self.doorbell.setblocking(False)
        self.link = WorkerLink(0, ours, SharedSlots(os.dup(self.slots.fileno())))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.link.close()
        self.doorbell.close()
        self.slots.close()

    async def heard(self) -> InferRing:
        packet = await asyncio.get_running_loop().sock_recv(self.doorbell, RING_BYTES_MAX)
        ring = unpack_ring(packet)
        assert isinstance(ring, InferRing)
        return ring

    def body(self, ring: InferRing) -> bytes:
        return bytes(self.slots.slot(ring.slot)[ring.offset : ring.offset + ring.body_bytes])

    def answer(self, ring: InferRing, body: bytes, status: int = 200) -> None:
        self.slots.slot(ring.slot)[: len(body)] = body
        answer = AnswerRing(ring.number, ring.slot, status, None, len(body), 5, 7)
        self.doorbell.send(answer.pack())

    def infer(
        self, body: bytes, *, left_s: float = 5, header: int | None = None, turn: Turn = TURN
    ) -> "asyncio.Task[object]":
        asking = self.link.infer(body, header, KEY, time.monotonic() + left_s, turn)
        return asyncio.create_task(asking)


async def test_a_body_reaches_the_worker_and_its_answer_the_caller() -> None:
    async with Script() as script:
        asked = script.infer(b"header-tensor", header=7)
        ring = await script.heard()
        assert script.body(ring) == b"header-tensor"
        assert (ring.offset + 7) % 64 == 0
        script.answer(ring, b"done", 400)
        reply = await asked
        assert (reply.status, reply.body, reply.queue_us, reply.run_us) == (400, b"done", 5, 7)  # type: ignore[attr-defined]
        assert script.link.busy == 0


async def test_more_requests_than_slots_wait_in_order() -> None:
    async with Script(slots=1) as script:
        tasks = [script.infer(b"%d" % n) for n in range(3)]
        for n in range(3):
            ring = await script.heard()
            assert script.body(ring) == b"%d" % n
            assert script.link.busy == 3 - n
            script.answer(ring, b"")
            await tasks[n]


async def test_waiting_for_a_slot_ends_at_the_deadline() -> None:
    async with Script(slots=1) as script:
        first = script.infer(b"1")
        ring = await script.heard()
        with pytest.raises(DeadlineExceeded):
            await script.infer(b"2", left_s=0.01)
        script.answer(ring, b"")
        await first
        third = script.infer(b"3")
        ring = await script.heard()
        assert script.body(ring) == b"3"
        script.answer(ring, b"")
        await third


async def test_a_cancelled_call_tells_the_worker_and_keeps_its_slot_until_answered() -> None:
    async with Script(slots=1) as script:
        first = script.infer(b"1")
        ring = await script.heard()
        first.cancel()
        await asyncio.wait([first])
        assert script.slots.is_cancelled(ring.slot, ring.number)
        second = script.infer(b"2")
        await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            script.doorbell.recv(RING_BYTES_MAX)
        script.answer(ring, b"late")
        next_ring = await script.heard()
        script.answer(next_ring, b"2")
        assert (await second).body == b"2"  # type: ignore[attr-defined]


async def test_a_cancelled_wait_gives_its_slot_to_the_next() -> None:
    async with Script(slots=1) as script:
        first, second, third = (script.infer(b"%d" % n) for n in range(3))
        ring = await script.heard()
        await asyncio.sleep(0)
        script.answer(ring, b"")
        await first  # the slot was handed to the second in the same turn of the loop
        second.cancel()
        while script.body(ring := await script.heard()) != b"2":
            script.answer(ring, b"")
        script.answer(ring, b"")
        await third


@pytest.mark.parametrize("is_told", [True, False])
async def test_a_worker_that_is_gone_fails_everything_at_once(is_told: bool) -> None:  # noqa: FBT001
    async with Script(slots=1) as script:
        tasks = [script.infer(b"1"), script.infer(b"2")]
        await script.heard()
        if is_told:
            script.link.close()
        else:
            script.doorbell.shutdown(socket.SHUT_RDWR)
        for task in tasks:
            with pytest.raises(Unreachable, match="worker has stopped"):
                await task
        assert not script.link.is_up
        with pytest.raises(Unreachable):
            await script.infer(b"3")


async def test_a_body_beyond_a_slot_is_too_large() -> None:
    async with Script() as script:
        with pytest.raises(TooLarge, match="8128 bytes at most"):
            await script.infer(bytes(8193))


async def test_a_worker_that_rings_nonsense_does_not_cost_the_others_their_answers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Script() as script:
        asked = script.infer(b"x")
        ring = await script.heard()
        assert isinstance(ring, InferRing)
        for packet in (
            b"junk",
            AnswerRing(99, 0, 200, None, 0, 0, 0).pack(),
            ring.pack(),
        ):
            script.doorbell.send(packet)
        script.answer(ring, b"done")
        assert (await asked).body == b"done"  # type: ignore[attr-defined]
        assert script.link.is_up
    assert len([one for one in caplog.records if "worker 0 rings" in one.message]) == 3
    assert len(caplog.records) == 3


async def test_a_slot_goes_to_whose_turn_it_is_not_to_who_came_first() -> None:
    other = Turn(1, 1, Priority.NORMAL, 1000)
    urgent = Turn(0, 1, Priority.HIGH, 1000)
    async with Script(slots=1) as script:
        first = script.infer(b"first")
        ring = await script.heard()
        asked = [script.infer(b"%d" % n) for n in range(3)]
        asked += [script.infer(b"other", turn=other), script.infer(b"urgent", turn=urgent)]
        await asyncio.sleep(0)
        order = []
        for _ in asked:
            script.answer(ring, b"")
            ring = await script.heard()
            order.append(script.body(ring))
        script.answer(ring, b"")
        await asyncio.gather(first, *asked)
    assert order[:2] == [b"urgent", b"other"]
    assert order[2:] == [b"0", b"1", b"2"]


async def test_who_fills_the_slots_leaves_one_for_others_and_for_what_is_urgent() -> None:
    async with Script(slots=3) as script:
        flood = [script.infer(b"flood") for _ in range(5)]
        await asyncio.sleep(0)
        rings = [await script.heard() for _ in range(2)]
        with pytest.raises(BlockingIOError):
            script.doorbell.recv(RING_BYTES_MAX)  # the third slot is free, and not for these
        urgent = script.infer(b"urgent", turn=Turn(0, 1, Priority.HIGH, 1000))
        rings.append(await script.heard())
        assert script.body(rings[-1]) == b"urgent"
        other = script.infer(b"other", turn=Turn(1, 1, Priority.NORMAL, 1000))
        await asyncio.sleep(0)
        script.answer(rings.pop(), b"")  # of the urgent one
        rings.append(await script.heard())
        assert script.body(rings[-1]) == b"other"
        script.answer(rings.pop(), b"")
        for _ in range(3):
            script.answer(rings.pop(0), b"")
            rings.append(await script.heard())
        for ring in rings:
            script.answer(ring, b"")
        await asyncio.gather(urgent, other, *flood)
        assert script.link.busy == 0


async def test_waiting_for_a_slot_is_told_with_the_waiting_for_a_runner() -> None:
    async with Script(slots=1) as script:
        first = script.infer(b"1")
        ring = await script.heard()
        second = script.infer(b"2")
        await asyncio.sleep(0.02)
        script.answer(ring, b"")
        answered_at = time.monotonic()
        ring = await script.heard()
        assert ring.asked_at < answered_at - 0.015
        script.answer(ring, b"")
        await asyncio.gather(first, second)


async def test_who_was_in_the_model_when_its_worker_ended_is_told_from_who_waited() -> None:
    async with Script(slots=3) as script:
        running, waiting = script.infer(b"one"), script.infer(b"two")
        ring = await script.heard()
        await script.heard()
        script.slots.note_running(ring.slot, KEY)
        script.link.close()
        for task, was_running in ((running, True), (waiting, False)):
            with pytest.raises(WorkerGone) as caught:
                await task
            assert caught.value.was_running is was_running


@pytest.mark.parametrize("is_blameless", [True, False])
async def test_why_a_worker_ended_is_waited_for(*, is_blameless: bool) -> None:
    async with Script() as script:
        script.link.close()
        asking = asyncio.create_task(script.link.is_blameless())
        await asyncio.sleep(0)
        assert not asking.done()
        script.link.judge(is_blameless=is_blameless)
        assert await asking is is_blameless
        script.link.judge(is_blameless=not is_blameless)
        assert await script.link.is_blameless() is is_blameless, "the first word counts"


async def test_without_a_word_what_a_worker_ran_may_be_why_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_link, "VERDICT_S", 0.0)
    async with Script() as script:
        assert not await script.link.is_blameless()
