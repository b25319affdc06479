"""Requests rung by the gateway, run by a few threads, each stopped at its deadline.

Per attached gateway one thread reads rings; ``threads`` runners take them in order, those of one model
together where that pays (``serving.batching``); one keeper stops what is over time. A slot belongs to
the worker from ring to answer ring, and every ring is answered exactly once, also when it was
cancelled or failed.

A request that is over time inside a run of several is answered at once (its inputs were copied into
the batch, so nothing reads its slot any more); the run goes on for the others. A run that does not
stop within ``STUCK_AFTER_S`` of being told to ends the process: native code cannot be interrupted
otherwise. The control process starts a new worker.
"""

import ctypes
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.drivers.shared_memory import SharedSlots
from agent.foundation.errors import AtollError, Busy, Malformed, UsageError
from agent.serving.batching import Sizes, form_of, groups, rows_of
from agent.serving.doorbell import (
    RING_BYTES_MAX,
    AnswerRing,
    CancelRing,
    InferRing,
    unpack_ring,
)
from agent.serving.failures import DeadlineExceeded, error_body, status_of
from agent.serving.request import InferRequest, parse_request
from agent.workers.inference_batching import run_together
from agent.workers.inference_queue import WorkQueue
from agent.workers.inference_session import ModelSession, RunFailed, Terminated, run_options
from agent.workers.inference_tensors import Array, array_of, write_answer
from agent.workers.inference_work import Link, Run, Work

EXIT_STUCK = 70
"""Exit status when native code did not stop (``EX_SOFTWARE``)."""
STUCK_AFTER_S = 1.0
LARGE_BYTES = 2 << 20
"""Inputs or bodies beyond this leave a mark on the arena and the heap that is worth cleaning."""
TRIM_EVERY_S = 1.0
STATUS_CANCELLED = 499
"""Nobody reads this answer; it only hands the slot back (nginx's "client closed request")."""

_libc = ctypes.CDLL(None)


@dataclass(slots=True)
class Loaded:
    """A model, how its answers are signed, and how many requests to run together."""

    session: ModelSession
    site: str
    sizes: Sizes = field(default_factory=lambda: Sizes(1))
    used_at: float = 0.0
    """Monotonic seconds."""


@dataclass(slots=True)
class _Prepared:
    """A request that fits its model."""

    work: Work
    request: InferRequest
    inputs: list[Array]

    @property
    def input_bytes(self) -> int:
        return sum(array.nbytes for array in self.inputs)


