"""Requests rung by the gateway, run by a few threads, each stopped at its deadline.

Per attached gateway one thread reads rings; ``threads`` runners take them in order; one keeper
stops runs whose time is over. A slot belongs to the worker from ring to answer ring, and every ring
is answered exactly once, also when it was cancelled or failed.

A run that does not stop within ``STUCK_AFTER_S`` of being told to ends the process: native code
cannot be interrupted otherwise. The control process starts a new worker.
"""

import contextlib
import ctypes
import math
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from agent.drivers.shared_memory import SharedSlots
from agent.foundation.errors import AtollError, Busy, Malformed
from agent.serving.doorbell import (
    RING_BYTES_MAX,
    AnswerRing,
    CancelRing,
    InferRing,
    unpack_ring,
)
from agent.serving.failures import DeadlineExceeded, error_body, status_of
from agent.serving.request import parse_request
from agent.workers.inference_session import ModelSession, Terminated, run_options
from agent.workers.inference_tensors import array_of, write_answer

EXIT_STUCK = 70
"""Exit status when native code did not stop (``EX_SOFTWARE``)."""
STUCK_AFTER_S = 1.0
LARGE_BYTES = 2 << 20
"""Inputs or bodies beyond this leave a mark on the arena and the heap that is worth cleaning."""
TRIM_EVERY_S = 1.0
STATUS_CANCELLED = 499
"""Nobody reads this answer; it only hands the slot back (nginx's "client closed request")."""

