"""A site with canned answers behind a real admin socket, and the command line as a function."""

import asyncio
import base64
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from trust_desk import PASS, Desk

from agent.api import blobs, catalog, committees, rollouts
from agent.api.admin import AdminServer
from agent.api.bodies import Json
from agent.api.job_spec import JobSpec
from agent.api.operations import Operations, TokenRequest
from agent.api.trust import routes
from agent.cli.main import main
from agent.drivers import keystore
from agent.foundation.errors import AtollError, NotFound
from agent.foundation.ids import JobId, SiteId
from agent.identity.admin import check_document
from agent.identity.certificates import key_id
from agent.wire.documents import (
    BODIES,
    Body,
    Document,
    Job,
    Key,
    ModelVersion,
    Stamp,
    key_of,
)
from agent.wire.schema import unpack

T = TypeVar("T")
SITE = "ab" * 32


def _row(job: str, **more: Any) -> Json:
    return {
        "id": job,
        "recipe": "mnist-2nn",
        "dataset": "mnist",
        "state": "running",
        "epoch": 1,
        "round": 1,
        "rounds": 3,
        "aggregator": "berlin",
        "reason": "",
        **more,
    }


class CannedSite:
    """Answers what the test has set; takes documents as the daemon would, signature included."""

    def __init__(self) -> None:
        self.error: AtollError | None = None
        self.asked: list[object] = []
        self.bodies: list[Body] = []
        self.known: list[Body] = []
        """What the catalog says."""
        self.rollout_rows: list[Json] = []
        self.committee_calls: list[tuple[Any, ...]] = []
        self.inclusion_findings: list[str] = []
        self.job_troubles: Json = {}
        self.blob_rows: list[Json] = []
        self.blob_bytes_max = 0
        self.stamps: list[Stamp] = []
        self.admin_keys: dict[bytes, Any] = {}
        self.acceptance = ""
        self.model_states: list[tuple[str, str]] = [("fetching", ""), ("ready", "")]
        self.blob = b""
        self.changes: list[Json] = []
        self.http = "127.0.0.1:1"
        self.state = "ready"
        self.clock_ahead_s = 0.0
        self.reasons: list[str] = []

    def status(self) -> Json:
        if self.error is not None:
            raise self.error
        return {
            "site": SITE,
            "name": "berlin",
            "cluster": "cd" * 32,
            "region": "eu-central",
            "tier": "edge",
            "jurisdiction": "DE",
            "version": "0.1.0",
            "uptime_s": 4000.0,
            "state": self.state,
            "reasons": self.reasons,
            "members": {"alive": 3, "suspect": 0, "dead": 1, "left": 0},
            "processes": [
                {"name": "gateway", "pid": 7, "state": "up", "restarts": 0, "rss_bytes": 50 << 20},
                {"name": "model", "pid": None, "state": "down", "restarts": 2, "rss_bytes": None},
                {
                    "name": "model-worker-1",
                    "pid": 9,
                    "state": "running",
                    "restarts": 4,
                    "rss_bytes": 80 << 20,
                    "worker": 1,
                    "is_up": True,
                    "device": "2",
                    "providers": ["CUDAExecutionProvider"],
                    "models": 3,
                    "loading": 1,
                    "runtime": "onnxruntime 1.31.1",
                    "sandbox": "landlock 7, seccomp",
                },
            ],
            "hardware": {"profile": "generic", "why": "nothing matched", "providers": ["CPU"]},
            "models": [
                {"name": "m", "version": str(i), "state": "ready", "reason": ""} for i in range(9)
            ],
            "jobs": [_row("digits-00000001")],
            "certificate": {
                "begins_at": 1.9e9,
                "expires_at": 2e9,
                "renew_at": 1.95e9,
                "renewed_by": "rome",
                "problem": "",
            },
            "http": self.http,
            "store": [],
        }

    def members(self) -> list[Json]:
        one = {
            "site": SITE,
            "name": "berlin",
            "tier": "edge",
            "region": "eu-central",
            "jurisdiction": "DE",
            "status": "alive",
            "rtt_ms": None,
            "rtt_is_estimated": False,
            "load": 0.25,
            "endpoint": "127.0.0.1:7411",
            "serving": ["m:1"],
            "incarnation": 5,
            "self": True,
        }
        other = {**one, "name": "evil\x1b[2J", "rtt_ms": 12.34, "rtt_is_estimated": True}
        other |= {"self": False, "status": "dead"}
        return [one, other]

    def peers(self) -> list[Json]:
        return [
            {
                "source": "seed",
                "target": "10.0.0.9:7411",
                "site": None,
                "name": None,
                "outcome": "failed",
                "reason": "connection refused",
                "mend": "is the agent there running?",
                "last_at": 1.0,
                "next_at": 2.0,
                "attempts": 4,
            }
        ]

    def models(self) -> list[Json]:
        state, reason = self.model_states[0]
        if len(self.model_states) > 1:
            self.model_states.pop(0)
        return [
            {
                "name": body.name,
                "version": body.version,
                "digest": body.manifest.hex(),
                "bytes": body.bytes,
                "residency": list(body.residency),
                "source": body.source,
                "deployed": True,
                "sites": [{"name": "berlin", "state": state, "reason": reason, "service_us": 10}],
            }
            for body in self.bodies
            if isinstance(body, ModelVersion)
        ]

    def jobs(self) -> list[Json]:
        return [_row("digits-00000001")]

    async def job(self, job: str) -> Json:
        if job != "digits-00000001":
            raise NotFound(f"no job {job}", mend="`atoll job list` shows them")
        counted = [{"site": SITE, "name": "berlin", "samples": 600, "update": "ef" * 32}]
        return _row(
            job,
            committee=["berlin", "paris", "rome"],
            value={"round": 1},
            **self.job_troubles,
            participants=[{"site": SITE, "name": "berlin", "state": "training", "reason": ""}],
            rounds_done=[
                {
                    "round": 1,
                    "epoch": 1,
                    "aggregator": "berlin",
                    "parameters": "12" * 32,
                    "committed_at": 1.7e9,
                    "counted": counted,
                    "accuracy": 0.875,
                }
            ],
        )

    def explain(self, model: str, residency: Sequence[str], application: str) -> Json:
        here = {"site": "abababab", "name": "berlin", "is_local": True, "jurisdiction": "DE"}
        away = {"site": "cdcdcdcd", "name": "boston", "is_local": False, "jurisdiction": "US"}
        return {
            "model": model,
            "version": "1",
            "model_residency": [],
            "request_residency": list(residency),
            "policies": [f"of-{application}"] if application != "local" else [],
            "chosen": "berlin",
            "candidates": [
                {
                    **here,
                    "predicted_ms": 1.5,
                    "rtt_ms": 0.0,
                    "queue_ms": 0.5,
                    "service_ms": 1.0,
                    "penalty_ms": 0.0,
                    "breaker": "closed",
                    "held": "",
                }
            ],
            "removed": [{**away, "removed_by": "US is not in the request's label"}],
        }

    async def doctor(self) -> list[Json]:
        return [{"check": "gossip", "ok": True, "evidence": "3 members answer", "mend": ""}]

    def stamp(self) -> Stamp:
        return Stamp(1_700_000_000_000, 4)

    def clock(self) -> Json:
        return {"clock_ahead_s": self.clock_ahead_s, "clocks_heard": 2}

    def documents(self, kind: str, name: str) -> list[Json]:
        rows = [(key_of(body), base64.b64encode(BODIES.pack(body)).decode()) for body in self.known]
        return [
            {"kind": key.kind, "name": key.name, "wall_ms": 1, "count": 0, "author": "", "body": b}
            for key, b in rows
            if kind in ("", key.kind) and name in ("", key.name)
        ]

    async def history(self, key: Key) -> list[Json]:
        return self.documents(key.kind, key.name)

    async def audit(self, job: str) -> Json:
        row = {
            "round": 1, "update": "ef" * 32, "samples": 600, "standing": "counted", "among": 2,
            "epoch": 1, "aggregator": "berlin",
        }  # fmt: skip
        return {
            "job": job, "round": 1, "checked": 1, "findings": self.inclusion_findings,
            "rows": [row],
        }  # fmt: skip

    async def replace(self, job: str, gone: str, by: str) -> Json:
        self.committee_calls.append(("replace", job, gone, by))
        return {"committee": ["berlin", "paris", by]}

    async def recover(self, job: str, members: tuple[str, ...]) -> Json:
        self.committee_calls.append(("recover", job, members))
        return {"committee": list(members), "epoch": 2**20 + 2, "round": 4}

    def rollouts(self, model: str) -> list[Json]:
        return [row for row in self.rollout_rows if model in ("", row["model"])]

    async def submit(self, documents: Sequence[bytes]) -> list[Json]:
        results = []
        for data in documents:
            document = unpack(Document, data)
            body = check_document(document, self.admin_keys)
            self.bodies.append(body)
            self.stamps.append(document.stamp)
            kind = key_of(body).kind
            results.append(
                {
                    "kind": kind,
                    "name": "x",
                    "accepted": not self.acceptance,
                    "reason": self.acceptance,
                }
            )
        return results

    async def draft_job(self, spec: JobSpec) -> Job:
        return spec.job(identifier=JobId(f"{spec.name}-00000001"), committee=(SiteId(b"\1" * 32),))

    async def blobs(self) -> Json:
        return {
            "blobs": self.blob_rows, "used_bytes": sum(row["bytes"] for row in self.blob_rows),
            "bytes_max": self.blob_bytes_max, "free_bytes": 5 << 30, "reserve_bytes": 64 << 20,
        }  # fmt: skip

    async def collect(self) -> list[str]:
        self.asked.append("collect")
        return [row["digest"] for row in self.blob_rows if row["standing"] == "unnamed"]

    async def store_blob(self, stream: AsyncIterator[bytes]) -> Json:
        self.blob = b"".join([part async for part in stream])
        return {"digest": "34" * 32, "bytes": len(self.blob)}

    async def create_token(self, request: TokenRequest) -> str:
        self.asked.append(request)
        return "atoll1.canned"

    async def renew(self) -> Json:
        self.asked.append("renew")
        if self.error is not None:
            raise self.error
        return {"expires_at": 2e9, "renewed_by": "rome"}

    async def release_model(self, model: str) -> Json:
        self.asked.append(("release", model))
        name, _, version = model.partition(":")
        state = "refused" if name == "bad" else "ready"
        return {"name": name, "version": version, "state": state, "reason": "it crashed"}

    async def control_model(self, model: str, *, is_load: bool) -> None:
        self.asked.append(("load" if is_load else "unload", model))

    async def set_draining(self, draining: bool) -> None:  # noqa: FBT001
        self.asked.append(("draining", draining))

    async def leave(self) -> None:
        self.asked.append("leave")

    async def stop(self) -> None:
        self.asked.append("stop")

    async def watch_job(self, job: str) -> AsyncIterator[Json]:
        await self.job(job)
        for change in self.changes:
            yield change


