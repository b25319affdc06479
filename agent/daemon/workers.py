"""The model workers of a site: processes, the memory they share with the gateway, and their models.

Each worker has shared memory and a doorbell of its own, which this process makes and hands to both
sides; whenever worker or gateway is new, so are memory and doorbell, so that neither ever meets the
other's leftovers. Which worker loads what is decided by ``agent.serving.worker_pool``.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, assert_never

from agent.config.settings import DatasetPart, ServingPart
from agent.daemon.child import Callbacks, Child
from agent.drivers import oom
from agent.drivers.blobs import BlobStore
from agent.drivers.holdout import Holdout
from agent.drivers.memory import resident_bytes
from agent.drivers.shared_memory import ALIGNMENT, SharedSlots, doorbell_pair
from agent.foundation.errors import AtollError
from agent.foundation.ids import Digest
from agent.hardware.detect import Hardware
from agent.serving.worker_pool import Down, Load, Pool, worker_count
from agent.site.events import (
    LoadModel,
    ModelFailed,
    ModelReady,
    SiteEvent,
    UnloadModel,
    WorkerDown,
    WorkerUp,
)
from agent.wire import inside

UNLOAD_AFTER_S = 1.0
"""By then the gateway has the view without a model; what it passed on before may wait its time."""

_log = logging.getLogger("atoll.processes")


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """How many model workers a site runs, and how."""

    arguments: tuple[str, ...]
    """Of each one's command line."""
    devices: tuple[str, ...]
    """A worker for each: the accelerators that it sees (``CUDA_VISIBLE_DEVICES``); empty = any."""
    slots: int
    """Requests that each holds at once."""
    slot_bytes: int
    """Of each request and each answer."""
    providers: tuple[str, ...]
    """Execution providers in order of preference, from the hardware profile."""
    site_name: str
    """For the answers' ``served_by``."""
    unload_after_s: float
    """How long a model that is not wanted any more stays loaded. The gateway hears of it meanwhile, and
    what it has passed on for it gets its turn."""
    holdouts: Mapping[str, Holdout] = field(default_factory=dict)
    """Data sets of this site by which versions may be judged."""


