"""The models of one worker: all that it may serve, and the sessions of those asked for lately.

Rule: a model stays known from its load to its withdrawal, its session only while there is room. The
file's descriptor and digest are kept, so that a session that was let go comes back without anybody's
help; the requests that ask for it wait meanwhile, and those for other models do not. A session is
let go when all of them together grow beyond the memory set aside, the one used longest ago first; and
when the machine runs short of memory, those that nobody has used for a while.
"""

import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from agent.foundation.errors import AtollError, Busy, Malformed
from agent.serving.batching import ROWS_MAX, Sizes
from agent.workers.inference_batching import stand_rows_apart
from agent.workers.inference_golden import check_golden
from agent.workers.inference_providers import open_session
from agent.workers.inference_runner import Loaded, Runner
from agent.workers.inference_session import ModelSession
from agent.workers.inference_work import Work

MODEL_BYTES_MAX = 2 << 30
"""A protobuf file cannot be larger."""
MODELS_MAX = 400
"""Each holds a descriptor, of which a confined worker has 512."""
IDLE_AFTER_S = 60.0
"""A session unused for so long is let go first when the machine runs short."""
SHORT_PART = 0.05
"""Of the machine's memory: less available is short."""
REVIEW_S = 30.0
"""How often the machine's memory is looked at."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from and what it is to be."""

    descriptor: int
    sha256: bytes
    name: str
    version: str
    site: str
    providers: tuple[str, ...]
    golden: str = ""
    """See ``inference_golden``."""

    def read(self) -> bytes:
        """The model's bytes, which are those of its digest.

        Raises:
            Malformed: they are not, or too many.
        """
        size = os.fstat(self.descriptor).st_size
        if size > MODEL_BYTES_MAX:
            raise Malformed(f"model of {size} bytes", why=f"the limit is {MODEL_BYTES_MAX}")
        content = bytearray()
        while piece := os.pread(self.descriptor, 16 << 20, len(content)):
            content += piece
            if len(content) > size:
                raise Malformed("the model's file grows while it is read")
        if hashlib.sha256(content).digest() != self.sha256:
            raise Malformed("the model's bytes are not those of its digest")
        return bytes(content)


@dataclass(frozen=True, slots=True)
class _Opened:
    session: ModelSession
    passed: tuple[str, ...]
    cost_bytes: int


@dataclass(slots=True)
class _Known:
    source: Source
    may_batch: bool
    cost_bytes: int = 0
    waiting: list[Work] = field(default_factory=list)


class Memory:
    """What the process holds and what the machine has left, from files opened before confinement."""

    def __init__(self) -> None:
        self._own = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._machine = os.open("/proc/meminfo", os.O_RDONLY | os.O_CLOEXEC)

    def held_bytes(self) -> int:
        """Resident memory of this process."""
        return int(os.pread(self._own, 256, 0).split()[1]) * _PAGE_BYTES

    def left_part(self) -> float:
        """Available memory of the machine, as a part of all."""
        lines = os.pread(self._machine, 4096, 0).decode("ascii", "replace").splitlines()
        found = {
            line.split(":")[0]: int(line.split()[1]) for line in lines if len(line.split()) > 1
        }
        return found["MemAvailable"] / found["MemTotal"]


