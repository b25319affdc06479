"""Bad requests, over HTTP and gRPC: each with its exact status and its exact sentence.

A sentence names the tensor, what was expected and what was given. The first twenty are those that were
put to Triton, MLServer and KServe, none of which answers all of them as the caller's mistake.
"""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import tritonclient.grpc.service_pb2 as messages
from serving_models import echo_model
from serving_site import ServingSite, found, image_model, open_site
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.process

SHAPE = [1, 3, 48, 192]
ELEMENTS = 3 * 48 * 192
RAW = bytes(4 * ELEMENTS)
LENGTH = "Inference-Header-Content-Length"
Sent = tuple[bytes, dict[str, str]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("bad")
    keys = found(folder / "identity")
    with open_site(keys, folder / "blobs", options=("--request-bytes-max", "4000000")) as opened:
        opened.start_worker()
        opened.serve("cls", image_model(folder / "cls.onnx"))
        opened.serve("int8", echo_model(folder / "int8.onnx", ("INT8",)))
        opened.serve("echo", echo_model(folder / "echo.onnx", ("INT8", "BYTES", "FP16", "BOOL")))
        yield opened


def entry(**changes: Any) -> dict[str, Any]:
    start = {"name": "x", "shape": SHAPE, "datatype": "FP32"}
    return {key: value for key, value in {**start, **changes}.items() if value is not None}


def text(**changes: Any) -> Sent:
    return json.dumps({"inputs": [entry(**{"data": [0] * ELEMENTS, **changes})]}).encode(), {}


def binary(
    *, size: int = len(RAW), tail: bytes = RAW, length: Any = None, more: Any = None, **changes: Any
) -> Sent:
    given = entry(parameters={"binary_data_size": size}, **changes)
    header = json.dumps({"inputs": [given], **(more or {})}).encode()
    return header + tail, {LENGTH: str(len(header) if length is None else length)}


def echo(name: str, datatype: str, shape: list[int], **more: Any) -> Sent:
    content = {"inputs": [{"name": name, "datatype": datatype, "shape": shape, **more}]}
    return json.dumps(content).encode(), {}


def all_of_echo(words: bytes, boolean: int = 1) -> Sent:
    contents = {"INT8": b"\1", "BYTES": words, "FP16": bytes(2), "BOOL": bytes([boolean])}
    return _joined({name: ([1], content) for name, content in contents.items()})


def overlapping() -> Sent:
    """Three tensors of four bytes in a body that has room for two."""
    header, headers = _joined({"INT8": ([4], b""), "FP16": ([2], b""), "BOOL": ([4], b"")}, size=4)
    return header + bytes(8), headers


def _joined(tensors: dict[str, tuple[list[int], bytes]], size: int | None = None) -> Sent:
    inputs = [
        {
            "name": f"x_{name}",
            "datatype": name,
            "shape": shape,
            "parameters": {"binary_data_size": len(content) if size is None else size},
        }
        for name, (shape, content) in tensors.items()
    ]
    header = json.dumps({"inputs": inputs}).encode()
    tail = b"".join(content for _, content in tensors.values())
    return header + tail, {LENGTH: str(len(header))}


def twice(one: dict[str, Any]) -> Sent:
    return json.dumps({"inputs": [one, one]}).encode(), {}


def many() -> Sent:
    return json.dumps(
        {"inputs": [entry(name=f"x{number}") for number in range(10_000)]}
    ).encode(), {}


Case = tuple[str, Sent, int, str]

PEERS: dict[str, Case] = {
    "infer unknown model": (
        "nope",
        text(),
        404,
        "unknown model 'nope'; see POST /v2/repository/index",
    ),
    "infer unknown version": (
        "cls/versions/9",
        text(),
        404,
        "unknown version '9' of model 'cls'; known are 1",
    ),
    "empty body": (
        "cls",
        (b"", {}),
        400,
        'the request is empty; send {"inputs": [...]}',
    ),
    "bad JSON": (
        "cls",
        (b"{", {}),
        400,
        "the request is not JSON; unexpected end of data: line 1 column 2 (char 1)",
    ),
    "no inputs": (
        "cls",
        (b'{"inputs":[]}', {}),
        400,
        "input 'x' is missing; the model takes x",
    ),
    "unknown input name": (
        "cls",
        text(name="zz"),
        400,
        "unknown input 'zz'; the model takes x",
    ),
    "wrong datatype": (
        "cls",
        text(datatype="INT64"),
        400,
        "wrong datatype of input 'x'; expected FP32, given INT64",
    ),
    "unknown datatype": (
        "cls",
        text(datatype="FP33"),
        400,
        "unknown datatype 'FP33' of input 'x'; expected FP32",
    ),
    "shape/element mismatch": (
        "cls",
        text(shape=[1, 3, 48, 191]),
        400,
        "wrong shape of input 'x'; expected [-1, 3, 48, 192], given [1, 3, 48, 191]",
    ),
    "wrong shape for the model": (
        "cls",
        text(shape=[1, 4, 48, 144]),
        400,
        "wrong shape of input 'x'; expected [-1, 3, 48, 192], given [1, 4, 48, 144]",
    ),
    "negative dimension": (
        "cls",
        text(shape=[-1, 3, 48, 192]),
        400,
        "negative dimension in the shape of input 'x'; expected [-1, 3, 48, 192], given [-1, 3, 48, 192]",
    ),
    "strings as data": (
        "cls",
        text(data=["a"] * ELEMENTS),
        400,
        "wrong values of input 'x'; FP32 does not take a string",
    ),
    "binary truncated": (
        "cls",
        binary(tail=RAW[:-4]),
        400,
        "input 'x' is cut off; its binary_data_size 110592 goes 4 bytes beyond the body",
    ),
    "binary too long": (
        "cls",
        binary(tail=RAW + b"xxxx"),
        400,
        "4 bytes follow the last tensor 'x'; the sizes in binary_data_size do not add up to the body",
    ),
    "binary_data_size lies": (
        "cls",
        binary(size=16),
        400,
        "wrong size of input 'x'; FP32 [1, 3, 48, 192] takes 110592 bytes, given 16",
    ),
    "header length > body": (
        "cls",
        binary(length=10**9),
        400,
        "Inference-Header-Content-Length is longer than the body; 1000000000 of 110709 bytes",
    ),
    "header length negative": (
        "cls",
        binary(length=-5),
        400,
        "Inference-Header-Content-Length is not a length; given '-5'",
    ),
    "header length not a number": (
        "cls",
        binary(length="abc"),
        400,
        "Inference-Header-Content-Length is not a length; given 'abc'",
    ),
    "unknown output": (
        "cls",
        binary(more={"outputs": [{"name": "nope"}]}),
        400,
        "unknown output 'nope'; the model gives mean",
    ),
    "huge shape, tiny data": (
        "cls",
        binary(shape=[1 << 40, 3, 48, 192]),
        400,
        "shape of input 'x' is too large; given [1099511627776, 3, 48, 192], its dimensions may multiply to 2147483647",
    ),
}

MORE: dict[str, Case] = {
    "an array": (
        "cls",
        (b"[]", {}),
        400,
        'the request is not a JSON object; send {"inputs": [...]}',
    ),
    "NaN": (
        "cls",
        (b'{"inputs":[{"name":"x","shape":[1,3,48,192],"datatype":"FP32","data":[NaN]}]}', {}),
        400,
        "the request is not JSON; unexpected character, expected a JSON value: line 1 column 71 (char 70)",
    ),
    "deep nesting": (
        "cls",
        (b"[" * 100_000, {}),
        400,
        "the request is not JSON; depth limit exceeded: line 1 column 1026 (char 1025)",
    ),
    "deep data": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[[[1]]]),
        400,
        "data of input 'x_INT8' is nested unevenly or too deep; its shape is [1]",
    ),
    "uneven data": (
        "int8",
        echo("x_INT8", "INT8", [2], data=[[1], 2]),
        400,
        "data of input 'x_INT8' is nested unevenly or too deep; its shape is [2]",
    ),
    "too few elements": (
        "cls",
        text(data=[0] * (ELEMENTS - 1)),
        400,
        "wrong number of elements of input 'x'; shape [1, 3, 48, 192] takes 27648, given 27647",
    ),
    "number too large for a float": (
        "cls",
        text(data=[1e39] * ELEMENTS),
        400,
        "value of input 'x' is out of range; it is FP32",
    ),
    "integer out of range": (
        "int8",
        echo("x_INT8", "INT8", [2], data=[1, 128]),
        400,
        "value of input 'x_INT8' is out of range; INT8 goes from -128 to 127",
    ),
    "integer beyond 64 bits": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[10**30]),
        400,
        "wrong values of input 'x_INT8'; INT8 does not take a number",
    ),
    "fraction for an integer": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[0.5]),
        400,
        "wrong values of input 'x_INT8'; INT8 does not take a number",
    ),
    "boolean for an integer": (
        "int8",
        echo("x_INT8", "INT8", [1], data=[True]),
        400,
        "wrong values of input 'x_INT8'; INT8 does not take true or false",
    ),
    "null in data": (
        "cls",
        text(data=[None] * ELEMENTS),
        400,
        "wrong values of input 'x'; FP32 does not take null",
    ),
    "half floats in JSON": (
        "echo",
        echo("x_FP16", "FP16", [1], data=[1.0]),
        400,
        "input 'x_FP16' is FP16, which has no JSON form; send it in binary with Inference-Header-Content-Length",
    ),
    "data that is no list": (
        "int8",
        echo("x_INT8", "INT8", [1], data=1),
        400,
        "data of input 'x_INT8' is not a list; given 1",
    ),
    "data and a size": (
        "cls",
        text(parameters={"binary_data_size": 4}),
        400,
        "input 'x' needs either data or parameters.binary_data_size; both are given",
    ),
    "neither data nor a size": (
        "cls",
        text(data=None),
        400,
        "input 'x' needs either data or parameters.binary_data_size; neither is given",
    ),
    "shape with a fraction": (
        "cls",
        text(shape=[1.0, 3, 48, 192]),
        400,
        "shape of input 'x' is not a list of integers; expected [-1, 3, 48, 192], given [1.0, 3, 48, 192]",
    ),
    "shape with a huge number": (
        "cls",
        text(shape=[10**30, 3, 48, 192]),
        400,
        "shape of input 'x' is not a list of integers; expected [-1, 3, 48, 192], given [1e+30, 3, 48, 192]",
    ),
    "shape that is no list": (
        "cls",
        text(shape="1"),
        400,
        "shape of input 'x' is not a list of integers; expected [-1, 3, 48, 192], given '1'",
    ),
    "an empty tensor of 2**63 rows": (
        "int8",
        echo("x_INT8", "INT8", [1 << 63], data=[]),
        400,
        "shape of input 'x_INT8' is too large; given [9223372036854775808], its dimensions may multiply to 2147483647",
    ),
    "a size that is negative": (
        "cls",
        binary(size=-1),
        400,
        "binary_data_size of input 'x' is not a size; given -1",
    ),
    "a size that is text": (
        "cls",
        text(data=None, parameters={"binary_data_size": "4"}),
        400,
        "binary_data_size of input 'x' is not a size; given '4'",
    ),
    "sizes that overlap": (
        "echo",
        overlapping(),
        400,
        "input 'x_BOOL' is cut off; its binary_data_size 4 goes 4 bytes beyond the body",
    ),
    "BYTES whose length lies": (
        "echo",
        all_of_echo(b"\xff\xff\xff\xffa"),
        400,
        "input 'x_BYTES' is cut off; an element has 4294967295 bytes",
    ),
    "BYTES cut off in a length": (
        "echo",
        all_of_echo(b"\0\0\0\0\0"),
        400,
        "input 'x_BYTES' is cut off inside an element's length",
    ),
    "BYTES of another count": (
        "echo",
        all_of_echo(b"\0\0\0\0\0\0\0\0"),
        400,
        "wrong number of elements of input 'x_BYTES'; shape [1] takes 1, given 2",
    ),
    "BYTES that are not UTF-8": (
        "echo",
        all_of_echo(b"\1\0\0\0\xff"),
        400,
        "element 0 of input 'x_BYTES' is not UTF-8; ONNX strings are UTF-8",
    ),
    "a BOOL that is neither": (
        "echo",
        all_of_echo(b"\1\0\0\0a", boolean=2),
        400,
        "a value of input 'x_BOOL' is neither 0 nor 1 (BOOL)",
    ),
    "the same input twice": (
        "cls",
        twice(entry(data=[0] * ELEMENTS)),
        400,
        "input 'x' is given twice",
    ),
    "ten thousand inputs": (
        "cls",
        many(),
        400,
        "unknown input 'x0'; the model takes x",
    ),
    "a name in other scripts": (
        "cls",
        text(name="\u202e\u0445\U0001f600"),
        400,
        "unknown input '\\u202e\u0445\U0001f600'; the model takes x",
    ),
    "a name of a megabyte": (
        "cls",
        text(name="n" * 1_000_000),
        400,
        "unknown input 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn; the model takes x",
    ),
    "an input that is text": (
        "cls",
        (b'{"inputs":["x"]}', {}),
        400,
        "an input is not a JSON object",
    ),
    "parameters that are a list": (
        "cls",
        text(parameters=[]),
        400,
        "parameters of input 'x' are not a JSON object",
    ),
    "output twice": (
        "cls",
        binary(more={"outputs": [{"name": "mean"}] * 2}),
        400,
        "output 'mean' is asked for twice",
    ),
    "shared memory": (
        "cls",
        text(data=None, parameters={"shared_memory_region": "r"}),
        400,
        "input 'x': shared memory of the client is not supported",
    ),
    "a sequence": (
        "cls",
        binary(more={"parameters": {"sequence_id": 7}}),
        400,
        "sequence_id is not supported; models here keep no state",
    ),
    "a timeout that is text": (
        "cls",
        binary(more={"parameters": {"timeout": "1"}}),
        400,
        "timeout is not a number of microseconds; given '1'",
    ),
    "an id that is a number": (
        "cls",
        binary(more={"id": 7}),
        400,
        "id is not a string of at most 1024 characters",
    ),
    "raw binary of another size": (
        "cls",
        (RAW[:-1], {LENGTH: "0"}),
        400,
        "wrong size of input 'x'; FP32 [-1, 3, 48, 192] takes a multiple of 110592 bytes, given 110591",
    ),
    "raw binary for several inputs": (
        "echo",
        (RAW, {LENGTH: "0"}),
        400,
        "a raw binary request needs a model with one input; echo has 4; send a JSON header",
    ),
    "gzip that is none": (
        "cls",
        (b"not gzip", {"Content-Encoding": "gzip"}),
        400,
        "the body cannot be read; Can not decode content-encoding: gzip",
    ),
    "an encoding nobody knows": (
        "cls",
        (b"{}", {"Content-Encoding": "br"}),
        400,
        "the body's encoding 'br' is not supported; it may be identity, gzip, deflate",
    ),
    "a residency that is none": (
        "cls",
        (text()[0], {"Atoll-Residency": "DE,,"}),
        400,
        "Atoll-Residency is not a list of jurisdictions; given 'DE,,'; name at least one, separated by commas, such as DE,FR",
    ),
    "a deadline that is none": (
        "cls",
        (text()[0], {"Atoll-Deadline-Ms": "soon"}),
        400,
        "Atoll-Deadline-Ms is not a number; given 'soon'",
    ),
    "beyond the limit": (
        "cls",
        (bytes(4_000_001), {}),
        413,
        "the body is too large; the limit is 4000000 bytes, after decompression; raise serving.request_bytes_max or send less at once",
    ),
}


