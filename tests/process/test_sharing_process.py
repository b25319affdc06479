"""One site, several applications and priorities, real models: who waits for whom.

Nothing here is held to a time. What is compared happens side by side on one machine: the mean wait of
those who flood against that of the others, as the site's own counters tell it.
"""

import http.client
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from serving_models import CLS, DET
from serving_site import ServingSite, found, join, open_site
from tritonclient.utils import InferenceServerException

from agent.wire.inside import KnownModel, model_key

pytestmark = pytest.mark.process

CLIENTS = 32
"""Of the one that floods: four times the slots."""
ASKED = 25
"""Requests of the other one, one at a time."""
HEADER = "Inference-Header-Content-Length"
Waits = Mapping[tuple[str, str], tuple[int, float]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharing")


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[ServingSite]:
    keys = found(folder / "berlin")
    options = ("--share", "camera=3", "--queue-max-s", "0.2")
    with open_site(keys, folder / "blobs", options=options) as opened:
        opened.start_worker()
        opened.serve("cls", CLS)
        opened.serve("det", DET)
        yield opened


def body(shape: tuple[int, ...], **parameters: Any) -> tuple[bytes, dict[str, str]]:
    tensor = np.full(shape, 0.5, np.float32)
    size = {"binary_data_size": tensor.nbytes}
    given = {"name": "x", "shape": shape, "datatype": "FP32", "parameters": size}
    head = json.dumps(
        {"parameters": {"binary_data_output": True, **parameters}, "inputs": [given]}
    ).encode()
    return head + tensor.tobytes(), {HEADER: str(len(head))}


DET_BODY = body((1, 3, 96, 96))
CLS_BODY = body((1, 3, 48, 192))


class Flood:
    """Clients that ask again and again, each over a connection of its own."""

    def __init__(
        self, site: ServingSite, model: str, request: tuple[bytes, dict[str, str]], **headers: str
    ) -> None:
        self._site, self._path = site, f"/v2/models/{model}/infer"
        self._body = request[0]
        self._headers = request[1] | {f"Atoll-{name}": value for name, value in headers.items()}
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]
        self.statuses: Counter[int] = Counter()
        self.retry_after: set[str | None] = set()
        self._is_warm = threading.Event()

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(self._site.host, self._site.http_port, timeout=30)
        while not self._ending.is_set():
            connection.request("POST", self._path, self._body, self._headers)
            response = connection.getresponse()
            response.read()
            self.statuses[response.status] += 1
            if response.status == 503:
                self.retry_after.add(response.headers["Retry-After"])
                self._ending.wait(0.02)
            if self.statuses[200] >= 2 * CLIENTS:
                self._is_warm.set()
        connection.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        assert self._is_warm.wait(30), self.statuses
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(30)


def waits(site: ServingSite) -> Waits:
    """Number and sum (seconds) of waits by application and priority."""
    text = site.get("/metrics")[2].decode()
    form = r'^atoll_queue_seconds_{}\{{application="([^"]+)",priority="(\w+)"\}} (\S+)$'
    sums, counts = (re.findall(form.format(one), text, re.MULTILINE) for one in ("sum", "count"))
    return {
        (name, priority): (int(count), float(total))
        for (name, priority, total), (_, _, count) in zip(sums, counts, strict=True)
    }


def mean_s(before: Waits, after: Waits, flow: tuple[str, str]) -> float:
    (number, total), (former_number, former_total) = after[flow], before.get(flow, (0, 0.0))
    assert number > former_number, flow
    return (total - former_total) / (number - former_number)


def ask(site: ServingSite, model: str, request: tuple[bytes, dict[str, str]], **more: str) -> int:
    headers = request[1] | {f"Atoll-{name}": value for name, value in more.items()}
    return site.request("POST", f"/v2/models/{model}/infer", request[0], headers)[0]


def test_one_that_floods_is_refused_and_waits_itself_the_other_does_not_notice(
    site: ServingSite,
) -> None:
    with Flood(site, "det", DET_BODY, Application="flood") as flood:
        before = waits(site)
        statuses = [ask(site, "cls", CLS_BODY, Application="small") for _ in range(ASKED)]
        after = waits(site)
    assert statuses == [200] * ASKED, "it is never over its part"
    assert set(flood.statuses) <= {200, 503}
    assert flood.retry_after <= {"1"}
    flow = ("flood", "normal")
    assert mean_s(before, after, ("small", "normal")) < mean_s(before, after, flow) / 4


def test_what_is_urgent_goes_before_a_full_queue_of_the_same_application(
    site: ServingSite,
) -> None:
    with Flood(site, "det", DET_BODY, Priority="low"):
        before = waits(site)
        statuses = [ask(site, "det", DET_BODY, Priority="high") for _ in range(ASKED)]
        after = waits(site)
    assert statuses == [200] * ASKED
    high, low = (mean_s(before, after, ("local", one)) for one in ("high", "low"))
    assert high < low / 4


