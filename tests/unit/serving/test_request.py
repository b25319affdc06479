"""A request fits the model or is refused by a sentence that names the tensor."""

import json
from typing import Any

import pytest

from agent.foundation.errors import UsageError
from agent.serving.datatypes import DATATYPES
from agent.serving.request import RequestParser, header_length, parse_request
from agent.serving.signature import FREE, Signature, TensorSpec

MODEL = Signature(
    "m",
    "1",
    inputs=(
        TensorSpec("x", DATATYPES["FP32"], (FREE, 2)),
        TensorSpec("words", DATATYPES["BYTES"], (FREE,)),
    ),
    outputs=(
        TensorSpec("y", DATATYPES["FP32"], (FREE,)),
        TensorSpec("z", DATATYPES["INT64"], (FREE,)),
    ),
)
RAW = Signature("r", "1", (TensorSpec("x", DATATYPES["FP32"], (FREE, 2)),), MODEL.outputs)


def item(kind: str = "x", /, **changes: Any) -> dict[str, Any]:
    start: dict[str, Any] = (
        {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}
        if kind == "x"
        else {"name": "words", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    )
    return {key: value for key, value in {**start, **changes}.items() if value is not None}


def body(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs) or [item(), item("words")], **more}).encode()


def test_a_json_request_is_taken_with_all_outputs() -> None:
    request = parse_request(body(id="a"), None, MODEL)
    assert [(t.spec.name, t.shape, t.data) for t in request.inputs] == [
        ("x", (1, 2), [1, 2]),
        ("words", (1,), ["a"]),
    ]
    assert [(o.spec.name, o.is_binary) for o in request.outputs] == [("y", False), ("z", False)]
    assert request.id == "a"
    assert request.timeout_us is None


def test_binary_tensors_follow_the_header_in_the_order_of_inputs() -> None:
    header = body(
        item("words", data=None, parameters={"binary_data_size": 5}),
        item(data=None, parameters={"binary_data_size": 8}),
        parameters={"binary_data_output": True, "timeout": 1000},
        outputs=[{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}],
    )
    request = parse_request(header + b"\1\0\0\0a" + bytes(8), len(header), MODEL)
    assert [(t.spec.name, t.start - len(header), t.size) for t in request.inputs] == [
        ("words", 0, 5),
        ("x", 5, 8),
    ]
    assert [(o.spec.name, o.is_binary) for o in request.outputs] == [("z", False), ("y", True)]
    assert request.timeout_us == 1000


