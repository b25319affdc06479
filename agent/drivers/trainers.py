"""The site's trainers: warm, confined processes, one for each job; one more for means; all forked by one nursery.

Layout of ``jobs_dir/<job id>/``: ``work/`` is the trainer's own folder, the only one it may write;
beside it lie what only the control process writes (means) and the trainers' last log. All of it is
scratch: what counts is copied to the blob store by the caller.

Nothing here imports PyTorch or numpy. A child that dies fails the one call that waits for it; the
next call starts another.
"""

import asyncio
import contextlib
import os
import re
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.drivers.nursery import Nursery
from agent.drivers.worker_process import WorkerProcess
from agent.training.contract import (
    Attempted,
    AttemptFailed,
    Averaged,
    Begin,
    Export,
    Finish,
    FinishRange,
    Include,
    Included,
    Initialise,
    Join,
    Outer,
    Part,
    Prepare,
    Prepared,
    Train,
    UpdatesRejected,
    Written,
)
from agent.wire.documents import Job

TRAINERS_MAX = 8
"""Warm at once; some 100 MiB each beside PyTorch's, which all share. The one unused longest makes room."""
SAMPLES_MAX = 2**40
ROUND_SAMPLES_MAX = 2**36
"""As ``agent.workers.mean``."""
PREPARE_S_MAX = 120.0
"""Reading a dataset of 1 GiB from a slow disk."""
EXPORT_S_MAX = 300.0
"""6 s on a desktop core; forty times that on a loaded small board."""
STEP_S_MAX = 30.0
"""Mapping one update and reading its head."""
AVERAGE_S_MAX = 3600.0
"""A thousand updates of 1 GiB that a slow disk has to give."""
FILE_BYTES_MAX = 9 << 30
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished attempt."""

    update: Path
    """The parameters after local training (safetensors); scratch, two rounds old ones are removed."""
    samples: int
    metrics: tuple[tuple[str, float], ...]
    """Of the base parameters: accuracy, loss, holdout (samples); then train_s."""


@dataclass(frozen=True, slots=True)
class Weighed:
    """An update that is to be counted."""

    update: Path
    weight: int
    """Samples; fewer of an update that comes late."""
    started_from: Path | None = None
    """Its own parameters before, where they are not the round's: what it changed is counted then."""


@dataclass(frozen=True, slots=True)
class Aggregated:
    """A round's parameters."""

    parameters: Path
    carried: Path | None
    """What the outer optimizer needs in the next round; None without one."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A committed model as ONNX."""

    path: Path
    error_max: float
    """Largest difference of a logit from PyTorch's."""


@dataclass(frozen=True, slots=True)
class TrainerProcess:
    """For status: one child process."""

    name: str
    job: str
    """Empty for the process that computes means, and for the nursery."""
    pid: int
    runtime: str
    sandbox: str
    start_s: float


