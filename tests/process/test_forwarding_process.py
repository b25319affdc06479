"""Two and three sites over mutual TLS: who may answer, what is written down, what stays at home."""

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from serving_site import ServingSite, found, image_model, join, open_site

from agent.distribution.holding import Holding, parse_holding
from agent.drivers import keystore, tls
from agent.drivers.blobs import BlobStore
from agent.wire.inside import BlobLabel, KnownModel, model_key

pytestmark = pytest.mark.process

CONTENT = {
    "inputs": [
        {"name": "x", "shape": [1, 3, 48, 192], "datatype": "FP32", "data": [1.0] * 3 * 48 * 192}
    ]
}


@dataclass
class Cluster:
    """berlin (DE, serves nothing), paris (FR) and munich (DE) with the model ``cls``."""

    folder: Path
    berlin: ServingSite
    paris: ServingSite
    munich: ServingSite

    def connect(self, **changes: Any) -> None:
        model = KnownModel(model_key("cls", "1"), "cls", "1", True, changes.pop("model_label", ()))
        paris = self.paris.as_remote(rtt_ms=1.0, **changes.pop("paris", {}))
        munich = self.munich.as_remote(**{"rtt_ms": 50.0, **changes.pop("munich", {})})
        self.berlin.audits.clear()
        self.berlin.audit_error = ""
        for other in (self.paris, self.munich):
            other.show(is_draining=False, jurisdiction=other.keys.identity.claims.jurisdiction)
        self.berlin.show(
            known=(model,),
            sites=changes.pop("sites", (paris, munich)),
            revoked=changes.pop("revoked", ()),
        )
        time.sleep(0.05)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("forwarding")
    founder = found(folder / "berlin")
    paris_keys = join(founder, folder / "paris", "paris", "FR")
    munich_keys = join(founder, folder / "munich", "munich", "DE")
    model = image_model(folder / "cls.onnx")
    with ExitStack() as stack:
        sites = [
            stack.enter_context(open_site(keys, folder / f"blobs-{index}", host=f"127.0.0.{index}"))
            for index, keys in enumerate((founder, paris_keys, munich_keys), 1)
        ]
        for site in sites[1:]:
            site.start_worker()
            site.serve("cls", model)
        yield Cluster(folder, *sites)


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    started.connect()
    return started


def test_a_request_goes_to_the_nearest_site_and_is_written_down_first(cluster: Cluster) -> None:
    status, headers, content = cluster.berlin.infer("cls", CONTENT, {"Atoll-Request-Id": "r-7"})
    assert status == 200
    assert headers["atoll-served-by"] == "paris"
    assert headers["atoll-request-id"] == "r-7"
    assert content["parameters"] == {"served_by": "paris"}
    assert content["outputs"][0]["data"] == [1.0, 1.0, 1.0]
    (entry,) = cluster.berlin.audits
    assert entry.request == "r-7"
    assert entry.model == "cls:1"
    assert entry.receiver == cluster.paris.keys.site
    assert entry.bytes == len(json.dumps(CONTENT))


def test_the_requests_label_decides_who_may_answer(cluster: Cluster) -> None:
    status, headers, _ = cluster.berlin.infer("cls", CONTENT, {"Atoll-Residency": "DE"})
    assert (status, headers["atoll-served-by"]) == (200, "munich")
    assert [entry.receiver for entry in cluster.berlin.audits] == [cluster.munich.keys.site]
    assert cluster.berlin.audits[0].label == ("DE",)
    status, _, content = cluster.berlin.infer("cls", CONTENT, {"Atoll-Residency": "US"})
    assert status == 403
    assert "paris: request may be answered only in US" in content["error"]
    assert len(cluster.berlin.audits) == 1


def test_the_models_label_decides_too(cluster: Cluster) -> None:
    cluster.connect(model_label=("DE",))
    status, headers, _ = cluster.berlin.infer("cls", CONTENT)
    assert (status, headers["atoll-served-by"]) == (200, "munich")
    status, _, _ = cluster.berlin.infer("cls", CONTENT, {"Atoll-Residency": "FR"})
    assert status == 403


