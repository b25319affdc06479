"""Load and unload by the clients that people have, at two real sites: durable, hot, and told in words."""

import json
import re
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from daemon_cluster import Daemon, admit, found, running, scratch, wait_for
from serving_site import endless_model, times_model
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]


@dataclass
class Pair:
    berlin: Daemon
    paris: Daemon
    files: Path

    @property
    def all(self) -> list[Daemon]:
        return [self.berlin, self.paris]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """``twice`` doubles as version 1 and trebles as version 2; ``german`` may not be in FR."""
    with scratch() as folder:
        berlin = found(folder, "berlin", "DE")
        with running(berlin):
            berlin.start().wait_ready()
            paris = admit(berlin, "paris", "FR")
            with running(paris):
                paris.start().wait_ready()
                wait_for(
                    lambda: all(one.alive() == {"berlin", "paris"} for one in (berlin, paris)),
                    30, "both see both", [berlin, paris],
                )  # fmt: skip
                for version, factor in (("1", 2), ("2", 3)):
                    push(berlin, times_model(folder, factor), "twice", version)
                push(berlin, times_model(folder, 5), "german", "1", "--residency", "DE")
                yield Pair(berlin, paris, folder)


def push(site: Daemon, file: Path, name: str, version: str, *more: str) -> None:
    site.cli("model", "push", str(file), "--name", name, "--version", version, *more)


def given(module: Any) -> list[Any]:
    one = module.InferInput("x", [2], "FP32")
    one.set_data_from_numpy(np.array([1, 2], np.float32))
    return [one]


def infer(site: Daemon, version: str = "", model: str = "twice") -> tuple[float, str]:
    """What 1 becomes, and who answered."""
    with triton_http.InferenceServerClient(site.http, network_timeout=20) as client:
        answer = client.infer(model, given(triton_http), model_version=version)
        served_by = answer.get_response()["parameters"]["served_by"]
        return float(answer.as_numpy("y")[0]), str(served_by)


def refused(call: Callable[[], Any]) -> InferenceServerException:
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value


def index(site: Daemon) -> dict[tuple[str, str], dict[str, Any]]:
    with triton_http.InferenceServerClient(site.http) as client:
        rows = client.get_model_repository_index()
    return {(row["name"], row["version"]): row for row in rows}


def test_http_clients_unload_and_load_and_the_index_says_who_did(pair: Pair) -> None:
    with triton_http.InferenceServerClient(pair.berlin.http, network_timeout=60) as client:
        assert client.is_model_ready("twice")
        client.unload_model("twice", unload_dependents=True)
        assert not client.is_model_ready("twice")
        row = index(pair.berlin)["twice", "2"]
        assert row["state"] == "UNAVAILABLE"
        assert "unloaded by an application at 127." in row["reason"]
        error = refused(lambda: client.infer("twice", given(triton_http)))
        assert error.status() == "404"
        assert "unloaded by an application at 127." in str(error)
        client.load_model("twice")
        assert client.is_model_ready("twice")
        assert infer(pair.berlin) == (3.0, "berlin")
        assert index(pair.berlin)["twice", "2"] == {
            "name": "twice", "version": "2", "state": "READY", "reason": "",
        }  # fmt: skip


def test_grpc_clients_do_the_same(pair: Pair) -> None:
    with triton_grpc.InferenceServerClient(f"{pair.berlin.host}:8001") as client:
        client.unload_model("twice")
        assert not client.is_model_ready("twice")
        rows = client.get_model_repository_index().models
        assert {(one.name, one.version): one.state for one in rows}["twice", "2"] == "UNAVAILABLE"
        error = refused(lambda: client.infer("twice", given(triton_grpc)))
        assert error.status() == "StatusCode.NOT_FOUND"
        assert "unloaded by an application at 127." in str(error)
        client.load_model("twice")
        assert client.is_model_ready("twice")
        assert client.infer("twice", given(triton_grpc)).as_numpy("y")[0] == 3.0


async def test_so_do_the_asyncio_clients(pair: Pair) -> None:
    clients: tuple[Any, ...] = (
        triton_http_aio.InferenceServerClient(pair.berlin.http),
        triton_grpc_aio.InferenceServerClient(f"{pair.berlin.host}:8001"),
    )
    for client in clients:
        async with client:
            await client.unload_model("twice")
            assert not await client.is_model_ready("twice")
            await client.load_model("twice")
            assert await client.is_model_ready("twice")


def test_what_a_load_may_not_bring_is_refused_in_words(pair: Pair) -> None:
    over_http = triton_http.InferenceServerClient(pair.berlin.http)
    over_grpc = triton_grpc.InferenceServerClient(f"{pair.berlin.host}:8001")
    with over_http, over_grpc:
        for client in (over_http, over_grpc):
            error = refused(partial(client.load_model, "twice", config="{}"))
            assert "signed catalog" in str(error)
            assert "atoll model push" in str(error)
            error = refused(partial(client.load_model, "nope"))
            assert "unknown model 'nope'" in str(error)
            assert "atoll model push" in str(error)
        files = {"file:1/model.onnx": b"0" * 200_000}
        error = refused(lambda: over_grpc.load_model("twice", config="{}", files=files))
        assert "a load takes no" in str(error)
    large = json.dumps({"parameters": {"file:1/model.onnx": "0" * 200_000}}).encode()
    with triton_http.InferenceServerClient(pair.berlin.http) as client:
        answer = client._post("v2/repository/models/twice/load", large, None, None)
        assert answer.status_code == 413
        assert b"atoll model push" in answer.read()
    assert infer(pair.berlin) == (3.0, "berlin")


