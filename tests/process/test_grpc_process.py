"""The gateway over gRPC, spoken to by NVIDIA's client, beside the same questions over HTTP."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.http as triton_http
from serving_site import MAGIKA, ServingSite, endless_model, found, image_model, open_site
from tritonclient.utils import InferenceServerException

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grpc")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[ServingSite]:
    keys = found(folder / "identity")
    with open_site(keys, folder / "blobs", options=("--request-bytes-max", "4000000")) as opened:
        opened.start_worker()
        opened.serve("magika", MAGIKA)
        opened.serve("cls", image_model(folder / "cls.onnx"))
        opened.serve("endless", endless_model(folder / "endless.onnx"))
        yield opened


@pytest.fixture(scope="module")
def client(site: ServingSite) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{site.grpc_port}") as opened:
        yield opened


def magika_input(rows: int = 2) -> Any:
    given = triton.InferInput("bytes", [rows, 2048], "INT32")
    given.set_data_from_numpy(np.full((rows, 2048), 32, np.int32))
    return given


def rounds(count: int) -> Any:
    given = triton.InferInput("n", [1], "INT64")
    given.set_data_from_numpy(np.array([count], np.int64))
    return given


def test_the_server_and_its_models_describe_themselves_as_over_http(
    site: ServingSite, client: Any
) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("magika")
    over_http = triton_http.InferenceServerClient(f"127.0.0.1:{site.http_port}")
    try:
        metadata = client.get_server_metadata(as_json=True)
        assert metadata == over_http.get_server_metadata()
        model = client.get_model_metadata("magika", "1", as_json=True)
        expected = over_http.get_model_metadata("magika", "1")
        for tensor in (*model["inputs"], *model["outputs"]):
            tensor["shape"] = [int(dimension) for dimension in tensor["shape"]]
        assert model == expected
        config = client.get_model_config("magika", as_json=True)["config"]
        expected = over_http.get_model_config("magika")
        assert config["input"][0]["data_type"] == expected["input"][0]["data_type"]
        assert config["backend"] == expected["backend"]
        index = client.get_model_repository_index(as_json=True)["models"]
        listed = over_http.get_model_repository_index()
        assert [(m["name"], m["state"]) for m in index] == [(m["name"], m["state"]) for m in listed]
    finally:
        over_http.close()


def test_answers_are_those_of_http_to_the_bit(site: ServingSite, client: Any) -> None:
    answer = client.infer("magika", [magika_input()], request_id="r-1")
    assert answer.get_response().id == "r-1"
    assert answer.get_response().parameters["served_by"].string_param == "berlin"
    over_http = triton_http.InferenceServerClient(f"127.0.0.1:{site.http_port}")
    try:
        given = triton_http.InferInput("bytes", [2, 2048], "INT32")
        given.set_data_from_numpy(np.full((2, 2048), 32, np.int32))
        expected = over_http.infer("magika", [given]).as_numpy("target_label")
    finally:
        over_http.close()
    assert np.array_equal(answer.as_numpy("target_label"), expected)
    image = np.random.default_rng(5).random((1, 3, 48, 192), np.float32)
    given = triton.InferInput("x", list(image.shape), "FP32")
    given.set_data_from_numpy(image)
    wanted = [triton.InferRequestedOutput("mean")]
    one, two = (client.infer("cls", [given], outputs=wanted).as_numpy("mean") for _ in range(2))
    assert np.array_equal(one, two)
    statistics = client.get_inference_statistics("cls", as_json=True)["model_stats"][0]
    assert int(statistics["inference_stats"]["success"]["count"]) >= 2


def test_the_asyncio_client_works_unchanged(site: ServingSite) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{site.grpc_port}") as opened:
            asked = [opened.infer("magika", [magika_input(1)]) for _ in range(16)]
            return [answer.as_numpy("target_label") for answer in await asyncio.gather(*asked)]

    answers = asyncio.run(ask())
    assert len(answers) == 16
    assert all(np.allclose(answer, answers[0], atol=1e-2) for answer in answers)


def test_under_load_everybody_gets_the_answer_to_their_own_question(site: ServingSite) -> None:
    """Requests that wait for the same model run together; none may get a neighbour's rows."""

    async def ask(client: Any, number: int) -> tuple[int, Any]:
        given = triton.InferInput("x", [1, 3, 48, 192], "FP32")
        given.set_data_from_numpy(np.full((1, 3, 48, 192), number, np.float32))
        return number, (await client.infer("cls", [given])).as_numpy("mean")

    async def ask_all() -> list[tuple[int, Any]]:
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{site.grpc_port}") as opened:
            return await asyncio.gather(*(ask(opened, number) for number in range(200)))

    for number, mean in asyncio.run(ask_all()):
        assert np.allclose(mean, number), number
    statistics = site.get("/v2/models/cls/stats")[2]
    (figures,) = json.loads(statistics)["model_stats"]
    assert figures["inference_count"] >= 200
    assert figures["execution_count"] < figures["inference_count"]
    runs = sum(entry["compute_infer"]["count"] for entry in figures["batch_stats"])
    assert runs == figures["execution_count"]