@pytest.mark.parametrize("case", [*PEERS, *MORE])
def test_a_bad_request_gets_its_status_and_its_sentence(site: ServingSite, case: str) -> None:
    model, (body, headers), status, sentence = {**PEERS, **MORE}[case]
    got, found, answer = site.request("POST", f"/v2/models/{model}/infer", body, headers)
    assert (got, json.loads(answer)) == (status, {"error": sentence})
    assert found["content-type"] == "application/json"


def test_none_of_them_did_any_harm(site: ServingSite) -> None:
    body, headers = text()
    assert site.request("POST", "/v2/models/cls/infer", body, headers)[0] == 200
    assert b"nv_inference_pending_request_count 0" in site.get("/metrics")[2]


INDEX = "/v2/repository/index"


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "sentence"),
    [
        ("GET", "/v2/models/nope", b"", 404, "unknown model 'nope'; see POST /v2/repository/index"),
        ("GET", "/v2/models/%00", b"", 404, "unknown model '\\x00'; see POST /v2/repository/index"),
        ("GET", "/v2/models/cls/infer", b"", 405, "Method Not Allowed: GET /v2/models/cls/infer"),
        ("GET", "/v2/zzz", b"", 404, "Not Found: GET /v2/zzz"),
        ("GET", INDEX, b"", 405, "Method Not Allowed: GET /v2/repository/index"),
        ("POST", INDEX, b"[]", 400, "the request is not an object with ready: true or false"),
        (
            "POST",
            INDEX,
            b"{",
            400,
            "the request is not JSON; unexpected end of data: line 1 column 2 (char 1)",
        ),
        (
            "POST",
            INDEX,
            bytes(65_537),
            413,
            "the body is too large; the limit is 65536 bytes, after decompression",
        ),
    ],
)
def test_what_is_not_there_is_said_exactly(
    site: ServingSite, method: str, path: str, body: bytes, status: int, sentence: str
) -> None:
    got, _, answer = site.request(method, path, body)
    assert (got, json.loads(answer)) == (status, {"error": sentence})