class LoopThread:
    """An event loop of its own, so that the blocking command line can talk to a server."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Atoll = Callable[..., Outcome]


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture
def canned() -> CannedSite:
    return CannedSite()


@pytest.fixture
def socket_path(canned: CannedSite, loop_thread: LoopThread, tmp_path: Path) -> Iterator[Path]:
    operations: Operations = canned
    path = tmp_path / "agent.sock"
    more = (
        *catalog.routes(canned), *rollouts.routes(canned), *blobs.routes(canned),
        *committees.routes(canned),
    )  # fmt: skip
    server = loop_thread.run(AdminServer.start(operations, path, more))
    yield path
    loop_thread.run(server.close())


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str]) -> Atoll:
    """The command line, with nothing added."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = int(error.code or 0)
        out, err = capsys.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def atoll(bare: Atoll, socket_path: Path) -> Atoll:
    """The command line, asking the canned site."""
    return lambda *arguments: bare("--socket", socket_path, *arguments)


@pytest.fixture(scope="session")
def founded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site founded by ``atoll init``: its settings file."""
    folder = tmp_path_factory.mktemp("founded")
    (folder / "pass").write_text("correct horse battery\n")
    config = folder / "atoll.toml"
    code = main(
        [
            *("init", "--config", str(config), "--state-dir", str(folder / "state")),
            *("--name", "berlin", "--region", "eu-central", "--tier", "core"),
            *("--jurisdiction", "DE", "--passphrase-file", str(folder / "pass")),
        ]
    )
    assert code == 0
    return config


@pytest.fixture
def admin_of(canned: CannedSite) -> Callable[[Path], None]:
    """Let the canned site know the admin key of a founded one."""
    from agent.drivers.keystore import load_admin  # noqa: PLC0415

    def trust(config: Path) -> None:
        key = load_admin(config.parent / "state" / "identity" / "admin.key").public_key()
        canned.admin_keys[key_id(key)] = key

    return trust


@pytest.fixture
def desk(founded: Path) -> Desk:
    return Desk(keystore.load(founded.parent / "state" / "identity"))


@pytest.fixture
def at_desk(
    desk: Desk, canned: CannedSite, loop_thread: LoopThread, bare: Atoll, founded: Path,
    tmp_path: Path,
) -> Iterator[Atoll]:  # fmt: skip
    """The command line, asking a site with this desk; settings and keys are berlin's."""
    path = tmp_path / "desk.sock"
    server = loop_thread.run(AdminServer.start(canned, path, routes(desk)))
    yield lambda *words: bare("--socket", path, "--config", founded, *words)
    loop_thread.run(server.close())


@pytest.fixture
def root_pass(tmp_path: Path) -> tuple[object, ...]:
    file = tmp_path / "pass"
    file.write_text(f"{PASS}\n")
    return ("--passphrase-file", file)