class Models:
    """Loads, lets go and loads again, in a thread of its own."""

    def __init__(
        self,
        runner: Runner,
        memory: Memory,
        budget_bytes: int,
        *,
        rows_max: int = ROWS_MAX,
        gpu_memory_bytes: int = 0,
    ) -> None:
        """Bounds of all sessions' memory together (one always may stay) and of a batch.

        ``gpu_memory_bytes``: of the GPU, for each session; 0 = as much as it wants.
        """
        self._build = partial(ModelSession, gpu_memory_bytes=gpu_memory_bytes)
        self._runner, self._memory, self._budget_bytes = runner, memory, budget_bytes
        self._rows_max = rows_max
        self._known: dict[bytes, _Known] = {}
        self._lock = threading.Lock()
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        runner.cold = self.wake
        threading.Thread(target=self._work_forever, name="loader", daemon=True).start()

    def soon(self, task: Callable[[], None]) -> None:
        """Have the loader's thread do ``task`` after what it was given before."""
        self._tasks.put(task)

    def add(self, key: bytes, source: Source) -> tuple[ModelSession, tuple[str, ...]]:
        """Load a model for the first time, or another one in its place.

        Returns its session and, for each execution provider that was passed over, why.

        Takes the descriptor over, whatever happens. The former session serves until the new one is
        there, and goes on if the new one is refused.

        Raises:
            LoadRefused, Malformed: it is none that can be served.
            Busy: there are too many.
        """
        if key not in self._known and len(self._known) >= MODELS_MAX:
            os.close(source.descriptor)
            raise Busy(f"{MODELS_MAX} models are known here already")
        try:
            opened = self._open(source)
            may_batch = self._rows_max > 1 and stand_rows_apart(opened.session)
        except BaseException:
            os.close(source.descriptor)
            raise
        with self._lock:
            former = self._known.get(key)
            self._known[key] = known = _Known(source, may_batch, opened.cost_bytes)
            if former is not None:
                known.waiting = former.waiting
                os.close(former.source.descriptor)
        self._show(key, known, opened.session)
        self._make_room(key)
        return opened.session, opened.passed

    def remove(self, key: bytes) -> None:
        """Withdraw a model; its running requests end undisturbed."""
        with self._lock:
            known = self._known.pop(key, None)
            self._runner.models.pop(key, None)
        if known is not None:
            os.close(known.source.descriptor)
            if known.waiting:
                self._runner.put(known.waiting)  # to be told that the model is gone
        self._runner.trim_soon()

    def wake(self, works: list[Work]) -> bool:
        """Keep requests for a session that was let go until it is back; False if it is unknown."""
        key = works[0].ring.key
        with self._lock:
            known = self._known.get(key)
            if known is None:
                return False
            if key in self._runner.models:  # it came back meanwhile
                self._runner.put(works)
                return True
            known.waiting += works
            if len(known.waiting) == len(works):
                self._tasks.put(lambda: self._warm(key))
        return True

    # --- in the loader's thread ------------------------------------------------------------------
    def _work_forever(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=REVIEW_S if self._runner.models else None)
            except queue.Empty:
                self._review()
            else:
                task()
                self._runner.trim_soon()

    def _warm(self, key: bytes) -> None:
        known = self._known.get(key)
        if known is None:
            return
        error: AtollError | MemoryError | None = None
        with self._lock:
            asked_for_by = tuple(known.waiting)
        for work in asked_for_by:  # so that it is blamed if the process dies of it
            work.link.slots.note_running(work.ring.slot, key)
        try:
            opened = self._open(known.source)
            known.cost_bytes = opened.cost_bytes
            self._show(key, known, opened.session)
            self._make_room(key)
        except AtollError as refused:
            error = Busy("the model cannot be loaded again now", why=str(refused))
        except MemoryError as short:
            error = short
        for work in asked_for_by:
            work.link.slots.note_running(work.ring.slot, None)
        with self._lock:
            waiting, known.waiting = known.waiting, []
        if error is None:
            self._runner.put(waiting)
            return
        for work in waiting:
            self._runner.fail(work, error)

    def _open(self, source: Source) -> _Opened:
        before = self._memory.held_bytes()
        content = source.read()
        session, passed = open_session(
            content, source.name, source.version, source.providers, build=self._build
        )
        check_golden(session, source.golden)
        size = len(content)
        del content
        cost_bytes = max(size, self._memory.held_bytes() - before - size)
        return _Opened(session, passed, cost_bytes)

    def _show(self, key: bytes, known: _Known, session: ModelSession) -> None:
        sizes = Sizes(self._rows_max if known.may_batch else 1)
        loaded = Loaded(session, known.source.site, sizes, time.monotonic())
        with self._lock:
            if self._known.get(key) is known:
                self._runner.models[key] = loaded

    def _make_room(self, kept: bytes) -> None:
        """Let sessions go until the rest fits, those used longest ago first, never ``kept``."""
        with self._lock:
            by_use = sorted(self._runner.models.items(), key=lambda pair: pair[1].used_at)
            held = sum(self._cost(key) for key, _ in by_use)
            for key, _ in by_use:
                if held <= self._budget_bytes:
                    break
                if key != kept:
                    del self._runner.models[key]
                    held -= self._cost(key)

    def _cost(self, key: bytes) -> int:
        known = self._known.get(key)
        return 0 if known is None else known.cost_bytes

    def _review(self) -> None:
        """Let idle sessions go while the machine is short of memory."""
        if self._memory.left_part() > SHORT_PART:
            return
        idle_since = time.monotonic() - IDLE_AFTER_S
        with self._lock:
            idle = [k for k, one in self._runner.models.items() if one.used_at < idle_since]
            for key in idle:
                del self._runner.models[key]
        if idle:
            self._runner.trim_soon()