_libc = ctypes.CDLL(None)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model and how its answers are signed."""

    session: ModelSession
    site: str


@dataclass(slots=True, eq=False)
class _Link:
    """One attached gateway."""

    doorbell: socket.socket
    slots: SharedSlots
    pending: dict[int, "_Work"] = field(default_factory=dict)
    is_over: bool = False
    """The gateway has closed its end."""
    closing: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, ring: AnswerRing) -> None:
        with contextlib.suppress(OSError):  # the gateway is gone; so is who waited
            self.doorbell.send(ring.pack())

    def close_if_idle(self) -> None:
        """Let go of the memory once the gateway is gone and nothing runs in it."""
        with self.closing:
            if self.is_over and not self.pending:
                self.doorbell.close()
                self.slots.close()


@dataclass(slots=True, eq=False)
class _Work:
    """One request from ring to answer."""

    link: _Link
    ring: InferRing
    rung_at: float
    deadline: float
    options: Any = None
    told_at: float = math.inf
    """When its run was told to stop."""
    is_cancelled: bool = False
    run_us: int = 0


class Runner:
    """The threads that serve; models are put in and taken out while they run."""

    def __init__(self, threads: int, *, exit_process: Callable[[int], Any] = os._exit) -> None:
        """Start ``threads`` runners and the keeper (daemon threads: they end with the process)."""
        self.threads = threads
        self.models: dict[bytes, Loaded] = {}
        self._exit = exit_process
        self._queue: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._watched: set[_Work] = set()
        self._changed = threading.Condition()
        self._next_look = math.inf
        self._trim_at = math.inf
        for number in range(threads):
            self._start(self._serve, f"runner-{number}")
        self._start(self._keep, "keeper")

    def attach(self, doorbell: socket.socket, slots: SharedSlots) -> None:
        """Serve a gateway until its end of the doorbell closes."""
        doorbell.setblocking(True)
        slots.runners = self.threads
        link = _Link(doorbell, slots)
        self._start(lambda: self._listen(link), "doorbell")

    def trim_soon(self) -> None:
        """Give freed memory back to the system shortly (``malloc_trim``)."""
        with self._changed:
            if self._trim_at == math.inf:
                self._trim_at = time.monotonic() + TRIM_EVERY_S
                self._changed.notify()

    def _start(self, target: Callable[[], None], name: str) -> None:
        threading.Thread(target=target, name=name, daemon=True).start()

    # --- rings -----------------------------------------------------------------------------------
    def _listen(self, link: _Link) -> None:
        while packet := _receive(link.doorbell):
            ring = unpack_ring(packet)
            match ring:
                case InferRing():
                    self._take(link, ring)
                case CancelRing():
                    self._cancel(link, ring.number)
                case AnswerRing():
                    raise Malformed("a gateway rang an answer")
        for work in tuple(link.pending.values()):
            self._tell(work)
        link.is_over = True
        link.close_if_idle()

    def _take(self, link: _Link, ring: InferRing) -> None:
        if ring.slot >= link.slots.slots or ring.offset + ring.body_bytes > link.slots.slot_bytes:
            raise Malformed("a gateway rang for memory that is not there")
        work = _Work(link, ring, time.monotonic(), ring.deadline)
        link.pending[ring.number] = work
        self._queue.put(work)

    def _cancel(self, link: _Link, number: int) -> None:
        if (work := link.pending.get(number)) is not None:
            self._tell(work)

    # --- running ---------------------------------------------------------------------------------
    def _serve(self) -> None:
        while True:
            self._process(self._queue.get())

    def _process(self, work: _Work) -> None:
        ring, link = work.ring, work.link
        begun = time.monotonic()
        status, json_bytes, body_bytes = 200, None, 0
        slot = link.slots.slot(ring.slot)
        try:
            answer = self._infer(work, slot)
            json_bytes, body_bytes = answer.json_bytes, answer.body_bytes
        except Terminated:
            late = DeadlineExceeded("the deadline passed before the answer was there")
            status = STATUS_CANCELLED if work.is_cancelled else status_of(late)
            body_bytes = _write_error(slot, late)
        except AtollError as error:
            status = status_of(error)
            body_bytes = _write_error(slot, error)
        except MemoryError:
            status = 503
            body_bytes = _write_error(slot, AtollError("the model worker is out of memory"))
        if ring.body_bytes > LARGE_BYTES:
            self.trim_soon()
        link.pending.pop(ring.number, None)
        del slot
        link.answer(
            AnswerRing(
                number=ring.number,
                slot=ring.slot,
                status=status,
                json_bytes=json_bytes,
                body_bytes=body_bytes,
                queue_us=round((begun - work.rung_at) * 1e6),
                run_us=work.run_us,
            )
        )
        link.close_if_idle()

    def _infer(self, work: _Work, slot: memoryview) -> Any:
        ring = work.ring
        loaded = self.models.get(ring.key)
        if loaded is None:
            raise Busy("the model is not loaded", why="it has just been withdrawn")
        body = slot[ring.offset : ring.offset + ring.body_bytes]
        request = parse_request(body, ring.header_bytes, loaded.session.signature)
        if request.timeout_us is not None:
            work.deadline = min(work.deadline, work.rung_at + request.timeout_us / 1e6)
        inputs = [array_of(tensor, body) for tensor in request.inputs]
        is_large = sum(array.nbytes for array in inputs) > LARGE_BYTES
        work.options = run_options(is_shrinking=is_large)
        self._watch(work)
        try:
            begun = time.monotonic()
            if work.is_cancelled or begun >= work.deadline:
                raise Terminated("too late to begin")
            work.link.slots.note_running(ring.slot, ring.key)
            outputs = loaded.session.run(request, inputs, work.options)
            work.run_us = max(1, round((time.monotonic() - begun) * 1e6))
        finally:
            work.link.slots.note_running(ring.slot, None)
            self._unwatch(work)
        if is_large:
            self.trim_soon()
        return write_answer(
            slot,
            request,
            outputs,
            model=loaded.session.name,
            version=loaded.session.version,
            served_by=loaded.site,
        )

    # --- deadlines -------------------------------------------------------------------------------
    def _watch(self, work: _Work) -> None:
        with self._changed:
            self._watched.add(work)
            if work.deadline < self._next_look:
                self._changed.notify()

    def _unwatch(self, work: _Work) -> None:
        with self._changed:
            self._watched.discard(work)

    def _tell(self, work: _Work) -> None:
        """Nobody waits for it any more."""
        with self._changed:
            work.is_cancelled = True
            if work in self._watched:
                self._stop(work, time.monotonic())
                self._changed.notify()

    def _stop(self, work: _Work, now: float) -> None:
        if work.told_at == math.inf:
            work.told_at = now
            work.options.terminate = True

    def _keep(self) -> None:
        with self._changed:
            while True:
                now = time.monotonic()
                self._next_look = self._look(now)
                if now >= self._trim_at:
                    self._trim_at = math.inf
                    _libc.malloc_trim(0)
                wake_at = min(self._next_look, self._trim_at)
                self._changed.wait(None if wake_at == math.inf else max(wake_at - now, 0.0))

    def _look(self, now: float) -> float:
        """Stop what is over time; when to look again."""
        next_look = math.inf
        for work in self._watched:
            if work.told_at == math.inf and now >= work.deadline:
                self._stop(work, now)
            if now >= work.told_at + STUCK_AFTER_S:
                self._exit(EXIT_STUCK)
            next_look = min(
                next_look,
                work.deadline if work.told_at == math.inf else work.told_at + STUCK_AFTER_S,
            )
        return next_look


def _receive(doorbell: socket.socket) -> bytes:
    try:
        return doorbell.recv(RING_BYTES_MAX)
    except OSError:
        return b""


def _write_error(slot: memoryview, error: AtollError) -> int:
    body = error_body(str(error))
    slot[: len(body)] = body
    return len(body)
