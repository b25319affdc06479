"""Requests rung by the gateway, run by a few threads, each stopped at its deadline.

Per attached gateway ``threads`` runners wait for rings and take them in turn (``serving.fair``), those
of one model together where that pays (``serving.batching``); one keeper stops what is over time or not waited for
any more. A slot belongs to the worker from ring to answer ring, and every ring is answered exactly
once, also when it was cancelled or failed.

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
from functools import partial
from typing import Any

from agent.drivers.shared_memory import SharedSlots
from agent.foundation.errors import AtollError, Busy, UsageError
from agent.serving.batching import Company, Sizes, form_of, groups, rows_of
from agent.serving.doorbell import AnswerRing
from agent.serving.failures import DeadlineExceeded, error_body, status_of
from agent.serving.request import InferRequest, RequestParser
from agent.workers.inference_batching import run_together
from agent.workers.inference_queue import WorkQueue
from agent.workers.inference_session import ModelSession, RunFailed, Terminated, run_options
from agent.workers.inference_tensors import Array, array_of, write_answer
from agent.workers.inference_work import Link, Run, Work

EXIT_STUCK = 70
"""Exit status when native code did not stop (``EX_SOFTWARE``)."""
STUCK_AFTER_S = 1.0
CANCEL_LOOK_S = 0.02
"""How often the keeper looks for runs that nobody waits for; deadlines it meets exactly."""
LINGER_S = 1.0
"""After the last run the keeper looks on for so long: waking it for each run would cost every run."""
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
    parser: RequestParser = field(init=False)

    def __post_init__(self) -> None:
        """Requests are read by the session's signature."""
        self.parser = RequestParser(self.session.signature)


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

    def __init__(
        self,
        threads: int,
        *,
        company: Company = Company(),  # noqa: B008 - frozen
        exit_process: Callable[[int], Any] = os._exit,
    ) -> None:
        """At most ``threads`` run at once. Starts the keeper; all are daemon threads."""
        self.threads = threads
        self._company = company
        self.models: dict[bytes, Loaded] = {}
        self.cold: Callable[[list[Work]], bool] = lambda _: False
        """Takes requests for a model that is not among ``models``, if it can bring that back."""
        self._exit = exit_process
        self._permits = threading.Semaphore(threads)
        self._runs: set[Run] = set()
        self._changed = threading.Condition()
        self._next_look = math.inf
        self._lingers_until = 0.0
        self._trim_at = math.inf
        self._start(self._keep, "keeper")

    def attach(self, doorbell: socket.socket, slots: SharedSlots) -> None:
        """Serve a gateway until its end of the doorbell closes."""
        doorbell.setblocking(True)
        slots.runners = self.threads
        link = Link(doorbell, slots, listeners=self.threads)
        queue = WorkQueue(link, self.threads, self._rows_max, self._company)
        for number in range(self.threads):
            self._start(partial(self._serve, link, queue), f"runner-{number}")

    def put(self, works: list[Work]) -> None:
        """Run requests for one model that were held back while it was loaded; soon, in a new thread."""
        self._start(partial(self._work_off, works), "returned")

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

    # --- running ---------------------------------------------------------------------------------
    def _serve(self, link: Link, queue: WorkQueue) -> None:
        works: list[Work] = []
        while works := queue.take(works):
            self._work_off(works)
        link.leave()

    def _work_off(self, works: list[Work]) -> None:
        with self._permits:
            self._process(works)

    def _process(self, works: list[Work]) -> None:
        loaded = self.models.get(works[0].ring.key)
        if loaded is None and self.cold(works):
            return
        if loaded is not None:
            loaded.used_at = time.monotonic()
        ready = self._prepared(works, loaded)
        if loaded is None:
            return  # every one of them was refused
        if len(ready) == 1:
            self._run_alone(loaded, ready[0])
            return
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
        request = loaded.parser.parse(body, ring.header_bytes)
        if request.timeout_us is not None:
            work.deadline = min(work.deadline, ring.asked_at + request.timeout_us / 1e6)
        return _Prepared(work, request, [array_of(tensor, body) for tensor in request.inputs])

    def _run_alone(self, loaded: Loaded, one: _Prepared) -> None:
        try:
            found, run_us = self._run(
                [one], lambda options: loaded.session.run(one.request, one.inputs, options)
            )
        except (AtollError, MemoryError) as error:
            self.fail(one.work, error)
            return
        self._answer(loaded, one, found, run_us)
        if loaded.sizes.may_join:
            loaded.sizes.ran(form_of(one.request), rows_of(one.request), run_us)

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
        work.is_answered, work.run_us = True, run_us // together
        if ring.body_bytes > LARGE_BYTES:
            self.trim_soon()
        link.pending.discard(ring.number)
        queue_us = max(0, round(((work.begun_at or time.monotonic()) - ring.asked_at) * 1e6))
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
            is_asleep = self._next_look == math.inf
            if is_asleep or min(work.deadline for work in run.works) < self._next_look:
                self._changed.notify()

    def _unwatch(self, run: Run) -> None:
        with self._changed:
            self._runs.discard(run)

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
        if self._runs:
            self._lingers_until = now + LINGER_S
        next_look = now + CANCEL_LOOK_S if now < self._lingers_until else math.inf
        for link in {work.link for run in self._runs for work in run.works}:
            link.look()
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
