"""A wide network on one machine: a namespace and a TAP device for each site, one process between them.

Why not the kernel: network emulation (tc netem) is missing in many kernels. The switch process holds
the other end of every TAP and forwards each Ethernet frame after the one-way delay, jitter, loss or
cut of its (source, target) pair. A pair keeps the order of its frames, as a path through the Internet
mostly does. Bandwidth is what the process can carry (some hundred Mbit/s).

``WideNetwork`` makes the namespaces, starts the switch and talks to it; run as a program, this file
is the switch. Control: one JSON object a line on standard input, ``{}`` in answer to each; it ends
with its standard input. Needs root and /dev/net/tun.
"""

import contextlib
import ctypes
import fcntl
import heapq
import json
import os
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Self

PATHS = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
TUN = Path("/dev/net/tun")
DEVICE = "wan0"
TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
CLONE_NEWNET = 0x4000_0000
FRAME_BYTES_MAX = 2048
MAC_BYTES = 6
QUEUED_FRAMES_MAX = 20_000
"""Frames under way, at most 30 MB: a second of 200 Mbit/s; beyond, they are lost like in any queue."""
READS_AT_ONCE = 64
"""Frames taken from one device before the others and the clock have their turn."""
SITES_MAX = 250
"""Sites of one network: the last byte of the address."""


def why_not() -> str:
    """Why a wide network cannot be made here; empty if it can."""
    if os.geteuid() != 0:
        return "needs root"
    if not TUN.exists():
        return f"needs {TUN}"
    return "" if shutil.which("ip", path=PATHS) else "needs iproute2"


def address(index: int) -> str:
    """The IPv4 address of the n-th site (from 0)."""
    return f"10.77.0.{index + 1}"


def hardware_address(index: int) -> bytes:
    """The Ethernet address of the n-th site."""
    return bytes((2, 0, 0, 0, 0, index + 1))


# --- the switch ----------------------------------------------------------------------------------
@dataclass(slots=True)
class Lane:
    """What happens to frames from one site to another; seconds."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Mean of an exponential delay on top."""
    loss: float = 0.0
    is_cut: bool = False
    busy_until: float = 0.0
    """When the last frame of this pair arrives: the next one does not overtake it."""


