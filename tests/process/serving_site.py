"""A site's serving half as real processes, with the test in the place of the control process."""

import contextlib
import hashlib
import http.client
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import serving_models
from onnx import TensorProto, helper

from agent.drivers import keystore
from agent.drivers.channel import BlockingChannel, pair
from agent.drivers.shared_memory import SharedSlots, doorbell_pair
from agent.foundation.errors import Unreachable
from agent.identity.certificates import issue_site
from agent.identity.claims import Claims
from agent.wire.inside import (
    FROM_GATEWAY,
    FROM_WORKER,
    TO_GATEWAY,
    TO_WORKER,
    AttachGateway,
    AttachWorker,
    AuditBlob,
    Audited,
    AuditForward,
    ClaimKey,
    ControlFigures,
    DetachWorker,
    FiguresAsked,
    GatewayReady,
    KeyClaimed,
    KnownModel,
    LoadModel,
    LocalModel,
    ModelLoaded,
    ModelRefused,
    ReleaseKey,
    RemoteSite,
    RepositoryAnswered,
    RepositoryAsked,
    Traffic,
    UnloadModel,
    View,
    WorkerHolds,
    WorkerReady,
    model_key,
)
from agent.wire.records import Served

MAGIKA = serving_models.MAGIKA
SLOTS = 8
CPU = ("CPUExecutionProvider",)


def found(directory: Path, name: str = "berlin", jurisdiction: str = "DE") -> keystore.SiteKeys:
    return keystore.found_cluster(
        directory,
        name=name,
        region="eu",
        tier="edge",
        jurisdiction=jurisdiction,
        roles=(),
        passphrase="correct horse",
        now=datetime.now(UTC),
    ).keys


def join(
    founder: keystore.SiteKeys, directory: Path, name: str, jurisdiction: str
) -> keystore.SiteKeys:
    """What the join protocol would leave behind."""
    assert founder.issuer is not None
    keys = keystore.prepare_join(directory)
    claims = Claims(
        founder.cluster,
        name,
        "eu",
        "edge",
        jurisdiction,
        (),
        keys.gossip_private.public_key().public_bytes_raw(),
    )
    leaf = issue_site(founder.issuer, keys.site_private.public_key(), claims, datetime.now(UTC))
    return keystore.complete_join(
        directory,
        chain=(leaf, founder.issuer.certificate),
        root=founder.root,
        trust=founder.trust,
    )


class Peer:
    """The test's end of a process's channel, with a reader thread."""

    def __init__(self, module: str, union: Any, *arguments: str) -> None:
        ours, theirs = pair()
        self.union = union
        self.channel = BlockingChannel(ours)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, "--channel-fd", str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
            env={"PATH": os.environ["PATH"]},
        )
        theirs.close()
        self.messages: queue.Queue[Any] = queue.Queue()
        self.on_message: Callable[[Any], object] = self.messages.put
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while (frame := self.channel.receive()) is not None:
                self.on_message(self.union.unpack(frame[0]))
        self.messages.put(None)

    def next(self, kind: Any, timeout: float = 20) -> Any:
        end = time.monotonic() + timeout
        while True:
            message = self.messages.get(timeout=max(0.01, end - time.monotonic()))
            assert message is not None, f"process ended: {self.process.poll()}"
            if isinstance(message, kind):
                return message

    def close(self) -> int:
        self.channel.close()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.join(5)


