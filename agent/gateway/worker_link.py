"""One attached model worker: slots of shared memory, a doorbell, and the requests under way.

A slot goes to whose turn it is (``serving.fair``), and one in eight is kept from each flow: whoever
fills the rest must not make an urgent request, or one of another application, wait for it. A slot belongs to a request from the copy of its body to the worker's answer ring, also when the
caller has gone meanwhile: the worker may still be writing there. When the worker is gone, every
request fails at once and the memory is let go.
"""

import asyncio
import logging
import socket
from collections import Counter, deque
from dataclasses import dataclass

from agent.drivers.clock import monotonic_s
from agent.drivers.shared_memory import ALIGNMENT, SharedSlots
from agent.foundation.errors import Malformed, Unreachable
from agent.serving.admission import most_of_one
from agent.serving.doorbell import (
    RING_BYTES_MAX,
    AnswerRing,
    InferRing,
    unpack_ring,
)
from agent.serving.failures import DeadlineExceeded, TooLarge
from agent.serving.fair import FairQueue, Priority, Turn

VERDICT_S = 0.2
"""A process is reaped and its end judged within milliseconds; on a busy machine some wait for the control
process ten times as long, and an answer a little later is worth more than a 503."""
GRACE_S = 2.0
"""After the deadline: the worker answers by itself, or ends itself if native code does not stop."""


_log = logging.getLogger(__name__)


class WorkerGone(Unreachable):
    """The worker has ended, before the request was with it or meanwhile."""

    def __init__(self, *, was_running: bool = False) -> None:
        """``was_running``: the request was in the model, which so may be why the worker ended."""
        super().__init__("the model worker has stopped", why="it is being restarted")
        self.was_running = was_running


@dataclass(frozen=True, slots=True)
class Reply:
    """A worker's answer, copied out of its slot."""

    status: int
    json_bytes: int | None
    body: bytes
    queue_us: int
    run_us: int
    together: int
    """Requests that shared the run."""
    is_first: bool
    """Of those."""


@dataclass(frozen=True, slots=True)
class _Call:
    answered: asyncio.Future[Reply]
    slot: int
    used_bytes: int
    turn: Turn


