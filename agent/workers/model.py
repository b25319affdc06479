"""The model worker: one confined ONNX Runtime process of a site.

``python -m agent.workers.model --channel-fd N`` is started by the control process with one end of a
socket pair. Models arrive as open descriptors, tensors in shared memory; the worker opens no file
and no socket of its own, and ends when the channel does.
"""

import argparse
import contextlib
import hashlib
import os
import queue
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

# OpenBLAS starts its threads when numpy is imported; Landlock would not bind those.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from agent.drivers.channel import BlockingChannel, exit_with_parent
from agent.drivers.shared_memory import SharedSlots
from agent.foundation.errors import AtollError, Malformed, Unreachable
from agent.serving.batching import ROWS_MAX, Sizes
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
from agent.workers.inference_batching import stand_rows_apart
from agent.workers.inference_runner import EXIT_STUCK, Loaded, Runner
from agent.workers.inference_session import RUNTIME, ModelSession

MODEL_BYTES_MAX = 2 << 30
"""A protobuf file cannot be larger."""
MODELS_MAX = 64
"""Far above what a site's record can announce (``SERVING_PER_RECORD_MAX``)."""
_METADATA_CHARS_MAX = 65_536


class ModelWorker:
    """Carries out the control process's wishes; loading happens beside serving."""

    def __init__(self, channel: BlockingChannel, runner: Runner) -> None:
        self._channel = channel
        self._runner = runner
        self._loads: queue.SimpleQueue[tuple[LoadModel, int]] = queue.SimpleQueue()
        threading.Thread(target=self._load_forever, name="loader", daemon=True).start()

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
                (model,) = descriptors
                self._loads.put((message, model))
            case UnloadModel():
                self._runner.models.pop(message.key, None)
                self._runner.trim_soon()

    def _load_forever(self) -> None:
        while True:
            message, descriptor = self._loads.get()
            try:
                answer = self._load(message, descriptor)
            except AtollError as error:
                answer = ModelRefused(message.key, str(error)[:1000])
            except MemoryError:
                answer = ModelRefused(message.key, "the model does not fit the memory allowed")
            finally:
                os.close(descriptor)
            self._runner.trim_soon()
            with contextlib.suppress(Unreachable):
                self._channel.send(FROM_WORKER.pack(answer))

    def _load(self, message: LoadModel, descriptor: int) -> ModelLoaded | ModelRefused:
        begun = time.perf_counter()
        if len(self._runner.models) >= MODELS_MAX and message.key not in self._runner.models:
            return ModelRefused(message.key, f"{MODELS_MAX} models are loaded already")
        content = _read(descriptor)
        if hashlib.sha256(content).digest() != message.sha256:
            return ModelRefused(message.key, "the model's bytes are not those of its digest")
        session = ModelSession(content, message.name, message.version, message.providers)
        metadata = session.signature.metadata().decode()
        if len(metadata) > _METADATA_CHARS_MAX:
            return ModelRefused(message.key, "the model's metadata is too long")
        sizes = Sizes(ROWS_MAX if stand_rows_apart(session) else 1)
        self._runner.models[message.key] = Loaded(session, message.site, sizes)
        return ModelLoaded(
            key=message.key,
            providers=session.providers,
            metadata=metadata,
            load_ms=(time.perf_counter() - begun) * 1000,
            service_us=session.service_us,
        )


def _read(descriptor: int) -> bytes:
    size = os.fstat(descriptor).st_size
    if size > MODEL_BYTES_MAX:
        raise Malformed(f"model of {size} bytes", why=f"the limit is {MODEL_BYTES_MAX}")
    content = bytearray()
    while piece := os.pread(descriptor, 16 << 20, len(content)):
        content += piece
        if len(content) > size:
            raise Malformed("the model's file grows while it is read")
    return bytes(content)


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
    given = parser.parse_args(arguments)
    exit_with_parent()
    threading.excepthook = _end_process
    channel = BlockingChannel.from_descriptor(given.channel_fd)
    # Before the first thread: Landlock binds the calling thread and its children.
    sandbox = confine(
        read=(),
        devices=sorted(Path("/dev").glob("nvidia*")),
        memory_bytes=given.memory_bytes or None,
    )
    threads = given.threads or max(1, len(os.sched_getaffinity(0)) - 1)
    worker = ModelWorker(channel, Runner(threads))
    channel.send(FROM_WORKER.pack(WorkerReady(os.getpid(), RUNTIME, sandbox[:1000])))
    worker.serve()
    return 0


if __name__ == "__main__":
    # No interpreter shutdown: runners may be inside native code, which must not outlive its modules.
    status = main()
    sys.stdout.flush()
    os._exit(status)