@dataclass
class ServingSite:
    """Gateway, worker and what a control process would do about them."""

    keys: keystore.SiteKeys
    blob_dir: Path
    host: str = "127.0.0.1"
    options: tuple[str, ...] = ()
    tokens: str = "optional"
    """Or "required": then nobody is let in before ``Applications`` were sent."""
    headers: dict[str, str] = field(default_factory=dict)
    """Of every request that names none."""
    threads: int = 1
    worker_options: tuple[str, ...] = ()
    worker: Peer | None = None
    once_keys: set[bytes] = field(default_factory=set)
    blob_audits: list[AuditBlob] = field(default_factory=list)
    audits: list[AuditForward] = field(default_factory=list)
    audit_error: str = ""
    asked: list[RepositoryAsked] = field(default_factory=list)
    """Loads and unloads that applications wanted; each is said to be done."""
    traffic: list[Traffic] = field(default_factory=list)
    held: set[bytes] = field(default_factory=set)
    """Models that the worker has loaded, as the gateway is told."""
    served: dict[str, Path] = field(default_factory=dict)
    """What ``serve`` was given, by name."""

    def __post_init__(self) -> None:
        claims = self.keys.identity.claims
        self.view = View(
            self.keys.site, claims.name, claims.jurisdiction, False, (), (), (), (), ()
        )
        self.gateway = Peer(
            "agent.gateway",
            FROM_GATEWAY,
            "--http-host",
            self.host,
            "--http-port",
            "0",
            "--grpc-port",
            "0",
            "--metrics-port",
            "0",
            "--data-host",
            self.host,
            "--data-port",
            "0",
            "--identity-dir",
            str(self.keys.directory),
            "--blob-dir",
            str(self.blob_dir),
            "--tokens",
            self.tokens,
            *self.options,
        )
        ready = self.gateway.next(GatewayReady)
        self.gateway.on_message = self._from_gateway
        self.http_port, self.data_port = ready.http_port, ready.data_port
        self.grpc_port, self.metrics_port = ready.grpc_port, ready.metrics_port

    def _from_gateway(self, message: Any) -> None:
        if isinstance(message, AuditForward):
            self.audits.append(message)
            self.send(Audited(message.call, self.audit_error))
        elif isinstance(message, AuditBlob):
            self.blob_audits.append(message)
            self.send(Audited(message.call, self.audit_error))
        elif isinstance(message, ClaimKey):
            self.send(KeyClaimed(message.call, message.key not in self.once_keys, ""))
            self.once_keys.add(message.key)
        elif isinstance(message, ReleaseKey):
            self.once_keys.discard(message.key)
        elif isinstance(message, FiguresAsked):
            self.send(ControlFigures(""))
        elif isinstance(message, RepositoryAsked):
            self.asked.append(message)
            self.send(RepositoryAnswered(message.call, 200, ""))
        elif isinstance(message, Traffic):
            self.traffic.append(message)

    def send(self, message: Any, descriptors: list[int] | None = None) -> None:
        with contextlib.suppress(Unreachable):
            self.gateway.channel.send(TO_GATEWAY.pack(message), descriptors or [])

    def show(self, **changes: Any) -> None:
        self.view = replace(self.view, **changes)
        self.send(self.view)

    def start_worker(self, slot_bytes: int = 16 << 20) -> WorkerReady:
        threads = ("--threads", str(self.threads))
        self.worker = Peer("agent.workers.model", FROM_WORKER, *threads, *self.worker_options)
        ready: WorkerReady = self.worker.next(WorkerReady)
        self.slots = SharedSlots.create(SLOTS, slot_bytes)
        gateway_end, worker_end = doorbell_pair()
        self.worker.channel.send(
            TO_WORKER.pack(AttachGateway(SLOTS, self.slots.slot_bytes)),
            [worker_end.fileno(), self.slots.fileno()],
        )
        self.send(AttachWorker(0), [gateway_end.fileno(), self.slots.fileno()])
        gateway_end.close()
        worker_end.close()
        return ready

    def detach(self) -> None:
        self.held.clear()
        self.send(DetachWorker(0))

    def load(
        self, name: str, model: Path, version: str = "1", sha256: bytes | None = None
    ) -> ModelLoaded | ModelRefused:
        assert self.worker is not None
        content = model.read_bytes()
        with model.open("rb") as file:
            self.worker.channel.send(
                TO_WORKER.pack(
                    LoadModel(
                        model_key(name, version),
                        name,
                        version,
                        self.view.name,
                        sha256 or hashlib.sha256(content).digest(),
                        CPU,
                    )
                ),
                [file.fileno()],
            )
        answer: ModelLoaded | ModelRefused = self.worker.next(ModelLoaded | ModelRefused)
        if isinstance(answer, ModelLoaded):
            self.held.add(answer.key)
            self.send(WorkerHolds(0, tuple(self.held)))
        return answer

    def serve(
        self, name: str, model: Path, version: str = "1", residency: tuple[str, ...] = ()
    ) -> ModelLoaded:
        loaded = self.load(name, model, version)
        assert isinstance(loaded, ModelLoaded), loaded
        local = LocalModel(
            loaded.key, name, version, True, "", residency, loaded.metadata, loaded.service_us
        )
        known = KnownModel(loaded.key, name, version, True, residency)
        self.served[name] = model
        self.show(
            local=(*(m for m in self.view.local if m.key != local.key), local),
            known=(*(m for m in self.view.known if m.key != local.key), known),
        )
        self.wait_ready(name)
        return loaded

    def unload(self, name: str, version: str = "1") -> None:
        assert self.worker is not None
        self.worker.channel.send(TO_WORKER.pack(UnloadModel(model_key(name, version))))

    def as_remote(self, **changes: Any) -> RemoteSite:
        remote = RemoteSite(
            site=self.keys.site,
            name=self.view.name,
            region="eu",
            tier="edge",
            jurisdiction=self.view.jurisdiction,
            host=self.host,
            data_port=self.data_port,
            status="alive",
            is_draining=False,
            rtt_ms=1.0,
            load=0.0,
            serving=tuple(Served(model.key, model.service_us) for model in self.view.local),
        )
        return replace(remote, **changes)

    def wait_ready(self, name: str) -> None:
        self.wait(lambda: self.get(f"/v2/models/{name}/ready")[0] == 200)

    def wait(self, condition: Any, timeout: float = 10) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "condition was not met in time"
            time.sleep(0.01)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        timeout: float = 20,
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.host, self.http_port, timeout=timeout)
        try:
            sent = self.headers if headers is None else headers
            connection.request(method, path, body or None, sent)
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return response.status, found, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, dict[str, str], bytes]:
        return self.request("GET", path)

    def infer(
        self, name: str, content: dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], dict[str, Any]]:
        status, found, body = self.request(
            "POST",
            f"/v2/models/{name}/infer",
            json.dumps(content).encode(),
            {"Content-Type": "application/json", **(headers or {})},
        )
        return status, found, json.loads(body)

    def close(self) -> None:
        status = self.gateway.close()
        if self.worker is not None:
            self.worker.close()
            self.slots.close()
        assert status == 0