class WorkerLink:
    """The gateway's end; lives as long as the worker process."""

    def __init__(self, index: int, doorbell: socket.socket, slots: SharedSlots) -> None:
        """Take over both; needs a running loop."""
        doorbell.setblocking(False)
        self.index = index
        self.models: frozenset[bytes] = frozenset()
        """Keys of those it can answer for."""
        self._doorbell = doorbell
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._free = deque(range(slots.slots))
        self._waiting: FairQueue[asyncio.Future[int]] = FairQueue()
        self._held: Counter[int] = Counter()
        """Slots by flow."""
        self._held_max = most_of_one(slots.slots)
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._is_closed = False
        self._verdict: asyncio.Future[bool] = self._loop.create_future()
        self._loop.add_reader(doorbell.fileno(), self._rung)

    @property
    def slots(self) -> int:
        """How many requests can be with the worker at once."""
        return self._slots.slots

    @property
    def runners(self) -> int:
        """How many it runs at once; 1 until it has said."""
        return 1 if self._is_closed else max(1, self._slots.runners)

    @property
    def busy(self) -> int:
        """Requests with the worker or waiting for a slot."""
        return len(self._calls) + len(self._waiting)

    @property
    def is_up(self) -> bool:
        """Whether requests can be given to it."""
        return not self._is_closed

    async def infer(
        self, body: bytes, header_bytes: int | None, key: bytes, deadline: float, turn: Turn
    ) -> Reply:
        """The worker's answer to one request body.

        Cancelling the call tells the worker to stop.

        Args:
            body: as the caller sent it.
            header_bytes: length of its JSON part; None = all JSON.
            key: of the model version.
            deadline: monotonic seconds.
            turn: when it is served.

        Raises:
            WorkerGone: before or meanwhile.
            DeadlineExceeded: no slot or no answer in time.
            TooLarge: the body does not fit a slot.
        """
        offset = -(header_bytes or 0) % ALIGNMENT  # so that the first binary tensor is aligned
        if offset + len(body) > self._slots.slot_bytes:
            raise TooLarge(
                f"body of {len(body)} bytes is too large",
                why=f"a request has {self._slots.slot_bytes - ALIGNMENT} bytes at most",
            )
        asked_at = monotonic_s()
        slot = await self._take_slot(turn, deadline)
        self._slots.slot(slot)[offset : offset + len(body)] = body
        self._number += 1
        number = self._number
        call = _Call(self._loop.create_future(), slot, len(body), turn)
        self._calls[number] = call
        ring = InferRing(
            number, slot, offset, len(body), header_bytes, key, deadline, asked_at, turn
        )
        try:
            self._ring(ring.pack())
        except WorkerGone:
            del self._calls[number]
            raise
        limit = self._loop.call_later(
            max(deadline - monotonic_s(), 0.0) + GRACE_S, _give_up, call.answered
        )
        try:
            return await call.answered
        finally:
            limit.cancel()
            if number in self._calls:  # the worker has not answered, and need not
                self._slots.cancel(slot, number)

    def close(self) -> None:
        """The worker is gone: fail what is under way, let the memory go."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._doorbell.fileno())
        self._doorbell.close()
        for call in self._calls.values():
            if not call.answered.done():
                was_running = self._slots.is_running(call.slot)
                call.answered.set_exception(WorkerGone(was_running=was_running))
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_exception(WorkerGone())
        self._calls.clear()
        self._waiting = FairQueue()
        self._slots.close()

    def judge(self, *, is_blameless: bool) -> None:
        """The control process says why the worker has ended."""
        if not self._verdict.done():
            self._verdict.set_result(is_blameless)

    async def is_blameless(self) -> bool:
        """Whether somebody has ended the worker, so that what it was running is not why.

        The doorbell tells of the end before the control process can say why. False if it does not
        within ``VERDICT_S``.
        """
        try:
            async with asyncio.timeout(VERDICT_S):
                return await asyncio.shield(self._verdict)
        except TimeoutError:
            return False

    async def _take_slot(self, turn: Turn, deadline: float) -> int:
        if self._is_closed:
            raise WorkerGone
        if self._free and self._may_hold(turn.application, turn.priority):
            # and nobody who waits may have it
            self._held[_flow(turn.application, turn.priority)] += 1
            return self._free.popleft()
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._waiting.push(turn, waiter)
        try:
            async with asyncio.timeout(max(deadline - monotonic_s(), 0.0)):
                return await waiter
        except (TimeoutError, asyncio.CancelledError) as error:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._free_slot(turn, waiter.result())
            else:
                self._waiting.remove(turn, waiter)
            if isinstance(error, TimeoutError):
                raise _late() from None
            raise

    def _may_hold(self, application: int, priority: Priority) -> bool:
        return self._held[_flow(application, priority)] < self._held_max

    def _free_slot(self, turn: Turn, slot: int) -> None:
        """Take back a slot that a request of ``turn`` held; give it to who is next."""
        flow = _flow(turn.application, turn.priority)
        self._held[flow] -= 1
        if not self._held[flow]:
            del self._held[flow]
        self._free.append(slot)
        while self._free and self._waiting:
            found = self._waiting.pop(self._may_hold)
            if found is None:
                return
            turn, waiter = found
            if not waiter.done():
                self._held[_flow(turn.application, turn.priority)] += 1
                waiter.set_result(self._free.popleft())

    def _ring(self, packet: bytes) -> None:
        try:
            self._doorbell.send(packet)
        except OSError as error:
            raise WorkerGone from error

    def _rung(self) -> None:
        """Take one ring; the loop calls again while there are more."""
        try:
            packet = self._doorbell.recv(RING_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self.close()
            return
        try:
            ring = unpack_ring(packet)
        except Malformed as error:
            _log.warning("worker %d rings nonsense: %s", self.index, error)
            return
        call = self._calls.pop(ring.number, None) if isinstance(ring, AnswerRing) else None
        if call is None or not isinstance(ring, AnswerRing):
            _log.warning("worker %d rings about what it was not asked", self.index)
            return
        self._answered(call, ring)

    def _answered(self, call: _Call, ring: AnswerRing) -> None:
        if not call.answered.done():
            body = bytes(self._slots.slot(call.slot)[: ring.body_bytes])
            call.answered.set_result(
                Reply(
                    ring.status,
                    ring.json_bytes,
                    body,
                    ring.queue_us,
                    ring.run_us,
                    ring.together,
                    ring.is_first,
                )
            )
        self._slots.release(call.slot, max(call.used_bytes, ring.body_bytes))
        self._free_slot(call.turn, call.slot)


def _flow(application: int, priority: Priority) -> int:
    return application << 2 | priority


def _give_up(answered: asyncio.Future[Reply]) -> None:
    if not answered.done():
        answered.set_exception(_late())


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before the answer was there")
