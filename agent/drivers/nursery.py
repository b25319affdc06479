"""The control process's end of the nursery (``agent.workers.nursery``): workers by fork, in milliseconds.

It is started when the first worker is wanted, and ends some time after the last one has: the next job of the site,
the export of a model and the next mean find it warm.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

from agent.drivers.channel import Channel, pair
from agent.drivers.worker_process import WorkerProcess
from agent.training.contract import (
    FROM_AGGREGATION,
    FROM_NURSERY,
    FROM_TRAINER,
    TO_AGGREGATION,
    TO_NURSERY,
    TO_TRAINER,
    AttemptFailed,
    Fork,
    Forked,
    Reap,
    Reaped,
)

ValueT = TypeVar("ValueT")
Kind = Literal["trainer", "aggregation"]
TAGS = {"trainer": (TO_TRAINER, FROM_TRAINER), "aggregation": (TO_AGGREGATION, FROM_AGGREGATION)}
FORK_S_MAX = 120.0
"""The first fork waits for the import of PyTorch: 2 s here, perhaps 30 s from a cold SD card beside seven others."""
REAP_S_MAX = 10.0
"""An answer that needs no waiting."""
GOODBYE_S_MAX = 1.0
"""Milliseconds do, unless the nursery is stopped or imports just now; a site that is told to stop has four seconds."""
LOOK_S = 0.02
"""Between two looks whether a child is gone, where the kernel (before Linux 5.3) does not tell."""
KILLED = -int(signal.SIGKILL)


class ForkedChild:
    """A child of the nursery."""

    def __init__(self, pid: int, nursery: WorkerProcess, owner: "Nursery") -> None:
        """``pid`` was just told: nobody has let go of it yet, so the handle is this child's."""
        self.pid = pid
        self._nursery, self._owner = nursery, owner
        self._handle = _handle(pid)
        self._status: int | None = None
        self._ending: asyncio.Task[int] | None = None

    async def end(self, patience_s: float) -> int:
        """As ``worker_process.Child``; a caller that is cancelled leaves it ended all the same."""
        if self._ending is None:
            self._ending = self._owner.spawn(self._ended(patience_s))
        return await asyncio.shield(self._ending)

    async def _ended(self, patience_s: float) -> int:
        try:
            if await self._is_gone_within(patience_s):
                return await self._told()
            self._kill()
            await self._is_gone_within(None)
            self._owner.spawn(self._told())  # its end is known; the nursery is to let go of it
            return KILLED
        finally:
            if self._handle is not None:
                os.close(self._handle)
            self._owner.left(self)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._handle is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)

    async def _is_gone_within(self, patience_s: float | None) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                if self._handle is not None:
                    await _readable(self._handle)
                    return True
                while self._status is None:
                    self._status = await self._asked()
                    await asyncio.sleep(LOOK_S)
                return True
        return False

    async def _told(self) -> int:
        if self._status is None:
            self._status = await self._asked()
        return KILLED if self._status is None else self._status

    async def _asked(self) -> int | None:
        """Its status; None: it runs. That of one whose parent is gone nobody knows: it was killed with it."""
        asking = self._owner.spawn(self._owner.ask(self._nursery, Reap(self.pid)))
        try:
            reply = await asyncio.shield(asking)
        except AttemptFailed:
            return KILLED
        return reply.status


