"""A golden question: what a model version must answer before it answers anybody else.

It comes with the model's document, in JSON: a request of the Open Inference Protocol whose ``outputs`` say
with what it must be answered. Floating-point answers may differ by ``tolerance`` (by default
``TOLERANCE``) of the largest expected value, since processors round differently; others not at all.
"""

from typing import Any

import numpy as np
import orjson

from agent.foundation.errors import UsageError
from agent.serving.request import parse_request
from agent.serving.signature import Signature
from agent.workers.inference_session import LoadRefused, ModelSession
from agent.workers.inference_tensors import Array, array_of

TOLERANCE = 1e-3


def check_golden(session: ModelSession, text: str) -> None:
    """Put the golden question to a model; nothing if ``text`` is empty.

    Raises:
        LoadRefused: it is answered otherwise, or is no question for this model.
    """
    if not text:
        return
    try:
        golden = orjson.loads(text)
        given, expected, tolerance = _read(golden, session.signature)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, UsageError) as error:
        raise LoadRefused(f"its golden question is none for this model: {error}") from None
    try:
        found = session.run_plain(given)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
        raise LoadRefused(f"it fails on its golden question: {str(error)[:300]}") from None
    names = [spec.name for spec in session.signature.outputs]
    for name, wanted in expected.items():
        if why := _differ(found[names.index(name)], wanted, tolerance):
            raise LoadRefused(f"it answers its golden question wrongly: output {name!r} {why}")


def _read(golden: Any, signature: Signature) -> tuple[dict[str, Array], dict[str, Array], float]:
    if not isinstance(golden, dict):
        raise TypeError("it is no JSON object")
    tolerance = float(golden.get("tolerance", TOLERANCE))
    given = _tensors(golden["inputs"], signature)
    named = {item["name"] for item in golden["outputs"]}
    outputs = tuple(spec for spec in signature.outputs if spec.name in named)
    if not outputs or tolerance < 0:
        raise ValueError("it names no output of the model, or its tolerance is negative")
    asked = Signature(signature.name, signature.version, outputs, ())
    return given, _tensors(golden["outputs"], asked), tolerance


def _tensors(items: Any, signature: Signature) -> dict[str, Array]:
    """Tensors of the protocol's JSON form, as the inputs of a request are read."""
    body = orjson.dumps({"inputs": items})
    request = parse_request(body, None, signature)
    return {one.spec.name: array_of(one, memoryview(body)) for one in request.inputs}


def _differ(found: Array, wanted: Array, tolerance: float) -> str:
    """How an output differs from the expected one; empty if it does not."""
    if found.shape != wanted.shape:
        return f"has shape {list(found.shape)}, not {list(wanted.shape)}"
    if wanted.dtype.kind != "f":
        is_same = np.array_equal(found, wanted)
        return "" if is_same else "has other values"
    one, other = found.astype(np.float64), wanted.astype(np.float64)
    largest = float(np.abs(other).max(initial=0.0))
    with np.errstate(invalid="ignore"):
        difference = np.abs(one - other).max(initial=0.0)
    if difference <= tolerance * max(largest, 1e-6):  # false also if it is not a number
        return ""
    return f"differs by {difference:.3g}, and its largest expected value is {largest:.3g}"
