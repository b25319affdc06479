"""The agents that ``bench_mesh`` observes: HashiCorp serf and Atoll, each as one process.

Every time is taken by ONE observer: its monotonic clock when a line of the agent's own log reaches its
pipe. Nothing is polled, so that the observer does not load the cores under test.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal

import msgpack

ROOT = Path(__file__).resolve().parents[1]
HZ = os.sysconf("SC_CLK_TCK")
SERF_PORT, MESH_PORT = 7946, 7411
SERF_RPC_PORT = 7373
now = time.monotonic

Kind = Literal["up", "down", "other"]


class Agent(ABC):
    """One process, its address, and what its log has said."""

    peer = "?"

    def __init__(self, number: int, ip: str, changed: Callable[[], None]) -> None:
        """``changed`` is called after each line that said something."""
        self.number, self.ip, self.name = number, ip, f"n{number}"
        self._changed = changed
        self.within: tuple[str, ...] = ()
        """Put before the command line: ``ip netns exec NAME``."""
        self.process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self.reset()

    def reset(self) -> None:
        """Forget what was seen."""
        self.alive: set[str] = set()
        self.seen: list[tuple[float, Kind, str]] = []
        self.rumors: dict[str, float] = {}
        self.is_up = False
        self.isolated_at: float | None = None
        self.tail: list[str] = []

    # --- for the kinds to say ----------------------------------------------------------------
    @abstractmethod
    def command(self) -> list[str]:
        """The command line."""

    @abstractmethod
    def read_line(self, line: bytes, at: float) -> bool:
        """Take one line of the log; whether it said something."""

    @abstractmethod
    async def join(self, ip: str) -> None:
        """Tell the running process of a seed."""

    @abstractmethod
    async def tell(self, number: int) -> str:
        """Start a rumor; the word by which the others' logs will show it."""

    # --- for everybody -----------------------------------------------------------------------
    async def start(self) -> None:
        """Start the process."""
        self.reset()
        self.process = await asyncio.create_subprocess_exec(
            *self.within, *self.command(), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=self.environment(),
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())

    def environment(self) -> dict[str, str]:
        """Of the process."""
        return dict(os.environ)

    async def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            at = now()
            self.tail.append(line.decode("utf-8", "replace").rstrip())
            del self.tail[:-400]
            if self.read_line(line, at):
                self._changed()

    def saw(self, kind: Kind, name: str, at: float) -> None:
        """A line told of a member."""
        if kind == "up":
            self.alive.add(name)
        elif kind == "down":
            self.alive.discard(name)
        self.seen.append((at, kind, name))

    def downs(self, since: float) -> list[tuple[float, str]]:
        """Members declared dead since then, and when."""
        return [(at, name) for at, kind, name in self.seen if kind == "down" and at >= since]

    @property
    def pid(self) -> int:
        """Of the agent itself (``ip netns exec`` replaces itself)."""
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    async def gone(self) -> None:
        """SIGKILL and wait."""
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        await self.process.wait()
        if self._reading is not None:
            await self._reading
        self.process = None

    def cpu_s(self) -> float:
        """User and system time of the process."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / HZ

    def memory_mib(self) -> tuple[float, float]:
        """Resident and proportional set."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()[1:]
        kib = {line.split(":")[0]: line.split()[1] for line in lines}
        return int(kib["Rss"]) / 1024, int(kib["Pss"]) / 1024


class Serf(Agent):
    """HashiCorp serf, LAN profile."""

    peer = "serf"
    _MEMBER = re.compile(rb"serf: EventMember(Join|Failed|Leave|Reap): (\S+)")
    _EVENT = re.compile(rb"Received event: user-event: (\S+)")
    seed: str | None = None

    def command(self) -> list[str]:
        words = [
            "serf", "agent", f"-node={self.name}", f"-bind={self.ip}:{SERF_PORT}",
            f"-rpc-addr={self.ip}:{SERF_RPC_PORT}", "-profile=lan", "-log-level=info",
        ]  # fmt: skip
        if self.seed is not None:
            words += [f"-retry-join={self.seed}:{SERF_PORT}", "-retry-interval=1s"]
        return words

    def read_line(self, line: bytes, at: float) -> bool:
        if found := self._MEMBER.search(line):
            self.is_up = True
            self.saw("up" if found[1] == b"Join" else "down", found[2].decode(), at)
            return True
        if found := self._EVENT.search(line):
            self.rumors.setdefault(found[1].decode(), at)
            return True
        return False

    async def _rpc(self, command: str, body: dict[str, object]) -> None:
        for _ in range(100):
            try:
                reader, writer = await asyncio.open_connection(self.ip, SERF_RPC_PORT)
                break
            except OSError:
                await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"serf {self.name} does not listen for RPC")
        words = (
            {"Command": "handshake", "Seq": 1}, {"Version": 1}, {"Command": command, "Seq": 2}, body,
        )  # fmt: skip
        writer.write(b"".join(msgpack.packb(word) for word in words))
        unpacker = msgpack.Unpacker(raw=True)
        while data := await reader.read(65536):
            unpacker.feed(data)
            for answer in unpacker:
                if isinstance(answer, dict) and answer.get(b"Seq") == 2:
                    writer.close()
                    if answer[b"Error"]:
                        raise RuntimeError(answer[b"Error"].decode())
                    return
        raise RuntimeError("serf closed the RPC connection")

    async def join(self, ip: str) -> None:
        await self._rpc("join", {"Existing": [f"{ip}:{SERF_PORT}"], "Replay": False})

    async def tell(self, number: int) -> str:
        name = f"e{number}x{self.number}"
        await self._rpc("event", {"Name": name, "Payload": b"x" * 64, "Coalesce": False})
        return name


