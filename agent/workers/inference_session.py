"""One loaded model: an ONNX Runtime session, its signature, and how a request runs in it.

``ORT_DISABLE_TELEMETRY`` is set here before onnxruntime is imported, for whoever imports this
module first: since 1.29 the official wheels look a collector up and write a device id otherwise.

What the session got is what ``session.get_providers()`` says after its creation, never what the
build claims: onnxruntime-gpu lists CUDA on machines without a GPU.
"""

import contextlib
import ctypes
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

from agent.foundation.errors import AtollError, Malformed, Refused, UsageError
from agent.serving.datatypes import datatype_of_onnx
from agent.serving.onnx_file import check_one_file
from agent.serving.request import InferRequest
from agent.serving.signature import FREE, Signature, TensorSpec
from agent.workers.inference_tensors import Array, numpy_type

CPU_PROVIDER = "CPUExecutionProvider"
RUNTIME = f"onnxruntime {ort.__version__}"
TENSORS_MAX = 256
"""Inputs or outputs of one model; a graph with more is not made for serving."""
CLOCKED_RUNS, CLOCK_S = 3, 0.1
"""A load is to take no longer for it: a model that runs longer than this is clocked once."""
WARM_UP_SIZES = (1, 8, 32, 64, 224)
"""Tried in turn for free dimensions until the model runs: image models refuse images of one pixel."""
WARM_UP_BYTES_MAX = 64 << 20
TRIAL_S_MAX = 60.0
"""For trying a model out on the CPU: one that loops for ever must not keep the others from loading."""
TRIAL_ELSEWHERE_S_MAX = 900.0
"""On accelerators, some of which compile the model inside its first run."""
REASON_CHARS_MAX = 600

_OPTIONS = {"CUDAExecutionProvider": {"arena_extend_strategy": "kSameAsRequested"}}
"""Of providers: device memory grows by what is asked for, not by doubling."""
_MEMORY_OPTIONS = {
    "CUDAExecutionProvider": "gpu_mem_limit", "TensorrtExecutionProvider": "trt_max_workspace_size",
}  # fmt: skip
"""Of providers: what bounds the device memory of one session (of TensorRT: its work space)."""
_IN_A_NODE = "returned while running"
_OF_THE_MACHINE = ("allocate memory", "bad_alloc", "CUDA", "CUDNN", "CUBLAS", "TensorRT", "TRT")
"""In texts of failed nodes: memory or an accelerator failed, whatever the input."""
_BFLOAT16 = 16
"""ONNX ``TensorProto.BFLOAT16``, which numpy cannot hold."""

ort.set_default_logger_severity(4)  # errors come as exceptions; the rest is noise on stderr


class LoadRefused(AtollError):
    """The model cannot be loaded here."""


class RunFailed(AtollError):
    """The model failed on an input that fits its signature, and nothing says that others do better."""


class Terminated(AtollError):
    """The run was stopped from outside: deadline or cancellation."""