def test_the_receiver_checks_again(cluster: Cluster) -> None:
    """The sender believes that paris is in DE; paris knows better, and munich answers."""
    cluster.connect(paris={"jurisdiction": "DE"})
    status, headers, _ = cluster.berlin.infer("cls", CONTENT, {"Atoll-Residency": "DE"})
    assert (status, headers["atoll-served-by"]) == (200, "munich")
    assert [entry.receiver for entry in cluster.berlin.audits] == [
        cluster.paris.keys.site,
        cluster.munich.keys.site,
    ]


def test_without_an_audit_entry_nothing_leaves(cluster: Cluster) -> None:
    cluster.berlin.audit_error = "disk full"
    status, _, content = cluster.berlin.infer("cls", CONTENT)
    assert status == 503
    assert "disk full" in content["error"]


def test_a_site_that_is_gone_or_full_is_passed_over(cluster: Cluster) -> None:
    cluster.connect(paris={"data_port": 1})
    status, headers, _ = cluster.berlin.infer("cls", CONTENT)
    assert (status, headers["atoll-served-by"]) == (200, "munich")
    cluster.connect()
    cluster.paris.show(is_draining=True)
    cluster.paris.wait(lambda: cluster.paris.get("/v2/health/ready")[0] == 400)
    status, headers, _ = cluster.berlin.infer("cls", CONTENT)
    assert (status, headers["atoll-served-by"]) == (200, "munich")


def test_another_site_at_the_address_gets_nothing(cluster: Cluster) -> None:
    """Paris' record names munich's port: the key at that address is not paris'."""
    received = received_total(cluster.munich)
    paris = cluster.paris.as_remote(
        host=cluster.munich.host, data_port=cluster.munich.data_port, rtt_ms=1.0
    )
    cluster.connect(sites=(paris,))
    status, _, content = cluster.berlin.infer("cls", CONTENT)
    assert status == 503
    assert "another site" in content["error"]
    assert received_total(cluster.munich) == received


def received_total(site: ServingSite) -> str:
    lines = site.get("/metrics")[2].decode().splitlines()
    return next(line for line in lines if line.startswith("atoll_received_total "))


def test_a_revoked_site_is_neither_asked_nor_answered(cluster: Cluster) -> None:
    cluster.connect(revoked=(cluster.paris.keys.site,))
    status, headers, _ = cluster.berlin.infer("cls", CONTENT)
    assert (status, headers["atoll-served-by"]) == (200, "munich")
    cluster.munich.show(revoked=(cluster.paris.keys.site,))
    time.sleep(0.05)
    try:
        assert member_get(cluster.paris.keys, cluster.munich, "/v2")[0] == 403
        assert member_get(cluster.berlin.keys, cluster.munich, "/v2")[0] == 200
    finally:
        cluster.munich.show(revoked=())


def test_a_request_is_passed_on_at_most_twice(cluster: Cluster) -> None:
    headers = {"Atoll-Hops": "2", "Content-Type": "application/json"}
    body = json.dumps(CONTENT).encode()
    path = "/v2/models/cls/infer"
    status, answer = member_call(cluster.munich.keys, cluster.berlin, "POST", path, body, headers)
    assert status == 503
    assert b"passed on 2 times" in answer
    headers["Atoll-Hops"] = "3"
    status, _ = member_call(cluster.munich.keys, cluster.paris, "POST", path, body, headers)
    assert status == 403
    headers["Atoll-Hops"] = "1"
    status, answer = member_call(cluster.munich.keys, cluster.berlin, "POST", path, body, headers)
    assert status == 200
    assert json.loads(answer)["parameters"]["served_by"] == "paris"


def test_metadata_of_a_model_elsewhere_is_known_here(cluster: Cluster) -> None:
    status, _, body = cluster.berlin.get("/v2/models/cls")
    assert status == 200
    assert json.loads(body)["inputs"][0]["shape"] == [-1, 3, 48, 192]
    assert cluster.berlin.get("/v2/models/cls/ready")[0] == 200
    assert json.loads(cluster.berlin.get("/v2/models/cls/config")[2])["name"] == "cls"