class Switch:
    """Forwards frames between the TAP devices of the named namespaces."""

    def __init__(self, namespaces: Sequence[str], seed: int) -> None:
        """Make the devices; their addresses are the caller's business."""
        self._taps = [_tap_in(name) for name in namespaces]
        everyone = range(len(self._taps))
        self._lanes = {(a, b): Lane() for a in everyone for b in everyone if a != b}
        self._by_address = {hardware_address(index): index for index in everyone}
        self._rng = Random(seed)
        self._under_way: list[tuple[float, int, int, bytes]] = []
        self._order = count()
        self.forwarded = self.lost = 0

    def run(self) -> None:
        """Forward until standard input ends; before other processes, for a network is never busy."""
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        control = sys.stdin.fileno()
        index_of = {tap: index for index, tap in enumerate(self._taps)}
        unread = b""
        while True:
            ready, _, _ = select.select([control, *self._taps], [], [], self._deliver())
            for descriptor in ready:
                if descriptor != control:
                    self._take(index_of[descriptor])
                    continue
                read = os.read(control, 65_536)
                if not read:
                    return
                *lines, unread = (unread + read).split(b"\n")
                for line in lines:
                    sys.stdout.write(json.dumps(self._obey(json.loads(line))) + "\n")
                sys.stdout.flush()

    def _obey(self, command: dict[str, Any]) -> dict[str, Any]:
        if "from" in command:
            lane = self._lanes[command.pop("from"), command.pop("to")]
            for name, value in command.items():
                setattr(lane, name, value)
        return {"forwarded": self.forwarded, "lost": self.lost}

    def _take(self, source: int) -> None:
        for _ in range(READS_AT_ONCE):
            try:
                frame = os.read(self._taps[source], FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            target = self._by_address.get(frame[:MAC_BYTES])
            if target is not None:
                self._send(source, target, frame)
            elif frame[0] & 1:  # to everybody: ARP, multicast DNS
                for other in range(len(self._taps)):
                    self._send(source, other, frame)

    def _send(self, source: int, target: int, frame: bytes) -> None:
        if source == target:
            return
        lane, now = self._lanes[source, target], time.monotonic()
        is_full = len(self._under_way) >= QUEUED_FRAMES_MAX
        if lane.is_cut or is_full or self._rng.random() < lane.loss:
            self.lost += 1
            return
        jitter_s = self._rng.expovariate(1 / lane.jitter_s) if lane.jitter_s > 0 else 0.0
        lane.busy_until = max(lane.busy_until, now + lane.delay_s + jitter_s)
        heapq.heappush(self._under_way, (lane.busy_until, next(self._order), target, frame))

    def _deliver(self) -> float | None:
        """Hand over what is due; seconds until the next frame is, None if none is under way."""
        while self._under_way:
            wait_s = self._under_way[0][0] - time.monotonic()
            if wait_s > 0:
                return wait_s
            _, _, target, frame = heapq.heappop(self._under_way)
            try:
                os.write(self._taps[target], frame)
                self.forwarded += 1
            except OSError:  # the device is down, or its queue is full
                self.lost += 1
        return None


def _tap_in(namespace: str) -> int:
    """A new TAP device inside ``namespace``; its descriptor, readable from any namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(there, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        tap = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", DEVICE.encode(), IFF_TAP | IFF_NO_PI))
    finally:
        if libc.setns(home, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot come back")
        os.close(home)
        os.close(there)
    return tap


# --- what a test uses ----------------------------------------------------------------------------
class WideNetwork:
    """Namespaces with the switch between them, for as long as the ``with`` block lasts."""

    def __init__(self, names: Sequence[str], seed: int = 1) -> None:
        """One site for each name (letters and digits), all paths without delay at first."""
        assert len(names) <= SITES_MAX
        self.names = tuple(names)
        self._seed = seed
        self._stack = ExitStack()
        self._switch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        with self._stack:
            for name in self.names:
                _ip("netns", "add", self.namespace(name))
                self._stack.callback(_ip, "netns", "del", self.namespace(name))
            spaces = [self.namespace(name) for name in self.names]
            self._switch = subprocess.Popen(
                [sys.executable, __file__, str(self._seed), *spaces],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._stack.callback(self._end)
            self._ask({})
            for index, space in enumerate(spaces):
                self._configure(index, space)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def namespace(self, name: str) -> str:
        """The namespace of a site; unlike that of any other process."""
        return f"wan{os.getpid() % 100_000}-{name}"

    def address(self, name: str) -> str:
        """The IPv4 address of a site."""
        return address(self.names.index(name))

    def within(self, name: str) -> tuple[str, ...]:
        """Words before a command that is to run at a site."""
        return (_tool("ip"), "netns", "exec", self.namespace(name))

    def lane(self, source: str, target: str, **values: float | bool) -> None:
        """Change one direction: ``delay_s``, ``jitter_s``, ``loss``, ``is_cut``."""
        a, b = self.names.index(source), self.names.index(target)
        self._ask({"from": a, "to": b, **values})

    def trips(
        self, trips_s: Mapping[tuple[str, str], float], *, jitter_s: float, loss: float
    ) -> None:
        """Set round trips (half each way) of pairs of sites, in both directions."""
        for (a, b), trip_s in trips_s.items():
            for source, target in ((a, b), (b, a)):
                self.lane(source, target, delay_s=trip_s / 2, jitter_s=jitter_s, loss=loss)

    def cut(self, source: str, target: str, *, is_cut: bool = True) -> None:
        """Drop everything from ``source`` to ``target`` (one way), or no longer."""
        self.lane(source, target, is_cut=is_cut)

    def counts(self) -> dict[str, int]:
        """Frames forwarded and lost so far."""
        return self._ask({})

    def _configure(self, index: int, space: str) -> None:
        mac = hardware_address(index).hex(":")
        _ip("-n", space, "link", "set", DEVICE, "address", mac)
        _ip("-n", space, "addr", "add", f"{address(index)}/24", "dev", DEVICE)
        _ip("-n", space, "link", "set", "lo", "up")
        _ip("-n", space, "link", "set", DEVICE, "up")
        for other in range(len(self.names)):
            if other != index:  # known addresses, so that no ARP question adds a round trip
                _ip("-n", space, "neigh", "replace", address(other), "lladdr",
                    hardware_address(other).hex(":"), "dev", DEVICE, "nud", "permanent")  # fmt: skip

    def _ask(self, command: Mapping[str, Any]) -> dict[str, int]:
        assert self._switch is not None
        assert self._switch.stdin is not None
        assert self._switch.stdout is not None
        self._switch.stdin.write(json.dumps(command) + "\n")
        self._switch.stdin.flush()
        answer = self._switch.stdout.readline()
        assert answer, "the switch has ended"
        return dict(json.loads(answer))

    def _end(self) -> None:
        assert self._switch is not None
        assert self._switch.stdin is not None
        self._switch.stdin.close()
        try:
            self._switch.wait(5)
        except subprocess.TimeoutExpired:
            self._switch.kill()
            self._switch.wait()
        assert self._switch.stdout is not None
        self._switch.stdout.close()


def _tool(name: str) -> str:
    found = shutil.which(name, path=PATHS)
    assert found is not None, f"{name} is missing; packaging/setup.sh installs it"
    return found


def _ip(*words: str) -> None:
    done = subprocess.run([_tool("ip"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


if __name__ == "__main__":
    Switch(sys.argv[2:], int(sys.argv[1])).run()
