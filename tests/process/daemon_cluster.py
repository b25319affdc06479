"""A cluster of real daemons on loopback addresses of its own, founded, joined and run by the CLI."""

import contextlib
import ipaddress
import json
import os
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeVar

import psutil

from agent.cli.client import AdminClient
from agent.cli.join import SEEDS_KEY
from agent.foundation.errors import AtollError

ROOT = Path(__file__).parents[2]
MNIST = ROOT / ".cache/mnist"
ATOLL = (sys.executable, "-m", "agent")
POLL_S = 0.05
T = TypeVar("T")

_addresses = count(1)


def new_address() -> str:
    """A loopback address that no other test process uses: 127/8 has room for all of them."""
    block = 0x7F40_0000 + (os.getpid() & 0x3FFF) * 256
    return str(ipaddress.IPv4Address(block + next(_addresses)))


def wait_for(
    ask: Callable[[], T], timeout_s: float = 30.0, what: str = "", of: "Sequence[Daemon]" = ()
) -> T:
    """Poll until ``ask`` gives something true; fails with the last error and the daemons' logs."""
    deadline = time.monotonic() + timeout_s
    problem = ""
    while time.monotonic() < deadline:
        try:
            if found := ask():
                return found
            problem = f"{found!r}"
        except (AtollError, OSError, LookupError) as error:
            problem = repr(error)
        time.sleep(POLL_S)
    logs = "\n".join(f"--- {one.name}\n{one.log()[-6000:]}" for one in of)
    raise AssertionError(f"not within {timeout_s:g} s: {what}; last: {problem}\n{logs}")