def test_two_versions_are_ready_at_once_and_each_is_asked_by_its_number(pair: Pair) -> None:
    assert refused(lambda: infer(pair.berlin, "1")).status() == "503"
    pair.berlin.cli("model", "load", "twice:1")
    assert infer(pair.berlin, "1") == (2.0, "berlin")
    assert infer(pair.berlin, "2") == (3.0, "berlin")
    assert infer(pair.berlin) == (3.0, "berlin"), "none named: the deployed one"
    with triton_grpc.InferenceServerClient(f"{pair.berlin.host}:8001") as client:
        for version, becomes in (("1", 2.0), ("2", 3.0), ("", 3.0)):
            answer = client.infer("twice", given(triton_grpc), model_version=version)
            assert answer.as_numpy("y")[0] == becomes
        assert list(client.get_model_metadata("twice").versions) == ["2", "1"]
        assert list(client.get_model_metadata("twice", "1").versions) == ["1", "2"]
        assert list(client.get_model_metadata("german").versions) == ["1"]
    rows = index(pair.berlin)
    assert [rows["twice", version]["state"] for version in "12"] == ["READY", "READY"]
    assert "loaded by the operator" in pair.berlin.model("twice", "1")["reason"]
    pair.berlin.cli("model", "unload", "twice:1")
    assert "unloaded by the operator at" in str(refused(lambda: infer(pair.berlin, "1")))
    assert infer(pair.berlin) == (3.0, "berlin")


def test_an_unload_outlives_a_restart(pair: Pair) -> None:
    pair.berlin.cli("model", "unload", "twice")
    pair.berlin.kill()
    pair.berlin.start().wait_ready()
    row = pair.berlin.model("twice", "2")
    assert row["state"] == "unloaded"
    assert "unloaded by the operator at" in row["reason"]
    listed = pair.berlin.cli("model", "list").stdout
    assert "berlin unloaded (unloaded by the operator at" in listed
    assert "unloaded by the operator at" in pair.berlin.cli("status").stdout
    assert refused(lambda: infer(pair.berlin)).status() == "404"
    assert "is ready here" in pair.berlin.cli("model", "load", "twice").stdout
    assert infer(pair.berlin) == (3.0, "berlin")


def test_a_load_never_brings_a_model_where_its_label_does_not_let_it(pair: Pair) -> None:
    done = pair.paris.cli("model", "load", "german", ok=False)
    assert done.returncode == 1
    assert "its residency is DE, this site is in FR" in done.stderr
    with triton_http.InferenceServerClient(pair.paris.http) as client:
        error = refused(lambda: client.load_model("german"))
    assert error.status() == "403"
    assert "a residency is never overridden" in str(error)


def test_no_request_fails_while_a_model_moves_from_one_site_to_the_other(pair: Pair) -> None:
    """Paris loads what only Berlin is to serve; then Berlin's clients are answered by Paris."""
    pair.paris.cli("model", "load", "twice")
    wait_for(
        lambda: len(pair.berlin.json("route", "explain", "twice")["candidates"]) == 2,
        20, "berlin knows that paris serves it", pair.all,
    )  # fmt: skip
    stop, answered, failed = threading.Event(), list[str](), list[str]()

    def ask() -> None:
        while not stop.is_set():
            try:
                becomes, by = infer(pair.berlin)
                (answered if becomes == 3.0 else failed).append(by)
            except InferenceServerException as error:
                failed.append(str(error))

    askers = [threading.Thread(target=ask) for _ in range(4)]
    for one in askers:
        one.start()
    try:
        for _ in range(3):
            pair.berlin.cli("model", "unload", "twice")
            wait_for(lambda: answered[-1:] == ["paris"], 10, "paris answers", pair.all)
            pair.berlin.cli("model", "load", "twice")
            wait_for(lambda: answered[-1:] == ["berlin"], 10, "berlin answers", pair.all)
    finally:
        stop.set()
        for one in askers:
            one.join()
    assert failed == []
    assert {"berlin", "paris"} <= set(answered)
    pair.paris.cli("model", "unload", "twice")


def test_what_is_under_way_when_its_model_is_unloaded_is_answered(pair: Pair) -> None:
    push(pair.berlin, endless_model(pair.files / "endless.onnx"), "endless", "1")
    given = triton_http.InferInput("n", [1], "INT64")
    given.set_data_from_numpy(np.array([3_000_000]))  # seconds
    ended = list[str]()

    def ask() -> None:
        with triton_http.InferenceServerClient(pair.berlin.http, network_timeout=60) as client:
            total = client.infer("endless", [given]).as_numpy("total")
            ended.append("infer" if total is not None else "nothing")

    asker = threading.Thread(target=ask)
    asker.start()
    wait_for(lambda: in_flight(pair.berlin) == 1, 10, "it is under way", pair.all)
    pair.berlin.cli("model", "unload", "endless")
    ended.append("unload")
    assert refused(lambda: infer(pair.berlin, model="endless")).status() == "404"
    asker.join()
    assert ended == ["unload", "infer"]


def in_flight(site: Daemon) -> int:
    (count,) = re.findall(
        r"^nv_inference_pending_request_count (\d+)$", metrics(site), re.MULTILINE
    )
    return int(count)


def metrics(site: Daemon) -> str:
    with urllib.request.urlopen(f"http://{site.http}/metrics") as answer:
        return str(answer.read().decode())


def test_the_lag_of_the_control_process_is_in_the_metrics_and_in_status(pair: Pair) -> None:
    found = re.findall(
        r"^atoll_control_loop_lag_seconds_count (\d+)$", metrics(pair.berlin), re.MULTILINE
    )
    (count,) = found
    assert int(count) > 0
    assert pair.berlin.get("/1/status")["loop_lag"]["samples"] >= int(count)


def test_no_log_holds_a_defect(pair: Pair) -> None:
    for site in pair.all:
        assert "Traceback" not in site.log()
        assert "defect" not in site.log()