def test_a_stream_answers_in_order_and_survives_a_wrong_request(client: Any) -> None:
    answers: list[tuple[Any, Any]] = []
    done = threading.Semaphore(0)

    def took(result: Any, error: Any) -> None:
        answers.append((result, error))
        done.release()

    client.start_stream(took)
    try:
        client.async_stream_infer("magika", [magika_input(1)], request_id="1")
        client.async_stream_infer("nobody", [magika_input(1)], request_id="2")
        client.async_stream_infer("magika", [magika_input(1)], request_id="3")
        for _ in range(3):
            assert done.acquire(timeout=10)
    finally:
        client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    assert "unknown model 'nobody'" in str(answers[1][1])
    assert [answers[i][0].get_response().id for i in (0, 2)] == ["1", "3"]


@pytest.mark.parametrize(
    ("model", "name", "shape", "datatype", "code", "told"),
    [
        ("nobody", "bytes", [1, 2048], np.int32, "NOT_FOUND", "unknown model 'nobody'"),
        ("magika", "words", [1, 2048], np.int32, "INVALID_ARGUMENT", "unknown input 'words'"),
        ("magika", "bytes", [1, 2047], np.int32, "INVALID_ARGUMENT", "expected [-1, 2048]"),
        ("magika", "bytes", [1, 2048], np.float32, "INVALID_ARGUMENT", "expected INT32"),
        ("cls", "x", [1, 3, 1048, 1192], np.float32, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    client: Any, model: str, name: str, shape: list[int], datatype: Any, code: str, told: str
) -> None:
    kind = {np.int32: "INT32", np.float32: "FP32"}[datatype]
    given = triton.InferInput(name, shape, kind)
    given.set_data_from_numpy(np.zeros(shape, datatype))
    with pytest.raises(InferenceServerException) as caught:
        client.infer(model, [given])
    assert caught.value.status() == f"StatusCode.{code}"
    assert told in caught.value.message()


def test_the_clients_deadline_stops_the_work(site: ServingSite, client: Any) -> None:
    begun = time.monotonic()
    with pytest.raises(InferenceServerException) as caught:
        client.infer("endless", [rounds(10**9)], client_timeout=0.3)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert time.monotonic() - begun < 2
    site.wait(lambda: not site.slots.running(), timeout=5)
    assert len(client.infer("endless", [rounds(3)]).get_response().outputs) == 1


def test_a_label_in_the_metadata_is_obeyed(client: Any) -> None:
    with pytest.raises(InferenceServerException) as caught:
        client.infer("magika", [magika_input(1)], headers={"atoll-residency": "FR"})
    assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
    assert "FR" in caught.value.message()
    answer = client.infer("magika", [magika_input(1)], headers={"atoll-residency": "DE,FR"})
    assert answer.as_numpy("target_label").shape == (1, 214)


def test_garbage_on_the_port_disturbs_nobody(site: ServingSite, client: Any) -> None:
    for junk in (
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 999,
    ):
        with socket.create_connection(("127.0.0.1", site.grpc_port)) as connection:
            connection.sendall(junk)
    channel = grpc.insecure_channel(f"127.0.0.1:{site.grpc_port}")
    with channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError):
            call(b"\xff\xff\xff", timeout=5)
        unknown: Any = channel.unary_unary("/inference.GRPCInferenceService/Nothing")
        with pytest.raises(grpc.RpcError) as caught:
            unknown(b"", timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert client.is_server_ready()


def test_two_thousand_silent_connections_keep_nobody_out(site: ServingSite, client: Any) -> None:
    """Those that have said nothing, and those that have opened HTTP/2 and then nothing, give way; a call
    that is under way meanwhile does not."""
    opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    done: list[Any] = []
    over = threading.Event()

    def took(result: Any, error: Any) -> None:
        done.extend((result, error))
        over.set()

    with contextlib.ExitStack() as stack:
        client.async_infer("endless", [rounds(200_000)], took)
        for number in range(2000):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", site.grpc_port)))
            if number % 2:
                with contextlib.suppress(OSError):
                    held.sendall(opening)
        gateway = psutil.Process(site.gateway.process.pid)
        site.wait(lambda: gateway.num_fds() < 1000)
        with triton.InferenceServerClient(f"127.0.0.1:{site.grpc_port}") as another:
            assert another.is_server_live()
        assert over.wait(30)
    assert done[1] is None