class Daemon:
    """One site: its folder, its settings, and the process while it runs."""

    def __init__(
        self,
        folder: Path,
        name: str,
        extra: str = "",
        state_dir: Path | None = None,
        host: str = "",
        within: tuple[str, ...] = (),
    ):
        """``within``: words before every command, such as ``ip netns exec NAME``."""
        self.name, self.folder, self.host = name, folder / name, host or new_address()
        self.within = within
        self.folder.mkdir(exist_ok=True)
        self.state_dir = state_dir or self.folder / "state"
        self.config = self.folder / "atoll.toml"
        self.process: subprocess.Popen[bytes] | None = None
        self.program: tuple[str, ...] = ATOLL
        self.configure(extra)

    def configure(self, extra: str = "", listen: str = "") -> None:
        """Write the settings; ``extra`` is more TOML."""
        if not self.host.startswith("127.") and "http_tokens" not in listen:
            listen += '\nhttp_tokens = "never"'  # in a network of the test's own
        self.config.write_text(
            f'[site]\nstate_dir = "{self.state_dir}"\nruntime_dir = "{self.folder / "run"}"\n'
            f'[listen]\nhttp_host = "{self.host}"\nmesh_host = "{self.host}"\n{listen}\n{extra}\n'
        )

    @property
    def http(self) -> str:
        return f"{self.host}:8000"

    @property
    def admin(self) -> AdminClient:
        return AdminClient(self.folder / "run/agent.sock")

    def get(self, path: str, **query: str) -> dict[str, Any]:
        return self.admin.get(path, **query)

    def cli(
        self, *arguments: str, ok: bool = True, text: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a verb of the command line against this site."""
        done = subprocess.run(
            [*self.within, *ATOLL, *arguments, "--config", str(self.config)],
            cwd=ROOT, capture_output=True, text=True, timeout=60, input=text, check=False,
        )  # fmt: skip
        if ok:
            assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}\n{self.log()}"
        return done

    def forget_the_tokens_addresses(self) -> None:
        """Leave this site nothing but multicast to find others by; the daemon does not run."""
        database = sqlite3.connect(self.state_dir / "atoll.db")
        with contextlib.closing(database), database:
            database.execute("DELETE FROM meta WHERE key = ?", [SEEDS_KEY])

    def json(self, *arguments: str) -> Any:
        return json.loads(self.cli(*arguments, "--json").stdout)

    def start(self) -> Self:
        """Start the process; ``wait_ready`` waits for it."""
        assert self.process is None
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, *self.program, "run", "--config", str(self.config)],
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        return self

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} has ended:\n{self.log()}"
        return bool(self.get("/1/status")["state"] != "starting")

    def wait_ready(self, timeout_s: float = 30.0) -> Self:
        wait_for(self.is_ready, timeout_s, f"{self.name} is ready", [self])
        return self

    def alive(self) -> set[str]:
        """Names of the sites that it holds to be alive."""
        rows = self.get("/1/members")["members"]
        return {row["name"] for row in rows if row["status"] == "alive"}

    def pid_of(self, name: str) -> int:
        """Of one of its processes."""
        rows = self.get("/1/status")["processes"]
        found = [int(row["pid"]) for row in rows if row["name"] == name and row["pid"]]
        return found[0]

    def model(self, name: str, version: str) -> dict[str, Any]:
        """What the site says of a model version at itself."""
        rows = self.get("/1/status")["models"]
        return {(row["name"], row["version"]): row for row in rows}[name, version]  # type: ignore[no-any-return]

    def children(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def crash(self) -> None:
        """The power of the whole site goes: SIGKILL to each of its processes."""
        children = self.children()
        self.kill()
        for child in children:
            # Its workers end by themselves when the daemon is gone: some may have.
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()

    def stop(self, timeout_s: float = 10.0) -> tuple[int, float]:
        """SIGTERM; the exit code and the seconds it took."""
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self.process = None
        return code, time.monotonic() - began

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            children = self.children()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            if self.process is not None:
                self.kill()
            for child in children:
                with contextlib.suppress(psutil.Error):
                    child.kill()
            psutil.wait_procs(children, 5)
        self.process = None


def found(folder: Path, name: str, jurisdiction: str = "DE", **options: Any) -> Daemon:
    """A new cluster's first site, not running."""
    founder = Daemon(folder, name, **options)
    make_founder(founder, jurisdiction)
    return founder


def make_founder(founder: Daemon, jurisdiction: str = "DE") -> None:
    """``atoll init`` with the settings that it has."""
    name = founder.name
    secret = founder.folder / "passphrase"
    secret.write_text("correct horse battery\n")
    founder.cli(
        "init", "--name", name, "--region", f"region-{name}", "--tier", "edge",
        "--jurisdiction", jurisdiction, "--passphrase-file", str(secret),
    )  # fmt: skip


def token_for(founder: Daemon, name: str, jurisdiction: str = "DE", *more: str) -> str:
    """A join token from the running founder."""
    return founder.cli(
        "token", "create", "--name", name, "--region", f"region-{name}", "--tier", "edge",
        "--jurisdiction", jurisdiction, *more,
    ).stdout.split()[0]  # fmt: skip


def admit(founder: Daemon, name: str, jurisdiction: str = "DE", extra: str = "") -> Daemon:
    """Another site of the cluster, joined with a token, not running."""
    joiner = Daemon(founder.folder.parent, name, extra)
    joiner.cli("join", token_for(founder, name, jurisdiction))
    joiner.forget_the_tokens_addresses()
    return joiner


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder with a short name (a Unix socket's path has at most 107 characters)."""
    folder = Path(tempfile.mkdtemp(prefix="atoll-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(*daemons: Daemon) -> Iterator[None]:
    """Ends them whatever happens."""
    try:
        yield
    finally:
        for daemon in daemons:
            daemon.clean_up()


@contextlib.contextmanager
def that_met(
    places: Mapping[str, str], settings: Callable[[Daemon], None] = lambda _: None
) -> Iterator[list[Daemon]]:
    """Running sites that all hold each other alive.

    Args:
        places: the jurisdiction of each by its name; the first founds the cluster.
        settings: is given each site before it starts.
    """
    (name, jurisdiction), *others = places.items()
    with scratch() as folder:
        founder = found(folder, name, jurisdiction)
        settings(founder)
        with running(founder):
            founder.start().wait_ready()
            joined = [admit(founder, *other) for other in others]
            for site in joined:
                settings(site)
            with running(*joined):
                for site in joined:
                    site.start()
                every = [founder, *joined]
                wait_for(
                    lambda: all(len(s.alive()) == len(every) for s in every), 30, "all meet", every
                )
                for site in joined:
                    site.wait_ready()
                yield every


def write_digits(folder: Path, *, part: int, samples: int = 900) -> Path:
    """A small data set in the recipe's format: a slice of MNIST, else scikit-learn's digits."""
    folder.mkdir(parents=True)
    if (MNIST / "train-images-idx3-ubyte").exists():
        images = (MNIST / "train-images-idx3-ubyte").read_bytes()[16:]
        labels = (MNIST / "train-labels-idx1-ubyte").read_bytes()[8:]
        side = 28
    else:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - only without MNIST

        digits = load_digits()
        side = 8
        images = b"".join(bytes(int(v * 15) for v in row) for row in digits.data)
        labels = bytes(int(v) for v in digits.target)
    pixels, available = side * side, len(labels)
    start = part * samples % (available - samples)
    for name, first, number in (("train", start, samples), ("t10k", 0, 200)):
        chosen = images[first * pixels : (first + number) * pixels]
        header = struct.pack(">HBBIII", 0, 8, 3, number, side, side)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + chosen)
        header = struct.pack(">HBBI", 0, 8, 1, number)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(header + labels[first : first + number])
    return folder


def submit_job(site: Daemon, **keys: Any) -> str:
    """Submit a job; its id."""
    values = {"name": "digits", "recipe": "mnist-2nn", "dataset": "digits", "rounds": 2,
              "learning_rate": 0.1, "sites_min": 2, **keys}  # fmt: skip
    path = site.folder / "job.toml"
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return str(site.json("job", "submit", str(path))["id"])
