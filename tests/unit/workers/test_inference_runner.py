"""Every ring is answered once: run, refused, late, cancelled or given up."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from onnx import parser

from agent.drivers.shared_memory import SharedSlots, doorbell_pair
from agent.foundation.errors import UsageError
from agent.serving.batching import Sizes
from agent.serving.doorbell import RING_BYTES_MAX, AnswerRing, InferRing, unpack_ring
from agent.serving.fair import Priority, Turn
from agent.workers import inference_runner
from agent.workers.inference_runner import EXIT_STUCK, Loaded, Runner
from agent.workers.inference_session import ModelSession, Terminated

TURN = Turn(0, 1, Priority.NORMAL, 1000)

KEY = b"endless!"
MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (int64 n) => (float total) {
    start = Constant<value_float = 1.0>()
    total = Loop<body = b (int64 i, bool go, float t) => (bool go_out, float t_out) {
        go_out = Identity(go)
        t_out = Add(t, t)
    }>(n, , start)
}"""


@dataclass
class Gateway:
    runner: Runner
    doorbell: socket.socket
    slots: SharedSlots
    number: int = 0

    def ring(
        self, rounds: int, *, left_s: float = 10.0, slot: int = 0, key: bytes = KEY, **more: Any
    ) -> int:
        given = {"name": "n", "shape": [], "datatype": "INT64", "data": [rounds]}
        body = json.dumps({"inputs": [given], **more}).encode()
        self.slots.slot(slot)[: len(body)] = body
        self.number += 1
        now = time.monotonic()
        ring = InferRing(self.number, slot, 0, len(body), None, key, now + left_s, now, TURN)
        self.doorbell.send(ring.pack())
        return self.number

    def answer(self) -> tuple[AnswerRing, dict[str, Any]]:
        ring = unpack_ring(self.doorbell.recv(RING_BYTES_MAX))
        assert isinstance(ring, AnswerRing)
        return ring, json.loads(bytes(self.slots.slot(ring.slot)[: ring.body_bytes]))


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    runner = Runner(1, exit_process=lambda _: None)
    content = parser.parse_model(MODEL).SerializeToString()
    runner.models[KEY] = Loaded(ModelSession(content, "endless", "1", ()), "berlin")
    slots = SharedSlots.create(4, 65_536)
    ours, theirs = doorbell_pair()
    ours.settimeout(10)
    runner.attach(theirs, SharedSlots(os.dup(slots.fileno())))
    yield Gateway(runner, ours, slots)
    ours.close()
    slots.close()


def test_a_request_is_answered_in_its_slot(gateway: Gateway) -> None:
    number = gateway.ring(3, slot=2, id="r")
    ring, content = gateway.answer()
    assert (ring.number, ring.slot, ring.status) == (number, 2, 200)
    assert ring.run_us > 0
    assert content["id"] == "r"
    assert content["outputs"][0]["data"] == [8.0]
    assert content["parameters"] == {"served_by": "berlin"}
    assert gateway.slots.runners == 1
    assert gateway.slots.running() == []


def test_a_refusal_is_answered_too(gateway: Gateway) -> None:
    gateway.ring(3, outputs=[{"name": "nope"}])
    ring, content = gateway.answer()
    assert ring.status == 400
    assert "'nope'" in content["error"]
    gateway.ring(3, key=b"unknown!")
    assert gateway.answer()[0].status == 503


def test_a_run_is_stopped_at_its_deadline_and_the_next_one_is_not(gateway: Gateway) -> None:
    gateway.ring(10**9, left_s=0.2)
    gateway.ring(3, slot=1)
    begun = time.monotonic()
    ring, content = gateway.answer()
    assert ring.status == 504
    assert "deadline" in content["error"]
    assert time.monotonic() - begun < 1
    assert gateway.answer()[0].status == 200


def test_a_requests_own_timeout_counts(gateway: Gateway) -> None:
    gateway.ring(10**9, parameters={"timeout": 100_000})
    assert gateway.answer()[0].status == 504


def test_what_is_too_late_is_not_begun(gateway: Gateway) -> None:
    gateway.ring(10**9, left_s=-1)
    ring, _ = gateway.answer()
    assert (ring.status, ring.run_us) == (504, 0)


def test_a_cancelled_run_stops_and_hands_its_slot_back(gateway: Gateway) -> None:
    running = gateway.ring(10**9)
    while not gateway.slots.running():
        threading.Event().wait(0.005)
    assert gateway.slots.running() == [KEY]
    waiting = gateway.ring(10**9, slot=1)
    gateway.slots.cancel(1, waiting)
    gateway.slots.cancel(0, running)
    gateway.slots.cancel(2, 99)
    answers = [gateway.answer()[0] for _ in range(2)]
    assert {(ring.number, ring.status) for ring in answers} == {(running, 499), (waiting, 499)}


def test_a_gateway_that_goes_away_leaves_nothing_running(gateway: Gateway) -> None:
    gateway.ring(10**9)
    while not gateway.slots.running():
        threading.Event().wait(0.005)
    gateway.doorbell.close()
    end = time.monotonic() + 2
    while gateway.slots.running():
        assert time.monotonic() < end
        threading.Event().wait(0.005)


class Deaf:
    """Native code that does not listen to ``terminate``."""

    def __init__(self, like: ModelSession) -> None:
        self.signature, self.name, self.version = like.signature, like.name, like.version
        self.heard = threading.Event()

    def run(self, *_: Any) -> list[Any]:
        self.heard.wait(10)
        raise Terminated("at last")