def raw_http(site: ServingSite, *parts: bytes) -> bytes:
    """What comes back when the parts are sent one by one."""
    with socket.create_connection(("127.0.0.1", site.http_port), timeout=10) as connection:
        for part in parts:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(part)
            time.sleep(0.05)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_two_lengths_of_the_header_are_not_guessed_between(site: ServingSite) -> None:
    head = b"POST /v2/models/cls/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n"
    answer = raw_http(site, head + 2 * f"{LENGTH}: 2\r\n".encode() + b"\r\n{}")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"error":"Inference-Header-Content-Length is given more than once"}')


def test_a_small_body_that_comes_in_pieces_is_read_whole(site: ServingSite) -> None:
    head = f"POST {INDEX} HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\nConnection: close\r\n\r\n"
    answer = raw_http(site, head.encode(), b'{"rea', b'dy": true}')
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert b'"name":"cls"' in answer


# --- the same over gRPC --------------------------------------------------------------------------
def asked(
    model: str = "cls", version: str = "", *, raw: list[bytes] | None = None, **changes: Any
) -> Any:
    contents = changes.pop("contents", None)
    names = changes.pop("names", ["x"])
    request = messages.ModelInferRequest(model_name=model, model_version=version)
    for name in names:
        given = {"name": name, "shape": SHAPE, "datatype": "FP32", **changes}
        request.inputs.add(**given)
        if contents is not None:
            request.inputs[-1].contents.CopyFrom(messages.InferTensorContents(**contents))
    if contents is None:
        request.raw_input_contents.extend([RAW] * len(names) if raw is None else raw)
    return request


