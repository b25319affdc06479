"""``agent.cli.infer`` against a real HTTP server."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite

REQUEST = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
ANSWER = {
    "model_name": "magika",
    "model_version": "1",
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 20], "data": list(range(20))}],
    "parameters": {"served_by": "paris"},
}


class Gateway(BaseHTTPRequestHandler):
    status = 200
    body: Any = ANSWER
    seen: list[tuple[str, str | None, bytes]]
    tokens: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.path, self.headers.get("Atoll-Residency"), data))
        self.tokens.append(self.headers.get("Authorization"))
        body = self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def gateway(canned: "CannedSite") -> Iterator[type[Gateway]]:
    kind = type("Fresh", (Gateway,), {"seen": []})
    server = HTTPServer(("127.0.0.1", 0), kind)
    canned.http = f"0.0.0.0:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def question(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(REQUEST))
    return path


def test_the_answer_is_shown_with_who_served_it(
    atoll: "Atoll", gateway: type[Gateway], question: Path
) -> None:
    found = atoll("infer", "magika", "--input", question)
    assert (found.code, found.err) == (0, "")
    first, last = found.out.splitlines()
    assert first.startswith("y FP32 [1, 20]: 0, 1, 2")
    assert first.endswith("... 8 more")
    assert last.startswith("magika:1 served by paris in ")
    assert gateway.seen == [("/v2/models/magika/infer", None, question.read_bytes())]


def test_version_and_label_travel_along(
    atoll: "Atoll", gateway: type[Gateway], question: Path
) -> None:
    found = atoll("infer", "magika:2", "--input", question, "--residency", "DE,FR", "--json")
    assert json.loads(found.out) == ANSWER
    assert gateway.seen[0][:2] == ("/v2/models/magika/versions/2/infer", "DE,FR")


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, ""),
        (403, "atoll route explain"),
        (404, "atoll model list"),
        (503, "try again"),
        (500, "log"),
    ],
)
def test_an_error_of_the_gateway_keeps_its_words(
    atoll: "Atoll", gateway: type[Gateway], question: Path, status: int, hint: str
) -> None:
    gateway.status, gateway.body = status, {"error": "tensor x: expected FP32"}
    found = atoll("infer", "magika", "--input", question)
    assert (found.code, found.out) == (1, "")
    assert "why: tensor x: expected FP32" in found.err
    assert str(status) in found.err
    assert hint in found.err


def test_a_token_comes_from_a_file_and_goes_into_the_header(
    atoll: "Atoll", gateway: type[Gateway], question: Path, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("atoll_abc\nmore\n")
    assert atoll("infer", "magika", "--input", question, "--token-file", file).code == 0
    assert gateway.tokens[-1] == "Bearer atoll_abc"
    for wrong in (b"", b"\n", b"\xff", b"a\x00b"):
        file.write_bytes(wrong)
        found = atoll("infer", "magika", "--input", question, "--token-file", file)
        assert (found.code, "holds no token" in found.err) == (1, True)
    assert atoll("infer", "magika", "--input", question, "--token-file", tmp_path / "no").code == 1


@pytest.mark.parametrize(
    ("status", "said", "hint"),
    [
        (401, "this site takes requests with a token only", "give --token-file FILE"),
        (403, "the token 'shop' lacks the scope infer:m", None),
    ],
)
def test_who_lacks_a_token_is_told_what_helps(
    atoll: "Atoll", gateway: type[Gateway], question: Path, status: int, said: str, hint: str | None
) -> None:
    gateway.status, gateway.body = status, {"error": said}
    found = atoll("infer", "magika", "--input", question)
    assert said in found.err
    assert (f"try: {hint}" in found.err) if hint else ("try:" not in found.err)


def test_an_answer_that_is_no_json_is_an_error(
    atoll: "Atoll", gateway: type[Gateway], question: Path
) -> None:
    gateway.body = b"<html>"
    assert atoll("infer", "magika", "--input", question).code == 1


def test_no_gateway_is_told_with_where_it_was_looked_for(atoll: "Atoll", question: Path) -> None:
    found = atoll("infer", "magika", "--input", question, "--url", "127.0.0.1:1")
    assert found.code == 1
    assert "no answer from http://127.0.0.1:1" in found.err
    assert atoll("infer", "magika", "--input", question, "--url", "here").code == 1
    found = atoll("infer", "magika", "--input", question, "--url", "https://127.0.0.1:1/")
    assert "no answer from https://127.0.0.1:1\n" in found.err


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"inputs": 7}'])
def test_an_input_that_is_no_request_is_told_before_it_is_sent(
    atoll: "Atoll", gateway: type[Gateway], tmp_path: Path, text: str
) -> None:
    path = tmp_path / "request.json"
    path.write_text(text)
    found = atoll("infer", "magika", "--input", path)
    assert (found.code, gateway.seen) == (1, [])
    assert str(path) in found.err
    assert atoll("infer", "magika", "--input", tmp_path / "none").code == 1