def test_a_run_that_does_not_stop_ends_the_process(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference_runner, "STUCK_AFTER_S", 0.1)
    deaf = Deaf(gateway.runner.models[KEY].session)
    gateway.runner.models[KEY] = Loaded(deaf, "berlin")  # type: ignore[arg-type]
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        deaf.heard.set()

    gateway.runner._exit = end
    gateway.ring(1, left_s=0.1)
    ring, _ = gateway.answer()
    assert ended[0] == EXIT_STUCK
    assert ring.status == 504


# --- several at once -----------------------------------------------------------------------------
ROWS = b"by rows!"


class Counting:
    """A model of rows that says how many came at once, and can be held up or made to fail."""

    def __init__(self) -> None:
        text = """<ir_version: 8, opset_import: ["" : 13]> g (float[N] x) => (float[N] y) {
            y = Neg(x)
        }"""
        content = parser.parse_model(text).SerializeToString()
        self._inner = ModelSession(content, "rows", "1", ())
        self.signature, self.name, self.version = self._inner.signature, "rows", "1"
        self.sizes: list[int] = []
        self.passes = threading.Semaphore(0)
        self.refused: float | None = None

    def run(self, request: Any, inputs: Any, options: Any) -> list[Any]:
        return self.run_named([o.spec.name for o in request.outputs], {"x": inputs[0]}, options)

    def run_named(self, names: list[str], feeds: dict[str, Any], options: Any) -> list[Any]:
        self.sizes.append(len(feeds["x"]))
        while not self.passes.acquire(timeout=0.005):
            if options.terminate:
                raise Terminated("stopped")
        if self.refused in feeds["x"]:
            raise UsageError("this value is not taken")
        return self._inner.run_named(names, feeds, options)


@pytest.fixture
def counting(gateway: Gateway) -> Counting:
    model = Counting()
    gateway.runner.models[ROWS] = Loaded(model, "berlin", Sizes())  # type: ignore[arg-type]
    return model


def ring_rows(gateway: Gateway, slot: int, values: list[float], left_s: float = 10.0) -> int:
    given = {"name": "x", "shape": [len(values)], "datatype": "FP32", "data": values}
    body = json.dumps({"inputs": [given]}).encode()
    gateway.slots.slot(slot)[: len(body)] = body
    gateway.number += 1
    now = time.monotonic()
    gateway.doorbell.send(
        InferRing(gateway.number, slot, 0, len(body), None, ROWS, now + left_s, now, TURN).pack()
    )
    return gateway.number


def until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not is_so():
        assert time.monotonic() < end
        threading.Event().wait(0.002)


def wait_behind_one(gateway: Gateway, counting: Counting, *rings: Callable[[], int]) -> list[int]:
    """While one request is inside the model these come, and wait together."""
    ring_rows(gateway, 3, [0.0])
    until(lambda: bool(counting.sizes))
    return [ring() for ring in rings]


def test_what_waits_runs_together_and_each_gets_its_own_rows(
    gateway: Gateway, counting: Counting
) -> None:
    first, second = wait_behind_one(
        gateway,
        counting,
        lambda: ring_rows(gateway, 0, [1.0]),
        lambda: ring_rows(gateway, 1, [2.0]),
    )
    counting.passes.release(2)
    gateway.answer()
    found = {ring.number: (ring, content) for ring, content in (gateway.answer(), gateway.answer())}
    assert counting.sizes == [1, 2]
    assert found[first][1]["outputs"][0]["data"] == [-1.0]
    assert found[second][1]["outputs"][0]["data"] == [-2.0]
    assert [(found[n][0].together, found[n][0].is_first) for n in (first, second)] == [
        (2, True),
        (2, False),
    ]


def test_a_request_that_the_model_refuses_costs_its_company_nothing(
    gateway: Gateway, counting: Counting
) -> None:
    counting.refused = 66.0
    good, bad = wait_behind_one(
        gateway,
        counting,
        lambda: ring_rows(gateway, 0, [1.0]),
        lambda: ring_rows(gateway, 1, [66.0]),
    )
    counting.passes.release(4)
    found: dict[int, tuple[int, Any]] = {}
    for _ in range(3):
        ring, content = gateway.answer()
        found[ring.number] = (ring.status, content)
    assert found[good][0] == 200
    assert found[good][1]["outputs"][0]["data"] == [-1.0]
    assert found[bad][0] == 400
    assert counting.sizes == [1, 2, 1, 1], "together once, then each alone"


def test_who_is_over_time_in_company_is_told_at_once_and_the_others_go_on(
    gateway: Gateway, counting: Counting
) -> None:
    hasty, patient = wait_behind_one(
        gateway,
        counting,
        lambda: ring_rows(gateway, 0, [1.0], left_s=0.5),
        lambda: ring_rows(gateway, 1, [2.0]),
    )
    counting.passes.release()
    gateway.answer()
    ring, _ = gateway.answer()
    assert counting.sizes == [1, 2]
    assert (ring.number, ring.status) == (hasty, 504)
    counting.passes.release()
    ring, content = gateway.answer()
    assert (ring.number, ring.status) == (patient, 200)
    assert content["outputs"][0]["data"] == [-2.0]
    assert gateway.slots.running() == []


def test_when_nobody_of_a_run_waits_any_more_it_stops(gateway: Gateway, counting: Counting) -> None:
    numbers = wait_behind_one(
        gateway,
        counting,
        lambda: ring_rows(gateway, 0, [1.0]),
        lambda: ring_rows(gateway, 1, [2.0]),
    )
    counting.passes.release()
    gateway.answer()
    until(lambda: counting.sizes == [1, 2])
    for slot, number in enumerate(numbers):
        gateway.slots.cancel(slot, number)
    assert {gateway.answer()[0].status for _ in numbers} == {499}
    until(lambda: not gateway.slots.running())
