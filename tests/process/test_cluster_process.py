"""Three real daemons: they meet, serve each other, train together, and survive what kills one."""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from daemon_cluster import (
    Daemon,
    admit,
    found,
    running,
    scratch,
    submit_job,
    wait_for,
    write_digits,
)
from serving_site import MAGIKA
from tritonclient.utils import InferenceServerException

pytestmark = [pytest.mark.process, pytest.mark.timeout(150)]

ALL = {"berlin", "paris", "munich"}


@dataclass
class Cluster:
    berlin: Daemon
    paris: Daemon
    munich: Daemon

    @property
    def all(self) -> list[Daemon]:
        return [self.berlin, self.paris, self.munich]

    def named(self, name: str) -> Daemon:
        return next(site for site in self.all if site.name == name)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with scratch() as folder:
        data = [write_digits(folder / f"data-{part}", part=part) for part in range(3)]
        binds = [f'[datasets.digits]\npath = "{path}"' for path in data]
        berlin = found(folder, "berlin", "DE", extra=binds[0])
        with running(berlin):
            berlin.start().wait_ready()
            paris = admit(berlin, "paris", "FR", binds[1])
            munich = admit(berlin, "munich", "DE", binds[2])
            with running(paris, munich):
                yield Cluster(berlin, paris, munich)


def infer(site: Daemon, model: str = "magika", **options: Any) -> tuple[str, Any]:
    """Who answered, and the answer."""
    with triton.InferenceServerClient(site.http, network_timeout=20) as client:
        given = triton.InferInput("bytes", [1, 2048], "INT32")
        given.set_data_from_numpy(np.zeros((1, 2048), np.int32))
        answer = client.infer(model, [given], **options)
        return answer.get_response()["parameters"]["served_by"], answer


def who_serves(site: Daemon) -> str:
    """Empty while nobody does."""
    try:
        return infer(site)[0]
    except InferenceServerException:
        return ""


def everybody_is_seen(cluster: Cluster) -> None:
    wait_for(
        lambda: all(site.alive() == ALL for site in cluster.all), 30, "all see all", cluster.all
    )


def test_sites_find_each_other_by_multicast_alone(cluster: Cluster) -> None:
    for site in (cluster.paris, cluster.munich):
        site.start()
    for site in cluster.all:
        site.wait_ready()
    everybody_is_seen(cluster)
    sources = {row["source"] for row in cluster.munich.get("/1/peers")["peers"]}
    assert "mdns" in sources
    assert not sources & {"seed", "token"}
    assert "is dead" not in "".join(site.log() for site in cluster.all)


def test_a_model_pushed_at_one_site_is_served_by_another_to_the_client_of_a_third(
    cluster: Cluster,
) -> None:
    everybody_is_seen(cluster)
    cluster.berlin.cli(
        "model", "push", str(MAGIKA), "--name", "magika", "--version", "1", "--sites", "paris"
    )
    wait_for(lambda: who_serves(cluster.munich), 20, "munich forwards", cluster.all)
    who, answer = infer(cluster.munich)
    assert who == "paris"
    assert answer.as_numpy("target_label").shape[0] == 1
    assert cluster.munich.get("/1/route/explain", model="magika")["chosen"]


def test_a_wrong_tensor_is_refused_by_name_wherever_the_model_is(cluster: Cluster) -> None:
    for site in (cluster.munich, cluster.paris):
        with triton.InferenceServerClient(site.http) as client:
            given = triton.InferInput("bytes", [1, 7], "INT32")
            given.set_data_from_numpy(np.zeros((1, 7), np.int32))
            with pytest.raises(InferenceServerException, match="bytes") as caught:
                client.infer("magika", [given])
            assert caught.value.status() == "400"


def test_a_corrupt_model_is_refused_with_its_reason_while_the_old_version_serves(
    cluster: Cluster,
) -> None:
    broken = cluster.berlin.folder / "broken.onnx"
    broken.write_bytes(MAGIKA.read_bytes()[:200_000])
    done = cluster.berlin.cli(
        "model", "push", str(broken), "--name", "magika", "--version", "2", "--sites", "paris",
        "--timeout", "20s", ok=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "paris refuses magika:2" in done.stderr
    assert "no ONNX model" in cluster.paris.model("magika", "2")["reason"]
    assert infer(cluster.munich)[0] == infer(cluster.munich, model_version="1")[0] == "paris"
    cluster.berlin.cli(
        "model", "push", str(MAGIKA), "--name", "magika", "--version", "3", "--sites", "paris"
    )
    assert infer(cluster.berlin)[0] == "paris"


def test_a_killed_model_worker_is_restarted_and_the_site_stays_up(cluster: Cluster) -> None:
    paris = cluster.paris
    pid = paris.pid_of("model-worker")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: paris.pid_of("model-worker") != pid, 10, "a new worker", [paris])
    wait_for(lambda: who_serves(cluster.munich) == "paris", 20, "served again", [paris])
    assert paris.get("/1/status")["state"] == "ready"
    rows = paris.get("/1/status")["processes"]
    assert next(row["restarts"] for row in rows if row["name"] == "model-worker") == 1


def test_a_killed_gateway_is_restarted_and_serves_again(cluster: Cluster) -> None:
    paris = cluster.paris
    pid = paris.pid_of("gateway")
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: paris.pid_of("gateway") != pid, 10, "a new gateway", [paris])
    wait_for(lambda: who_serves(paris) == "paris", 20, "served again", [paris])
    assert infer(cluster.munich)[0] == "paris"


