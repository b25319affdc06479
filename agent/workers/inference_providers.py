"""Which execution provider a model runs on here: the first of the profile's that works and is right.

Rule: an accelerator is used only after it has given the CPU's answers to the same questions. What the
build lists proves nothing (onnxruntime-gpu lists CUDA on machines without a GPU and falls back in
silence), and a wrong driver or kernel gives wrong numbers rather than an error. Whatever is passed
over is said, with its reason: a site that was bought with a GPU must not run on its CPU unnoticed.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnxruntime as ort

from agent.workers.inference_batching import random_inputs
from agent.workers.inference_session import (
    CPU_PROVIDER,
    WARM_UP_SIZES,
    LoadRefused,
    ModelSession,
    zeros_for,
)
from agent.workers.inference_tensors import Array

DIFFERENCE_MAX = 0.02
"""Largest difference from the CPU's answer, as a part of its largest value: TF32 and FP16 kernels stay
well below, a broken one does not."""

Build = Callable[[bytes, str, str, Sequence[str]], ModelSession]


def open_session(
    model: bytes,
    name: str,
    version: str,
    wanted: Sequence[str],
    *,
    build: Build = ModelSession,
    available: Collection[str] | None = None,
) -> tuple[ModelSession, tuple[str, ...]]:
    """The session, and for each wanted provider that was passed over why.

    Args:
        model: the ONNX file's bytes.
        name: of the model, for answers.
        version: of the model.
        wanted: providers in order of preference; the CPU always comes last.
        build: makes a session (tests pass another one).
        available: providers of this build of ONNX Runtime.

    Raises:
        LoadRefused: not even the CPU takes the model.
    """
    if available is None:
        available = ort.get_available_providers()
    on_cpu: ModelSession | None = None
    passed: list[str] = []
    for provider in dict.fromkeys(wanted):
        if provider == CPU_PROVIDER:
            break
        if provider not in available:
            passed.append(f"{provider}: this build of ONNX Runtime has none")
            continue
        try:
            session = build(model, name, version, (provider,))
        except LoadRefused as error:
            passed.append(f"{provider}: {error}")
            continue
        if session.providers[0] != provider:
            passed.append(f"{provider}: ONNX Runtime fell back to {session.providers[0]} silently")
            if session.providers[0] == CPU_PROVIDER:
                on_cpu = session
            continue
        on_cpu = on_cpu or build(model, name, version, (CPU_PROVIDER,))
        if why := _differ(session, on_cpu):
            passed.append(f"{provider}: {why}")
            continue
        return session, tuple(passed)
    return on_cpu or build(model, name, version, (CPU_PROVIDER,)), tuple(passed)


def _differ(session: ModelSession, reference: ModelSession) -> str:
    """How the answers to the golden questions differ; empty if they agree or none can be put."""
    for size in WARM_UP_SIZES:
        zeros = zeros_for(reference.signature.inputs, size)
        if zeros is None:
            return ""
        shapes = {spec: array.shape for spec, array in zeros.items()}
        feeds = random_inputs(reference, shapes, np.random.default_rng(21))
        expected = _answers(reference, feeds)
        if isinstance(expected, str):
            continue  # the model does not take this size
        found = _answers(session, feeds)
        if isinstance(found, str):
            return f"it fails on an input that the CPU takes: {found}"
        outputs = zip(reference.signature.outputs, found, expected, strict=True)
        return next((why for spec, a, b in outputs if (why := _compare(spec.name, a, b))), "")
    return ""


def _answers(session: ModelSession, feeds: dict[str, Array]) -> list[Array] | str:
    """All outputs, or why there are none."""
    try:
        return session.run_plain(feeds)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
        return str(error)[:200]


def _compare(output: str, found: Array, expected: Array) -> str:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"output {output!r} has another shape than on the CPU"
    if expected.dtype.kind != "f":
        return ""  # counts and places may flip with the last bit of what they are derived from
    one, other = found.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return f"output {output!r} is not finite where the CPU's is"
    finite = np.isfinite(other)
    largest = float(np.abs(other[finite]).max(initial=1e-6))
    difference = float(np.abs(one[finite] - other[finite]).max(initial=0.0)) / largest
    if difference <= DIFFERENCE_MAX:
        return ""
    return f"output {output!r} differs from the CPU's by {100 * difference:.0f} %"