def test_low_priority_is_served_while_high_floods(site: ServingSite) -> None:
    with Flood(site, "det", DET_BODY, Priority="high"):
        statuses = [ask(site, "det", DET_BODY, Priority="low") for _ in range(3)]
    assert statuses == [200] * 3


def test_a_weight_is_a_part_of_the_work(site: ServingSite) -> None:
    """Both send the same, more than is done; the weights are 3 and 1."""
    with (
        Flood(site, "det", DET_BODY, Application="camera"),
        Flood(site, "det", DET_BODY, Application="else"),
    ):
        before = waits(site)
        threading.Event().wait(2.0)
        after = waits(site)
    done = {
        name: after[name, "normal"][0] - before.get((name, "normal"), (0, 0.0))[0]
        for name in ("camera", "else")
    }
    assert 1.8 < done["camera"] / done["else"] < 5, done


@pytest.mark.parametrize(
    ("request_", "headers"),
    [
        (CLS_BODY, {"Priority": "urgent"}),
        (CLS_BODY, {"Priority": "4"}),
        (body((1, 3, 48, 192), priority=7), {}),
        (body((1, 3, 48, 192), priority="1.5"), {}),
    ],
)
def test_an_unknown_priority_is_an_error_that_names_the_known_ones(
    site: ServingSite, request_: tuple[bytes, dict[str, str]], headers: dict[str, str]
) -> None:
    more = request_[1] | {f"Atoll-{name}": value for name, value in headers.items()}
    status, _, content = site.request("POST", "/v2/models/cls/infer", request_[0], more)
    assert status == 400
    assert "it may be 1 (high), 2 or 0 (normal), 3 (low)" in json.loads(content)["error"]


def test_large_json_is_held_to_it_too(site: ServingSite) -> None:
    data = [0.5] * 3 * 48 * 192
    given = {"name": "x", "shape": [1, 3, 48, 192], "datatype": "FP32", "data": data}
    status, _, content = site.infer("cls", {"inputs": [given], "parameters": {"priority": 9}})
    assert (status, "priority 9 is unknown" in content["error"]) == (400, True)
    status, _, _ = site.infer("cls", {"inputs": [given], "parameters": {"priority": 1}})
    assert status == 200


def test_triton_clients_say_their_priority_as_to_triton(site: ServingSite) -> None:
    given = np.full((1, 3, 48, 192), 0.5, np.float32)
    before = waits(site)
    client = triton.InferenceServerClient(f"{site.host}:{site.http_port}")
    tensor = triton.InferInput("x", [1, 3, 48, 192], "FP32")
    tensor.set_data_from_numpy(given)
    client.infer("cls", [tensor], priority=1, headers={"Atoll-Application": "rest"})
    client.close()
    with triton_grpc.InferenceServerClient(f"{site.host}:{site.grpc_port}") as over_grpc:
        again = triton_grpc.InferInput("x", [1, 3, 48, 192], "FP32")
        again.set_data_from_numpy(given)
        over_grpc.infer("cls", [again], priority=3, headers={"atoll-application": "grpc"})
        over_grpc.infer("cls", [again], priority=1, headers={"atoll-priority": "normal"})
        with pytest.raises(InferenceServerException, match="priority 9 is unknown"):
            over_grpc.infer("cls", [again], priority=9)
        with pytest.raises(InferenceServerException, match="Atoll-Application is not a name"):
            over_grpc.infer("cls", [again], headers={"atoll-application": "a b"})
    after = waits(site)
    assert after["rest", "high"][0] == 1
    assert after["grpc", "low"][0] == 1
    local = ("local", "normal")
    assert after[local][0] == before.get(local, (0, 0.0))[0] + 1


def test_a_priority_travels_along_and_the_other_site_counts_for_the_one_that_sent(
    site: ServingSite, folder: Path
) -> None:
    keys = join(site.keys, folder / "paris", "paris", "FR")
    with open_site(keys, folder / "paris-blobs", host="127.0.0.2") as paris:
        known = KnownModel(model_key("cls", "1"), "cls", "1", True, ())
        paris.show(known=(known,), sites=(site.as_remote(),))
        site.show(sites=(paris.as_remote(),))
        before = waits(site)
        paris.wait(lambda: ask(paris, "cls", CLS_BODY, Priority="high", Application="x") == 200)
        assert ask(paris, "cls", body((1, 3, 48, 192), priority=3), Application="site-x") == 200
        after = waits(site)
    new = {flow: count for flow, (count, _) in after.items() if flow not in before}
    assert new == {("site paris", "high"): 1, ("site paris", "low"): 1}
