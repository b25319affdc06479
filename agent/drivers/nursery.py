"""The control process's end of the nursery (``agent.workers.nursery``): workers by fork, in milliseconds.

It is started when the first worker is wanted, and ends some time after the last one has: the next job of the site,
the export of a model and the next mean find it warm.
"""

import asyncio
import contextlib
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
REAP_S_MAX = 30.0
"""A process that was killed is gone at once, unless it hangs in a disk's driver."""
KILLED = -9


class ForkedChild:
    """A child of the nursery."""

    def __init__(self, pid: int, nursery: WorkerProcess, owner: "Nursery") -> None:
        self.pid = pid
        self._nursery, self._owner = nursery, owner
        self._ending: asyncio.Task[int] | None = None

    async def end(self, patience_s: float) -> int:
        """As ``worker_process.Child``; a caller that is cancelled leaves it ended all the same."""
        if self._ending is None:
            self._ending = self._owner.spawn(self._reaped(patience_s))
        return await asyncio.shield(self._ending)

    async def _reaped(self, patience_s: float) -> int:
        async with self._owner.asking:
            try:
                reply = await self._nursery.ask(
                    Reap(self.pid, patience_s), expect=Reaped, timeout_s=REAP_S_MAX
                )
            except AttemptFailed:  # the nursery is gone, and its children have died with it
                return KILLED
        return reply.status


class Nursery:
    """Starts the process when a worker is wanted; ends it ``kept_s`` after ``rest`` was called."""

    def __init__(self, *, folder: Path, python: str, threads: int, kept_s: float) -> None:
        """``folder``: for its log; ``threads``: of numerical libraries, at most, in each worker."""
        self._folder, self._python, self._threads, self._kept_s = folder, python, threads, kept_s
        self._process: WorkerProcess | None = None
        self.asking = asyncio.Lock()
        """Held by whoever asks the process: one question at a time."""
        self._resting: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._tasks: set[asyncio.Task[Any]] = set()

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
        self._wake()
        request = Fork(kind, str(folder), str(dataset or ""), self._threads, memory_bytes or 0)
        forking = self.spawn(self._forked(request, folder.with_suffix(".log")))
        try:
            worker = await asyncio.shield(forking)
        except asyncio.CancelledError:
            forking.add_done_callback(self._unwanted)
            raise
        await worker.greeted(began)
        return worker

    def rest(self) -> None:
        """No worker is left; the process ends in a while unless one is wanted."""
        self._wake()
        if self._process is not None:
            loop = asyncio.get_running_loop()
            self._resting = loop.call_later(self._kept_s, lambda: self.spawn(self._rested()))

    async def close(self) -> None:
        """End the process, and with it its children; what is under way fails."""
        self._is_closed = True
        self._wake()
        await self._end()
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def process(self) -> WorkerProcess | None:
        """Which has forked the workers and forks the next one, while there is one."""
        return self._process

    async def _forked(self, request: Fork, log: Path) -> WorkerProcess:
        async with self.asking:
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
        return WorkerProcess(request.kind, child, Channel(ours), log, TAGS[request.kind])

    async def _rested(self) -> None:
        async with self.asking:
            await self._end()

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await process.end()

    async def _running(self) -> WorkerProcess:
        if self._process is not None and not self._process.is_alive:
            await self._end()
        if self._process is None:
            self._process = await WorkerProcess.start(
                "agent.workers.nursery",
                (),
                name="nursery",
                python=self._python,
                folder=self._folder,
                threads=self._threads,
                tags=(TO_NURSERY, FROM_NURSERY),
            )
        if self._is_closed:
            await self._end()
            raise AttemptFailed("this site is stopping")
        return self._process

    def _unwanted(self, forking: asyncio.Task[WorkerProcess]) -> None:
        if not forking.cancelled() and forking.exception() is None:
            self.spawn(forking.result().end())

    def _wake(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def spawn(self, work: Coroutine[None, None, ValueT]) -> asyncio.Task[ValueT]:
        """Do it to the end, whoever asked for it; ``close`` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