class Runner:
    """The threads that serve; models are put in and taken out while they run."""

    def __init__(self, threads: int, *, exit_process: Callable[[int], Any] = os._exit) -> None:
        """Start ``threads`` runners and the keeper (daemon threads: they end with the process)."""
        self.threads = threads
        self.models: dict[bytes, Loaded] = {}
        self.cold: Callable[[list[Work]], bool] = lambda _: False
        """Takes requests for a model that is not among ``models``, if it can bring that back."""
        self._exit = exit_process
        self._queue = WorkQueue(threads, self._rows_max)
        self._runs: set[Run] = set()
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
        link = Link(doorbell, slots)
        self._start(lambda: self._listen(link), "doorbell")

    def put(self, work: Work) -> None:
        """Have a request run after those that wait."""
        self._queue.put(work)

    def trim_soon(self) -> None:
        """Give freed memory back to the system shortly (``malloc_trim``)."""
        with self._changed:
            if self._trim_at == math.inf:
                self._trim_at = time.monotonic() + TRIM_EVERY_S
                self._changed.notify()

    def _start(self, target: Callable[[], None], name: str) -> None:
        threading.Thread(target=target, name=name, daemon=True).start()

    def _rows_max(self, key: bytes) -> int:
        loaded = self.models.get(key)
        return 1 if loaded is None else loaded.sizes.most

    # --- rings -----------------------------------------------------------------------------------
    def _listen(self, link: Link) -> None:
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

    def _take(self, link: Link, ring: InferRing) -> None:
        if ring.slot >= link.slots.slots or ring.offset + ring.body_bytes > link.slots.slot_bytes:
            raise Malformed("a gateway rang for memory that is not there")
        work = Work(link, ring, time.monotonic(), ring.deadline)
        link.pending[ring.number] = work
        self.put(work)

    def _cancel(self, link: Link, number: int) -> None:
        if (work := link.pending.get(number)) is not None:
            self._tell(work)

    # --- running ---------------------------------------------------------------------------------
    def _serve(self) -> None:
        while True:
            self._process(self._queue.take())

    def _process(self, works: list[Work]) -> None:
        loaded = self.models.get(works[0].ring.key)
        if loaded is None and self.cold(works):
            return
        if loaded is not None:
            loaded.used_at = time.monotonic()
        ready = self._prepared(works, loaded)
        if loaded is None:
            return  # every one of them was refused
        for group in groups([one.request for one in ready], loaded.sizes):
            members = [ready[index] for index in group]
            if len(members) == 1 or not self._run_together(loaded, members):
                for one in members:
                    if not one.work.is_answered:
                        self._run_alone(loaded, one)

    def _prepared(self, works: list[Work], loaded: Loaded | None) -> list[_Prepared]:
        """Those that can be run; the others are answered."""
        ready: list[_Prepared] = []
        for work in works:
            work.begun_at = time.monotonic()
            try:
                if work.is_cancelled or work.begun_at >= work.deadline:
                    raise Terminated("too late to begin")
                ready.append(self._prepare(work, loaded))
            except (AtollError, MemoryError) as error:
                self.fail(work, error)
        return ready

    def _prepare(self, work: Work, loaded: Loaded | None) -> _Prepared:
        """The checked request; its arrays are views of its slot."""
        if loaded is None:
            raise Busy("the model is not loaded", why="it has just been withdrawn")
        ring = work.ring
        slot = work.link.slots.slot(ring.slot)
        body = slot[ring.offset : ring.offset + ring.body_bytes]
        request = parse_request(body, ring.header_bytes, loaded.session.signature)
        if request.timeout_us is not None:
            work.deadline = min(work.deadline, work.rung_at + request.timeout_us / 1e6)
        return _Prepared(work, request, [array_of(tensor, body) for tensor in request.inputs])

    def _run_alone(self, loaded: Loaded, one: _Prepared) -> None:
        try:
            found, run_us = self._run(
                [one], lambda options: loaded.session.run(one.request, one.inputs, options)
            )
        except (AtollError, MemoryError) as error:
            self.fail(one.work, error)
            return
        loaded.sizes.ran(form_of(one.request), rows_of(one.request), run_us)
        self._answer(loaded, one, found, run_us)

    def _run_together(self, loaded: Loaded, members: Sequence[_Prepared]) -> bool:
        """Whether all are answered; if not, each is to be run alone.

        A request that the model refuses must not cost the others their answer.
        """
        requests, inputs = [one.request for one in members], [one.inputs for one in members]
        try:
            found, run_us = self._run(
                members, lambda options: run_together(loaded.session, requests, inputs, options)
            )
        except (UsageError, RunFailed, MemoryError):
            return False
        except Terminated as error:
            for one in members:
                if not one.work.is_answered:
                    self.fail(one.work, error)
            return True
        if found is None:  # its rows do not stand apart after all
            loaded.sizes = Sizes(1)
            return False
        loaded.sizes.ran(form_of(requests[0]), sum(map(rows_of, requests)), run_us)
        is_first = True
        for one, outputs in zip(members, found, strict=True):
            if not one.work.is_answered:
                self._answer(loaded, one, outputs, run_us, len(members), is_first=is_first)
                is_first = False
        return True

    def _run(self, members: Sequence[_Prepared], run: Callable[[Any], Any]) -> tuple[Any, int]:
        """What ``run`` gives and the microseconds it took, watched by the keeper meanwhile."""
        is_large = sum(one.input_bytes for one in members) > LARGE_BYTES
        works = [one.work for one in members]
        current = Run(works, run_options(is_shrinking=is_large))
        self._watch(current)
        try:
            begun = time.monotonic()
            if all(work.is_cancelled or begun >= work.deadline for work in works):
                raise Terminated("too late to begin")
            for work in works:
                work.link.slots.note_running(work.ring.slot, work.ring.key)
            found = run(current.options)
            return found, max(1, round((time.monotonic() - begun) * 1e6))
        finally:
            for work in works:
                work.link.slots.note_running(work.ring.slot, None)
            self._unwatch(current)
            if is_large:
                self.trim_soon()

    # --- answers ---------------------------------------------------------------------------------
    def _answer(
        self,
        loaded: Loaded,
        one: _Prepared,
        outputs: Sequence[Array],
        run_us: int,
        together: int = 1,
        *,
        is_first: bool = True,
    ) -> None:
        slot = one.work.link.slots.slot(one.work.ring.slot)
        session = loaded.session
        try:
            answer = write_answer(
                slot, one.request, outputs,
                model=session.name, version=session.version, served_by=loaded.site,
            )  # fmt: skip
        except (AtollError, MemoryError) as error:
            self.fail(one.work, error, run_us)
            return
        finally:
            del slot
        self._ring(
            one.work, 200, answer.json_bytes, answer.body_bytes, run_us, together, is_first=is_first
        )

    def fail(self, work: Work, error: AtollError | MemoryError, run_us: int = 0) -> None:
        """Answer a request with an error."""
        if isinstance(error, Terminated):
            error = DeadlineExceeded("the deadline passed before the answer was there")
            status = STATUS_CANCELLED if work.is_cancelled else status_of(error)
        elif isinstance(error, MemoryError):
            error = AtollError("the model worker is out of memory")
            status = 503
        else:
            status = status_of(error)
        body = error_body(str(error))
        work.link.slots.slot(work.ring.slot)[: len(body)] = body
        self._ring(work, status, None, len(body), run_us)

    def _ring(
        self,
        work: Work,
        status: int,
        json_bytes: int | None,
        body_bytes: int,
        run_us: int,
        together: int = 1,
        *,
        is_first: bool = True,
    ) -> None:
        ring, link = work.ring, work.link
        work.is_answered = True
        if ring.body_bytes > LARGE_BYTES:
            self.trim_soon()
        link.pending.pop(ring.number, None)
        queue_us = round(((work.begun_at or time.monotonic()) - work.rung_at) * 1e6)
        link.answer(
            AnswerRing(
                ring.number, ring.slot, status, json_bytes, body_bytes, queue_us, run_us,
                together, is_first,
            )
        )  # fmt: skip
        link.close_if_idle()

    # --- deadlines -------------------------------------------------------------------------------
    def _watch(self, run: Run) -> None:
        with self._changed:
            self._runs.add(run)
            for work in run.works:
                work.run = run
            if min(work.deadline for work in run.works) < self._next_look:
                self._changed.notify()

    def _unwatch(self, run: Run) -> None:
        with self._changed:
            self._runs.discard(run)
            for work in run.works:
                work.run = None

    def _tell(self, work: Work) -> None:
        """Nobody waits for it any more."""
        with self._changed:
            work.is_cancelled = True
            if work.run is not None:
                self._review(work.run, time.monotonic())
                self._changed.notify()

    def _review(self, run: Run, now: float) -> None:
        """Let go of the requests of a run that are over time; stop it when none is left."""
        over = [work for work in run.works if work.is_cancelled or now >= work.deadline]
        if len(run.works) > 1:
            for work in over:
                if not work.is_answered and now < run.told_at:
                    self.fail(work, Terminated("over time"))
        if len(over) == len(run.works):
            run.stop(now)

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
        """Review every run; when to look again."""
        next_look = math.inf
        for run in self._runs:
            self._review(run, now)
            if now >= run.told_at + STUCK_AFTER_S:
                self._exit(EXIT_STUCK)
            if run.told_at < math.inf:
                next_look = min(next_look, run.told_at + STUCK_AFTER_S)
            else:
                left = (work.deadline for work in run.works if not work.is_answered)
                next_look = min(next_look, *left)
        return next_look


def _receive(doorbell: socket.socket) -> bytes:
    try:
        return doorbell.recv(RING_BYTES_MAX)
    except OSError:
        return b""
