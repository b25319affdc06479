"""The demo's sites: five state folders, five loopback addresses, five real daemons."""

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agent.cli.client import AdminClient
from agent.drivers.memory import resident_bytes
from agent.foundation.errors import AtollError

T = TypeVar("T")
Json = dict[str, Any]
MESH_PORT, DATA_PORT = 17411, 17412
"""Not the usual ones: an installed site on this machine holds those at every address."""
PORTS = ((socket.SOCK_STREAM, (8000, MESH_PORT, DATA_PORT)), (socket.SOCK_DGRAM, (MESH_PORT,)))
NETWORKS = range(77, 97)
"""127.0.N.x: the first of these loopback networks whose ports are free."""
COMMAND_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 6.0


class Failed(Exception):
    """Something the demo claims did not happen; the text says what."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a site's certificate will say."""

    name: str
    tier: str
    region: str
    jurisdiction: str


PLACES = (
    Place("hamburg", "core", "north", "DE"),
    Place("munich", "edge", "south", "DE"),
    Place("lyon", "edge", "west", "FR"),
    Place("milan", "regional", "south", "IT"),
    Place("utrecht", "edge", "north", "NL"),
)


class DemoSite:
    """One site: its folder, its daemon while it runs, its admin socket."""

    def __init__(self, place: Place, folder: Path, host: str) -> None:
        """Nothing is written or started yet."""
        self.place, self.name, self.host = place, place.name, host
        self.folder = folder / place.name
        self.config = folder / f"{place.name}.toml"
        self.log = folder / f"{place.name}.log"
        self.data = folder / "data" / place.name
        self.http = f"{host}:8000"
        self.process: subprocess.Popen[bytes] | None = None
        self.admin = AdminClient(self.folder / "run" / "agent.sock")

    @property
    def admin_key(self) -> Path:
        """The cluster's admin key, on the founding site only."""
        return self.folder / "identity" / "admin.key"

    def write_config(self) -> None:
        """A complete configuration: everything else is default."""
        self.config.write_text(
            f'[site]\nstate_dir = "{self.folder}"\n\n'
            f'[listen]\nhttp_host = "{self.host}"\nmesh_host = "{self.host}"\n'
            f"mesh_port = {MESH_PORT}\ndata_port = {DATA_PORT}\n\n"
            f'[datasets.digits]\npath = "{self.data}"\n'
        )

    def start(self) -> None:
        """Start the daemon in a session of its own."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent", "run", "--config", str(self.config)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> None:
        """SIGKILL the daemon; its children end with it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def atoll(self, *arguments: str) -> str:
        """Run a verb of the command line for this site; its output.

        Raises:
            Failed: the command failed; with what it said.
        """
        verb = [sys.executable, "-m", "agent", *arguments, "--config", str(self.config)]
        done = subprocess.run(
            verb, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode != 0:
            raise Failed(f"atoll {' '.join(arguments[:2])} at {self.name}: {done.stderr.strip()}")
        return done.stdout.strip()

    def tail(self) -> str:
        """The last lines of the daemon's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])


class Cluster:
    """All sites of the demo."""

    def __init__(self, folder: Path | None) -> None:
        """``folder``: kept if given; otherwise a new one that ``remove`` deletes."""
        self._is_ours = folder is None
        self.folder = folder or Path(tempfile.mkdtemp(prefix="atoll-demo-"))
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        network = free_network()
        self.sites = tuple(
            DemoSite(place, self.folder, f"127.0.{network}.{number}")
            for number, place in enumerate(PLACES, start=1)
        )

    @property
    def founder(self) -> DemoSite:
        """The site that founds the cluster and admits the others."""
        return self.sites[0]

    @property
    def running(self) -> list[DemoSite]:
        """Sites whose daemon runs."""
        return [s for s in self.sites if s.process is not None and s.process.poll() is None]

    def named(self, name: str) -> DemoSite:
        """The site of that name."""
        return next(site for site in self.sites if site.name == name)

    def found(self) -> None:
        """``atoll init`` at the founder, with a passphrase that nobody needs again."""
        for site in self.sites:
            site.write_config()
        passphrase = self.folder / "passphrase"
        passphrase.touch(mode=0o600)
        passphrase.write_text(secrets.token_urlsafe(24))
        self._certify(self.founder, "init", "--passphrase-file", str(passphrase))

    def join(self, site: DemoSite) -> None:
        """A token from the founder, and ``atoll join`` with it."""
        place = site.place
        token = self.founder.atoll("token", "create", *_place(place))
        site.atoll("join", token)

    def _certify(self, site: DemoSite, verb: str, *more: str) -> None:
        site.atoll(verb, *_place(site.place), *more)

    def stop(self) -> None:
        """Stop all daemons, at once."""
        for site in self.running:
            assert site.process is not None
            site.process.terminate()
        for site in self.sites:
            site.stop()

    def remove(self) -> None:
        """Delete the folder, unless the caller named it."""
        if self._is_ours:
            shutil.rmtree(self.folder, ignore_errors=True)


def _place(place: Place) -> Sequence[str]:
    return (
        "--name", place.name, "--region", place.region, "--tier", place.tier,
        "--jurisdiction", place.jurisdiction,
    )  # fmt: skip


def until(
    what: str, timeout_s: float, look: Callable[[], T | None], every_s: float = 0.05
) -> tuple[T, float]:
    """Look again and again until there is something; it, and how long that took in seconds.

    Raises:
        Failed: ``what`` did not happen in time; with the last error met while looking.
    """
    began = time.monotonic()
    trouble = ""
    while (passed_s := time.monotonic() - began) < timeout_s:
        try:
            if (found := look()) is not None:
                return found, passed_s
            trouble = ""
        except AtollError as error:
            trouble = f" ({error})"
        time.sleep(every_s)
    raise Failed(f"{what}: not within {timeout_s:.0f} s{trouble}")


def free_network() -> int:
    """The N of a loopback network 127.0.N.x where five sites find their ports free.

    Raises:
        Failed: there is none.
    """
    for network in NETWORKS:
        if all(
            _is_free(kind, f"127.0.{network}.{number}", port)
            for number in range(1, len(PLACES) + 1)
            for kind, ports in PORTS
            for port in ports
        ):
            return network
    raise Failed(
        f"ports 8000, {MESH_PORT} and {DATA_PORT} are taken on 127.0.77.x to 127.0.96.x; stop old demos"
    )


def _is_free(kind: socket.SocketKind, host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        with contextlib.suppress(OSError):
            probe.bind((host, port))
            return True
    return False


def memory_bytes(pid: int) -> int:
    """Proportional share of memory (PSS), 0 if the process is gone; falls back to the resident set."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) << 10
    return resident_bytes(pid)
