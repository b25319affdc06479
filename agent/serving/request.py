"""One inference request, checked against the model before a tensor is built.

Rule: a request is taken whole or refused with a sentence that names the tensor, what was expected
and what was given; nothing is guessed, cut or filled up. No tensor library is needed for that.

The three forms of a body (Triton, ``docs/protocol/extension_binary_data.md``):

- no ``Inference-Header-Content-Length``: all JSON;
- a length n > 0: n bytes of JSON, then the binary tensors in the order of ``inputs``;
- length 0: the whole body is the model's only input, every output comes back in binary.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any

import orjson

from agent.foundation.errors import UsageError
from agent.serving.datatypes import DATATYPES, Datatype
from agent.serving.fair import read_priority
from agent.serving.signature import FREE, Signature, TensorSpec

ID_CHARS_MAX = 1024
"""The id is echoed in the answer and in logs."""
HEADER_NAME = "Inference-Header-Content-Length"
TIMEOUT_US_MAX = 3_600_000_000
"""One hour: no request runs longer."""
REMEMBERED_MAX = 64
"""JSON parts remembered for one model: a client sends the same one again and again."""
REMEMBERED_BYTES_MAX = 2048
"""Longer ones hold values, which change, or many tensors, whose checks are little beside their run."""
ELEMENTS_MAX = (1 << 31) - 1
"""Product of a shape's dimensions without its zeros. A body never has more; an empty tensor may claim
``[0, 2**63]``, which no tensor library can build."""


@dataclass(frozen=True, slots=True)
class InputTensor:
    """One checked input: either ``data`` (JSON values) or ``size`` bytes at ``start`` of the body."""

    spec: TensorSpec
    shape: tuple[int, ...]
    data: list[Any] | None
    start: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """One output to be returned, and whether as binary."""

    spec: TensorSpec
    is_binary: bool


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request that fits the model."""

    inputs: tuple[InputTensor, ...]
    outputs: tuple[WantedOutput, ...]
    id: str | None = None
    timeout_us: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)