class ModelSession:
    """A session that takes requests from several threads at once."""

    def __init__(
        self,
        model: bytes,
        name: str,
        version: str,
        providers: Sequence[str],
        *,
        gpu_memory_bytes: int = 0,
    ) -> None:
        """Create the session and run a warm-up; ``gpu_memory_bytes`` 0: as much as it wants.

        Raises:
            LoadRefused: the bytes are no model, it lies in several files, it needs types that cannot
                be served, it does not end, or a model without free dimensions does not run.
        """
        try:
            check_one_file(model)
        except (Malformed, Refused) as error:
            raise LoadRefused(str(error)) from None
        try:
            self._session = ort.InferenceSession(
                model,
                sess_options=_options(),
                providers=_providers(providers, gpu_memory_bytes),
                enable_fallback=0,  # to other providers in silence, also in the middle of serving
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
            raise LoadRefused(f"ONNX Runtime refuses the model: {_clean(error)}") from None
        self.name, self.version = name, version
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.signature = Signature(
            name=name,
            version=version,
            inputs=_specs(self._session.get_inputs(), "input"),
            outputs=_specs(self._session.get_outputs(), "output"),
        )
        self._has_bfloat16 = any(
            spec.datatype.name == "BF16" for spec in self.signature.inputs + self.signature.outputs
        )
        self.service_us = self._warm_up()
        self._has_run = self.service_us > 0

    def run(self, request: InferRequest, inputs: Sequence[Array], options: Any) -> list[Array]:
        """The wanted outputs, in order; ``options`` is an ``ort.RunOptions`` that may terminate it.

        Raises:
            UsageError: the model cannot take this input, by what ONNX Runtime says.
            RunFailed: the model failed.
            Terminated: ``options.terminate`` was set meanwhile.
        """
        names = [output.spec.name for output in request.outputs]
        feeds = {
            tensor.spec.name: array for tensor, array in zip(request.inputs, inputs, strict=True)
        }
        found = self.run_named(names, feeds, options)
        # A graph may pass an input through: its output then lies in the slot to be written.
        for given in inputs:
            for index, array in enumerate(found):
                if np.may_share_memory(array, given):
                    found[index] = array.copy()
        return found

    def run_named(self, names: list[str], feeds: dict[str, Array], options: Any) -> list[Array]:
        """The named outputs for inputs by name; an output may share the memory of an input.

        Raises:
            UsageError, RunFailed, Terminated: as ``run``.
        """
        try:
            if self._has_bfloat16:
                found = self._run_values(names, feeds, options)
            else:
                found = self._session.run(names, feeds, options)
        except Exception as error:  # noqa: BLE001 - as above
            if options.terminate:
                raise Terminated("the run was stopped") from None
            if self._is_of_the_input(error, feeds):
                raise UsageError(
                    f"model {self.name!r} does not take this input", why=_clean(error)
                ) from None
            raise RunFailed(
                f"model {self.name!r} failed on this input", why=_clean(error)
            ) from None
        self._has_run = True
        return found

    def _is_of_the_input(self, error: Exception, feeds: dict[str, Array]) -> bool:
        """Whether the caller can mend it, by the kind of ONNX Runtime's error.

        Kernels report a shape or value that does not fit as ``INVALID_ARGUMENT``, ``FAIL`` or
        ``RUNTIME_EXCEPTION``, as each was written. So a node that fails in a model that has run on
        another input could not take this one; a model that never ran is at fault itself.
        """
        kind, text = type(error).__name__, str(error)
        if kind == "InvalidArgument" or _has_empty(feeds.values()):
            return True
        return (
            self._has_run
            and kind in ("Fail", "RuntimeException")
            and _IN_A_NODE in text
            and not any(word in text for word in _OF_THE_MACHINE)
        )

    def run_plain(self, feeds: dict[str, Array]) -> list[Array]:
        """All outputs, for trying the model out; errors are ONNX Runtime's own."""
        with self._trial() as options:
            return self._run_all(feeds, options)

    def _run_all(self, feeds: dict[str, Array], options: Any) -> list[Array]:
        if self._has_bfloat16:
            return self._run_values([spec.name for spec in self.signature.outputs], feeds, options)
        found: list[Array] = self._session.run(None, feeds, options)
        return found

    def _run_values(self, names: list[str], feeds: dict[str, Array], options: Any) -> list[Array]:
        """For models with BF16, whose tensors numpy cannot name."""
        types = {
            spec.name: spec.datatype for spec in self.signature.inputs + self.signature.outputs
        }
        values = {
            name: ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
            if types[name].name == "BF16"
            else ort.OrtValue.ortvalue_from_numpy(array)
            for name, array in feeds.items()
        }
        found = self._session.run_with_ort_values(names, values, options)
        return [
            _bits(value) if types[name].name == "BF16" else value.numpy().copy()
            for name, value in zip(names, found, strict=True)
        ]

    def _warm_up(self) -> int:
        """Run with zeros until it works, then for the clock: microseconds, 0 if it never ran."""
        specs = self.signature.inputs
        is_fixed = all(FREE not in spec.shape for spec in specs)
        reason = "its inputs are too large"
        with self._trial() as options:
            for size in WARM_UP_SIZES[:1] if is_fixed else WARM_UP_SIZES:
                feeds = zeros_for(specs, size)
                if feeds is None:
                    break
                try:
                    self._run_all(feeds, options)
                    return _clocked(partial(self._run_all, feeds, options))
                except Exception as error:  # noqa: BLE001 - as above
                    reason = _clean(error)
                if options.terminate:
                    raise LoadRefused(f"the model does not end on zeros within {self._trial_s:g} s")
        if is_fixed:
            raise LoadRefused(f"the model does not run on zeros: {reason}")
        return 0

    @property
    def _trial_s(self) -> float:
        return TRIAL_S_MAX if self.providers[0] == CPU_PROVIDER else TRIAL_ELSEWHERE_S_MAX

    @contextlib.contextmanager
    def _trial(self) -> Iterator[Any]:
        """Options of runs that are stopped when they take too long together."""
        options = run_options()
        timer = threading.Timer(self._trial_s, setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            yield options
        finally:
            timer.cancel()


def run_options(*, is_shrinking: bool = False) -> Any:
    """Options of one run.

    Args:
        is_shrinking: give the arena's free memory back to the system after the run; costs time, so
            only for inputs that are large enough to leave a mark.
    """
    options = ort.RunOptions()
    options.log_severity_level = 4
    if is_shrinking:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _options() -> Any:
    """One thread and no spinning: the default burns a whole core at 20 requests a second."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    return options


def _providers(
    wanted: Sequence[str], gpu_memory_bytes: int
) -> list[str | tuple[str, dict[str, str]]]:
    """Those that the build has, in the wanted order, with options; the CPU always comes last."""
    built = set(ort.get_available_providers())
    chosen: list[str | tuple[str, dict[str, str]]] = []
    for name in wanted:
        if name in built and name != CPU_PROVIDER:
            options = dict(_OPTIONS.get(name, {}))
            if gpu_memory_bytes and name in _MEMORY_OPTIONS:
                options[_MEMORY_OPTIONS[name]] = str(gpu_memory_bytes)
            chosen.append((name, options))
    return [*chosen, CPU_PROVIDER]


def _specs(arguments: Sequence[Any], role: str) -> tuple[TensorSpec, ...]:
    if len(arguments) > TENSORS_MAX:
        raise LoadRefused(
            f"the model has {len(arguments)} {role}s", why=f"the limit is {TENSORS_MAX}"
        )
    specs = []
    for argument in arguments:
        datatype = datatype_of_onnx(argument.type)
        if datatype is None:
            raise LoadRefused(
                f"{role} {argument.name!r} is a {argument.type}",
                why="the Open Inference Protocol has no such type",
            )
        shape = tuple(
            dimension if isinstance(dimension, int) and dimension >= 0 else FREE
            for dimension in argument.shape
        )
        specs.append(TensorSpec(argument.name, datatype, shape))
    return tuple(specs)


def zeros_for(specs: Sequence[TensorSpec], size: int) -> dict[str, Array] | None:
    """Inputs of zeros, one row, free dimensions of ``size``; None beyond ``WARM_UP_BYTES_MAX``."""
    feeds = {}
    total = 0
    for spec in specs:
        shape = [size if dimension == FREE else dimension for dimension in spec.shape]
        if shape and spec.shape[0] == FREE:
            shape[0] = 1  # by custom the batch
        total += int(np.prod(shape, dtype=np.float64)) * max(spec.datatype.element_bytes, 16)
        if total > WARM_UP_BYTES_MAX:
            return None
        if spec.datatype.kind == "bytes":
            feeds[spec.name] = np.full(shape, "", dtype=object)
        else:
            feeds[spec.name] = np.zeros(shape, numpy_type(spec.datatype))
    return feeds


def _bits(value: Any) -> Array:
    """A BF16 tensor's bits, copied."""
    shape = value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    bits = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else ()
    return np.array(bits, dtype="<u2").reshape(shape)


def _has_empty(inputs: Iterable[Array]) -> bool:
    return any(array.size == 0 for array in inputs)


def _clocked(run: Callable[[], object]) -> int:
    """Microseconds of the fastest of a few runs.

    While others are served, a single run may have been held up by any of them, and a model that is
    thought to be slow has its first requests refused.
    """
    best_s, until = math.inf, time.perf_counter() + CLOCK_S
    for _ in range(CLOCKED_RUNS):
        begun = time.perf_counter()
        run()
        now = time.perf_counter()
        best_s = min(best_s, now - begun)
        if now >= until:
            break
    return max(1, round(best_s * 1e6))


def _clean(error: Exception) -> str:
    """The first line of ONNX Runtime's text, without addresses of its source."""
    text = str(error).strip()
    head = text.splitlines()[0] if text else type(error).__name__
    return head[:REASON_CHARS_MAX]
