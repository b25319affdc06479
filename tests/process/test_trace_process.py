"""A caller's trace over HTTP and gRPC: on to the member that answers, and to nobody else."""

import contextlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from serving_site import ServingSite, found, join, open_site
from tritonclient.utils import InferenceServerException

from agent.drivers import keystore, tls
from agent.wire.inside import KnownModel, RemoteSite, model_key
from agent.wire.records import Served

pytestmark = pytest.mark.process

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "k=canary-5f2e"
HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": CANARY}
CONTENT = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}


class Recorder:
    """A member of the cluster that keeps every byte it is sent, and has no room for anything."""

    def __init__(self, keys: keystore.SiteKeys, host: str) -> None:
        self.keys, self.host, self.heard = keys, host, b""
        self.listener = socket.create_server((host, 0))
        self.context = tls.server_context(keys)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with contextlib.suppress(ssl.SSLError, OSError):
                self._answer(self.context.wrap_socket(connection, server_side=True))

    def _answer(self, connection: ssl.SSLSocket) -> None:
        with connection:
            connection.settimeout(10)
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            size = int(re.findall(rb"content-length: (\d+)", request.lower())[0])
            while len(request.partition(b"\r\n\r\n")[2]) < size:
                request += connection.recv(65536)
            self.heard += request
            body = b'{"error":"no room"}'
            head = f"HTTP/1.1 503 Busy\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + body)

    def parents(self) -> list[tuple[str, str]]:
        """Trace and span of each request, in order."""
        found = re.findall(rb"traceparent: 00-(\w{32})-(\w{16})-01\r\n", self.heard)
        return [(trace.decode(), span.decode()) for trace, span in found]

    def as_remote(self, rtt_ms: float) -> RemoteSite:
        claims = self.keys.identity.claims
        return RemoteSite(
            self.keys.site, claims.name, "eu", "edge", claims.jurisdiction, self.host,
            self.listener.getsockname()[1], "alive", False, rtt_ms, 0.0,
            (Served(model_key("m", "1"), 100),),
        )  # fmt: skip

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(5)


@dataclass
class Cluster:
    """berlin passes on what it is asked for ``m``: to paris (FR, near) or munich (DE, far)."""

    berlin: ServingSite
    paris: Recorder
    munich: Recorder


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder: Path = tmp_path_factory.mktemp("trace")
    founder = found(folder / "berlin")
    with ExitStack() as stack:
        members = []
        for number, (name, place) in enumerate((("paris", "FR"), ("munich", "DE")), 2):
            member = Recorder(join(founder, folder / name, name, place), f"127.0.0.{number}")
            stack.callback(member.close)
            members.append(member)
        berlin = stack.enter_context(open_site(founder, folder / "blobs"))
        known = KnownModel(model_key("m", "1"), "m", "1", True, ())
        remotes = (members[0].as_remote(1.0), members[1].as_remote(50.0))
        berlin.show(known=(known,), sites=remotes)
        berlin.wait_ready("m")
        yield Cluster(berlin, *members)


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    for one in (started.paris, started.munich):
        one.heard = b""
    started.berlin.audits.clear()
    return started


def test_each_hop_has_the_callers_trace_and_a_span_of_its_own(cluster: Cluster) -> None:
    status, answered, _ = cluster.berlin.infer("m", CONTENT, HEADERS)
    assert status == 503, "neither has room"
    (near,), (far,) = cluster.paris.parents(), cluster.munich.parents()
    assert near[0] == far[0] == TRACE
    assert len({SPAN, near[1], far[1]}) == 3
    for one in (cluster.paris, cluster.munich):
        assert f"tracestate: {CANARY}\r\n".encode() in one.heard
    assert [entry.trace for entry in cluster.berlin.audits] == [TRACE, TRACE]
    assert not any("trace" in name for name in answered), "nothing is echoed"


def test_over_grpc_it_is_the_same(cluster: Cluster) -> None:
    given = triton_grpc.InferInput("x", [1], "FP32")
    given.set_data_from_numpy(np.ones(1, np.float32))
    where = f"127.0.0.1:{cluster.berlin.grpc_port}"
    refused = pytest.raises(InferenceServerException)
    with triton_grpc.InferenceServerClient(where) as client, refused:
        client.infer("m", [given], headers=HEADERS)
    ((trace, span),) = cluster.paris.parents()
    assert (trace, span != SPAN) == (TRACE, True)
    assert CANARY.encode() in cluster.paris.heard


def test_the_state_of_a_labelled_request_never_reaches_a_site_outside_the_label(
    cluster: Cluster,
) -> None:
    status, _, _ = cluster.berlin.infer("m", CONTENT, {**HEADERS, "Atoll-Residency": "DE"})
    assert status == 503
    assert cluster.paris.heard == b"", "not a byte, at the socket"
    assert CANARY.encode() in cluster.munich.heard
    cluster.munich.heard = b""
    status, _, _ = cluster.berlin.infer("m", CONTENT, {**HEADERS, "Atoll-Residency": "US"})
    assert status == 403
    assert cluster.paris.heard + cluster.munich.heard == b""


@pytest.mark.parametrize(
    "changes", [{"traceparent": "00-0-0-0"}, {"traceparent": f"00-{'0' * 32}-{SPAN}-01"}]
)
def test_an_invalid_trace_is_left_out_and_the_request_is_not(
    cluster: Cluster, changes: dict[str, str]
) -> None:
    cluster.berlin.infer("m", CONTENT, {**HEADERS, **changes})
    assert cluster.paris.heard
    assert b"trace" not in cluster.paris.heard.lower().partition(b"\r\n\r\n")[0]
    assert cluster.berlin.audits[0].trace == ""


def test_without_a_trace_none_is_begun(cluster: Cluster) -> None:
    cluster.berlin.infer("m", CONTENT)
    assert json.dumps(CONTENT).encode() in cluster.paris.heard
    assert b"traceparent" not in cluster.paris.heard
