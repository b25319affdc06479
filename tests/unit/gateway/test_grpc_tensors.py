"""A gRPC request as the REST body that the worker reads, and the answer back."""

import struct
from typing import Any

import orjson
import pytest

from agent.foundation.errors import Malformed, UsageError
from agent.gateway.grpc_messages import message
from agent.gateway.grpc_tensors import body_of, response_of

Request = message("ModelInferRequest")


def request_of(datatype: str, shape: list[int], **contents: Any) -> Any:
    request = Request(model_name="m", id="r-7")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    return request


def parts(request: Any) -> tuple[dict[str, Any], bytes]:
    body, length = body_of(request)
    return orjson.loads(body[:length]), body[length:]


def test_raw_contents_follow_the_header_byte_for_byte() -> None:
    request = Request(model_name="m")
    request.inputs.add(name="a", datatype="FP32", shape=[1])
    request.inputs.add(name="b", datatype="BF16", shape=[2])
    request.raw_input_contents.extend([b"1234", b"abcd"])
    request.outputs.add(name="y").parameters["classification"].int64_param = 3
    request.parameters["priority"].uint64_param = 2
    request.parameters["binary_data_output"].bool_param = False
    header, binary = parts(request)
    assert binary == b"1234abcd"
    assert header == {
        "inputs": [
            {"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            {"name": "b", "datatype": "BF16", "shape": [2], "parameters": {"binary_data_size": 4}},
        ],
        "outputs": [{"name": "y", "parameters": {"classification": 3}}],
        "parameters": {"priority": 2, "binary_data_output": True},
    }


@pytest.mark.parametrize(
    ("datatype", "field", "values", "packed"),
    [
        ("BOOL", "bool_contents", [True, False], b"\1\0"),
        ("INT8", "int_contents", [-1, 2], b"\xff\2"),
        ("INT16", "int_contents", [-2], struct.pack("<h", -2)),
        ("INT32", "int_contents", [-3], struct.pack("<i", -3)),
        ("INT64", "int64_contents", [-(1 << 40)], struct.pack("<q", -(1 << 40))),
        ("UINT8", "uint_contents", [255], b"\xff"),
        ("UINT16", "uint_contents", [65_535], b"\xff\xff"),
        ("UINT32", "uint_contents", [1 << 31], struct.pack("<I", 1 << 31)),
        ("UINT64", "uint64_contents", [1 << 63], struct.pack("<Q", 1 << 63)),
        ("FP32", "fp32_contents", [0.5], struct.pack("<f", 0.5)),
        ("FP64", "fp64_contents", [0.1], struct.pack("<d", 0.1)),
        ("BYTES", "bytes_contents", [b"ab", b""], b"\2\0\0\0ab\0\0\0\0"),
    ],
)
def test_typed_contents_become_the_bytes_of_their_datatype(
    datatype: str, field: str, values: list[Any], packed: bytes
) -> None:
    header, binary = parts(request_of(datatype, [len(values)], **{field: values}))
    assert binary == packed
    assert header["inputs"][0]["parameters"] == {"binary_data_size": len(packed)}
    assert header["id"] == "r-7"


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (request_of("INT8", [1], int_contents=[200]), "'x' is out of range; it is INT8"),
        (request_of("UINT16", [1], uint_contents=[70_000]), "it is UINT16"),
        (request_of("FP16", [1], fp32_contents=[1.0]), "raw_input_contents"),
        (request_of("nonsense", [1]), "'nonsense'"),
        (request_of("FP32", [1], fp64_contents=[1.0]), "FP32 elements belong in fp32_contents"),
    ],
)
def test_contents_that_do_not_fit_are_refused_by_name(request_: Any, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        body_of(request_)
    assert told in str(caught.value)
    assert "'x'" in str(caught.value)


def test_raw_and_typed_contents_are_not_mixed() -> None:
    request = request_of("FP32", [1], fp32_contents=[1.0])
    request.raw_input_contents.append(b"1234")
    with pytest.raises(UsageError, match="mixed"):
        body_of(request)
    request = request_of("FP32", [1])
    request.raw_input_contents.extend([b"1234", b"5678"])
    with pytest.raises(UsageError, match="2 contents for 1 inputs"):
        body_of(request)


def test_an_answer_comes_back_with_its_outputs_raw() -> None:
    header = {
        "model_name": "m",
        "model_version": "3",
        "id": "r-7",
        "parameters": {"served_by": "berlin", "n": 3, "big": (1 << 64) - 1, "x": 0.5, "b": True},
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
            {"name": "b", "datatype": "UINT8", "shape": [2], "parameters": {"binary_data_size": 2}},
        ],
    }
    text = orjson.dumps(header)
    response = response_of(text + b"1234ab", len(text))
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "r-7")
    assert [(o.name, o.datatype, list(o.shape)) for o in response.outputs] == [
        ("a", "FP32", [1]),
        ("b", "UINT8", [2]),
    ]
    assert list(response.raw_output_contents) == [b"1234", b"ab"]
    found = {
        k: getattr(v, v.WhichOneof("parameter_choice")) for k, v in response.parameters.items()
    }
    assert found == header["parameters"]


@pytest.mark.parametrize("body", [b"", b"[]", b'{"model_name": 1}', b'{"outputs": [{}]}', b"\xff"])
def test_an_answer_that_is_none_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        response_of(body, None)


def test_an_answer_that_is_cut_off_is_malformed() -> None:
    header = {
        "model_name": "m",
        "model_version": "3",
        "outputs": [
            {"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
        ],
    }
    text = orjson.dumps(header)
    with pytest.raises(Malformed, match="'a'"):
        response_of(text + b"123", len(text))
