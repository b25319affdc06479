"""Gateway and model worker as real processes, spoken to by real clients."""

import gzip
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from serving_site import MAGIKA, ServingSite, endless_model, found, image_model, open_site

pytestmark = pytest.mark.process

X = np.zeros((1, 3, 48, 192), np.float32)
RAW = X.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[ServingSite]:
    keys = found(folder / "identity")
    with open_site(keys, folder / "blobs", options=("--request-bytes-max", "4000000")) as opened:
        opened.start_worker()
        opened.serve("magika", MAGIKA)
        opened.serve("cls", image_model(folder / "cls.onnx"))
        opened.serve("endless", endless_model(folder / "endless.onnx"))
        yield opened


def test_a_triton_client_works_unchanged(site: ServingSite) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{site.http_port}")
    try:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("magika")
        assert client.get_server_metadata()["name"] == "atoll"
        metadata = client.get_model_metadata("magika", "1")
        assert metadata["inputs"] == [{"name": "bytes", "datatype": "INT32", "shape": [-1, 2048]}]
        assert client.get_model_config("magika")["platform"] == "onnxruntime_onnx"
        index = client.get_model_repository_index()
        assert {(m["name"], m["state"]) for m in index} >= {("magika", "READY"), ("cls", "READY")}
        given = triton.InferInput("bytes", [2, 2048], "INT32")
        content = np.full((2, 2048), 32, np.int32)
        answers = {}
        for binary_in in (True, False):
            given.set_data_from_numpy(content, binary_data=binary_in)
            for binary_out in (True, False):
                wanted = triton.InferRequestedOutput("target_label", binary_data=binary_out)
                answer = client.infer("magika", [given], outputs=[wanted], request_id="r-1")
                answers[binary_in, binary_out] = answer.as_numpy("target_label")
                assert answer.get_response()["id"] == "r-1"
                assert answer.get_response()["parameters"] == {"served_by": "berlin"}
        first = answers[True, True]
        assert first.shape == (2, 214)
        assert np.allclose(first.sum(axis=1), 1, atol=1e-3)
        assert all(np.allclose(first, other, atol=1e-6) for other in answers.values())
        compressed = client.infer("magika", [given], request_compression_algorithm="gzip")
        assert np.allclose(compressed.as_numpy("target_label"), first, atol=1e-6)
        statistics = client.get_inference_statistics("magika")["model_stats"][0]
        assert statistics["inference_stats"]["success"]["count"] >= 5
    finally:
        client.close()


def head(size: int = len(RAW), name: str = "x", **more: Any) -> bytes:
    entry = {
        "name": name,
        "shape": more.pop("shape", [1, 3, 48, 192]),
        "datatype": more.pop("datatype", "FP32"),
        "parameters": {"binary_data_size": size},
    }
    return json.dumps({"inputs": [entry], **more}).encode()


def binary(header: bytes, tail: bytes = RAW, length: Any = None) -> tuple[bytes, dict[str, str]]:
    given = len(header) if length is None else length
    return header + tail, {"Inference-Header-Content-Length": str(given)}


def text(**changes: Any) -> tuple[bytes, dict[str, str]]:
    entry = {"name": "x", "shape": [1, 3, 48, 192], "datatype": "FP32", "data": [0] * X.size}
    return json.dumps({"inputs": [{**entry, **changes}]}).encode(), {}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/nope", 404),
        ("GET", "/v2/models/nope/ready", 404),
        ("GET", "/v2/models/cls/versions/9", 404),
        ("POST", "/v2/models/nope/infer", 404),
        ("POST", "/v2/models/cls/versions/9/infer", 404),
        ("GET", "/v2/models/cls/infer", 405),
        ("GET", "/v2/zzz", 404),
    ],
)
def test_what_is_not_there_is_said_in_json(
    site: ServingSite, method: str, path: str, status: int
) -> None:
    got, _, answer = site.request(method, path, text()[0] if method == "POST" else b"")
    assert got == status
    assert json.loads(answer)["error"]