class Nursery:
    """Starts the process when a worker is wanted; ends it a while after the last worker has ended."""

    def __init__(self, *, folder: Path, python: str, threads: int, kept_s: float) -> None:
        """Nothing is started yet.

        Args:
            folder: beside it stands the log, ``folder.log``.
            python: the interpreter.
            threads: of numerical libraries, at most, in each worker.
            kept_s: how long it is kept without a worker.
        """
        self._folder, self._python, self._threads, self._kept_s = folder, python, threads, kept_s
        self._process: WorkerProcess | None = None
        self._asking = asyncio.Lock()
        self._forking = 0
        self._children: set[ForkedChild] = set()
        self._resting: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def process(self) -> WorkerProcess | None:
        """Which has forked the workers and forks the next one, while there is one."""
        return self._process

    async def fork(
        self, kind: Kind, *, folder: Path, dataset: Path | None, memory_bytes: int | None
    ) -> WorkerProcess:
        """A new worker that is ready.

        Args:
            kind: which.
            folder: its own; its log stands beside it, ``folder.log``.
            dataset: folder of the data that it may read.
            memory_bytes: bound of its private memory.

        Raises:
            AttemptFailed: it did not start; the reason is for a person.
        """
        began = time.monotonic()
        request = Fork(kind, str(folder), str(dataset or ""), self._threads, memory_bytes or 0)
        self._forking += 1
        try:
            forking = self.spawn(self._forked(request, folder.with_suffix(".log")))
            try:
                worker = await asyncio.shield(forking)
            except asyncio.CancelledError:
                forking.add_done_callback(self._unwanted)
                raise
            await worker.greeted(began)
        finally:
            self._forking -= 1
            self.left(None)
        return worker

    async def close(self) -> None:
        """End the process and all workers; what is under way fails."""
        self._is_closed = True
        self._wake()
        # The workers first, while somebody can let go of them: else they are left to the machine's first process.
        for child in tuple(self._children):
            self.spawn(child.end(0.0))
        loop = asyncio.get_running_loop()
        until_s = loop.time() + GOODBYE_S_MAX
        while self._tasks and (left_s := until_s - loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left_s)
        await self._end()
        while self._tasks or self._children:
            ends = (child.end(0.0) for child in tuple(self._children))
            await asyncio.gather(*ends, *self._tasks, return_exceptions=True)

    def left(self, child: ForkedChild | None) -> None:
        """A worker has ended, or the wish for one: after the last the process ends in a while."""
        if child is not None:
            self._children.discard(child)
        self._wake()
        if self._process is not None and not self._is_wanted() and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._resting = loop.call_later(self._kept_s, lambda: self.spawn(self._rested()))

    def spawn(self, work: Coroutine[Any, Any, ValueT]) -> asyncio.Task[ValueT]:
        """Do it to the end, whoever asked for it; ``close`` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def ask(self, nursery: WorkerProcess, request: Reap) -> Reaped:
        """Have it answered; one question at a time.

        Raises:
            AttemptFailed: the process is gone.
        """
        async with self._asking:
            return await nursery.ask(request, expect=Reaped, timeout_s=REAP_S_MAX)

    def _is_wanted(self) -> bool:
        return bool(self._forking or self._children)

    async def _forked(self, request: Fork, log: Path) -> WorkerProcess:
        async with self._asking:
            nursery = await self._running()
            ours, theirs = pair()
            with contextlib.ExitStack() as opened:
                opened.callback(theirs.close)
                undo = opened.enter_context(contextlib.ExitStack())
                undo.callback(ours.close)
                errors = opened.enter_context(log.open("wb"))
                given = (theirs.fileno(), errors.fileno())
                reply = await nursery.ask(request, given, expect=Forked, timeout_s=FORK_S_MAX)
                undo.pop_all()
            child = ForkedChild(reply.pid, nursery, self)
            self._children.add(child)
        return WorkerProcess(request.kind, child, Channel(ours), log, TAGS[request.kind])

    async def _running(self) -> WorkerProcess:
        if self._process is not None and not self._process.is_alive:
            await self._end()
        self._check_open()
        if self._process is None:
            self._process = started = await WorkerProcess.start(
                "agent.workers.nursery",
                name="nursery",
                python=self._python,
                folder=self._folder,
                threads=self._threads,
                tags=(TO_NURSERY, FROM_NURSERY),
            )
            try:
                self._check_open()
            except AttemptFailed:
                await self._end()
                raise
            await started.greeted(time.monotonic())
        return self._process

    def _check_open(self) -> None:
        if self._is_closed:
            raise AttemptFailed("this site is stopping")

    async def _rested(self) -> None:
        async with self._asking:
            if not self._is_wanted():
                await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    def _unwanted(self, forking: asyncio.Task[WorkerProcess]) -> None:
        if not forking.cancelled() and forking.exception() is None:
            self.spawn(forking.result().end())

    def _wake(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None


def _handle(pid: int) -> int | None:
    """A descriptor that means this process for ever; None where the kernel has none (before Linux 5.3)."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    is_readable = asyncio.Event()
    loop.add_reader(descriptor, is_readable.set)
    try:
        await is_readable.wait()
    finally:
        loop.remove_reader(descriptor)
