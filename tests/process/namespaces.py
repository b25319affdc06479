"""Network namespaces on one bridge: machines of a LAN, as far as the network is concerned.

Needs root and iproute2. Each machine has ``eth0``, up but without an address unless one is given.
"""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from daemon_cluster import Daemon

PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
MUST_RUN = os.environ.get("ATOLL_REQUIRE_ALL") == "1"
_numbers = count(1)


def why_not(*tools: str) -> str:
    """Why these tests cannot run here; empty if they can."""
    missing = [tool for tool in ("ip", *tools) if shutil.which(tool, path=PATHS) is None]
    if os.geteuid() != 0:
        return "needs root"
    return f"missing: {', '.join(missing)}" if missing else ""


def tool(name: str) -> str:
    path = shutil.which(name, path=PATHS)
    assert path is not None, f"{name} is missing; packaging/setup.sh installs it"
    return path


def ip(*words: str) -> None:
    done = subprocess.run([tool("ip"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


class Machine:
    """One namespace."""

    def __init__(self, space: str, bridge: str, port: str) -> None:
        self.space, self._bridge, self._port = space, bridge, port
        self.within = (tool("ip"), "netns", "exec", space)

    def ip(self, *words: str) -> None:
        ip("-n", self.space, *words)

    def run(self, *words: str) -> str:
        done = subprocess.run(
            [*self.within, *words], capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def add(self, *addresses: str, interface: str = "eth0") -> None:
        for address in addresses:
            more = ("nodad",) if ":" in address else ()
            self.ip("addr", "add", address, "dev", interface, *more)

    def link(self, state: str, interface: str = "eth0") -> None:
        self.ip("link", "set", interface, state)

    def cable(self, state: str) -> None:
        """The other end of the cable: down means that it is pulled."""
        ip("-n", self._bridge, "link", "set", self._port, state)

    def popen(self, *words: str) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [*self.within, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )


@contextlib.contextmanager
def lan(*names: str) -> Iterator[dict[str, Machine]]:
    """Machines on one bridge, without addresses."""
    mark = f"at{os.getpid() % 100_000}n{next(_numbers)}"
    bridge = f"{mark}-br"
    with contextlib.ExitStack() as stack:
        spaces = {name: f"{mark}-{name}" for name in names}
        for space in (bridge, *spaces.values()):
            ip("netns", "add", space)
            stack.callback(ip, "netns", "del", space)
        ip("-n", bridge, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        ip("-n", bridge, "link", "set", "br0", "up")
        machines = {}
        for number, (name, space) in enumerate(spaces.items()):
            port = f"p{number}"
            ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", port,
               "netns", bridge)  # fmt: skip
            ip("-n", bridge, "link", "set", port, "master", "br0", "up")
            ip("-n", space, "link", "set", "lo", "up")
            machines[name] = Machine(space, bridge, port)
            machines[name].link("up")
        yield machines


class Site(Daemon):
    """A site that finds out its address itself, as an installed one does."""

    machine: Machine

    def __init__(self, folder: Path, name: str, machine: Machine, extra: str = "") -> None:
        self.machine = machine
        super().__init__(folder, name, extra, host="127.0.0.1", within=machine.within)

    def configure(self, extra: str = "", listen: str = "") -> None:
        self.config.write_text(
            f'[site]\nstate_dir = "{self.state_dir}"\nruntime_dir = "{self.folder / "run"}"\n'
            f"[listen]\n{listen}\n{extra}\n"
        )

    def endpoint_of(self, name: str) -> str:
        """Where it believes a member to be; empty if that is not alive."""
        rows = self.get("/1/members")["members"]
        found = [row for row in rows if row["name"] == name and row["status"] == "alive"]
        return str(found[0]["endpoint"]) if found else ""

    def peers(self, **wanted: object) -> Sequence[dict[str, object]]:
        """Rows of ``atoll peers`` with these values."""
        rows = self.get("/1/peers")["peers"]
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]