@pytest.mark.parametrize(
    "case",
    ["json", "binary", "binary in and out", "one binary output", "raw", "gzip"],
)
def test_every_form_of_a_good_request_is_answered(site: ServingSite, case: str) -> None:
    body, headers = {
        "json": text(),
        "binary": binary(head()),
        "binary in and out": binary(head(parameters={"binary_data_output": True})),
        "one binary output": binary(
            head(outputs=[{"name": "mean", "parameters": {"binary_data": True}}])
        ),
        "raw": (RAW, {"Inference-Header-Content-Length": "0"}),
        "gzip": (gzip.compress(text()[0]), {"Content-Encoding": "gzip"}),
    }[case]
    status, found, answer = site.request("POST", "/v2/models/cls/infer", body, headers)
    assert status == 200, answer
    length = found.get("inference-header-content-length")
    assert (length is None) == (case in ("json", "binary", "gzip"))
    content = json.loads(answer[: int(length)] if length else answer)
    assert content["outputs"][0]["shape"] == [1, 3]
    if length:
        assert answer[int(length) :] == bytes(12)
    else:
        assert content["outputs"][0]["data"] == [0.0, 0.0, 0.0]
    assert found["atoll-served-by"] == "berlin"


def test_a_body_beyond_the_limit_is_413_and_names_the_limit(site: ServingSite) -> None:
    status, _, answer = site.request("POST", "/v2/models/cls/infer", bytes(4_000_001))
    assert status == 413
    assert "4000000" in json.loads(answer)["error"]
    bomb = gzip.compress(bytes(200_000_000))
    status, _, answer = site.request(
        "POST", "/v2/models/cls/infer", bomb, {"Content-Encoding": "gzip"}
    )
    assert status == 413
    assert site.infer("cls", json.loads(text()[0]))[0] == 200


def rounds(count: int) -> dict[str, Any]:
    return {"inputs": [{"name": "n", "shape": [1], "datatype": "INT64", "data": [count]}]}


def test_a_run_is_stopped_at_its_deadline(site: ServingSite) -> None:
    begun = time.monotonic()
    content = {**rounds(10**9), "parameters": {"timeout": 300_000}}
    status, _, answer = site.infer("endless", content)
    took = time.monotonic() - begun
    assert status == 504, answer
    assert 0.29 < took < 0.8
    begun = time.monotonic()
    status, _, _ = site.infer("endless", rounds(10**9), {"Atoll-Deadline-Ms": "200"})
    assert status == 504
    assert time.monotonic() - begun < 0.8
    assert site.infer("endless", rounds(3))[0] == 200