def with_output(name: str) -> Any:
    request = asked()
    request.outputs.add(name=name)
    return request


def with_parameter(**value: Any) -> Any:
    request = asked()
    request.parameters["sequence_id"].CopyFrom(messages.InferParameter(**value))
    return request


def mixed() -> Any:
    request = asked(contents={"fp32_contents": [0.0] * ELEMENTS})
    request.raw_input_contents.append(RAW)
    return request


GRPC: dict[str, tuple[Any, str, str]] = {
    "infer unknown model": (
        asked("nope"),
        "NOT_FOUND",
        "unknown model 'nope'; see POST /v2/repository/index",
    ),
    "infer unknown version": (
        asked(version="9"),
        "NOT_FOUND",
        "unknown version '9' of model 'cls'; known are 1",
    ),
    "no inputs": (
        asked(names=[]),
        "INVALID_ARGUMENT",
        "input 'x' is missing; the model takes x",
    ),
    "unknown input name": (
        asked(names=["zz"]),
        "INVALID_ARGUMENT",
        "unknown input 'zz'; the model takes x",
    ),
    "wrong datatype": (
        asked(datatype="INT64"),
        "INVALID_ARGUMENT",
        "wrong datatype of input 'x'; expected FP32, given INT64",
    ),
    "unknown datatype": (
        asked(datatype="FP33"),
        "INVALID_ARGUMENT",
        "unknown datatype 'FP33' of input 'x'; expected FP32",
    ),
    "shape/element mismatch": (
        asked(shape=[1, 3, 48, 191]),
        "INVALID_ARGUMENT",
        "wrong shape of input 'x'; expected [-1, 3, 48, 192], given [1, 3, 48, 191]",
    ),
    "wrong shape for the model": (
        asked(shape=[1, 4, 48, 144]),
        "INVALID_ARGUMENT",
        "wrong shape of input 'x'; expected [-1, 3, 48, 192], given [1, 4, 48, 144]",
    ),
    "negative dimension": (
        asked(shape=[-1, 3, 48, 192]),
        "INVALID_ARGUMENT",
        "negative dimension in the shape of input 'x'; expected [-1, 3, 48, 192], given [-1, 3, 48, 192]",
    ),
    "text as values": (
        asked(contents={"bytes_contents": [b"a"]}),
        "INVALID_ARGUMENT",
        "contents of input 'x' are in bytes_contents; FP32 elements belong in fp32_contents",
    ),
    "raw truncated": (
        asked(raw=[RAW[:-4]]),
        "INVALID_ARGUMENT",
        "wrong size of input 'x'; FP32 [1, 3, 48, 192] takes 110592 bytes, given 110588",
    ),
    "raw too long": (
        asked(raw=[RAW + b"xxxx"]),
        "INVALID_ARGUMENT",
        "wrong size of input 'x'; FP32 [1, 3, 48, 192] takes 110592 bytes, given 110596",
    ),
    "binary_data_size lies": (
        asked(raw=[RAW[:16]]),
        "INVALID_ARGUMENT",
        "wrong size of input 'x'; FP32 [1, 3, 48, 192] takes 110592 bytes, given 16",
    ),
    "unknown output": (
        with_output("nope"),
        "INVALID_ARGUMENT",
        "unknown output 'nope'; the model gives mean",
    ),
    "huge shape, tiny data": (
        asked(shape=[1 << 40, 3, 48, 192]),
        "INVALID_ARGUMENT",
        "shape of input 'x' is too large; given [1099511627776, 3, 48, 192], its dimensions may multiply to 2147483647",
    ),
    "an empty tensor of 2**62 rows": (
        asked("int8", names=["x_INT8"], datatype="INT8", shape=[1 << 62], raw=[b""]),
        "INVALID_ARGUMENT",
        "shape of input 'x_INT8' is too large; given [4611686018427387904], its dimensions may multiply to 2147483647",
    ),
    "the same input twice": (
        asked(names=["x", "x"]),
        "INVALID_ARGUMENT",
        "input 'x' is given twice",
    ),
    "one content for two inputs": (
        asked(names=["x", "y"], raw=[RAW]),
        "INVALID_ARGUMENT",
        "raw_input_contents does not fit the inputs; 1 contents for 2 inputs",
    ),
    "raw and typed contents": (
        mixed(),
        "INVALID_ARGUMENT",
        "raw_input_contents and contents are mixed; raw_input_contents holds every input or none",
    ),
    "too few typed values": (
        asked(contents={"fp32_contents": [0.0]}),
        "INVALID_ARGUMENT",
        "wrong size of input 'x'; FP32 [1, 3, 48, 192] takes 110592 bytes, given 4",
    ),
    "integer out of range": (
        asked(
            "int8", names=["x_INT8"], datatype="INT8", shape=[1], contents={"int_contents": [128]}
        ),
        "INVALID_ARGUMENT",
        "value of input 'x_INT8' is out of range; it is INT8",
    ),
    "half floats in typed contents": (
        asked(
            "echo", names=["x_FP16"], datatype="FP16", shape=[1], contents={"fp32_contents": [1.0]}
        ),
        "INVALID_ARGUMENT",
        "input 'x_FP16' is 'FP16', which has no typed contents; send it in raw_input_contents",
    ),
    "a sequence": (
        with_parameter(int64_param=7),
        "INVALID_ARGUMENT",
        "sequence_id is not supported; models here keep no state",
    ),
}


@pytest.mark.parametrize("case", GRPC)
def test_over_grpc_it_gets_its_code_and_the_same_sentence(site: ServingSite, case: str) -> None:
    request, code, sentence = GRPC[case]
    with grpc.insecure_channel(f"127.0.0.1:{site.grpc_port}") as channel:
        stub: Any = GRPCInferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request, timeout=10)
    error: Any = caught.value
    assert (error.code().name, error.details()) == (code, sentence)
    if case in PEERS:
        assert sentence == PEERS[case][3], "HTTP says the same"
