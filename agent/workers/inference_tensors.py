"""Checked tensors of a request as arrays, and arrays as the answer's bytes.

Binary inputs are views of the request's slot, not copies; binary outputs are copied once, into it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from agent.foundation.errors import AtollError, UsageError
from agent.serving.datatypes import Datatype
from agent.serving.json_data import flat_values
from agent.serving.request import InferRequest, InputTensor, WantedOutput

Array = npt.NDArray[Any]

_NUMPY: dict[str, str] = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "BF16": "<u2",  # its bits: numpy has no such type
    "FP32": "<f4",
    "FP64": "<f8",
}
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Answer:
    """How far an answer reaches in its slot."""

    json_bytes: int | None
    """Length of the JSON part; None = the answer is all JSON."""
    body_bytes: int


class AnswerTooLarge(AtollError):
    """The answer does not fit the memory it is to be returned in."""


def numpy_type(datatype: Datatype) -> np.dtype[Any]:
    """How an array of this datatype holds its elements; objects (str) for BYTES."""
    return np.dtype(_NUMPY.get(datatype.name, "O"))


def array_of(tensor: InputTensor, body: memoryview) -> Array:
    """The input as an array of its shape, aligned and contiguous.

    Raises:
        UsageError: JSON values or BYTES elements are not what the datatype takes.
    """
    datatype = tensor.spec.datatype
    if tensor.data is None:
        content = body[tensor.start : tensor.start + tensor.size]
        if datatype.kind == "bytes":
            return _strings(content, tensor)
        array = np.frombuffer(content, numpy_type(datatype)).reshape(tensor.shape)
        if datatype.kind == "bool" and content and int(array.view(np.uint8).max()) > 1:
            raise UsageError(f"a value of input {tensor.spec.name!r} is neither 0 nor 1 (BOOL)")
        return array if array.flags.aligned else array.copy()
    values = flat_values(tensor.data, tensor.spec.name, datatype, tensor.shape)
    with np.errstate(over="ignore"):
        array = np.array(values, numpy_type(datatype))
    if datatype.kind == "float" and not np.isfinite(array).all():
        raise UsageError(
            f"value of input {tensor.spec.name!r} is out of range", why=f"it is {datatype.name}"
        )
    return array.reshape(tensor.shape)


def _strings(content: memoryview, tensor: InputTensor) -> Array:
    """BYTES elements, each behind its length (4 bytes, little-endian); ONNX strings are UTF-8."""
    name = tensor.spec.name
    elements: list[str] = []
    at = 0
    while at < len(content):
        if at + _LENGTH.size > len(content):
            raise UsageError(f"input {name!r} is cut off inside an element's length")
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if at + length > len(content):
            raise UsageError(f"input {name!r} is cut off", why=f"an element has {length} bytes")
        try:
            elements.append(str(content[at : at + length], "utf-8"))
        except UnicodeDecodeError:
            raise UsageError(
                f"element {len(elements)} of input {name!r} is not UTF-8",
                why="ONNX strings are UTF-8",
            ) from None
        at += length
    expected = int(np.prod(tensor.shape, dtype=np.int64))
    if len(elements) != expected:
        raise UsageError(
            f"wrong number of elements of input {name!r}",
            why=f"shape {list(tensor.shape)} takes {expected}, given {len(elements)}",
        )
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(tensor.shape)


def write_answer(
    slot: memoryview,
    request: InferRequest,
    outputs: Sequence[Array],
    *,
    model: str,
    version: str,
    served_by: str,
) -> Answer:
    """Lay the protocol's answer into the slot, JSON first, then binary outputs in order.

    Raises:
        UsageError: a 16-bit float output is asked for in JSON, which has no form for it.
        AnswerTooLarge: the slot is too small.
    """
    described: list[dict[str, Any]] = []
    parts: list[memoryview] = []
    for wanted, array in zip(request.outputs, outputs, strict=True):
        entry: dict[str, Any] = {
            "name": wanted.spec.name,
            "datatype": wanted.spec.datatype.name,
            "shape": list(array.shape),
        }
        if wanted.is_binary:
            parts.append(_binary(array, wanted.spec.datatype))
            entry["parameters"] = {"binary_data_size": parts[-1].nbytes}
        else:
            entry["data"] = _json_form(array, wanted)
        described.append(entry)
    content: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        content["id"] = request.id
    content["parameters"] = {"served_by": served_by}
    content["outputs"] = described
    text = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    total = len(text) + sum(part.nbytes for part in parts)
    if total > len(slot):
        raise AnswerTooLarge(
            f"the answer of {total} bytes is too large",
            why=f"the limit is {len(slot)} bytes",
            mend="ask for fewer outputs, in binary, or raise serving.request_bytes_max",
        )
    slot[: len(text)] = text
    at = len(text)
    for part in parts:
        slot[at : at + part.nbytes] = part
        at += part.nbytes
    return Answer(len(text) if parts else None, total)


def _binary(array: Array, datatype: Datatype) -> memoryview:
    if datatype.kind == "bytes":
        pieces: list[bytes] = []
        for element in array.ravel():
            encoded = element if isinstance(element, bytes) else str(element).encode()
            pieces += (_LENGTH.pack(len(encoded)), encoded)
        return memoryview(b"".join(pieces))
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _json_form(array: Array, wanted: WantedOutput) -> Any:
    """Flat, row-major. NaN and infinity, which JSON lacks, become null."""
    datatype = wanted.spec.datatype
    if not datatype.has_json_form:
        raise UsageError(
            f"output {wanted.spec.name!r} is {datatype.name}, which has no JSON form",
            mend="ask for it with binary_data: true",
        )
    flat = array.reshape(-1)
    return flat.tolist() if datatype.kind == "bytes" else np.ascontiguousarray(flat)