@contextlib.contextmanager
def open_site(keys: keystore.SiteKeys, blob_dir: Path, **options: Any) -> Iterator[ServingSite]:
    site = ServingSite(keys, blob_dir, **options)
    try:
        yield site
    finally:
        site.close()


def save_model(
    path: Path,
    nodes: list[Any],
    inputs: list[tuple[str, int, list[Any]]],
    outputs: list[tuple[str, int, list[Any]]],
    constants: list[Any] | None = None,
) -> Path:
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(*item) for item in inputs],
        [helper.make_tensor_value_info(*item) for item in outputs],
        constants or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def image_model(path: Path) -> Path:
    """x [b, 3, 48, 192] FP32 -> the means of the planes, [b, 3]: shaped as a text-angle classifier."""
    return save_model(
        path,
        [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["mean"]),
        ],
        [("x", TensorProto.FLOAT, ["b", 3, 48, 192])],
        [("mean", TensorProto.FLOAT, ["b", 3])],
    )


def times_model(folder: Path, factor: int) -> Path:
    """Multiplies ``x`` by a constant."""
    return save_model(
        folder / f"times{factor}.onnx",
        [helper.make_node("Mul", ["x", "by"], ["y"])],
        [("x", TensorProto.FLOAT, ["n"])],
        [("y", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor("by", TensorProto.FLOAT, [1], [float(factor)])],
    )


def endless_model(path: Path, least: int = 0) -> Path:
    """n INT64 -> sum over n rounds of a loop, but at least so many: runs as long as asked."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_out"]),
            helper.make_node("Add", ["total", "total"], ["doubled"]),
            helper.make_node("Sub", ["doubled", "total"], ["same"]),
            helper.make_node("Identity", ["same"], ["total_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, [1000]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total_out", TensorProto.FLOAT, [1000]),
        ],
    )
    start = helper.make_tensor("start", TensorProto.FLOAT, [1000], [1.0] * 1000)
    return save_model(
        path,
        [
            helper.make_node("Max", ["n", "least"], ["many"]),
            helper.make_node("Squeeze", ["many"], ["rounds"]),
            helper.make_node("Loop", ["rounds", "", "start"], ["total"], body=body),
        ],
        [("n", TensorProto.INT64, [1])],
        [("total", TensorProto.FLOAT, [1000])],
        [start, helper.make_tensor("least", TensorProto.INT64, [1], [least])],
    )