def test_a_job_for_unknown_data_says_so(cluster: Cluster) -> None:
    job = submit_job(cluster.berlin, name="nobody", dataset="unknown")

    def told() -> bool:
        rows = [site.get(f"/1/jobs/{job}")["participants"] for site in cluster.all]
        reasons = [part["reason"] for part in max(rows, key=len)]  # the aggregator knows all
        return sum("no data set 'unknown' here" in reason for reason in reasons) == len(ALL)

    wait_for(told, 30, "every site says why", cluster.all)
    aggregator = cluster.named(cluster.berlin.get(f"/1/jobs/{job}")["aggregator"])
    assert "waiting for 0 of at least 2 updates" in aggregator.cli("job", "show", job).stdout
    for site in cluster.all:
        assert "no data set 'unknown' here" in site.cli("job", "show", job).stdout


def check_history(site: Daemon, job: str, rounds: int) -> None:
    """Every round once, no update twice, and each round begins where the last one ended."""
    done = site.get(f"/1/jobs/{job}")["rounds_done"]
    assert [row["round"] for row in done] == list(range(1, rounds + 1))
    updates = [one["update"] for row in done for one in row["counted"]]
    assert len(updates) == len(set(updates))
    for row in done:
        names = [one["name"] for one in row["counted"]]
        assert len(names) == len(set(names)) >= 2
    # Of what comes after the last round nobody has made a round.
    assert [row["accuracy"] is None for row in done] == [*[False] * (rounds - 1), True]


def finished(site: Daemon, job: str) -> bool:
    value = site.get(f"/1/jobs/{job}")
    assert value["state"] != "failed", value["reason"]
    return bool(value["state"] == "finished")


def published(sites: list[Daemon], model: str, job: str) -> set[str]:
    """Digests at all sites where the model is ready."""
    found = [site.model(model, job) for site in sites]
    return {row["digest"] for row in found} if all(r["state"] == "ready" for r in found) else set()


def test_a_federated_job_finishes_and_every_site_serves_the_same_model(cluster: Cluster) -> None:
    job = submit_job(cluster.berlin, publish="digits", sites_min=3)
    wait_for(lambda: all(finished(s, job) for s in cluster.all), 60, "finished", cluster.all)
    digests = wait_for(lambda: published(cluster.all, "digits", job), 20, "served", cluster.all)
    assert len(digests) == 1
    for site in cluster.all:
        wait_for(lambda site=site: len(site.get(f"/1/jobs/{job}")["rounds_done"]) == 2)  # type: ignore[misc]
        check_history(site, job, 2)
    assert "finished" in cluster.berlin.cli("job", "watch", job).stdout


def test_a_killed_aggregator_is_replaced_and_catches_up(cluster: Cluster) -> None:
    rounds = 5
    job = submit_job(
        cluster.berlin, name="killed", publish="killed", rounds=rounds, epochs=12,
        round_timeout_s=20.0,
    )  # fmt: skip

    def victim_in_round() -> Daemon | None:
        value = cluster.berlin.get(f"/1/jobs/{job}")
        is_under_way = value["round"] >= 1 and value["phase"] == "running"
        return cluster.named(value["aggregator"]) if is_under_way else None

    victim = wait_for(victim_in_round, 60, "a round is under way", cluster.all)
    assert victim is not None
    children = victim.children()
    victim.kill()
    others = [site for site in cluster.all if site is not victim]
    _, left = psutil.wait_procs(children, 5)
    assert left == [], "children of a killed daemon end by themselves"
    try:
        wait_for(lambda: all(finished(s, job) for s in others), 90, "finished", cluster.all)
    finally:
        victim.start()
    assert others[0].get(f"/1/jobs/{job}")["epoch"] >= 2
    for site in others:
        wait_for(lambda site=site: len(site.get(f"/1/jobs/{job}")["rounds_done"]) == rounds)  # type: ignore[misc]
        check_history(site, job, rounds)
    digests = wait_for(
        lambda: published(cluster.all, "killed", job), 40, "served by all", cluster.all
    )
    assert len(digests) == 1
    wait_for(lambda: len(victim.get(f"/1/jobs/{job}")["rounds_done"]) == rounds, 20, "catches up")
    check_history(victim, job, rounds)
    everybody_is_seen(cluster)


def test_a_stopped_site_is_gone_within_five_seconds_with_all_its_children(
    cluster: Cluster,
) -> None:
    submit_job(cluster.berlin, name="stopped", rounds=50, epochs=20)
    munich = cluster.munich
    wait_for(
        lambda: any("trainer" in row["name"] for row in munich.get("/1/status")["processes"]),
        40, "munich trains", cluster.all,
    )  # fmt: skip
    children = munich.children()
    assert len(children) >= 3
    code, took_s = munich.stop()
    assert (code, took_s < 5.0) == (0, True), munich.log()
    _, left = psutil.wait_procs(children, 1)
    assert left == []
    assert "Traceback" not in munich.log(), munich.log()
    wait_for(lambda: "munich" not in cluster.berlin.alive(), 10, "noticed", cluster.all)


def test_no_log_holds_a_defect(cluster: Cluster) -> None:
    for site in cluster.all:
        assert "Traceback" not in site.log(), site.log()
        assert "defect" not in site.log(), site.log()
