"""The model worker: one confined ONNX Runtime process of a site.

``python -m agent.workers.model --channel-fd N`` is started by the control process with one end of a
socket pair. Models arrive as open descriptors, tensors in shared memory; the worker opens no file
and no socket of its own, and ends when the channel does.
"""

import argparse
import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path

# OpenBLAS starts its threads when numpy is imported; Landlock would not bind those.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from agent.drivers.channel import BlockingChannel, exit_with_parent
from agent.drivers.shared_memory import SharedSlots
from agent.foundation.errors import AtollError, Malformed, Unreachable
from agent.serving.batching import ROWS_MAX, Company
from agent.wire.inside import (
    FROM_WORKER,
    TO_WORKER,
    AttachGateway,
    LoadModel,
    ModelLoaded,
    ModelRefused,
    UnloadModel,
    WorkerReady,
)
from agent.workers.confine import confine
from agent.workers.inference_holdout import check_accuracy
from agent.workers.inference_models import Memory, Models, Source
from agent.workers.inference_runner import EXIT_STUCK, Runner
from agent.workers.inference_session import RUNTIME, LoadRefused

METADATA_CHARS_MAX = 65_536
SESSIONS_PART = 0.4
"""Of the machine's memory, for all sessions together, where the operator says nothing."""


class ModelWorker:
    """Carries out the control process's wishes; loading happens beside serving."""

    def __init__(self, channel: BlockingChannel, runner: Runner, models: Models) -> None:
        self._channel = channel
        self._runner = runner
        self._models = models

    def serve(self) -> None:
        """Take messages until the control process is gone."""
        while (frame := self._channel.receive()) is not None:
            data, descriptors = frame
            self._take(TO_WORKER.unpack(data), descriptors)

    def _take(
        self, message: AttachGateway | LoadModel | UnloadModel, descriptors: list[int]
    ) -> None:
        match message:
            case AttachGateway():
                doorbell, memory = descriptors
                slots = SharedSlots(memory)
                if (slots.slots, slots.slot_bytes) != (message.slots, message.slot_bytes):
                    raise Malformed("shared memory is not what the control process says")
                self._runner.attach(socket.socket(fileno=doorbell), slots)
            case LoadModel():
                self._models.soon(partial(self._load, message, *descriptors))
            case UnloadModel():
                # Behind the loads that were asked for before it.
                self._models.soon(partial(self._models.remove, message.key))

    def _load(self, message: LoadModel, descriptor: int, *holdout: int) -> None:
        answer: ModelLoaded | ModelRefused
        try:
            answer = self._loaded(message, descriptor, holdout)
        except AtollError as error:
            answer = ModelRefused(message.key, str(error)[:1000])
        except MemoryError:
            answer = ModelRefused(message.key, "the model does not fit the memory allowed")
        finally:
            for one in holdout:
                os.close(one)
        with contextlib.suppress(Unreachable):
            self._channel.send(FROM_WORKER.pack(answer))

    def _loaded(
        self, message: LoadModel, descriptor: int, holdout: Sequence[int]
    ) -> ModelLoaded | ModelRefused:
        begun = time.perf_counter()
        source = Source(
            descriptor, message.sha256, message.name, message.version, message.site,
            message.providers, message.golden,
        )  # fmt: skip
        session, passed = self._models.add(message.key, source)
        if holdout:
            try:
                images, labels = holdout
                check_accuracy(session, images, labels, message.accuracy_min)
            except LoadRefused:
                self._models.remove(message.key)
                raise
        metadata = session.signature.metadata().decode()
        if len(metadata) > METADATA_CHARS_MAX:
            self._models.remove(message.key)
            return ModelRefused(message.key, "the model's metadata is too long")
        return ModelLoaded(
            key=message.key,
            providers=session.providers,
            metadata=metadata,
            load_ms=(time.perf_counter() - begun) * 1000,
            service_us=session.service_us,
            passed_over=tuple(reason[:1000] for reason in passed),
        )


def _end_process(broken: threading.ExceptHookArgs) -> None:
    """A thread that fails unexpectedly would leave its slots waiting for ever: start anew instead."""
    traceback.print_exception(broken.exc_type, broken.exc_value, broken.exc_traceback)
    sys.stderr.flush()
    os._exit(EXIT_STUCK)


def main(arguments: list[str] | None = None) -> int:
    """Run until the control process is gone; 0 then."""
    parser = argparse.ArgumentParser(prog="python -m agent.workers.model")
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0, help="runs at once; 0 = cores - 1")
    parser.add_argument("--memory-bytes", type=int, default=0, help="0 = unbounded")
    parser.add_argument("--sessions-bytes", type=int, default=0, help="0 = 40 % of the machine")
    parser.add_argument("--gpu-memory-bytes", type=int, default=0, help="of one model; 0 = any")
    parser.add_argument("--workers", type=int, default=1, help="that share those bytes")
    parser.add_argument("--batch-rows-max", type=int, default=ROWS_MAX, help="1 = no batches")
    parser.add_argument("--batch-delay-s", type=float, default=0.0, help="wait for company")
    parser.add_argument("--batch-preferred", type=int, nargs="+", default=(), help="batch sizes")
    given = parser.parse_args(arguments)
    exit_with_parent()
    threading.excepthook = _end_process
    channel = BlockingChannel.from_descriptor(given.channel_fd)
    memory = Memory()
    # Before the first thread: Landlock binds the calling thread and its children.
    sandbox = confine(
        read=(),
        devices=sorted(Path("/dev").glob("nvidia*")),
        memory_bytes=given.memory_bytes or None,
    )
    threads = given.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    company = Company(given.batch_delay_s, tuple(sorted(given.batch_preferred)))
    runner = Runner(threads, company=company)
    machine_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    budget_bytes = given.sessions_bytes or round(SESSIONS_PART * machine_bytes)
    models = Models(
        runner, memory, budget_bytes // given.workers, rows_max=given.batch_rows_max,
        gpu_memory_bytes=given.gpu_memory_bytes,
    )  # fmt: skip
    worker = ModelWorker(channel, runner, models)
    try:
        channel.send(FROM_WORKER.pack(WorkerReady(os.getpid(), RUNTIME, sandbox[:1000])))
    except Unreachable:
        return 0  # the agent has ended while this process started
    worker.serve()
    return 0


if __name__ == "__main__":
    # No interpreter shutdown: runners may be inside native code, which must not outlive its modules.
    status = main()
    sys.stdout.flush()
    os._exit(status)
