"""Bytes to arrays and back, for every datatype, without a silent change of a value."""

import json
import struct
from typing import Any

import numpy as np
import pytest

from agent.foundation.errors import UsageError
from agent.serving.datatypes import DATATYPES
from agent.serving.request import InferRequest, InputTensor, WantedOutput
from agent.serving.signature import FREE, TensorSpec
from agent.workers.inference_tensors import (
    AnswerTooLarge,
    Array,
    array_of,
    numpy_type,
    write_answer,
)

NUMBERS = [name for name, datatype in DATATYPES.items() if datatype.kind != "bytes"]


def spec(datatype: str) -> TensorSpec:
    return TensorSpec("x", DATATYPES[datatype], (FREE,))


def from_bytes(datatype: str, shape: tuple[int, ...], content: bytes, start: int = 0) -> Array:
    body = memoryview(bytearray(bytes(start) + content))
    return array_of(InputTensor(spec(datatype), shape, None, start, len(content)), body)


def from_json(datatype: str, shape: tuple[int, ...], data: list[Any]) -> Array:
    return array_of(InputTensor(spec(datatype), shape, data), memoryview(b""))


def answer(
    outputs: list[tuple[str, Array]], *, binary: bool = True, size: int = 4096, **more: Any
) -> tuple[dict[str, Any], bytes]:
    slot = memoryview(bytearray(size))
    wanted = tuple(
        WantedOutput(TensorSpec(f"y{n}", DATATYPES[name], (FREE,)), binary)
        for n, (name, _) in enumerate(outputs)
    )
    written = write_answer(
        slot,
        InferRequest((), wanted, **more),
        [array for _, array in outputs],
        model="m",
        version="1",
        served_by="berlin",
    )
    body = bytes(slot[: written.body_bytes])
    header = len(body) if written.json_bytes is None else written.json_bytes
    return json.loads(body[:header]), body[header:]


@pytest.mark.parametrize("name", NUMBERS)
def test_binary_tensors_keep_every_bit(name: str) -> None:
    size = DATATYPES[name].element_bytes
    content = bytes([1, 0] * (3 * size))[: 6 * size] if name != "BOOL" else b"\1\0\1\1\0\0"
    array = from_bytes(name, (2, 3), content)
    assert array.shape == (2, 3)
    assert array.dtype == numpy_type(DATATYPES[name])
    head, tail = answer([(name, array)])
    assert tail == content
    assert head["outputs"][0]["parameters"] == {"binary_data_size": len(content)}


def test_a_binary_input_is_a_view_unless_it_lies_askew() -> None:
    body = memoryview(bytearray(64))
    tensor = InputTensor(spec("FP64"), (2,), None, 16, 16)
    array = array_of(tensor, body)
    assert array.flags.aligned == (np.frombuffer(body, np.uint8).ctypes.data % 8 == 0)
    body[16:24] = struct.pack("<d", 5.0)
    assert array[0] == 5.0
    askew = from_bytes("FP64", (1,), struct.pack("<d", 7.0), start=17)
    assert askew.flags.aligned
    assert askew[0] == 7.0


def test_a_boolean_is_nought_or_one() -> None:
    with pytest.raises(UsageError, match="neither 0 nor 1"):
        from_bytes("BOOL", (2,), b"\1\2")


def test_strings_travel_with_their_lengths() -> None:
    words = ["", "Zürich", "a\0b"]
    content = b"".join(struct.pack("<I", len(w.encode())) + w.encode() for w in words)
    array = from_bytes("BYTES", (3,), content)
    assert list(array) == words
    assert answer([("BYTES", array)])[1] == content
    assert answer([("BYTES", array)], binary=False)[0]["outputs"][0]["data"] == words
    assert list(from_json("BYTES", (3,), words)) == words


@pytest.mark.parametrize(
    ("content", "shape", "named"),
    [
        (b"\5\0\0\0abc", (1,), "an element has 5 bytes"),
        (b"\1\0\0\0ab", (1,), "inside an element's length"),
        (b"\1\0\0\0a", (2,), "takes 2, given 1"),
        (b"\1\0\0\0\xff", (1,), "element 0 of input 'x' is not UTF-8"),
    ],
)
def test_broken_strings_are_named(content: bytes, shape: tuple[int, ...], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        from_bytes("BYTES", shape, content)


def test_json_numbers_become_exactly_themselves() -> None:
    assert from_json("UINT64", (2,), [2**64 - 1, 0]).tolist() == [2**64 - 1, 0]
    assert from_json("INT64", (1,), [-(2**63)]).tolist() == [-(2**63)]
    assert from_json("FP32", (1, 2), [[1, 2.5]]).tolist() == [[1.0, 2.5]]
    assert from_json("BOOL", (2,), [True, False]).tolist() == [True, False]
    with pytest.raises(UsageError, match="out of range"):
        from_json("FP32", (1,), [1e39])


def test_an_answer_names_model_site_and_request() -> None:
    head, tail = answer([("FP32", np.ones((1, 2), np.float32))], binary=False, id="r")
    assert tail == b""
    assert head == {
        "model_name": "m",
        "model_version": "1",
        "id": "r",
        "parameters": {"served_by": "berlin"},
        "outputs": [{"name": "y0", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 1.0]}],
    }


def test_binary_outputs_follow_in_order() -> None:
    head, tail = answer(
        [("UINT8", np.array([1, 2], np.uint8)), ("INT16", np.array([[3]], np.int16).T)]
    )
    assert [o["parameters"]["binary_data_size"] for o in head["outputs"]] == [2, 2]
    assert tail == b"\1\2\3\0"


def test_a_column_is_written_row_by_row() -> None:
    array = np.arange(6, dtype=np.uint8).reshape(2, 3).T
    assert answer([("UINT8", array)])[1] == bytes([0, 3, 1, 4, 2, 5])
    assert answer([("UINT8", array)], binary=False)[0]["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]


def test_halves_have_no_json_form() -> None:
    with pytest.raises(UsageError, match="no JSON form"):
        answer([("FP16", np.ones(1, np.float16))], binary=False)


def test_an_answer_that_does_not_fit_says_so() -> None:
    with pytest.raises(AnswerTooLarge, match="the limit is 512 bytes"):
        answer([("UINT8", np.zeros(512, np.uint8))], size=512)
