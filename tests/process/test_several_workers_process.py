"""A whole site with two model workers: one of them ends, and nobody who asks the site notices."""

import contextlib
import http.client
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import pytest
from daemon_cluster import Daemon, found, running, scratch, wait_for
from serving_site import endless_model, image_model

from agent.site.shelf import CRASHES_MAX

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

SETTINGS = "[serving]\nworkers = 2\nthreads = 2\n"
SIZE = [1, 3, 48, 192]
IMAGE = {
    "inputs": [{"name": "x", "shape": SIZE, "datatype": "FP32", "data": [0.5] * (3 * 48 * 192)}]
}


@pytest.fixture(scope="module")
def site() -> Iterator[Daemon]:
    with scratch() as folder:
        daemon = found(folder, "berlin", extra=SETTINGS)
        with running(daemon):
            daemon.start().wait_ready()
            push(daemon, "cls", image_model(folder / "cls.onnx"))
            push(daemon, "endless", endless_model(folder / "endless.onnx"))
            wait_for(lambda: is_whole(daemon), 20, "both hold both", [daemon])
            yield daemon


def push(site: Daemon, name: str, path: Path) -> None:
    site.cli("model", "push", str(path), "--name", name, "--version", "1")


def rounds(count: int) -> dict[str, object]:
    given = {"name": "n", "shape": [1], "datatype": "INT64", "data": [count]}
    return {"inputs": [given]}


class Answer(NamedTuple):
    status: int
    text: str
    is_lost: bool = False
    """As it tells the site that passed the request on."""


def ask(site: Daemon, method: str, path: str, content: object = None) -> Answer:
    connection = http.client.HTTPConnection(site.host, 8000, timeout=30)
    try:
        connection.request(method, path, None if content is None else json.dumps(content))
        answer = connection.getresponse()
        is_lost = answer.headers.get("Atoll-Request-Lost") == "true"
        return Answer(answer.status, answer.read().decode(), is_lost)
    finally:
        connection.close()


def infer(site: Daemon, model: str, content: object) -> Answer:
    return ask(site, "POST", f"/v2/models/{model}/infer", content)


def figures(site: Daemon, name: str) -> dict[str, int]:
    """By label; a figure without one by the empty text."""
    text = ask(site, "GET", "/metrics").text
    found = re.findall(rf'^{name}(?:{{worker="(\d)"}})? (\d+)$', text, re.MULTILINE)
    return {label: int(value) for label, value in found}


def holding(site: Daemon) -> dict[str, int]:
    return figures(site, "atoll_worker_models")


def lost(site: Daemon) -> int:
    return figures(site, "atoll_workers_lost_total")[""]


def kill(site: Daemon, index: str, by: signal.Signals = signal.SIGKILL) -> None:
    os.kill(site.pid_of(f"model-worker-{index}"), by)


class Askers:
    """Some threads that ask one good question after the other."""

    def __init__(self, question: Callable[[], Answer], threads: int = 3) -> None:
        self.answers: list[Answer] = []
        self._question, self._over = question, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def _run(self) -> None:
        while not self._over.is_set():
            self.answers.append(self._question())

    def more(self, count: int) -> None:
        """Wait until so many more have been answered."""
        wanted = len(self.answers) + count
        wait_for(lambda: len(self.answers) >= wanted, 20, "served")

    def bad(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status != 200]


def is_whole(site: Daemon) -> bool:
    return holding(site) == {"0": 2, "1": 2}


def test_a_killed_worker_costs_no_request_and_is_back_with_all_models(site: Daemon) -> None:
    with Askers(lambda: infer(site, "cls", IMAGE)) as askers:
        for count, index in enumerate("010", 1):
            kill(site, index)
            wait_for(lambda count=count: lost(site) == count, 20, "noticed", [site])  # type: ignore[misc]
            assert ask(site, "GET", "/v2/health/ready").status == 200
            wait_for(lambda: is_whole(site), 20, "both hold both", [site])
            askers.more(20)
    assert askers.bad() == []
    rows = site.get("/1/status")["processes"]
    workers = {row["name"]: row for row in rows if row["name"].startswith("model-worker")}
    assert [workers[f"model-worker-{index}"]["restarts"] for index in "01"] == [2, 1]
    assert "landlock" in workers["model-worker-1"]["sandbox"]


def test_a_model_that_ends_its_workers_is_quarantined_and_takes_no_others_requests_along(
    site: Daemon,
) -> None:
    """The test's SIGSEGV stands for a model that ends the process by itself in the middle of a run."""
    with Askers(lambda: infer(site, "cls", IMAGE), threads=2) as askers:
        for crashes in range(CRASHES_MAX):
            wait_for(lambda: is_whole(site), 20, "both hold both", [site])
            with asking_for(site, "endless", rounds(10**9)) as answers:
                kill(site, at_work(site, crashes), signal.SIGSEGV)
            assert [(answer.status, answer.is_lost) for answer in answers] == [(503, True)]
        wait_for(lambda: site.model("endless", "1")["state"] == "refused", 20, "refused", [site])
        wait_for(lambda: holding(site) == {"0": 1, "1": 1}, 20, "unloaded", [site])
        askers.more(20)
    assert askers.bad() == []
    assert "quarantined" in site.model("endless", "1")["reason"]
    again = infer(site, "endless", rounds(3))
    assert again.status == 503
    assert "quarantined" in again.text


def test_a_model_that_ends_its_worker_as_it_is_loaded_costs_nobody_elses_requests(
    site: Daemon, tmp_path: Path
) -> None:
    """Each SIGSEGV goes to the worker that loads it; the last one that is up is never given it."""
    heavy, held = endless_model(tmp_path / "heavy.onnx", least=10**12), holding(site)["0"]
    former = -1
    with Askers(lambda: infer(site, "cls", IMAGE), threads=2) as askers:
        site.cli("model", "push", str(heavy), "--name", "heavy", "--version", "1", "--no-wait")
        for _ in range(3):
            found = partial(loads_heavy, site, held, former)
            former = wait_for(found, 20, "loading", [site])
            os.kill(former, signal.SIGSEGV)
        wait_for(lambda: site.model("heavy", "1")["state"] == "refused", 20, "refused", [site])
        wait_for(lambda: holding(site) == {"0": held, "1": held}, 20, "as before", [site])
        askers.more(20)
    assert askers.bad() == []
    assert "quarantined" in site.model("heavy", "1")["reason"]


def loads_heavy(site: Daemon, held: int, former: int) -> int:
    """The process of the worker that has only the heavy model left to load; 0 = none yet."""
    rows = [row for row in site.get("/1/status")["processes"] if row.get("loading") == 1]
    found = (row["pid"] for row in rows if row["models"] == held and row["pid"] is not None)
    return next((pid for pid in found if pid != former), 0)


@contextlib.contextmanager
def asking_for(site: Daemon, model: str, content: object) -> Iterator[list[Answer]]:
    """One question is under way; its answer is there afterwards."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(infer(site, model, content)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join(30)


def at_work(site: Daemon, crashes: int) -> str:
    """The worker that runs the endless request, once the crashes before have been counted."""

    def look() -> set[str]:
        if site.log().count("model endless:1: the model worker ended") < crashes:
            return set()
        readings = [figures(site, "atoll_worker_busy") for _ in range(20)]
        return set.intersection(*({i for i, n in one.items() if n} for one in readings))

    (index,) = wait_for(look, 20, "a worker at work", [site])
    return index