class Atoll(Agent):
    """Atoll's control process (``mesh_site``), real keys and database."""

    peer = "atoll"
    _MEMBER = re.compile(rb": (\S+) is (alive|suspect|dead|left)(?: \(was \S+\))?$")
    _KNOWN = re.compile(rb": (\d+) other sites are known from before")
    _KINDS: ClassVar[dict[bytes, Kind]] = {b"alive": "up", b"dead": "down", b"left": "down"}

    def __init__(
        self, number: int, ip: str, changed: Callable[[], None], folder: Path, sites: int,
        *, mdns: bool = False,
    ) -> None:  # fmt: skip
        """``folder`` holds an identity already; ``sites`` is the expected number."""
        super().__init__(number, ip, changed)
        self.folder, self.sites, self.mdns = folder, sites, mdns
        self._is_draining = False
        self.catalog = ""
        """The digest of its catalog, as it has told last; only while it watches."""

    def write_config(self) -> Path:
        """The site's settings; everything else is default."""
        path = self.folder / "atoll.toml"
        path.write_text(
            f'[site]\nstate_dir = "{self.folder}"\n\n'
            f'[listen]\nhttp_host = "{self.ip}"\nmesh_host = "{self.ip}"\n\n'
            f"[discovery]\nmdns = {'true' if self.mdns else 'false'}\n\n"
            f"[membership]\nexpected_sites = {self.sites}\n"
        )
        return path

    def command(self) -> list[str]:
        return [sys.executable, str(ROOT / "benchmarks/mesh_site.py"), str(self.write_config())]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), **EXTRA_ENVIRONMENT}

    def read_line(self, line: bytes, at: float) -> bool:
        if found := self._MEMBER.search(line.rstrip()):
            self.saw(self._KINDS.get(found[2], "other"), found[1].decode(), at)
        elif line.startswith(b"rumor "):
            _, name, status = line.decode().split()
            self.rumors[f"{name} {status}"] = at
        elif line.startswith(b"catalog "):
            self.catalog = line.decode().split()[1]
        elif found := self._KNOWN.search(line):
            if int(found[1]) == self.sites - 1:
                self.alive |= {f"n{number}" for number in range(self.sites)}
        elif b"is ready" in line:
            self.is_up = True
            self.alive.add(self.name)
        elif b"isolated: nobody" in line:
            self.isolated_at = at
        else:
            return False
        return True

    def _write(self, text: str) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{text}\n".encode())

    async def join(self, ip: str) -> None:
        self._write(f"seed {ip}")

    def watch(self) -> None:
        """Write down rumors from now on."""
        self._write("watch")

    def profile(self) -> None:
        """Record where time goes from now on (development)."""
        self._write("profile")

    async def start(self) -> None:
        self._is_draining = False
        await super().start()

    async def tell(self, number: int) -> str:  # noqa: ARG002 - a record has its own number
        self._is_draining = not self._is_draining
        self._write(f"drain {int(self._is_draining)}")
        return f"{self.name} {'draining' if self._is_draining else 'alive'}"


EXTRA_ENVIRONMENT: dict[str, str] = {}


def make_identities(folder: Path, sites: int) -> None:
    """Identity folders ``n0 ..`` of one cluster, as ``atoll init`` and ``atoll join`` leave them."""
    from agent.drivers import keystore
    from agent.identity.certificates import issue_site
    from agent.identity.claims import Claims

    at = datetime.now(UTC)
    founder = keystore.found_cluster(
        folder / "n0" / "identity", name="n0", region="bench", tier="edge", jurisdiction="DE",
        roles=(), passphrase="of no further use", now=at,
    ).keys  # fmt: skip
    assert founder.issuer is not None
    for number in range(1, sites):
        directory = folder / f"n{number}" / "identity"
        keys = keystore.prepare_join(directory)
        claims = Claims(
            founder.cluster, f"n{number}", "bench", "edge", "DE", (),
            keys.gossip_private.public_key().public_bytes_raw(),
        )  # fmt: skip
        leaf = issue_site(founder.issuer, keys.site_private.public_key(), claims, at)
        keystore.complete_join(
            directory, chain=(leaf, founder.issuer.certificate), root=founder.root,
            trust=founder.trust,
        )  # fmt: skip


def fresh_state(identities: Path, folder: Path, number: int) -> Path:
    """A state folder with the identity of site ``number`` and nothing else."""
    state = folder / f"n{number}"
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(identities / f"n{number}", state)
    return state
