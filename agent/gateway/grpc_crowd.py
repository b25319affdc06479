"""The connections of the gRPC door: who gives way when there are too many.

The library accepts connections itself and tells nobody of them; of its own bounds one closes what comes
when ``CONNECTIONS_MAX`` are open, whoever comes, and others end connections that are silent for long. So
a thousand silent connections would keep everybody out. Here the process looks at its own sockets once a
second: when more than ``CROWDED`` are connected to the door, those that have been silent longest are shut
down until ``SPACIOUS`` are left, never one with a call under way. Clients connect anew by themselves.

A socket is looked at and shut down through a duplicate of its descriptor, so that both concern the same
connection whatever the library does meanwhile.

Source: linux/tcp.h (``struct tcp_info``), tcp(7).
"""

import asyncio
import logging
import os
import socket
import struct
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import unquote

CONNECTIONS_MAX = 2048
"""Open at once, by the library's own bound: about 25 KB each once they speak HTTP/2."""
CROWDED = 1024
"""As many as the HTTP door has; from here on silent ones give way."""
SPACIOUS = 768
"""So many are left: room for those who come until the next look."""
SILENT_S = 1.0
"""A client that means it has said something by then."""
LOOK_EVERY_S = 1.0

_LAST_DATA_RECEIVED = struct.Struct("=52xI")
"""``tcpi_last_data_recv``, milliseconds."""
_log = logging.getLogger(__name__)

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Seen:
    """A connection as it was found."""

    peer: Address
    silent_s: float
    descriptor: int
    """A duplicate; whoever has this closes it."""


def dispensable(seen: Collection[Seen], asking: Collection[Address]) -> list[Seen]:
    """Those that give way: the longest silent first, none that has a call under way or spoke just now."""
    if len(seen) <= CROWDED:
        return []
    silent = [one for one in seen if one.silent_s >= SILENT_S and one.peer not in asking]
    silent.sort(key=lambda one: -one.silent_s)
    return silent[: len(seen) - SPACIOUS]


def read_peer(text: str) -> Address:
    """The address of a peer as the library writes it: ``ipv4:192.0.2.7:1234``, ``ipv6:%5B::1%5D:1234``."""
    host, _, port = unquote(text.partition(":")[2]).rpartition(":")
    return host.strip("[]"), int(port) if port.isdecimal() else 0


def connections_at(port: int) -> list[Seen]:
    """Every connection of this process that was accepted at ``port``."""
    found = []
    for name in _descriptors():
        with suppress(OSError):  # closed since, or no connection
            duplicate = os.dup(int(name))
            seen = None
            try:
                seen = _look(duplicate, port)
            finally:
                if seen is None:
                    os.close(duplicate)
                else:
                    found.append(seen)
    return found


def _descriptors() -> list[str]:
    return os.listdir("/proc/self/fd")  # noqa: PTH208 - a thousand paths would be made for their names


def _look(descriptor: int, port: int) -> Seen | None:
    held = socket.socket(fileno=descriptor)
    try:
        if held.family not in (socket.AF_INET, socket.AF_INET6) or held.getsockname()[1] != port:
            return None
        host, number, *_ = held.getpeername()  # the listening socket has none
        info = held.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED.size)
        (silent_ms,) = _LAST_DATA_RECEIVED.unpack(info)
        return Seen((host.removeprefix("::ffff:"), number), silent_ms / 1000, descriptor)
    finally:
        held.detach()


class GrpcCrowd:
    """Keeps room at one door."""

    def __init__(self) -> None:
        self._asking: Counter[Address] = Counter()
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def asking(self, peer: str) -> Iterator[None]:
        """A call of ``peer`` is under way inside this block."""
        address = read_peer(peer)
        self._asking[address] += 1
        try:
            yield
        finally:
            self._asking[address] -= 1
            if not self._asking[address]:
                del self._asking[address]

    def start(self, port: int) -> None:
        """Look after the door at ``port`` until ``stop``."""
        self._task = asyncio.get_running_loop().create_task(self._watch(port))

    def stop(self) -> None:
        """No more."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self, port: int) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if len(_descriptors()) > CROWDED:
                count = await asyncio.to_thread(make_room, port, frozenset(self._asking))
                if count:
                    _log.info("%d silent gRPC connections gave way", count)


def make_room(port: int, asking: Collection[Address]) -> int:
    """Shut down those that give way; how many there were."""
    seen = connections_at(port)
    try:
        giving_way = dispensable(seen, asking)
        for one in giving_way:
            held = socket.socket(fileno=one.descriptor)
            with suppress(OSError):
                held.shutdown(socket.SHUT_RDWR)
            held.detach()
        return len(giving_way)
    finally:
        for one in seen:
            os.close(one.descriptor)
