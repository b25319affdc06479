"""What a capture of packets says in clear: TCP put together, TLS 1.3 and gossip opened with the sites' own keys.

Written from the RFCs (5246 for records, 8446 sections 5 and 7 for keys), not with the product's code, so
that it does not share its mistakes. Nothing is passed over: what could not be opened is counted, so that
"it was not there" can be told from "it was not seen".
"""

import ipaddress
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

End = tuple[str, int]
"""Address and port."""
PCAP, ETHERNET, IPV4, TCP, UDP = 0xA1B2C3D4, 1, 0x0800, 6, 17
SYN, ACK = 2, 16
CHANGE, HANDSHAKE, PROTECTED = 20, 22, 23
"""TLS record types."""
CLIENT_HELLO, SERVER_HELLO = 1, 2
RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random of a ServerHello that asks for another ClientHello (RFC 8446, 4.1.3)."""
EPOCHS = range(16)
"""Boots of a site in one test, 0: its sender knew none yet."""


@dataclass(frozen=True, slots=True)
class Packet:
    """An IPv4 packet with TCP or UDP."""

    at_s: float
    """Wall clock."""
    protocol: int
    source: End
    target: End
    payload: bytes
    sequence: int = 0
    flags: int = 0


def packets(file: Path) -> Iterator[Packet]:
    """All IPv4 packets of a capture (pcap, Ethernet)."""
    data = file.read_bytes()
    magic, _, _, _, _, _, link = struct.unpack_from("<IHHiIII", data)
    assert (magic, link) == (PCAP, ETHERNET)
    place = 24
    while place + 16 <= len(data):
        seconds, micros, held, length = struct.unpack_from("<IIII", data, place)
        assert held == length, "the capture cut a packet short"
        frame = data[place + 16 : place + 16 + held]
        place += 16 + held
        if len(frame) >= 34 and struct.unpack_from(">H", frame, 12)[0] == IPV4:
            yield _packet(seconds + micros / 1e6, frame[14:])


def _packet(at_s: float, ip: bytes) -> Packet:
    total, fragment = struct.unpack_from(">H", ip, 2)[0], struct.unpack_from(">H", ip, 6)[0]
    assert not fragment & 0x3FFF, "a fragment"
    protocol, rest = ip[9], ip[(ip[0] & 15) * 4 : total or len(ip)]
    hosts = [str(ipaddress.IPv4Address(ip[place : place + 4])) for place in (12, 16)]
    if protocol not in (TCP, UDP):
        return Packet(at_s, protocol, (hosts[0], 0), (hosts[1], 0), rest)
    ports = struct.unpack_from(">HH", rest)
    ends = (hosts[0], ports[0]), (hosts[1], ports[1])
    if protocol == UDP:
        return Packet(at_s, UDP, *ends, rest[8:])
    header, flags = (rest[12] >> 4) * 4, rest[13]
    return Packet(at_s, TCP, *ends, rest[header:], struct.unpack_from(">I", rest, 4)[0], flags)


@dataclass(slots=True)
class Stream:
    """One direction of a TCP connection."""

    first: int | None = None
    """Sequence number of its first byte; None: its begin was not captured."""
    segments: list[tuple[int, bytes]] = field(default_factory=list)

    def data(self) -> tuple[bytes, bool]:
        """All bytes up to the first that is missing, and whether none is."""
        found = bytearray()
        for place, piece in sorted(self.segments):
            if place > len(found):
                return bytes(found), False
            found += piece[len(found) - place :]
        return bytes(found), True


@dataclass(slots=True)
class Connection:
    """A TCP connection as one of its ends saw it."""

    client: End
    server: End
    sent: Stream = field(default_factory=Stream)
    received: Stream = field(default_factory=Stream)


def connections(found: list[Packet]) -> list[Connection]:
    """The TCP connections, in the order of their begin."""
    all_of: list[Connection] = []
    open_now: dict[tuple[End, End], Connection] = {}
    for one in found:
        if one.protocol != TCP:
            continue
        if one.flags & (SYN | ACK) == SYN:
            known = open_now.get((one.source, one.target))
            if known is None or known.sent.first != one.sequence + 1:  # else it was sent again
                known = Connection(one.source, one.target)
                known.sent.first = one.sequence + 1
                open_now[one.source, one.target] = known
                all_of.append(known)
            continue
        is_sent = (one.source, one.target) in open_now
        connection = open_now.get((one.source, one.target) if is_sent else (one.target, one.source))
        assert connection is not None, f"a connection older than the capture: {one}"
        stream = connection.sent if is_sent else connection.received
        if one.flags & SYN:
            stream.first = one.sequence + 1
        elif one.payload and stream.first is not None:
            stream.segments.append(((one.sequence - stream.first) % 2**32, one.payload))
    return all_of


# --- TLS -------------------------------------------------------------------------------------------
Secrets = Mapping[tuple[str, bytes], bytes]
"""By label and client random."""


def secrets(*files: Path) -> Secrets:
    """The secrets in key logs."""
    lines = [line.split() for file in files for line in file.read_text().splitlines()]
    return {
        (words[0], bytes.fromhex(words[1])): bytes.fromhex(words[2])
        for words in lines
        if len(words) == 3 and not words[0].startswith("#")
    }


@dataclass(slots=True)
class Clear:
    """What was opened, and how much was not."""

    texts: list[bytes] = field(default_factory=list)
    """The content of each direction of each connection, and of each datagram."""
    opened: int = 0
    """Protected records and datagrams."""
    closed: list[str] = field(default_factory=list)
    """What could not be opened."""

    def has(self, canary: bytes) -> bool:
        return any(canary in text for text in self.texts)


class _Keys:
    """The keys of one direction: those of the handshake, then those of its data."""

    def __init__(self, random: bytes, suite: int, side: str, known: Secrets) -> None:
        names = f"{side}_HANDSHAKE_TRAFFIC_SECRET", f"{side}_TRAFFIC_SECRET_0"
        self._left = [known[name, random] for name in names if (name, random) in known]
        self._suite, self._number = suite, 0
        self._cipher: AESGCM | ChaCha20Poly1305 | None = None
        self._next()

    def open(self, record: bytes) -> bytes | None:
        """The content of a protected record (with its header)."""
        while self._cipher is not None:
            nonce = (int.from_bytes(self._iv) ^ self._number).to_bytes(12)
            try:
                inner = self._cipher.decrypt(nonce, record[5:], record[:5])
            except InvalidTag:
                self._next()
                continue
            self._number += 1
            return inner.rstrip(b"\0")[:-1]  # without padding and type
        return None

    def _next(self) -> None:
        self._cipher, self._number = None, 0
        if self._left:
            secret = self._left.pop(0)
            size = 16 if self._suite == 0x1301 else 32
            hashed = SHA384() if self._suite == 0x1302 else SHA256()
            self._iv = _expand(secret, hashed, b"iv", 12)
            key = _expand(secret, hashed, b"key", size)
            self._cipher = ChaCha20Poly1305(key) if self._suite == 0x1303 else AESGCM(key)


def _expand(secret: bytes, hashed: HashAlgorithm, label: bytes, size: int) -> bytes:
    """RFC 8446, 7.1: HKDF-Expand-Label without context."""
    label = b"tls13 " + label
    info = struct.pack(">HB", size, len(label)) + label + b"\0"
    return HKDFExpand(hashed, size, info).derive(secret)


def _records(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + 5 <= len(data):
        size = 5 + struct.unpack_from(">H", data, place + 3)[0]
        if place + size > len(data):  # the connection broke off
            return
        yield data[place : place + size]
        place += size


def _hello(data: bytes, kind: int) -> bytes | None:
    """The last hello of this kind that came in clear, from its random on."""
    found = None
    for record in _records(data):
        if record[0] == HANDSHAKE and record[5] == kind:
            found = record[11:]
        elif record[0] == PROTECTED:
            break
    return found


def read_connection(one: Connection, known: Secrets, into: Clear) -> None:
    """Open all records of a connection."""
    (sent, is_sent_whole), (received, is_received_whole) = one.sent.data(), one.received.data()
    name = f"{one.client} to {one.server}"
    if not (is_sent_whole and is_received_whole):
        into.closed.append(f"{name}: the capture has a gap")
    client, server = _hello(sent, CLIENT_HELLO), _hello(received, SERVER_HELLO)
    if client is None or server is None or server[:32] == RETRY:
        if any(record[0] == PROTECTED for data in (sent, received) for record in _records(data)):
            into.closed.append(f"{name}: no handshake")
        into.texts += [sent, received]
        return
    (suite,) = struct.unpack_from(">H", server, 33 + server[32])
    for side, data in (("CLIENT", sent), ("SERVER", received)):
        keys, text = _Keys(client[:32], suite, side, known), bytearray()
        for record in _records(data):
            if record[0] != PROTECTED:
                text += record
            elif (inner := keys.open(record)) is None:
                into.closed.append(f"{name}: a record of the {side.lower()}")
            else:
                into.opened += 1
                text += inner
        into.texts.append(bytes(text))


# --- gossip ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class GossipKey:
    """Of one site."""

    site: bytes
    private: X25519PrivateKey


def read_datagram(one: Packet, sites: Mapping[str, GossipKey], into: Clear) -> None:
    """Open a gossip packet (docs/protocol.md) between two sites, by their addresses."""
    sender, receiver = sites[one.source[0]], sites[one.target[0]]
    shared = sender.private.exchange(receiver.private.public_key())
    info = b"atoll gossip 1" + sender.site + receiver.site
    cipher = AESGCM(HKDF(SHA256(), 32, None, info).derive(shared))
    header, sealed = one.payload[:21], one.payload[21:]
    for epoch in EPOCHS:
        try:
            body = cipher.decrypt(header[9:], sealed, header + receiver.site + epoch.to_bytes(4))
        except InvalidTag:
            continue
        into.opened += 1
        into.texts.append(body)
        return
    into.closed.append(f"a datagram of {one.source} to {one.target}")


def read_capture(file: Path, known: Secrets, sites: Mapping[str, GossipKey]) -> Clear:
    """All that a capture says."""
    found, clear = list(packets(file)), Clear()
    for connection in connections(found):
        read_connection(connection, known, clear)
    for one in found:
        if one.protocol == UDP:
            read_datagram(one, sites, clear)
        elif one.protocol != TCP and one.payload:
            clear.texts.append(one.payload)
    return clear
