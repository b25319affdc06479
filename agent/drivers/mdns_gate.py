"""In front of the multicast DNS library: what reaches it is about Atoll and comes at a bearable pace.

The library reads a packet in about 0.1 ms and keeps what it says for up to 75 minutes. A host that
floods the link would take this process's time and memory; here its packets cost a few microseconds.
The pace is kept for each sender, so that one who floods does not silence the others.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

PACKET_BYTES_MAX = 9000
"""RFC 6762, section 17."""
SENDER_BURST, SENDER_RATE = 512.0, 50.0
"""Packets, and packets a second. Forty sites that start on one host at once send about 400."""
TOTAL_BURST, TOTAL_RATE = 1024.0, 200.0
"""The same of all senders together: what passes takes at most a tenth of a core."""
SENDERS_MAX = 256
"""Remembered; the one that was silent longest gives way."""

_OURS = b"atoll"
_ENUMERATION = b"_dns-sd"
_IS_RESPONSE = 0x80
_HEADER_BYTES = 12


@dataclass(slots=True)
class Bucket:
    """A token bucket."""

    tokens: float
    at: float

    def take(self, burst: float, rate: float, now: float) -> bool:
        """Take one token if there is one."""
        self.tokens = min(burst, self.tokens + (now - self.at) * rate)
        self.at = now
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


@dataclass(slots=True)
class Gate:
    """Decides for all sockets of one library instance."""

    passed: int = 0
    foreign: int = 0
    """Packets about other things than Atoll: most of an ordinary network's."""
    excess: int = 0
    """Packets beyond the pace."""
    sender: str = ""
    """Of the packet that is being read."""
    _total: Bucket = field(default_factory=lambda: Bucket(TOTAL_BURST, 0.0))
    _senders: OrderedDict[str, Bucket] = field(default_factory=OrderedDict)

    def admits(self, data: bytes, sender: str, now: float) -> bool:
        """Whether the library shall read the packet."""
        if not _concerns_us(data):
            self.foreign += 1
            return False
        bucket = self._senders.get(sender)
        if bucket is None:
            if len(self._senders) >= SENDERS_MAX:
                self._senders.popitem(last=False)
            bucket = self._senders[sender] = Bucket(SENDER_BURST, now)
        self._senders.move_to_end(sender)
        if not bucket.take(SENDER_BURST, SENDER_RATE, now) or not self._total.take(
            TOTAL_BURST, TOTAL_RATE, now
        ):
            self.excess += 1
            return False
        self.passed += 1
        return True


def _concerns_us(data: bytes) -> bool:
    """Names stand whole in a packet at least once, so a packet about us has our word in it."""
    if not _HEADER_BYTES <= len(data) <= PACKET_BYTES_MAX:
        return False
    lower = data.lower()
    return _OURS in lower or (not data[2] & _IS_RESPONSE and _ENUMERATION in lower)


class Gated(asyncio.DatagramProtocol):
    """The library's protocol behind the gate."""

    def __init__(self, inner: Any, gate: Gate) -> None:
        """``inner`` has its transport already."""
        self.inner, self._gate = inner, gate

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Part of ``asyncio.DatagramProtocol``."""
        sender = str(addr[0]).removeprefix("::ffff:")
        gate = self._gate
        if gate.admits(data, sender, asyncio.get_running_loop().time()):
            gate.sender = sender
            self.inner.datagram_received(data, addr)

    def error_received(self, exc: Exception) -> None:
        """Part of ``asyncio.DatagramProtocol``."""
        self.inner.error_received(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        """Part of ``asyncio.DatagramProtocol``."""
        self.inner.connection_lost(exc)