def test_a_client_that_goes_away_stops_its_run(site: ServingSite) -> None:
    body = json.dumps(rounds(10**9)).encode()
    with socket.create_connection(("127.0.0.1", site.http_port)) as connection:
        connection.sendall(
            b"POST /v2/models/endless/infer HTTP/1.1\r\nHost: x\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        site.wait(site.slots.running)
    site.wait(lambda: not site.slots.running(), timeout=2)
    assert site.infer("endless", rounds(3))[0] == 200


def test_metrics_count_what_happened(site: ServingSite) -> None:
    site.infer("cls", json.loads(text()[0]))
    status, found, body = site.get("/metrics")
    assert status == 200
    assert found["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if line[0] != "#")
    assert int(lines['nv_inference_request_success{model="cls",version="1"}']) >= 1
    assert int(lines['nv_inference_compute_infer_duration_us{model="cls",version="1"}']) >= 1
    assert lines["atoll_ready"] == "1"
    apart = f"http://127.0.0.1:{site.metrics_port}"
    with urllib.request.urlopen(apart + "/metrics") as alone:
        assert b"nv_inference_request_success" in alone.read()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(apart + "/v2/health/live")
    site.wait(
        lambda: site.traffic and site.traffic[-1].requests == int(lines["atoll_requests_total"])
    )


def test_overload_is_refused_at_once_with_retry_after(site: ServingSite) -> None:
    """The queue is bounded by predicted time (1 s), however many ask."""
    answers: list[tuple[int, float, dict[str, str]]] = []
    times = []
    for _ in range(3):
        begun = time.monotonic()
        assert site.infer("endless", rounds(80_000))[0] == 200
        times.append(time.monotonic() - begun)
    # As much work as takes 0.2 s on this machine: 24 of them are more than the queue allows.
    count = round(80_000 * 0.2 / min(times))
    for _ in range(2):
        assert site.infer("endless", rounds(count))[0] == 200

    def ask() -> None:
        begun = time.monotonic()
        status, headers, _ = site.infer("endless", rounds(count))
        answers.append((status, time.monotonic() - begun, headers))

    threads = [threading.Thread(target=ask) for _ in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    refused = [answer for answer in answers if answer[0] == 503]
    assert refused
    assert any(answer[0] == 200 for answer in answers)
    assert {status for status, _, _ in answers} == {200, 503}
    assert all(int(headers["retry-after"]) >= 1 for _, _, headers in refused)


def test_a_killed_worker_fails_its_requests_at_once_and_a_new_one_serves(folder: Path) -> None:
    keys = found(folder / "killed" / "identity")
    with open_site(keys, folder / "blobs") as site:
        ready = site.start_worker()
        assert ready.runtime.startswith("onnxruntime ")
        assert "seccomp" in ready.sandbox
        site.serve("endless", endless_model(folder / "endless2.onnx"))
        answers: list[tuple[int, dict[str, Any], float]] = []

        def ask() -> None:
            status, _, content = site.infer("endless", rounds(10**9))
            answers.append((status, content, time.monotonic()))

        asking = threading.Thread(target=ask)
        asking.start()
        site.wait(site.slots.running)
        assert site.worker is not None
        os.kill(site.worker.process.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        asking.join(5)
        assert answers[0][0] == 503
        assert "worker" in answers[0][1]["error"]
        assert answers[0][2] - killed_at < 0.5
        assert site.get("/v2/health/ready")[0] == 400
        assert len(site.slots.running()) == 1
        site.detach()
        site.worker.close()
        site.slots.close()
        site.start_worker()
        site.serve("endless", folder / "endless2.onnx")
        assert site.infer("endless", rounds(3))[0] == 200
        assert site.get("/v2/health/ready")[0] == 200
        took = time.monotonic() - killed_at
        assert took < 5


def test_models_are_swapped_and_bad_ones_refused_without_harm(
    site: ServingSite, folder: Path
) -> None:
    broken = folder / "broken.onnx"
    broken.write_bytes(MAGIKA.read_bytes()[:1000])
    refused = site.load("broken", broken)
    assert getattr(refused, "reason", "") == "the file is no ONNX model; it is cut off"
    tampered = site.load("magika", MAGIKA, sha256=bytes(32))
    assert "digest" in getattr(tampered, "reason", "")
    failures: list[int] = []
    is_over = threading.Event()

    def load() -> None:
        while not is_over.is_set():
            status, _, _ = site.infer("cls", json.loads(text()[0]))
            if status != 200:
                failures.append(status)

    client = threading.Thread(target=load)
    client.start()
    for _ in range(5):
        site.serve("cls", folder / "cls.onnx")
    is_over.set()
    client.join(10)
    assert not failures


def test_slow_clients_do_not_hold_the_site(site: ServingSite) -> None:
    connections = [socket.create_connection(("127.0.0.1", site.http_port)) for _ in range(50)]
    try:
        for connection in connections:
            connection.sendall(
                b"POST /v2/models/cls/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
            )
        assert site.infer("cls", json.loads(text()[0]))[0] == 200
    finally:
        for connection in connections:
            connection.close()


def test_a_draining_site_says_not_ready_and_takes_nothing(site: ServingSite) -> None:
    site.show(is_draining=True)
    site.wait(lambda: site.get("/v2/health/ready")[0] == 400)
    status, headers, content = site.infer("cls", json.loads(text()[0]))
    assert status == 503
    assert "draining" in content["error"]
    assert headers["retry-after"]
    site.show(is_draining=False)
    site.wait(lambda: site.get("/v2/health/ready")[0] == 200)
