"""A request with an idempotency key, asked again while the site around it is killed."""

import http.client
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from daemon_cluster import Daemon, found, running, scratch, wait_for
from serving_site import endless_model
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


class Answer(NamedTuple):
    status: int
    text: str
    is_replayed: bool


@pytest.fixture(scope="module")
def site() -> Iterator[Daemon]:
    with scratch() as folder:
        daemon = found(folder, "berlin")
        with running(daemon):
            daemon.start().wait_ready()
            model = endless_model(folder / "endless.onnx")
            daemon.cli("model", "push", str(model), "--name", "endless", "--version", "1")
            wait_for(lambda: ask(daemon, None).status == 200, 20, "served", [daemon])
            yield daemon


def ask(site: Daemon, key: str | None, rounds: int = 3, timeout_s: float = 30.0) -> Answer:
    given = {"name": "n", "shape": [1], "datatype": "INT64", "data": [rounds]}
    headers = {} if key is None else {"Idempotency-Key": key}
    connection = http.client.HTTPConnection(site.host, 8000, timeout=timeout_s)
    try:
        connection.request(
            "POST", "/v2/models/endless/infer", json.dumps({"inputs": [given]}), headers
        )
        answer = connection.getresponse()
        is_replayed = answer.headers.get("Idempotency-Replayed") == "true"
        return Answer(answer.status, answer.read().decode(), is_replayed)
    finally:
        connection.close()


def runs(site: Daemon) -> int:
    connection = http.client.HTTPConnection(site.host, 8000, timeout=10)
    connection.request("GET", "/v2/models/endless/stats")
    (figures,) = json.loads(connection.getresponse().read())["model_stats"]
    connection.close()
    return int(figures["execution_count"])


def metrics(site: Daemon) -> str:
    connection = http.client.HTTPConnection(site.host, 8000, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def served(site: Daemon) -> bool:
    try:
        return ask(site, None, timeout_s=5).status == 200
    except OSError:
        return False


def test_who_asks_again_hears_the_same_and_the_model_runs_once(site: Daemon) -> None:
    before = runs(site)
    first, again = ask(site, "a-1"), ask(site, "a-1")
    assert (first.status, first.is_replayed) == (200, False)
    assert again == first._replace(is_replayed=True)
    assert runs(site) == before + 1
    assert ask(site, "a-1", rounds=4).status == 422
    assert ask(site, "a b").status == 400


def test_grpc_knows_the_same_keys(site: Daemon) -> None:
    before = runs(site)
    given = triton_grpc.InferInput("n", [1], "INT64")
    given.set_data_from_numpy(np.array([3]))
    with triton_grpc.InferenceServerClient(f"{site.host}:8001") as client:
        headers = {"idempotency-key": "g-1"}
        for _ in range(2):
            client.infer("endless", [given], headers=headers)
        assert runs(site) == before + 1
        with pytest.raises(InferenceServerException, match="used for another request"):
            client.infer("endless", [given], headers={"idempotency-key": "a-1"})


def test_a_caller_that_hangs_up_gets_its_answer_when_it_asks_again(site: Daemon) -> None:
    before = runs(site)
    with pytest.raises(TimeoutError):
        ask(site, "b-1", rounds=1_000_000, timeout_s=0.1)
    again = ask(site, "b-1", rounds=1_000_000)
    assert (again.status, again.is_replayed) == (200, True)
    assert runs(site) == before, "neither the one that hung up nor the repetition counts as a run"


@pytest.mark.parametrize("what", ["gateway", "site"])
def test_what_was_running_when_it_was_killed_is_not_run_again(site: Daemon, what: str) -> None:
    def forever() -> None:
        try:
            ask(site, f"c-{what}", rounds=10**9)
        except (OSError, http.client.HTTPException):
            is_cut.set()

    is_cut = threading.Event()
    asking = threading.Thread(target=forever)
    asking.start()
    wait_for(lambda: "nv_inference_pending_request_count 1\n" in metrics(site), 20, "begun", [site])
    if what == "gateway":
        os.kill(site.pid_of("gateway"), signal.SIGKILL)
    else:
        site.kill()
        site.start().wait_ready()
    asking.join(20)
    assert is_cut.is_set()
    wait_for(lambda: served(site), 20, "serves again", [site])
    answer = ask(site, f"c-{what}", rounds=10**9)
    assert answer.status == 409
    assert "or may have been" in answer.text
    assert ask(site, "a-1").status == 409, "it ran; its answer went with the process"