def header_length(text: str | None, body_bytes: int) -> int | None:
    """The length of the JSON part as the caller's header states it; None without a header.

    Raises:
        UsageError: not a number, negative, or longer than the body.
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(1 << 63))):
        raise UsageError(f"{HEADER_NAME} is not a length", why=f"given {text[:40]!r}")
    length = int(text)
    if length > body_bytes:
        raise UsageError(
            f"{HEADER_NAME} is longer than the body", why=f"{length} of {body_bytes} bytes"
        )
    return length


def parse_request(
    body: bytes | memoryview, header_bytes: int | None, signature: Signature
) -> InferRequest:
    """Check a whole request body against the model.

    Raises:
        UsageError: anything about it is wrong; the text names the tensor.
    """
    if header_bytes == 0:
        return _parse_raw(len(body), signature)
    json_bytes = len(body) if header_bytes is None else header_bytes
    return _checked(memoryview(body)[:json_bytes], len(body) - json_bytes, signature)


class RequestParser:
    """``parse_request`` for one model, which knows the JSON parts again that it has checked.

    The outcome depends on the JSON part and the length of what follows alone.
    """

    def __init__(self, signature: Signature) -> None:
        self._signature = signature
        self._remembered = lru_cache(REMEMBERED_MAX)(
            lambda text, binary_bytes: _checked(text, binary_bytes, signature)
        )

    def parse(self, body: memoryview, header_bytes: int | None) -> InferRequest:
        """As ``parse_request``."""
        if header_bytes and header_bytes <= REMEMBERED_BYTES_MAX:
            return self._remembered(bytes(body[:header_bytes]), len(body) - header_bytes)
        return parse_request(body, header_bytes, self._signature)


def _checked(text: bytes | memoryview, binary_bytes: int, signature: Signature) -> InferRequest:
    content = _object(text)
    parameters = _parameters(content, "request")
    _refuse_unsupported(parameters)
    inputs = _inputs(content.get("inputs"), signature, len(text), binary_bytes)
    return InferRequest(
        inputs=inputs,
        outputs=_outputs(content.get("outputs"), parameters, signature),
        id=_id(content.get("id")),
        timeout_us=_timeout(parameters.get("timeout")),
        parameters=parameters,
    )


def _object(text: bytes | memoryview) -> dict[str, Any]:
    if not text:
        raise UsageError("the request is empty", mend='send {"inputs": [...]}')
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise UsageError("the request is not JSON", why=str(error)) from None
    if not isinstance(content, dict):
        raise UsageError("the request is not a JSON object", mend='send {"inputs": [...]}')
    return content


def _parameters(item: dict[str, Any], owner: str) -> dict[str, Any]:
    parameters = item.get("parameters", {})
    if not isinstance(parameters, dict):
        raise UsageError(f"parameters of {owner} are not a JSON object")
    return parameters


def _refuse_unsupported(parameters: dict[str, Any]) -> None:
    if parameters.get("sequence_id"):
        raise UsageError("sequence_id is not supported", why="models here keep no state")
    read_priority(parameters.get("priority", 0))  # the gateway has used it, or its header


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > ID_CHARS_MAX:
        raise UsageError(f"id is not a string of at most {ID_CHARS_MAX} characters")
    return value


def _timeout(value: Any) -> int | None:
    if value is None or value == 0:
        return None
    if type(value) is not int or not 0 < value <= TIMEOUT_US_MAX:
        raise UsageError("timeout is not a number of microseconds", why=f"given {value!r:.40}")
    return value


def _inputs(
    items: Any, signature: Signature, start: int, binary_bytes: int
) -> tuple[InputTensor, ...]:
    if not isinstance(items, list):
        raise UsageError("the request has no list of inputs", mend='send {"inputs": [...]}')
    specs = {spec.name: spec for spec in signature.inputs}
    found: dict[str, InputTensor] = {}
    end = start + binary_bytes
    for item in items:
        tensor = _input(item, specs, start)
        if tensor.spec.name in found:
            raise UsageError(f"input {tensor.spec.name!r} is given twice")
        found[tensor.spec.name] = tensor
        start += tensor.size
        if start > end:
            raise UsageError(
                f"input {tensor.spec.name!r} is cut off",
                why=f"its binary_data_size {tensor.size} goes {start - end} bytes beyond the body",
            )
    if missing := [name for name in specs if name not in found]:
        raise UsageError(
            f"input {missing[0]!r} is missing", why=f"the model takes {', '.join(specs)}"
        )
    if start < end:
        last = f" {next(reversed(found))!r}" if found else ""
        raise UsageError(
            f"{end - start} bytes follow the last tensor{last}",
            why="the sizes in binary_data_size do not add up to the body",
        )
    return tuple(found.values())


def _input(item: Any, specs: dict[str, TensorSpec], start: int) -> InputTensor:
    if not isinstance(item, dict):
        raise UsageError("an input is not a JSON object")
    name = item.get("name")
    if not isinstance(name, str) or name not in specs:
        raise UsageError(
            f"unknown input {name!r:.80}", why=f"the model takes {', '.join(specs) or 'none'}"
        )
    spec = specs[name]
    _check_datatype(item.get("datatype"), spec)
    shape = _shape(item.get("shape"), spec)
    parameters = _parameters(item, f"input {name!r}")
    if "shared_memory_region" in parameters:
        raise UsageError(f"input {name!r}: shared memory of the client is not supported")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in item):
        raise UsageError(
            f"input {name!r} needs either data or parameters.binary_data_size",
            why="both are given" if size is not None else "neither is given",
        )
    if size is None:
        return InputTensor(spec, shape, _json_data(item["data"], spec))
    if type(size) is not int or size < 0:
        raise UsageError(
            f"binary_data_size of input {name!r} is not a size", why=f"given {size!r:.40}"
        )
    _check_size(spec, shape, size)
    return InputTensor(spec, shape, None, start, size)


def _check_datatype(given: Any, spec: TensorSpec) -> None:
    if not isinstance(given, str) or given not in DATATYPES:
        raise UsageError(
            f"unknown datatype {given!r:.40} of input {spec.name!r}",
            why=f"expected {spec.datatype.name}",
        )
    if given != spec.datatype.name:
        raise UsageError(
            f"wrong datatype of input {spec.name!r}",
            why=f"expected {spec.datatype.name}, given {given}",
        )


def _shape(given: Any, spec: TensorSpec) -> tuple[int, ...]:
    expected = list(spec.shape)
    if not isinstance(given, list) or any(type(dimension) is not int for dimension in given):
        raise UsageError(
            f"shape of input {spec.name!r} is not a list of integers",
            why=f"expected {expected}, given {given!r:.200}",
        )
    if any(dimension < 0 for dimension in given):
        raise UsageError(
            f"negative dimension in the shape of input {spec.name!r}",
            why=f"expected {expected}, given {given!r:.200}",
        )
    fits = len(given) == len(expected) and all(
        want in (FREE, got) for want, got in zip(expected, given, strict=True)
    )
    if not fits:
        raise UsageError(
            f"wrong shape of input {spec.name!r}",
            why=f"expected {expected}, given {given!r:.200}",
        )
    if prod(dimension or 1 for dimension in given) > ELEMENTS_MAX:
        raise UsageError(
            f"shape of input {spec.name!r} is too large",
            why=f"given {given!r:.200}, its dimensions may multiply to {ELEMENTS_MAX}",
        )
    return tuple(given)


def _json_data(data: Any, spec: TensorSpec) -> list[Any]:
    if not spec.datatype.has_json_form:
        raise UsageError(
            f"input {spec.name!r} is {spec.datatype.name}, which has no JSON form",
            mend=f"send it in binary with {HEADER_NAME}",
        )
    if not isinstance(data, list):
        raise UsageError(f"data of input {spec.name!r} is not a list", why=f"given {data!r:.40}")
    return data


def _check_size(spec: TensorSpec, shape: tuple[int, ...], size: int) -> None:
    datatype: Datatype = spec.datatype
    elements = prod(shape)
    if datatype.element_bytes:
        expected = elements * datatype.element_bytes
        if size != expected:
            raise UsageError(
                f"wrong size of input {spec.name!r}",
                why=f"{datatype.name} {list(shape)} takes {expected} bytes, given {size}",
            )
    elif size < 4 * elements:
        raise UsageError(
            f"wrong size of input {spec.name!r}",
            why=f"{elements} BYTES elements take at least {4 * elements} bytes, given {size}",
        )


def _outputs(
    items: Any, parameters: dict[str, Any], signature: Signature
) -> tuple[WantedOutput, ...]:
    everything = parameters.get("binary_data_output", False)
    if not isinstance(everything, bool):
        raise UsageError("binary_data_output is not true or false")
    if items is None or items == []:
        return tuple(WantedOutput(spec, everything) for spec in signature.outputs)
    if not isinstance(items, list):
        raise UsageError("outputs are not a list")
    specs = {spec.name: spec for spec in signature.outputs}
    wanted: dict[str, WantedOutput] = {}
    for item in items:
        output = _output(item, specs, is_binary=everything)
        if output.spec.name in wanted:
            raise UsageError(f"output {output.spec.name!r} is asked for twice")
        wanted[output.spec.name] = output
    return tuple(wanted.values())


def _output(item: Any, specs: dict[str, TensorSpec], *, is_binary: bool) -> WantedOutput:
    name = item.get("name") if isinstance(item, dict) else None
    if not isinstance(name, str) or name not in specs:
        raise UsageError(f"unknown output {name!r:.80}", why=f"the model gives {', '.join(specs)}")
    parameters = _parameters(item, f"output {name!r}")
    for unsupported in ("classification", "shared_memory_region"):
        if parameters.get(unsupported):
            raise UsageError(f"output {name!r}: {unsupported} is not supported")
    binary = parameters.get("binary_data", is_binary)
    if not isinstance(binary, bool):
        raise UsageError(f"binary_data of output {name!r} is not true or false")
    return WantedOutput(specs[name], binary)


def _parse_raw(size: int, signature: Signature) -> InferRequest:
    """The whole body is the model's only input; at most one free dimension follows from its size."""
    if len(signature.inputs) != 1:
        raise UsageError(
            "a raw binary request needs a model with one input",
            why=f"{signature.name} has {len(signature.inputs)}",
            mend="send a JSON header",
        )
    spec = signature.inputs[0]
    shape = list(spec.shape)
    free = [index for index, dimension in enumerate(shape) if dimension == FREE]
    row = prod(dimension for dimension in shape if dimension != FREE) * spec.datatype.element_bytes
    if len(free) > 1 or not row:
        raise UsageError(
            f"the shape of input {spec.name!r} does not follow from the body's size",
            why=f"the model takes {spec.datatype.name} {shape}",
            mend="send a JSON header",
        )
    if free:
        shape[free[0]] = size // row
    if size != row * (shape[free[0]] if free else 1) or not size:
        raise UsageError(
            f"wrong size of input {spec.name!r}",
            why=f"{spec.datatype.name} {list(spec.shape)} takes "
            f"{'a multiple of ' if free else ''}{row} bytes, given {size}",
        )
    tensor = InputTensor(spec, tuple(shape), None, 0, size)
    return InferRequest(
        (tensor,), tuple(WantedOutput(output, True) for output in signature.outputs)
    )