def test_json_and_binary_tensors_may_be_mixed() -> None:
    header = body(item(), item("words", data=None, parameters={"binary_data_size": 5}))
    request = parse_request(header + b"\1\0\0\0a", len(header), MODEL)
    assert request.inputs[0].data == [1, 2]
    assert request.inputs[1].start == len(header)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", "no list of inputs"),
        (b'{"inputs": {}}', "no list of inputs"),
        (b'{"inputs": [1]}', "not a JSON object"),
        (body(item()), "'words' is missing"),
        (body(item(), item(), item("words")), "'x' is given twice"),
        (body(item(name=7)), "unknown input 7"),
        (body(item(name="w")), "unknown input 'w'; the model takes x, words"),
        (body(item(datatype="FP33")), "unknown datatype 'FP33' of input 'x'; expected FP32"),
        (body(item(datatype=None)), "unknown datatype None of input 'x'"),
        (body(item(datatype="INT8")), "'x'; expected FP32, given INT8"),
        (body(item(shape=None)), "shape of input 'x'"),
        (body(item(shape=[1, 2.0])), "shape of input 'x'"),
        (body(item(shape=[True, 2])), "shape of input 'x'"),
        (body(item(shape=[-1, 2])), "negative dimension in the shape of input 'x'"),
        (body(item(shape=[1, 3])), r"expected [-1, 2], given [1, 3]"),
        (body(item(shape=[2])), r"expected [-1, 2], given [2]"),
        (body(item(data="no")), "data of input 'x' is not a list"),
        (body(item(data=None)), "either data or parameters.binary_data_size; neither"),
        (body(item(parameters={"binary_data_size": 8})), "both are given"),
        (body(item(data=None, parameters={"binary_data_size": 9})), "takes 8 bytes, given 9"),
        (body(item(data=None, parameters={"binary_data_size": -1})), "is not a size"),
        (body(item(data=None, parameters={"binary_data_size": 8})), "'x' is cut off"),
        (body(item(parameters=[])), "parameters of input 'x'"),
        (body(item(parameters={"shared_memory_region": "r"})), "shared memory"),
        (
            body(item(), item("words", data=None, parameters={"binary_data_size": 3})),
            "at least 4 bytes, given 3",
        ),
        (body(outputs=[{"name": "q"}]), "unknown output 'q'; the model gives y, z"),
        (body(outputs=[7]), "unknown output None"),
        (body(outputs={}), "outputs are not a list"),
        (body(outputs=[{"name": "y"}, {"name": "y"}]), "'y' is asked for twice"),
        (body(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "binary_data of output"),
        (body(outputs=[{"name": "y", "parameters": {"classification": 3}}]), "classification"),
        (body(parameters=7), "parameters of request"),
        (body(parameters={"binary_data_output": "yes"}), "binary_data_output"),
        (body(parameters={"sequence_id": 4}), "sequence_id"),
        (body(parameters={"timeout": "1"}), "timeout"),
        (body(parameters={"timeout": -1}), "timeout"),
        (body(id=7), "id is not a string"),
        (body(id="x" * 1025), "id is not a string"),
    ],
)
def test_what_does_not_fit_is_named(content: bytes, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_request(content, None, MODEL)
    assert named in str(caught.value)


def test_bytes_after_the_last_tensor_are_refused() -> None:
    header = body()
    with pytest.raises(UsageError, match="3 bytes follow the last tensor"):
        parse_request(header + b"abc", len(header), MODEL)


def test_a_datatype_without_json_form_must_be_binary() -> None:
    half = Signature("h", "1", (TensorSpec("x", DATATYPES["FP16"], (1,)),), ())
    content = body({"name": "x", "shape": [1], "datatype": "FP16", "data": [1.0]})
    with pytest.raises(UsageError, match="no JSON form"):
        parse_request(content, None, half)


def test_a_raw_body_is_the_only_input_and_its_size_gives_the_free_dimension() -> None:
    request = parse_request(bytes(24), 0, RAW)
    assert request.inputs[0].shape == (3, 2)
    assert all(output.is_binary for output in request.outputs)
    for size in (0, 7, 12):
        with pytest.raises(UsageError, match="a multiple of 8 bytes"):
            parse_request(bytes(size), 0, RAW)
    with pytest.raises(UsageError, match="one input"):
        parse_request(bytes(24), 0, MODEL)
    two_free = Signature("t", "1", (TensorSpec("x", DATATYPES["FP32"], (FREE, FREE)),), ())
    with pytest.raises(UsageError, match="does not follow"):
        parse_request(bytes(24), 0, two_free)


@pytest.mark.parametrize(("given", "expected"), [(None, None), ("0", 0), ("12", 12), ("100", 100)])
def test_a_header_length_is_read(given: str | None, expected: int | None) -> None:
    assert header_length(given, 100) == expected


@pytest.mark.parametrize("given", ["-5", "abc", "", "1.5", "0x10", "101", "9" * 30, "٣", " 1"])
def test_a_wrong_header_length_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="Inference-Header-Content-Length"):
        header_length(given, 100)


@pytest.mark.parametrize("shape", [[0, 1 << 63], [0, (1 << 64) - 1], [0, 1 << 31]])
def test_an_empty_tensor_cannot_claim_dimensions_that_none_can_have(shape: list[int]) -> None:
    """It would pass every count: nothing is in it."""
    free = Signature("f", "1", (TensorSpec("x", DATATYPES["FP32"], (FREE, FREE)),), MODEL.outputs)
    with pytest.raises(UsageError) as caught:
        parse_request(body(item(shape=shape, data=[])), None, free)
    assert str(caught.value) == (
        f"shape of input 'x' is too large; given {shape}, its dimensions may multiply to 2147483647"
    )
    parse_request(body(item(shape=[0, (1 << 31) - 1], data=[])), None, free)


def test_a_json_part_that_was_checked_is_known_again_with_the_same_length_behind_it_only() -> None:
    header = body(item(data=None, parameters={"binary_data_size": 8}))
    model = Signature("r", "1", RAW.inputs, MODEL.outputs)
    parser = RequestParser(model)
    good = memoryview(header + bytes(8))
    first = parser.parse(good, len(header))
    assert first == parse_request(good, len(header), model)
    assert parser.parse(good, len(header)) is first
    for wrong in (header + bytes(7), header + bytes(9)):
        for _ in range(2):
            with pytest.raises(UsageError):
                parser.parse(memoryview(wrong), len(header))
    assert parser.parse(memoryview(bytes(16)), 0).inputs[0].shape == (2, 2)