def worker_plan(
    serving: ServingPart,
    hardware: Hardware,
    site_name: str,
    datasets: Mapping[str, DatasetPart] = MappingProxyType({}),
) -> WorkerPlan:
    """The workers that the operator's settings and the hardware ask for.

    What the operator sets aside for all, and the threads, are shared equally among them.
    """
    runs = serving.threads or hardware.inference_threads
    count = worker_count(serving.workers, accelerators=hardware.accelerators, runs=runs)
    arguments = [
        "--workers", str(count), "--threads", str(max(1, runs // count)),
        "--batch-rows-max", str(serving.batch_rows_max),
    ]  # fmt: skip
    if serving.batch_delay_ms:
        arguments += ["--batch-delay-s", str(serving.batch_delay_ms / 1000)]
    if serving.batch_preferred:
        arguments += ["--batch-preferred", *map(str, serving.batch_preferred)]
    if serving.sessions_bytes:
        arguments += ["--sessions-bytes", str(serving.sessions_bytes)]
    if serving.gpu_memory_bytes:
        arguments += ["--gpu-memory-bytes", str(serving.gpu_memory_bytes)]
    if serving.worker_memory_bytes:
        arguments += ["--memory-bytes", str(serving.worker_memory_bytes)]
    return WorkerPlan(
        tuple(arguments), _devices(count, hardware.accelerators),
        slots=-(-serving.slots // count), slot_bytes=serving.request_bytes_max + ALIGNMENT,
        providers=hardware.providers, site_name=site_name,
        unload_after_s=serving.queue_max_s + UNLOAD_AFTER_S,
        holdouts={name: Holdout(part.path, part.models) for name, part in datasets.items()},
    )  # fmt: skip


def _devices(count: int, accelerators: int) -> tuple[str, ...]:
    """What each worker sees: one of several accelerators, in turn; else whatever there is."""
    if accelerators <= 1:
        return ("",) * count
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = allowed.split(",") if allowed else [str(number) for number in range(accelerators)]
    return tuple(names[index % len(names)] for index in range(count))


class Worker:
    """One supervised worker process and what it shares with the gateway."""

    def __init__(self, index: int, child: Child, device: str) -> None:
        self.index, self.child, self.device = index, child, device
        self.runtime = self.sandbox = ""
        """As it said when it was up; for a person."""
        self.providers: set[str] = set()
        """Execution providers that its models have really got."""
        self.passed_over: dict[bytes, tuple[str, tuple[str, ...]]] = {}
        """Models that run on another provider than is wanted first: on which, and why."""
        self.memory: SharedSlots | None = None
        self.oom_kills = 0
        """Of the machine, when this process was up."""

    @property
    def is_running(self) -> bool:
        """Whether its process is."""
        return self.child.state == "running"

    def renew_memory(self, slots: int, slot_bytes: int) -> SharedSlots:
        """Fresh memory in place of the former."""
        self.close_memory()
        self.memory = SharedSlots.create(slots, slot_bytes)
        return self.memory

    def close_memory(self) -> None:
        """Let the memory go."""
        if self.memory is not None:
            self.memory.close()
            self.memory = None


class Workers:
    """All model workers of this site."""

    def __init__(
        self,
        plan: WorkerPlan,
        *,
        blobs: BlobStore,
        to_gateway: Callable[[bytes, Sequence[int]], bool],
        feed: Callable[[SiteEvent], None],
        spawn: Callable[..., "asyncio.Task[object]"],
    ) -> None:
        """Starts nothing yet.

        Args:
            plan: how many, and how each is run.
            blobs: where the models' bytes are.
            to_gateway: sends a message with descriptors; False if the gateway is not there.
            feed: takes what the site must hear.
            spawn: runs a coroutine beside.
        """
        self._plan, self._blobs = plan, blobs
        self._to_gateway, self._feed, self._spawn = to_gateway, feed, spawn
        self._unloads: dict[bytes, asyncio.TimerHandle] = {}
        self._sources: dict[bytes, LoadModel] = {}
        self._pool = Pool(len(plan.devices))
        self.all = tuple(self._worker(*numbered) for numbered in enumerate(plan.devices))

    def _worker(self, index: int, device: str) -> Worker:
        child = Child(
            f"model-worker-{index}" if len(self._plan.devices) > 1 else "model-worker",
            "agent.workers.model", self._plan.arguments,
            Callbacks(lambda _: None, partial(self._received, index), partial(self._gone, index)),
            environment={"CUDA_VISIBLE_DEVICES": device} if device else {},
        )  # fmt: skip
        return Worker(index, child, device)

    # --- what is to be seen of them --------------------------------------------------------------
    @property
    def is_any_up(self) -> bool:
        """Whether models can be run here."""
        return bool(self._pool.up)

    @property
    def troubles(self) -> list[str]:
        """What an operator should know, each a sentence; empty if all is well."""
        found = [
            f"{worker.child.name.replace('-', ' ')}: {worker.child.state}"
            for worker in self.all
            if not worker.is_running
        ]
        found += dict.fromkeys(
            f"a model runs on {provider}: {reason}"
            for worker in self.all
            for provider, reasons in worker.passed_over.values()
            for reason in reasons
        )
        if loose := next((w.sandbox for w in self.all if "none" in w.sandbox), ""):
            found.append(f"the model worker is not confined: {loose}")
        return found

    @property
    def sandbox(self) -> str:
        """What confines them, for a person; the weakest if they differ."""
        told = [worker.sandbox for worker in self.all if worker.sandbox]
        return next((text for text in told if "none" in text), told[0] if told else "")

    def rows(self) -> list[dict[str, Any]]:
        """What is shown of each beside its process."""
        return [
            {
                "worker": one.index, "is_up": one.index in self._pool.up, "device": one.device,
                "providers": sorted(one.providers), "models": len(self._pool.holds(one.index)),
                "loading": self._pool.loading(one.index), "runtime": one.runtime, "sandbox": one.sandbox,
            }
            for one in self.all
        ]  # fmt: skip

    def render(self) -> str:
        """Their figures in Prometheus' text format; ``WORKERS_MAX`` rows each at most."""
        up = self._pool.up
        figures = (
            ("atoll_worker_up", "gauge", "Whether it can be given models and requests",
             [int(one.index in up) for one in self.all]),
            ("atoll_worker_restarts_total", "counter", "Times that its process was started again",
             [one.child.restarts for one in self.all]),
            ("atoll_worker_memory_bytes", "gauge", "Resident memory of its process",
             [resident_bytes(one.child.pid) for one in self.all]),
            ("atoll_worker_fallbacks", "gauge", "Models not on the execution provider wanted first",
             [len(one.passed_over) for one in self.all]),
        )  # fmt: skip
        lines = []
        for name, kind, text, values in figures:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f'{name}{{worker="{index}"}} {value}' for index, value in enumerate(values)]
        return "\n".join([*lines, ""])

    # --- life ------------------------------------------------------------------------------------
    def start(self) -> None:
        """Start all; they are kept alive until ``stop``."""
        for worker in self.all:
            self._spawn(worker.child.run())

    async def stop(self) -> None:
        """End all."""
        for timer in self._unloads.values():
            timer.cancel()
        await asyncio.gather(*(worker.child.stop() for worker in self.all))
        for worker in self.all:
            worker.close_memory()

    def gateway_started(self) -> None:
        """A new gateway: give it every worker that is up."""
        for index in self._pool.up:
            self._connect(self.all[index])

    def _connect(self, worker: Worker) -> None:
        """New memory and doorbell for both; what the worker holds already is told as well."""
        memory = worker.renew_memory(self._plan.slots, self._plan.slot_bytes)
        ours, theirs = doorbell_pair()
        with ours, theirs:
            attach = inside.AttachGateway(memory.slots, memory.slot_bytes)
            worker.child.post(inside.TO_WORKER.pack(attach), (theirs.fileno(), memory.fileno()))
            message = inside.TO_GATEWAY.pack(inside.AttachWorker(worker.index))
            self._to_gateway(message, (ours.fileno(), memory.fileno()))
        self._tell_holding(worker.index)

    def _tell_holding(self, index: int) -> None:
        held = inside.WorkerHolds(index, tuple(sorted(self._pool.holds(index))))
        self._to_gateway(inside.TO_GATEWAY.pack(held), ())

    def _gone(self, index: int, reason: str) -> None:
        worker, down = self.all[index], self._pool.went_down(index)
        is_blameless = _is_somebodys_doing(worker, reason)
        detach = inside.DetachWorker(index, is_blameless)
        self._to_gateway(inside.TO_GATEWAY.pack(detach), ())
        if is_blameless:
            worker.child.absolve()
        else:
            self._blame(worker, down, reason)  # before it would be given to another worker
        self._feed(WorkerDown(f"the model worker ended: {reason}", down.lost, self.is_any_up))

    def _blame(self, worker: Worker, down: Down, reason: str) -> None:
        """What it loaded or ran may be why it ended."""
        blamed = set(worker.memory.running() if worker.memory is not None else ())
        if down.at_work_on is not None:
            blamed.add(down.at_work_on)
            self._pool.suspect(down.at_work_on)
        for key in sorted(blamed):
            text = f"the model worker ended while it was at work on it ({reason})"
            self._feed(ModelFailed(key, text, is_crash=True))

    # --- what they say ---------------------------------------------------------------------------
    def _received(self, index: int, data: bytes, descriptors: list[int]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        message = inside.FROM_WORKER.unpack(data)
        match message:
            case inside.WorkerReady():
                worker = self.all[index]
                worker.runtime, worker.sandbox = message.runtime, message.sandbox
                worker.providers.clear()
                worker.passed_over.clear()
                worker.oom_kills = oom.kills()
                told = worker.child.name, message.runtime, message.sandbox
                _log.info("%s: %s, sandbox %s", *told)
                loads = self._pool.came_up(index)
                self._connect(worker)
                self._carry_out(loads)
                self._feed(WorkerUp())
            case inside.ModelLoaded():
                self._loaded(index, message)
            case inside.ModelRefused():
                if self._pool.refused(index, message.key):
                    self._feed(ModelFailed(message.key, message.reason))
                else:
                    _log.warning("model worker %d alone refuses a model: %s", index, message.reason)
            case _:
                assert_never(message)

    def _loaded(self, index: int, message: inside.ModelLoaded) -> None:
        for reason in message.passed_over:
            _log.warning("a model runs on %s: %s", message.providers[0], reason)
        self.all[index].providers.add(message.providers[0])
        self.all[index].passed_over.pop(message.key, None)
        if message.passed_over:
            self.all[index].passed_over[message.key] = message.providers[0], message.passed_over
        is_first, loads = self._pool.loaded(index, message.key)
        self._tell_holding(index)  # before the view that calls it ready
        if is_first:
            self._feed(
                ModelReady(message.key, message.providers, message.metadata, message.service_us)
            )
        self._carry_out(loads)

    # --- models ----------------------------------------------------------------------------------
    def model(self, effect: LoadModel | UnloadModel) -> None:
        """Load or forget a model version."""
        if (former := self._unloads.pop(effect.key, None)) is not None:
            former.cancel()  # another one in its place needs no unloading before
        if isinstance(effect, UnloadModel):
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self._plan.unload_after_s, self._unload, effect.key)
            self._unloads[effect.key] = timer
        else:
            self._sources[effect.key] = effect
            self._carry_out(self._pool.want(effect.key))

    def _unload(self, key: bytes) -> None:
        del self._unloads[key]
        self._sources.pop(key, None)
        self._pool.withdraw(key)
        for index in self._pool.up:
            self._tell_holding(index)
            self.all[index].passed_over.pop(key, None)
            self.all[index].child.post(inside.TO_WORKER.pack(inside.UnloadModel(key)))

    def _carry_out(self, loads: Sequence[Load]) -> None:
        if loads:
            self._spawn(self._load_all(loads))

    async def _load_all(self, loads: Sequence[Load]) -> None:
        for load in loads:  # in order, for what may end the worker comes last
            if load.key in self._sources:
                await self._load(load)

    async def _load(self, load: Load) -> None:
        source = self._sources[load.key]
        version, digest = source.version, Digest(source.version.manifest)
        try:
            sha256 = await self._blobs.sha256(digest)
            if self._sources.get(load.key) is not source:
                return  # not wanted any more, or another in its place, which has a load of its own
            path = self._blobs.path(digest)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except (AtollError, OSError) as error:
            if self._pool.refused(load.worker, load.key):
                self._feed(ModelFailed(load.key, f"its bytes cannot be read: {error}"))
            return
        holdout = self._holdout(source)
        try:
            message = inside.LoadModel(
                load.key,
                version.name,
                version.version,
                self._plan.site_name,
                sha256,
                self._plan.providers,
                version.golden,
                source.judged.accuracy_min if source.judged is not None and holdout else 0.0,
            )
            given = (descriptor, *holdout)
            if self.all[load.worker].child.post(inside.TO_WORKER.pack(message), given):
                self._pool.sent(load)
        finally:
            for one in (descriptor, *holdout):
                os.close(one)

    def _holdout(self, source: LoadModel) -> tuple[int, ...]:
        """Descriptors of the images and labels that judge the version; none if this site has none for it."""
        if source.judged is None:
            return ()
        name, told = source.judged.holdout, f"{source.version.name}:{source.version.version}"
        folder = self._plan.holdouts.get(name)
        if folder is None or not folder.may_judge(source.version.name):
            _log.info("model %s is not judged by accuracy here: no hold-out %r for it", told, name)
            return ()
        try:
            return folder.opened()
        except OSError as error:
            _log.warning("model %s is not judged by accuracy here: %s", told, error)
            return ()


def _is_somebodys_doing(worker: Worker, reason: str) -> bool:
    """Whether a person or another program has ended it, rather than what it was at work on.

    The kernel kills for want of memory with the signal that a person may use as well.
    """
    if "SIGKILL" in reason:
        return oom.kills() <= worker.oom_kills
    return "SIGTERM" in reason
