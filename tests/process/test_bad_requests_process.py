"""Bad requests over HTTP: each with its exact status and its exact sentence."""

import json
import socket
import time
from collections.abc import Iterator

import pytest
from bad_requests import LENGTH, MORE, PEERS, open_bad, text
from serving_site import ServingSite

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    with open_bad(tmp_path_factory.mktemp("bad")) as opened:
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
