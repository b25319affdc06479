"""The servers of the serving bench: started, asked, measured from outside and ended, all alike.

Atoll is the whole daemon, founded and run by its own commands: identity, gateway, sandboxed model worker,
admission, audit, metrics. The peers are the wrappers in ``serving_peers``, in environments of their own.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from serving_setup import FOLDER, MODELS, ROOT, python_of

sys.path.insert(0, str(ROOT))

from serving_peers import work

WRAPPERS = ROOT / "benchmarks" / "serving_peers"
HEADER = "Inference-Header-Content-Length"
BINARY, JSON = "application/octet-stream", "application/json"
START_S_MAX = 90.0
HOST = "127.0.64.1"
"""Atoll's, so that nothing that is installed on this machine is in the way."""
FLOOR, ATOLL = "aiohttp + uvloop + thread", "Atoll"
THREADS = 2
"""Runs at once, at every server: both cores (Atoll's own default leaves one of them free)."""


@dataclass(frozen=True, slots=True)
class Body:
    """One request, as it goes over the wire."""

    content: bytes
    kind: str = BINARY
    json_bytes: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What belongs to it."""
        more = {} if self.json_bytes is None else {HEADER: str(self.json_bytes)}
        return {"Content-Type": self.kind, **more}


def binary(model: str, shapes: work.Shapes | None = None) -> Body:
    """In the binary tensor extension."""
    length, content = work.binary_body(model, shapes)
    return Body(content, BINARY, length)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one request, and how long it took."""

    status: int
    headers: dict[str, str]
    body: bytes
    took_s: float


