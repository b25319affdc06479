"""Whether a model may be given several requests at once, found out by trying, and how to join them.

A first dimension that the request chooses is a batch by custom, not by law: it may be the length of a
text or of a sound. So two rows are run apart and together at load, and the model is batched only where
the results agree. How many rows are worth running together is learned later (``serving.batching``).
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from agent.serving.batching import has_batch_dimension
from agent.serving.datatypes import Datatype
from agent.serving.request import InferRequest
from agent.workers.inference_session import ModelSession, zeros_for
from agent.workers.inference_tensors import Array, numpy_type

SIZES = (8, 32, 1, 64, 224)
"""Tried in turn for free dimensions: tiny images tell nothing, huge ones take long."""
PROBE_S_MAX = 0.5
"""After this no further size is tried; a model not judged by then runs its requests alone."""
NOISE_MAX = 0.05
"""What a row may change in company, as a part of how far two different rows come out apart. Sums in
another order change some models by 1 %; a row that sees its neighbour changes by half or more."""


def stand_rows_apart(session: ModelSession) -> bool:
    """Whether each row comes out the same, alone and in company."""
    if not has_batch_dimension(session.signature):
        return False
    begun = time.perf_counter()
    for size in SIZES:
        if time.perf_counter() - begun > PROBE_S_MAX:
            return False
        zeros = zeros_for(session.signature.inputs, size)
        if zeros is None:
            continue
        shapes = {name: array.shape for name, array in zeros.items()}
        try:
            verdict = _compare(session, shapes)
        except Exception:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
            verdict = None  # not with this size
        if verdict is not None:
            return verdict
    return False


def _compare(session: ModelSession, shapes: dict[str, tuple[int, ...]]) -> bool | None:
    """Two different rows apart and together; None if they come out alike, which proves nothing."""
    random = np.random.default_rng(20)
    feeds = [random_inputs(session, shapes, random) for _ in range(2)]
    apart = [session.run_plain(one) for one in feeds]
    together = session.run_plain(_joined(feeds))
    is_telling = False
    for one, other, whole in zip(*apart, together, strict=True):
        if len(whole) != len(one) + len(other):
            return False
        if one.shape != other.shape or one.dtype.kind not in "fc":
            if not (_same(whole[: len(one)], one) and _same(whole[len(one) :], other)):
                return False
            is_telling |= not _same(one, other)
            continue
        distance = _distance(one, other)
        noise = max(_distance(whole[: len(one)], one), _distance(whole[len(one) :], other))
        if not noise <= NOISE_MAX * distance:
            return False
        is_telling |= distance > 0
    return True if is_telling else None


def _distance(one: Array, other: Array) -> float:
    """The largest difference; not a number where either has none, which no bound allows."""
    return float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max(initial=0.0))


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.array_equal(one, other))


def random_inputs(
    session: ModelSession, shapes: dict[str, tuple[int, ...]], random: np.random.Generator
) -> dict[str, Array]:
    """One value for each input: small numbers, which every model takes."""
    return {
        spec.name: _random(spec.datatype, shapes[spec.name], random)
        for spec in session.signature.inputs
    }


def _random(datatype: Datatype, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """Values that every model takes: small numbers, indices that exist in any table of two."""
    if datatype.kind == "bytes":
        words = np.array(["a", "bc"], dtype=object)
        return words[random.integers(0, 2, shape)]
    if datatype.kind == "float":
        return random.standard_normal(shape).astype(numpy_type(datatype))
    return random.integers(0, 2, shape).astype(numpy_type(datatype))


def _joined(parts: Sequence[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def run_together(
    session: ModelSession,
    requests: Sequence[InferRequest],
    inputs: Sequence[Sequence[Array]],
    options: Any,
) -> list[list[Array]] | None:
    """Run several requests as one; for each its wanted outputs.

    Args:
        session: whose rows stand apart.
        requests: with equal ``form_of``.
        inputs: for each request its arrays, in the order of its own inputs.
        options: of the run.

    Returns:
        For each request its outputs in the order that it asked for; None if the model did not give
        as many rows as it got: its rows do not stand apart after all.

    Raises:
        UsageError, RunFailed, Terminated: as ``ModelSession.run``.
    """
    parts = [
        {tensor.spec.name: array for tensor, array in zip(request.inputs, arrays, strict=True)}
        for request, arrays in zip(requests, inputs, strict=True)
    ]
    names = list(dict.fromkeys(o.spec.name for request in requests for o in request.outputs))
    found = dict(zip(names, session.run_named(names, _joined(parts), options), strict=True))
    rows = [len(next(iter(part.values()))) for part in parts]
    if any(len(array) != sum(rows) for array in found.values()):
        return None
    ends = np.cumsum(rows)
    return [
        [found[output.spec.name][end - count : end] for output in request.outputs]
        for request, count, end in zip(requests, rows, ends, strict=True)
    ]
