"""An inference request and its answer between their gRPC form and the REST form with binary tensors.

Rule: the worker understands one form. A gRPC request becomes a JSON header and the raw tensors behind
it, byte for byte; the answer goes the other way. Checks against the model are made where they are made
for REST; here only what the gRPC form itself can get wrong is refused.
"""

import struct
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from agent.foundation.errors import Malformed, UsageError
from agent.gateway.grpc_messages import message

_INTEGERS = (-(1 << 63), (1 << 64) - 1)
_CONTENTS: Mapping[str, tuple[str, str]] = {
    "BOOL": ("bool_contents", "B"),
    "INT8": ("int_contents", "b"),
    "INT16": ("int_contents", "h"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT8": ("uint_contents", "B"),
    "UINT16": ("uint_contents", "H"),
    "UINT32": ("uint_contents", "I"),
    "UINT64": ("uint64_contents", "Q"),
    "FP32": ("fp32_contents", "f"),
    "FP64": ("fp64_contents", "d"),
    "BYTES": ("bytes_contents", ""),
}
"""Which field holds a datatype's elements (open_inference_grpc.proto, InferTensorContents) and their
machine form; 16-bit floats travel raw only. Little-endian, as every machine this runs on."""
_LENGTH = struct.Struct("<I")

ModelInferResponse = message("ModelInferResponse")


def body_of(request: Any) -> tuple[bytes, int]:
    """The REST body of a ``ModelInferRequest`` and the length of its JSON part.

    Raises:
        UsageError: raw and typed contents are mixed, or contents do not fit their datatype.
    """
    tensors = _tensors(request)
    header: dict[str, Any] = {
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _parameters(tensor.parameters) | {"binary_data_size": len(content)},
            }
            for tensor, content in zip(request.inputs, tensors, strict=True)
        ],
        "parameters": _parameters(request.parameters) | {"binary_data_output": True},
    }
    if request.id:
        header["id"] = request.id
    if request.outputs:
        header["outputs"] = [
            {"name": output.name, "parameters": _parameters(output.parameters)}
            for output in request.outputs
        ]
    text = orjson.dumps(header)
    return b"".join((text, *tensors)), len(text)


def response_of(body: bytes, json_bytes: int | None) -> Any:
    """The ``ModelInferResponse`` of a REST answer whose outputs are binary.

    Raises:
        Malformed: the answer is not one (another site's fault).
    """
    try:
        header = orjson.loads(memoryview(body)[: len(body) if json_bytes is None else json_bytes])
        response = ModelInferResponse(
            model_name=header["model_name"],
            model_version=header["model_version"],
            id=header.get("id", ""),
        )
        _set_parameters(response.parameters, header.get("parameters", {}))
        at = json_bytes or len(body)
        for output in header["outputs"]:
            response.outputs.add(
                name=output["name"], datatype=output["datatype"], shape=output["shape"]
            )
            size = output["parameters"]["binary_data_size"]
            if not 0 <= size <= len(body) - at:
                raise Malformed("an answer is cut off", why=f"output {output['name']!r}")
            response.raw_output_contents.append(body[at : at + size])
            at += size
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise Malformed("an answer does not decode", why=type(error).__name__) from None
    return response


def _tensors(request: Any) -> list[bytes]:
    raw = request.raw_input_contents
    if not raw:
        return [_packed(tensor) for tensor in request.inputs]
    if any(tensor.HasField("contents") for tensor in request.inputs):
        raise UsageError(
            "raw_input_contents and contents are mixed",
            why="raw_input_contents holds every input or none",
        )
    if len(raw) != len(request.inputs):
        raise UsageError(
            "raw_input_contents does not fit the inputs",
            why=f"{len(raw)} contents for {len(request.inputs)} inputs",
        )
    return list(raw)


def _packed(tensor: Any) -> bytes:
    """Typed contents as the raw bytes of their datatype."""
    name, datatype = tensor.name, tensor.datatype
    if datatype not in _CONTENTS:
        raise UsageError(
            f"input {name!r:.80} is {datatype!r:.40}, which has no typed contents",
            mend="send it in raw_input_contents",
        )
    field, code = _CONTENTS[datatype]
    filled = [other.name for other, _ in tensor.contents.ListFields()]
    if filled not in ([], [field]):
        raise UsageError(
            f"contents of input {name!r:.80} are in {' and '.join(filled)}",
            why=f"{datatype} elements belong in {field}",
        )
    values: Iterable[Any] = getattr(tensor.contents, field)
    if not code:
        return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
    try:
        return array(code, values).tobytes()
    except OverflowError:
        raise UsageError(
            f"value of input {name!r:.80} is out of range", why=f"it is {datatype}"
        ) from None


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """InferParameters as JSON; those that only say how a REST body is laid out do not apply."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        choice = value.WhichOneof("parameter_choice")
        if choice is not None and not key.startswith("binary_data"):
            found[key] = getattr(value, choice)
    return found


def _set_parameters(target: Any, given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if isinstance(value, bool):
            target[key].bool_param = value
        elif isinstance(value, int) and _INTEGERS[0] <= value <= _INTEGERS[1]:
            if value >= 1 << 63:
                target[key].uint64_param = value
            else:
                target[key].int64_param = value
        elif isinstance(value, float):
            target[key].double_param = value
        elif isinstance(value, str):
            target[key].string_param = value