@dataclass(slots=True)
class _Slot:
    """A job's trainer. ``lock`` is held while it starts or works."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    worker: WorkerProcess | None = None
    dataset: Path | None = None
    job: Job | None = None
    used: int = 0


class Trainers:
    """Starts trainers when they are first needed and keeps them warm until their job is released."""

    def __init__(
        self,
        *,
        jobs_dir: Path,
        threads: int = 1,
        python: str = sys.executable,
        memory_bytes: int | None = None,
        kept_warm_s: float = 0.0,
    ) -> None:
        """``jobs_dir`` exists or can be made; ``memory_bytes`` bounds each child's private memory.

        ``kept_warm_s``: for so long after the last job the nursery is kept.
        """
        self._jobs_dir = jobs_dir.absolute()
        self._memory_bytes = memory_bytes
        self._nursery = Nursery(
            folder=self._jobs_dir / "nursery", python=python, threads=threads, kept_s=kept_warm_s
        )
        self._slots: dict[str, _Slot] = {}
        self._averaging = asyncio.Lock()
        self._average: WorkerProcess | None = None
        self._once: set[WorkerProcess] = set()
        self._uses = 0
        self._is_closed = False

    async def warm(self, job: Job, dataset: Path) -> int:
        """Have the job's trainer ready with its data; returns the number of samples to train on.

        Raises:
            AttemptFailed: it cannot start, or the data cannot be used; the reason is for a person.
        """
        async with self._held(job, dataset) as (_, prepared):
            return prepared.samples

    async def train(
        self,
        job: Job,
        dataset: Path,
        round: int,  # noqa: A002 - the domain's word
        base: Path,
        site_seed: int,
        carried: Path | None = None,
    ) -> Trained:
        """Train locally from ``base`` for one round, within the job's ``round_timeout_s``.

        ``carried``: what the round before left, where the job corrects the sites' steps by it.

        Raises:
            AttemptFailed: no update; the reason is for a person. A later call starts afresh.
        """
        async with self._held(job, dataset) as (worker, _):
            self._clean(job, round)
            request = Train(round, site_seed, f"update-{round}.safetensors")
            with contextlib.ExitStack() as files:
                given = [files.enter_context(_opened(one)) for one in (base, carried) if one]
                reply = await worker.ask(
                    request, given, expect=Attempted, timeout_s=job.round_timeout_s
                )
        return Trained(self._result(job, request.file), reply.samples, reply.metrics)

    async def initialise(self, job: Job, dataset: Path | None = None) -> Path:
        """First parameters of the job, drawn from its seed.

        Args:
            job: whose ``seed`` and ``recipe`` decide.
            dataset: data whose images set the size of the model's input; None = 28 x 28.

        Raises:
            AttemptFailed: the recipe is unknown, or the process failed.
        """
        holder = self._alone(job) if dataset is None else self._held(job, dataset)
        async with holder as (worker, _):
            request = Initialise("initial.safetensors")
            await worker.ask(request, expect=Written, timeout_s=PREPARE_S_MAX)
        return self._result(job, request.file)

    async def export(self, job: Job, parameters: Path) -> Exported:
        """The parameters as an ONNX model that was compared with PyTorch, in a process of its own.

        Raises:
            AttemptFailed: they are not this recipe's, or the answers differ.
        """
        request = Export("model.onnx")
        async with self._alone(job) as (worker, _):
            with _opened(parameters) as descriptor:
                reply = await worker.ask(
                    request, [descriptor], expect=Written, timeout_s=EXPORT_S_MAX
                )
        return Exported(self._result(job, request.file), reply.error_max)

    async def aggregate(
        self,
        job: Job,
        round: int,  # noqa: A002 - the domain's word
        updates: Sequence[Weighed],
        base: Path | None = None,
        carried: Path | None = None,
    ) -> Aggregated:
        """The weighted mean of updates, and what the job's outer optimizer makes of it.

        The same bytes for any order of the updates.

        Where the job sums in float32 they are added in the order of their files' names, which are digests.

        Args:
            job: whose folder takes the result.
            round: names the result.
            updates: at least one.
            base: parameters that all must resemble; None = the first update, which then had better
                be right, and neither late updates nor an outer optimizer.
            carried: what the outer optimizer left in the round before; None in the first.

        Raises:
            UpdatesRejected: names updates that cannot be counted; call again without them.
            AttemptFailed: there is no update, or the process failed.
        """
        name = self._name(round)
        async with self._begun(job, base) as worker:
            order = sorted(range(len(updates)), key=lambda index: updates[index].update.name)
            included = await _included(worker, updates, order)
            with self._results(job, name, carried) as results:
                await _finished(worker, Finish(_outer(job)), results, included)
            return self._aggregated(job, name)

    async def aggregate_range(
        self,
        job: Job,
        round: int,  # noqa: A002 - the domain's word
        updates: Sequence[Weighed],
        base: Path,
        part: tuple[int, int],
    ) -> Path:
        """One part of the file of the weighted mean of updates.

        Args:
            job: whose folder takes the result.
            round: names the result.
            updates: files of the same part of each update; added in this order.
            base: parameters that all must resemble.
            part: which, and of how many (``agent.training.ranges``).

        Raises:
            UpdatesRejected, AttemptFailed: as ``aggregate``.
        """
        unfinished = self._folder(job.id) / f"{self._name(round)}.part"
        async with self._begun(job, base, part) as worker:
            included = await _included(worker, updates, range(len(updates)))
            with _created(unfinished) as out:
                await _finished(worker, FinishRange(), [out], included)
            return unfinished.rename(unfinished.with_suffix(".range"))

    async def join(
        self,
        job: Job,
        round: int,  # noqa: A002 - the domain's word
        ranges: Sequence[Path],
        base: Path,
        carried: Path | None = None,
    ) -> Aggregated:
        """What ``aggregate`` would have made, from ``ranges`` of the mean in their order.

        Raises:
            AttemptFailed: they are not all of one mean, or the process failed.
        """
        name = self._name(round)
        async with self._begun(job, base) as worker:
            for path in ranges:
                with _opened(path) as one:
                    await worker.ask(Part(), [one], expect=Included, timeout_s=STEP_S_MAX)
            with self._results(job, name, carried) as results:
                await _finished(worker, Join(_outer(job)), results, [])
            return self._aggregated(job, name)

    def _name(self, round_: int) -> str:
        """Of a result's files: no other has it, so that none is taken for another. The caller removes them."""
        self._uses += 1
        return f"mean-{round_}-{self._uses}"

    @contextlib.asynccontextmanager
    async def _begun(
        self, job: Job, base: Path | None, part: tuple[int, int] = (0, 0)
    ) -> AsyncIterator[WorkerProcess]:
        """The process that makes means, for this caller alone, with a new one begun."""
        self._folder(job.id)
        async with self._averaging:
            worker = await self._averager()
            with contextlib.ExitStack() as files:
                like = [] if base is None else [files.enter_context(_opened(base))]
                begin = Begin(job.is_float_mean, *part, job.correction != "none")
                await worker.ask(begin, like, expect=Included, timeout_s=STEP_S_MAX)
            yield worker

    @contextlib.contextmanager
    def _results(self, job: Job, name: str, carried: Path | None) -> Iterator[list[int]]:
        """Descriptors of the files that take a round's parameters, and what is carried on."""
        folder = self._folder(job.id)
        with contextlib.ExitStack() as files:
            given = [files.enter_context(_created(folder / f"{name}.part"))]
            if _carries(job):
                given.append(files.enter_context(_created(folder / f"{name}.carried")))
                if carried is not None:
                    given.append(files.enter_context(_opened(carried)))
            yield given

    def _aggregated(self, job: Job, name: str) -> Aggregated:
        folder = self._folder(job.id)
        made = (folder / f"{name}.part").rename(folder / f"{name}.safetensors")
        return Aggregated(made, folder / f"{name}.carried" if _carries(job) else None)

    async def release(self, job_id: str) -> None:
        """End the job's trainer, if there is one, and remove its folder."""
        folder = self._path(job_id)
        if (slot := self._slots.pop(job_id, None)) is not None and slot.worker is not None:
            await slot.worker.end()
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        async with self._averaging:
            if not self._slots and self._average is not None:
                average, self._average = self._average, None
                await average.end()

    async def tidy(self, keep: Collection[str]) -> None:
        """Remove the folders of jobs that are not to be kept: a former run may have left them."""
        for name in await asyncio.to_thread(_folders, self._jobs_dir):
            if name not in keep and _JOB_ID.fullmatch(name):
                await self.release(name)

    async def close(self) -> None:
        """End every child; calls that wait for one fail, later ones too."""
        self._is_closed = True
        await self._nursery.close()
        workers = [slot.worker for slot in self._slots.values()] + [self._average, *self._once]
        self._slots.clear()
        self._average = None
        for worker in workers:
            if worker is not None:
                await worker.end()

    def processes(self) -> tuple[TrainerProcess, ...]:
        """The children that run now."""
        named = [(job, slot.worker) for job, slot in self._slots.items()]
        named += [("", self._average), ("", self._nursery.process)]
        return tuple(
            TrainerProcess(
                worker.name, job, worker.pid, worker.runtime, worker.sandbox, worker.start_s
            )
            for job, worker in named
            if worker is not None and worker.is_alive
        )

    @contextlib.asynccontextmanager
    async def _held(self, job: Job, dataset: Path) -> AsyncIterator[tuple[WorkerProcess, Prepared]]:
        """The job's warm trainer, for this caller alone."""
        self._check_open()
        self._folder(job.id)
        slot = self._slots.setdefault(job.id, _Slot())
        async with slot.lock:
            self._check_open()
            self._uses += 1
            slot.used = self._uses
            if slot.worker is None or not slot.worker.is_alive or slot.dataset != dataset:
                if slot.worker is not None:
                    await slot.worker.end()
                await self._make_room()
                slot.worker, slot.dataset, slot.job = await self._start(job, dataset), dataset, None
                if self._is_closed or self._slots.get(job.id) is not slot:
                    await slot.worker.end()
                    raise AttemptFailed("the job was released while its trainer started")
            prepared = await slot.worker.ask(Prepare(job), expect=Prepared, timeout_s=PREPARE_S_MAX)
            yield slot.worker, prepared

    @contextlib.asynccontextmanager
    async def _alone(self, job: Job) -> AsyncIterator[tuple[WorkerProcess, Prepared]]:
        """A trainer without data, for one request."""
        self._check_open()
        worker = await self._start(job, None)
        self._once.add(worker)
        try:
            self._check_open()
            yield worker, await worker.ask(Prepare(job), expect=Prepared, timeout_s=PREPARE_S_MAX)
        finally:
            self._once.discard(worker)
            await worker.end()

    async def _start(self, job: Job, dataset: Path | None) -> WorkerProcess:
        if dataset is not None and not await asyncio.to_thread(dataset.is_dir):
            raise AttemptFailed(
                f"there is no folder {dataset}",
                why=f"it is bound to dataset {job.dataset!r}",
                mend="correct [datasets] in the configuration",
            )
        return await self._nursery.fork(
            "trainer",
            folder=self._folder(job.id) / "work",
            dataset=dataset,
            memory_bytes=self._memory_bytes,
        )

    async def _averager(self) -> WorkerProcess:
        self._check_open()
        if self._average is not None and not self._average.is_alive:
            await self._average.end()
            self._average = None
        if self._average is None:
            self._average = await self._nursery.fork(
                "aggregation",
                folder=self._jobs_dir / "aggregation",
                dataset=None,
                memory_bytes=self._memory_bytes,
            )
        return self._average

    async def _make_room(self) -> None:
        """End the idle trainer unused longest if as many run as may."""
        running = {k: s for k, s in self._slots.items() if s.worker is not None}
        if len(running) < TRAINERS_MAX:
            return
        idle = [(slot.used, job) for job, slot in running.items() if not slot.lock.locked()]
        if not idle:
            raise AttemptFailed(
                f"{TRAINERS_MAX} jobs train at this site already", mend="wait until one is done"
            )
        slot = self._slots.pop(min(idle)[1])
        if slot.worker is not None:
            await slot.worker.end()

    def _check_open(self) -> None:
        if self._is_closed:
            raise AttemptFailed("this site is stopping")

    def _path(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise AttemptFailed(f"{job_id!r} is no job id", why="it would name a folder")
        return self._jobs_dir / job_id

    def _folder(self, job_id: str) -> Path:
        folder = self._path(job_id)
        try:
            (folder / "work").mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise AttemptFailed(f"cannot make {folder}", why=error.strerror or "") from None
        return folder

    def _result(self, job: Job, file: str) -> Path:
        """The file a trainer says it wrote, if it is a plain file of ours."""
        path = self._path(job.id) / "work" / Path(file).name
        try:
            found = path.lstat()
        except OSError as error:
            raise AttemptFailed(f"{path} is not there", why=error.strerror or "") from None
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES_MAX:
            raise AttemptFailed(f"{path} is not a plain file", why="or it is too large")
        return path

    def _clean(self, job: Job, round_: int) -> None:
        """Remove updates and means that are two rounds old: each is as large as the model."""
        folder = self._path(job.id)
        recent = {round_ - 1, round_}
        for path in (*folder.glob("mean-*"), *(folder / "work").glob("update-*")):
            number = path.name.split("-")[1].split(".")[0]
            if number.isdigit() and int(number) not in recent:
                path.unlink(missing_ok=True)


def _outer(job: Job) -> Outer | None:
    if job.outer == "none":
        return None
    return Outer(job.outer, job.outer_rate, job.outer_momentum, job.outer_second, job.outer_floor)


def _carries(job: Job) -> bool:
    """Whether a round leaves something to the next beside its parameters."""
    return job.outer != "none" or job.correction != "none"


def _files(one: Weighed) -> list[Path]:
    return [one.update] if one.started_from is None else [one.update, one.started_from]


def _folders(parent: Path) -> list[str]:
    return [path.name for path in parent.iterdir()] if parent.is_dir() else []


async def _included(
    worker: WorkerProcess, updates: Sequence[Weighed], order: Sequence[int]
) -> Sequence[int]:
    """Count them all, in this order, which is returned."""
    if not updates:
        raise AttemptFailed("a round without updates has no mean")
    rejected = _too_heavy(updates)
    for index in order:
        one = updates[index]
        if any(index == number for number, _ in rejected):
            continue
        try:
            with contextlib.ExitStack() as files:
                given = [files.enter_context(_opened(path)) for path in _files(one)]
                await worker.ask(Include(one.weight), given, expect=Included, timeout_s=STEP_S_MAX)
        except AttemptFailed as error:
            if not worker.is_alive and not worker.ended_by_itself:
                raise
            rejected.append((index, str(error)))
            if not worker.is_alive:
                break
    if rejected:
        raise UpdatesRejected(tuple(sorted(rejected)))
    return order


def _too_heavy(updates: Sequence[Weighed]) -> list[tuple[int, str]]:
    """Those whose samples are none, and the heaviest of the others as long as a round cannot hold them all."""
    rejected = [
        (index, f"{one.weight} samples are no weight")
        for index, one in enumerate(updates)
        if not 0 < one.weight < SAMPLES_MAX
    ]
    bad = {index for index, _ in rejected}
    left = sorted((one.weight, index) for index, one in enumerate(updates) if index not in bad)
    while left and sum(weight for weight, _ in left) >= ROUND_SAMPLES_MAX:
        weight, index = left.pop()
        rejected.append((index, f"{weight} samples: more than 2^36 samples in one round"))
    return rejected


async def _finished(
    worker: WorkerProcess,
    request: Finish | FinishRange | Join,
    results: Sequence[int],
    included: Sequence[int],
) -> None:
    reply = await worker.ask(request, results, expect=Averaged, timeout_s=AVERAGE_S_MAX)
    if reply.spoiled:
        guilty = [included[index] for index in reply.spoiled if index < len(included)]
        raise UpdatesRejected(tuple((index, reply.reason) for index in sorted(guilty)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A read-only descriptor of a plain file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise AttemptFailed(f"cannot read {path}", why=error.strerror or "") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _created(path: Path) -> Iterator[int]:
    """A descriptor of a new, empty file; the file is removed if the block fails."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise AttemptFailed(f"cannot write {path}", why=error.strerror or "") from None
    try:
        yield descriptor
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
