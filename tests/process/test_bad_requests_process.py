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
from bad_requests import ELEMENTS, LENGTH, MORE, PEERS, RAW, SHAPE, text
from serving_models import echo_model
from serving_site import ServingSite, found, image_model, open_site
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

pytestmark = pytest.mark.process


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
