"""New versions in waves at three real sites under load: a good one, one that answers wrongly, one that fails."""

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from daemon_cluster import Daemon, that_met, wait_for
from onnx import TensorProto, helper
from serving_site import save_model, times_model

from agent.catalog.gates import ERRORS_OF_MIN

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]

TERMS = """
[deployment.m]
version = "1"

[deployment.m.rollout]
waves = [33, 66]
observe_s = 3
"""
REQUEST = {
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}],
}


def failing(folder: Path) -> Path:
    """A model that loads and fails on whatever it is asked."""
    return save_model(
        folder / "failing.onnx",
        [helper.make_node("Reshape", ["x", "to"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("to", TensorProto.INT64, [1], [7777])],
    )


def renamed(folder: Path) -> Path:
    """A model whose input has another name than the one that clients send."""
    return save_model(
        folder / "renamed.onnx",
        [helper.make_node("Neg", ["z"], ["y"])],
        [("z", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
    )


@dataclass
class Load:
    """One client at each site that never stops; what it was answered, by version and status."""

    sites: list[Daemon]
    seen: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Site, what 1.0 became, status."""
    texts: set[str] = field(default_factory=set)
    is_over: threading.Event = field(default_factory=threading.Event)
    threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        for site in self.sites:
            thread = threading.Thread(target=self._ask, args=(site,))
            thread.start()
            self.threads.append(thread)

    def stop(self) -> None:
        self.is_over.set()
        for thread in self.threads:
            thread.join()

    def take(self) -> Counter[tuple[str, str, int]]:
        seen, self.seen = self.seen, Counter()
        return seen

    def _ask(self, site: Daemon) -> None:
        body = json.dumps(REQUEST)
        connection = http.client.HTTPConnection(site.http, timeout=20)
        while not self.is_over.is_set():
            connection.request("POST", "/v2/models/m/infer", body)
            answer = connection.getresponse()
            told = json.loads(answer.read())
            value = str(told["outputs"][0]["data"][0]) if answer.status == 200 else "-"
            if answer.status != 200:
                self.texts.add(told["error"])
            self.seen[site.name, value, answer.status] += 1
            time.sleep(0.02)
        connection.close()


@pytest.fixture(scope="module")
def sites() -> Iterator[list[Daemon]]:
    with that_met(dict.fromkeys(("berlin", "munich", "bremen"), "DE")) as every:
        berlin = every[0]
        push(berlin, times_model(berlin.folder, 1), "1", "--everywhere")
        (berlin.folder / "terms.toml").write_text(TERMS)
        berlin.cli("apply", str(berlin.folder / "terms.toml"))
        yield every


@pytest.fixture
def load(sites: list[Daemon]) -> Iterator[Load]:
    load = Load(sites)
    load.start()
    yield load
    load.stop()


def push(site: Daemon, file: Path, version: str, *more: str) -> str:
    words = ("model", "push", str(file), "--name", "m", "--version", version)
    return site.cli(*words, *more).stdout


def golden(site: Daemon, factor: float) -> Path:
    """What a model that multiplies by ``factor`` must answer."""
    outputs = [{"name": "y", "datatype": "FP32", "shape": [2], "data": [factor, 2 * factor]}]
    file = site.folder / "golden.json"
    file.write_text(json.dumps({**REQUEST, "outputs": outputs}))
    return file


def row(site: Daemon) -> dict[str, Any]:
    (found,) = site.get("/1/rollouts", model="m")["rollouts"]
    return dict(found)


def stages(sites: list[Daemon], version: str) -> list[str]:
    rows = [row for site in sites for row in site.get("/1/rollouts", model="m")["rollouts"]]
    return sorted(row["here"]["stage"] for row in rows if row["version"] == version)


def test_a_good_version_reaches_all_and_no_request_fails(sites: list[Daemon], load: Load) -> None:
    berlin = sites[0]
    file = golden(berlin, 2.0)
    told = push(berlin, times_model(berlin.folder, 2), "2", "--everywhere", "--golden", str(file))
    assert "it comes in waves" in told
    wait_for(
        lambda: stages(sites, "2") == ["trying", "waiting", "waiting"], 20, "one begins", sites
    )
    berlin.cli("rollout", "pause", "m")
    first = next(site for site in sites if row(site)["here"]["stage"] == "trying")
    wait_for(lambda: row(first)["here"]["stage"] == "passed", 20, "it passes", sites)
    assert stages(sites, "2") == ["passed", "waiting", "waiting"], "the pause holds the others"
    assert "the rollout is paused" in berlin.cli("rollout", "status", "m").stdout + str(
        [row(site)["here"]["waiting"] for site in sites]
    )
    berlin.cli("rollout", "resume", "m")
    wait_for(lambda: stages(sites, "2") == ["ended"] * 3, 40, "it ends", sites)
    load.take()
    wait_for(lambda: sum(load.seen.values()) > 30, 20, "some more are answered", sites)
    load.stop()
    assert {(value, status) for _, value, status in load.seen} == {("2.0", 200)}
    assert load.texts == set()


def test_a_version_that_answers_its_golden_question_wrongly_serves_nobody(
    sites: list[Daemon], load: Load
) -> None:
    berlin = sites[0]
    file = golden(berlin, 3.0)
    push(berlin, times_model(berlin.folder, 4), "3", "--everywhere", "--golden", str(file))
    wait_for(lambda: stages(sites, "3") == ["failed", "stopped", "stopped"], 10, "all know", sites)
    reasons = " ".join(row(site)["here"]["reason"] for site in sites)
    assert "answers its golden question wrongly: output 'y' differs by 2" in reasons
    told = berlin.cli("rollout", "status", "m").stdout
    assert "version 3 in place of 2" in told
    assert "refused" in told
    load.stop()
    assert {(value, status) for _, value, status in load.seen} == {("2.0", 200)}
    assert "the rollout of m:3 was taken back" in berlin.cli("status").stdout
    refused = berlin.cli("rollout", "resume", "m", ok=False)
    assert "has failed" in refused.stderr


def test_a_version_that_fails_is_taken_back_and_hits_its_wave_alone(
    sites: list[Daemon], load: Load
) -> None:
    berlin = sites[0]
    push(berlin, failing(berlin.folder), "4", "--everywhere")
    wait_for(lambda: stages(sites, "4") == ["failed", "stopped", "stopped"], 30, "all back", sites)
    before = load.take()
    hit = {site for site, _, status in before if status != 200}
    (failed,) = (site for site in sites if row(site)["here"]["stage"] == "failed")
    assert hit == {failed.name}
    assert "requests failed" in row(failed)["here"]["reason"]
    wait_for(lambda: sum(load.seen.values()) > 30, 20, "some more are answered", sites)
    load.stop()
    assert {(value, status) for _, value, status in load.seen} == {("2.0", 200)}
    failed.stop()
    failed.start().wait_ready()
    wait_for(lambda: row(failed)["here"]["stage"] == "failed", 10, "it remembers", sites)


def test_a_version_with_other_inputs_than_clients_send_is_taken_back(
    sites: list[Daemon], load: Load
) -> None:
    berlin = sites[0]
    names = [site.name for site in sites]
    wait_for(
        lambda: all(load.seen[name, "2.0", 200] > ERRORS_OF_MIN for name in names),
        20, "there is something to compare with", sites,
    )  # fmt: skip
    push(berlin, renamed(berlin.folder), "5", "--everywhere")
    wait_for(lambda: stages(sites, "5") == ["failed", "stopped", "stopped"], 30, "all back", sites)
    reasons = " ".join(row(site)["here"]["reason"] for site in sites)
    assert "requests do not fit it (status 400)" in reasons
    load.take()
    wait_for(lambda: sum(load.seen.values()) > 30, 20, "some more are answered", sites)
    load.stop()
    assert {(value, status) for _, value, status in load.seen} == {("2.0", 200)}