def member_call(
    keys: keystore.SiteKeys | None,
    target: ServingSite,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    context = tls.join_context() if keys is None else tls.client_context(keys)
    connection = http.client.HTTPSConnection(
        target.host, target.data_port, context=context, timeout=10
    )
    try:
        connection.request(method, path, body or None, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def member_get(keys: keystore.SiteKeys | None, target: ServingSite, path: str) -> tuple[int, bytes]:
    return member_call(keys, target, "GET", path)


def test_the_data_port_is_for_members_only(cluster: Cluster, tmp_path: Path) -> None:
    status, body = member_get(None, cluster.paris, "/v2/models/cls")
    assert status == 403
    assert b"members only" in body
    stranger = found(tmp_path / "other", "other")
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        member_get(stranger, cluster.paris, "/v2")


def test_strangers_at_the_data_port_hold_little_and_keep_no_member_waiting(
    cluster: Cluster,
) -> None:
    """Silent ones, and those that begin a handshake and leave it there: a thousand from one address."""
    cluster.connect(sites=(cluster.paris.as_remote(rtt_ms=1.0),))
    cluster.paris.show(sites=(cluster.berlin.as_remote(serving=()),))
    gateway = psutil.Process(cluster.paris.gateway.process.pid)
    before = gateway.memory_info().rss
    with ExitStack() as stack:
        for number in range(1000):
            held = stack.enter_context(socket.socket())
            held.bind(("127.0.0.9", 0))
            held.connect((cluster.paris.host, cluster.paris.data_port))
            if number % 2:
                with contextlib.suppress(OSError):
                    held.sendall(b"\x16")
        status, headers, _ = cluster.berlin.infer("cls", CONTENT)
        assert (status, headers["atoll-served-by"]) == (200, "paris")
        assert gateway.num_fds() < 400
        assert gateway.memory_info().rss - before < 40 << 20
    cluster.paris.show(sites=())


async def test_blobs_go_only_where_their_label_lets_them(cluster: Cluster) -> None:
    store = BlobStore(cluster.folder / "blobs-2")
    content = os.urandom(600_000)
    digest = await store.put_bytes(content)
    secret = await store.put_bytes(b"stays in France")
    unlisted = await store.put_bytes(b"not offered")
    cluster.paris.show(blobs=(BlobLabel(digest, ()), BlobLabel(secret, ("FR",))))
    await asyncio.sleep(0.05)
    berlin = cluster.berlin.keys
    status, manifest = member_get(berlin, cluster.paris, f"/blobs/{digest.hex()}/manifest")
    assert status == 200
    assert manifest == store.read_manifest(digest)
    chunks = [
        member_get(berlin, cluster.paris, f"/blobs/{digest.hex()}/chunks/{index}")
        for index in range(3)
    ]
    assert b"".join(data for _, data in chunks) == content
    status, told = member_get(berlin, cluster.paris, f"/blobs/{digest.hex()}/held")
    assert (status, parse_holding(told)) == (200, Holding(b"\x07"))
    status, told = member_get(cluster.munich.keys, cluster.paris, f"/blobs/{digest.hex()}/held")
    both = sorted([cluster.berlin.keys.site, cluster.munich.keys.site])
    place = both.index(cluster.munich.keys.site)
    assert (status, parse_holding(told)) == (200, Holding(b"\x07", readers=2, place=place))
    for path, expected in {
        f"/blobs/{digest.hex()}/chunks/3": 404,
        f"/blobs/{digest.hex()}/chunks/-1": 400,
        f"/blobs/{secret.hex()}/manifest": 403,
        f"/blobs/{secret.hex()}/held": 403,
        f"/blobs/{secret.hex()}/chunks/0": 403,
        f"/blobs/{unlisted.hex()}/manifest": 404,
        f"/blobs/{unlisted.hex()}/held": 404,
        "/blobs/..%2f..%2fetc/manifest": 400,
        "/blobs/00/manifest": 400,
    }.items():
        assert member_get(berlin, cluster.paris, path)[0] == expected, path
    entries = [(one.blob, one.receiver, one.label, one.bytes) for one in cluster.paris.blob_audits]
    assert entries == [
        (digest, cluster.berlin.keys.site, (), 600_000), (digest, cluster.munich.keys.site, (), 600_000)
    ], "one for each reader, and none for what was refused"  # fmt: skip
    own = cluster.paris.keys
    assert (
        member_get(own, cluster.paris, f"/blobs/{secret.hex()}/chunks/0")[1] == b"stays in France"
    )
    cluster.paris.audit_error = "the disk is full"
    other = await store.put_bytes(b"no entry, no blob")
    cluster.paris.show(blobs=(BlobLabel(other, ()),))
    await asyncio.sleep(0.05)
    refused = member_get(berlin, cluster.paris, f"/blobs/{other.hex()}/chunks/0")
    assert refused[0] == 503
    assert b"may not leave without an audit entry" in refused[1]
    cluster.paris.audit_error = ""
    status, _, _ = cluster.paris.get(f"/blobs/{digest.hex()}/manifest")
    assert status == 404  # not on the applications' port
    shutil.rmtree(cluster.folder / "blobs-2")


def decided(site: ServingSite, decision: str) -> int:
    lines = site.get("/metrics")[2].decode().splitlines()
    start = f'atoll_routing_total{{decision="{decision}"}}'
    return next(int(line.split()[-1]) for line in lines if line.startswith(start))


def test_a_site_that_stands_still_is_hedged_and_the_other_answers(cluster: Cluster) -> None:
    cluster.connect(munich={"rtt_ms": 200.0})
    assert cluster.berlin.infer("cls", CONTENT)[1]["atoll-served-by"] == "paris"
    before = {word: decided(cluster.berlin, word) for word in ("hedged", "hedge won")}
    pid = cluster.paris.gateway.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(6):
            named = {"Atoll-Request-Id": f"h-{number}"}
            status, headers, content = cluster.berlin.infer("cls", CONTENT, named)
            assert (status, headers["atoll-served-by"]) == (200, "munich")
            assert content["outputs"][0]["data"] == [1.0, 1.0, 1.0]
    finally:
        os.kill(pid, signal.SIGCONT)
    for word, former in before.items():
        assert 1 <= decided(cluster.berlin, word) - former <= 5
    receivers = [entry.receiver for entry in cluster.berlin.audits if entry.request == "h-0"]
    assert receivers == [cluster.paris.keys.site, cluster.munich.keys.site]


def test_a_site_that_stands_still_has_no_hedge_across_a_label(cluster: Cluster) -> None:
    pid = cluster.paris.gateway.process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        bound = {"Atoll-Residency": "FR", "Atoll-Deadline-Ms": "1500"}
        status, _, _ = cluster.berlin.infer("cls", CONTENT, bound)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert status in (503, 504)
    assert {entry.receiver for entry in cluster.berlin.audits} == {cluster.paris.keys.site}


def test_a_killed_gateway_fails_over_to_the_next_site(cluster: Cluster) -> None:
    """Last of this module: paris does not come back. Munich is said to be far: berlin has learned
    that it answers sooner than 50 ms."""
    cluster.connect(munich={"rtt_ms": 2000.0})

    def is_paris_chosen() -> bool:
        """What it was late while it stood still is forgotten as it answers."""
        assert cluster.berlin.infer("cls", CONTENT, {"Atoll-Residency": "FR"})[0] == 200
        return bool(cluster.berlin.infer("cls", CONTENT)[1]["atoll-served-by"] == "paris")

    cluster.berlin.wait(is_paris_chosen)
    os.kill(cluster.paris.gateway.process.pid, signal.SIGKILL)
    begun = time.monotonic()
    status, headers, _ = cluster.berlin.infer("cls", CONTENT)
    assert (status, headers["atoll-served-by"]) == (200, "munich")
    assert time.monotonic() - begun < 1
    cluster.paris.close = lambda: None  # type: ignore[method-assign]
    cluster.paris.gateway.close()
    assert cluster.paris.worker is not None
    cluster.paris.worker.close()
    cluster.paris.slots.close()