@dataclass(slots=True)
class Server:
    """One server: how it is started and asked; its process tree while it runs."""

    name: str
    command: list[str]
    port: int
    host: str = "127.0.0.1"
    path: str = "/v2/models/%s/infer"
    form: str = "binary"
    folder: Path = WRAPPERS
    """Where its commands run."""
    environment: dict[str, str] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    bodies: dict[str, Body] = field(default_factory=dict)

    def __post_init__(self) -> None:
        forms = {
            "binary": binary,
            "json": lambda model: Body(work.json_body(model), JSON),
            "multipart": lambda model: Body(
                work.multipart_body(model), f"multipart/form-data; boundary={work.BOUNDARY}"
            ),
        }
        self.bodies = {model: forms[self.form](model) for model in work.MODELS}

    def start(self) -> None:
        """Start the process; output goes to a file beside its environment."""
        environment = {**os.environ, "PYTHONWARNINGS": "ignore", "SERVING_MODELS": str(MODELS)}
        with (FOLDER / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.folder, env=environment | self.environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def start_to_answers(self) -> float:
        """Start it, and wait until each model has answered once: seconds.

        Raises:
            RuntimeError: it ended, or did not answer in time.
        """
        began = time.monotonic()
        self.start()
        assert self.process is not None
        for model in work.MODELS:
            while not self._answers(model):
                if self.process.poll() is not None or time.monotonic() - began > START_S_MAX:
                    raise RuntimeError(f"{self.name} does not answer; see {FOLDER / 'log'}")
                time.sleep(0.01)
        return time.monotonic() - began

    def _answers(self, model: str) -> bool:
        try:
            return self.ask(model).status == 200
        except (OSError, http.client.HTTPException):
            return False

    def ask(self, model: str, body: Body | None = None, headers: dict[str, str] | None = None,
            timeout_s: float = 20.0, path: str | None = None) -> Answer:  # fmt: skip
        """One request over a connection of its own."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)
        body = body or self.bodies[model]
        began = time.perf_counter()
        try:
            connection.request(
                "POST", path or self.path % model, body.content, body.headers | (headers or {})
            )
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        took_s = time.perf_counter() - began
        return Answer(
            answer.status, {k.lower(): v for k, v in answer.getheaders()}, content, took_s
        )

    def get(self, path: str) -> int:
        """The status of a small question."""
        return self._get(path)[0]

    def read(self, path: str) -> bytes:
        """The answer to a small question."""
        return self._get(path)[1]

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def load(
        self, model: str, concurrency: int, seconds: float, body: Body | None = None
    ) -> dict[str, float]:
        """What ``wrk`` sees: requests, p50_us, p99_us, refused, broken; and rps and cpu_ms a request."""
        body = body or self.bodies[model]
        with tempfile.NamedTemporaryFile() as file:
            file.write(body.content)
            file.flush()
            length = [] if body.json_bytes is None else [str(body.json_bytes)]
            cpu_s = self.cpu_s()
            done = subprocess.run(
                ["wrk", "-t1", f"-c{concurrency}", f"-d{max(1, round(seconds))}s", "--timeout", "20s",
                 "-s", str(WRAPPERS / "post.lua"),
                 f"http://{self.host}:{self.port}{self.path % model}", "--", file.name, body.kind, *length],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            cpu_s = self.cpu_s() - cpu_s
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        found["rps"] = (found["requests"] - found["refused"]) / found["seconds"]
        found["cpu_ms"] = cpu_s * 1000 / max(found["requests"], 1)
        return found

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        assert self.process is not None
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.process.pid)
            return [root, *root.children(recursive=True)]
        return []

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def pss_mib(self) -> float:
        """Memory of all its processes, shared pages by part."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total / 2**20

    def stop(self) -> None:
        """End it and whatever it has started."""
        if self.process is None:
            return
        tree = self.tree()
        self.process.send_signal(signal.SIGINT if self.name != ATOLL else signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        for process in tree:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        psutil.wait_procs(tree, 5)
        self.process = None


@contextlib.contextmanager
def running(*servers: Server) -> Iterator[None]:
    """Started and answering; ended whatever happens."""
    try:
        for server in servers:
            server.start_to_answers()
        yield
    finally:
        for server in servers:
            server.stop()


# --- peers ---------------------------------------------------------------------------------------
def floor() -> Server:
    """What an asyncio daemon without checks and isolation does; in Atoll's own environment."""
    return Server(FLOOR, [sys.executable, str(WRAPPERS / "floor.py"), "8101"], 8101)


def peers(names: list[str], folder: Path) -> list[Server]:
    """The packaged servers, each at its best form of body; ``folder`` for what they write."""
    made = {
        "bentoml": lambda: Server(
            "BentoML 1.4.39 (raw ASGI)",
            [str(python_of("bentoml").with_name("bentoml")), "serve", "bento_app:Edge",
             "--host", "127.0.0.1", "--port", "8130"],
            8130, path="/raw/v2/models/%s/infer",
            environment={"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "bento")},
        ),
        "mlserver": lambda: _mlserver(folder / "mlserver"),
        "litserve": lambda: Server(
            "LitServe 0.2.19 (multipart)", [str(python_of("litserve")), "lit_app.py", "8120"], 8120,
            form="multipart", environment={"LIT_DISABLE_TELEMETRY": "1"},
        ),
        "pytriton": lambda: Server(
            "PyTriton 0.7.0 (Triton 2.51)", [str(python_of("pytriton")), "triton_app.py", "8140"], 8140
        ),
    }  # fmt: skip
    return [made[name]() for name in names]


def _mlserver(folder: Path) -> Server:
    for model in work.MODELS:
        (folder / model).mkdir(parents=True)
        settings = {"name": model, "implementation": "mlserver_runtime.OnnxModel"}
        (folder / model / "model-settings.json").write_text(json.dumps(settings))
    settings = {
        "host": "127.0.0.1", "http_port": 8110, "grpc_port": 8111, "metrics_port": 8112,
        "parallel_workers": 0, "debug": False, "metrics_dir": str(folder),
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    program = python_of("mlserver").with_name("mlserver")
    return Server(
        "MLServer 1.7.1 (JSON)", [str(program), "start", str(folder)], 8110, form="json",
        environment={"PYTHONPATH": str(WRAPPERS)},
    )  # fmt: skip


# --- Atoll ---------------------------------------------------------------------------------------
class Site(Server):
    """A founded site with the three models in its catalog."""

    def __init__(
        self, folder: Path, settings: str = "", models: tuple[str, ...] = tuple(work.MODELS)
    ) -> None:
        """Found it, push the models, and stop it again; ``settings`` is more of ``[serving]``."""
        from agent.cli.client import AdminClient

        self.site_folder, self.config = folder, folder / "atoll.toml"
        folder.mkdir(parents=True)
        atoll = [sys.executable, "-m", "agent"]
        super().__init__(
            ATOLL, [*atoll, "run", "--config", str(self.config)], 8000, HOST,
            folder=ROOT,  # its children find the sources there
        )  # fmt: skip
        self.admin = AdminClient(folder / "run" / "agent.sock")
        self.configure(settings)
        secret = folder / "passphrase"
        secret.write_text("correct horse battery\n")
        self.atoll(
            "init", "--name", "bench", "--region", "here", "--tier", "edge", "--jurisdiction", "DE",
            "--passphrase-file", str(secret),
        )  # fmt: skip
        self.start()
        try:
            self.until("the site is up", lambda: self.status()["state"] != "starting")
            for model in models:
                self.push(model, "1", MODELS / f"{model}.onnx")
            self.until("models answer", lambda: all(self._answers(model) for model in models))
        finally:
            self.stop()

    def configure(self, serving: str = "") -> None:
        """Write the settings: its addresses, and ``serving`` for ``[serving]``."""
        if "threads" not in serving:
            serving = f"threads = {THREADS}\n{serving}"
        listen = f'http_host = "{HOST}"\nmesh_host = "{HOST}"'
        self.config.write_text(
            f'[site]\nstate_dir = "{self.site_folder / "state"}"\nruntime_dir = "{self.site_folder / "run"}"\n'
            f"[listen]\n{listen}\n[serving]\n{serving}\n"
        )

    def atoll(self, *arguments: str) -> str:
        """Run a verb of the command line for this site; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "agent", *arguments, "--config", str(self.config)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise RuntimeError(f"atoll {' '.join(arguments)}: {done.stdout}{done.stderr}")
        return done.stdout

    def push(self, name: str, version: str, file: Path) -> None:
        """Have the site serve a model, from now on in this version."""
        self.atoll("model", "push", str(file), "--name", name, "--version", version)

    def status(self) -> dict[str, Any]:
        """What the control process says."""
        return self.admin.get("/1/status")

    def process_of(self, name: str) -> psutil.Process:
        """One of its processes, such as ``gateway``."""
        rows = self.status()["processes"]
        return psutil.Process(
            next(row["pid"] for row in rows if row["name"] == name and row["pid"])
        )

    def until(self, what: str, ask: Any, timeout_s: float = 30.0) -> None:
        """Poll until ``ask`` gives something true."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            with contextlib.suppress(Exception):
                if ask():
                    return
            time.sleep(0.02)
        raise RuntimeError(f"not within {timeout_s:g} s: {what}")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a short name (a Unix socket's path has at most 107 characters)."""
    folder = Path(tempfile.mkdtemp(prefix="atoll-bench-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
