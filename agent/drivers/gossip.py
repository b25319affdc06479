"""The gossip socket: UDP datagrams in and out, sealed, counted, never trusted.

A datagram that does not open is counted and dropped; nothing is ever sent because of it. A flood must
not hold the loop: a bounded number of datagrams is read in each turn of it (asyncio's own datagram
transport reads one, and pays a whole turn for it), what is junk is told by its first bytes, and no
member is heard more often than ``_PACKETS_PER_S``.

An ICMP "port unreachable" is evidence that a process is gone while its host lives: Linux reports it for
an unconnected socket only with ``IP_RECVERR``, through the socket's error queue (ip(7)).
"""

import asyncio
import errno
import ipaddress
import logging
import socket
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.foundation.errors import AtollError, ConfigError, Malformed
from agent.foundation.ids import SiteId
from agent.wire.gossip import GOSSIP, GossipMessage
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Endpoint

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ERRNO_BYTES = 4
_V4, _V6 = 4, 6
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_ADDRESSES_MAX = 4096
"""Addresses remembered to name the site behind a refused port; the oldest give way."""
_SITES_PER_ADDRESS = 4
"""Members that may claim one address (an address that moved on, or one that lies): a refusal there is
evidence against each of them."""
_ERRORS_PER_TURN = 64
"""Queued errors read at once: a burst must not hold the loop."""
_DATAGRAMS_PER_TURN = 32
"""Datagrams read before the loop's other work gets its turn: 0.3 ms of junk, 5 ms of news."""
_PACKETS_PER_S, _PACKETS_AT_ONCE = 200.0, 400.0
"""Packets heard of one member: ten times what the busiest pair sends. The signatures in them cost up to
1 ms, and a member that floods must not take the time of those that do not. Only packets that have been
opened are charged, so nobody can use up another's allowance."""
_ALLOWANCES_MAX = 1024
"""Members whose packets of late are counted; who is forgotten begins anew."""
RECEIVE_BUFFER_BYTES = 1 << 20
"""About 900 full packets: a burst of a large cluster while the loop is busy for 50 ms."""

_log = logging.getLogger("atoll.gossip")


class Seal(Protocol):
    """What the socket needs of ``agent.identity.envelope.Sealer``."""

    def seal(self, target: SiteId, body: bytes) -> bytes:
        """The packet for ``target``."""
        ...

    def open(self, packet: bytes) -> tuple[SiteId, bytes]:
        """Sender and body; ``Malformed`` for anything else."""
        ...


@dataclass(slots=True)
class _Allowance:
    """Packets that a member may still send: a bucket that fills with time."""

    left: float
    at: float

    def take(self, now: float) -> bool:
        self.left = min(_PACKETS_AT_ONCE, self.left + (now - self.at) * _PACKETS_PER_S)
        self.at = now
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class GossipSocket:
    """UDP at one address, or at every address of this host: one socket for each family."""

    def __init__(
        self,
        seal: Seal,
        heard: Callable[[SiteId, GossipMessage], None],
        send_failed: Callable[[SiteId], None],
        port_refused: Callable[[SiteId], None],
    ) -> None:
        """The callbacks run in the loop's thread."""
        self._seal, self._heard = seal, heard
        self._send_failed, self._port_refused = send_failed, port_refused
        self._targets: OrderedDict[tuple[str, int], list[SiteId]] = OrderedDict()
        self._allowances: OrderedDict[SiteId, _Allowance] = OrderedDict()
        self._sockets: dict[int, socket.socket] = {}
        """By IP version. Two, not one for both: the error queue then names addresses as they are."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self.dropped = 0
        """Datagrams that did not open or decode."""
        self.limited = 0
        """Packets of members that sent too many."""
        self.sent = self.received = 0

    async def open(self, hosts: str | Sequence[str], port: int) -> None:
        """Bind and start to receive at one address, or at one of each family.

        Raises:
            ConfigError: an address cannot be bound; none is then.
        """
        self._loop = asyncio.get_running_loop()
        try:
            for host in (hosts,) if isinstance(hosts, str) else hosts:
                self._bind(host, port)
        except ConfigError:
            self.close()
            raise

    def _bind(self, host: str, port: int) -> None:
        assert self._loop is not None, "set by open"
        is_v6 = ":" in host
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            if is_v6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                bound.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                bound.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
            bound.bind((host, port))
        except OSError as error:
            bound.close()
            raise ConfigError(
                f"cannot listen for gossip at {host} UDP port {port}",
                why=error.strerror or str(error),
                mend="stop what holds the port (ss -lunp), or choose another [listen] mesh_port",
            ) from None
        version = _V6 if is_v6 else _V4
        assert version not in self._sockets, "one address of each family"
        self._sockets[version] = bound
        self._loop.add_reader(bound.fileno(), self._readable, bound)

    def _readable(self, bound: socket.socket) -> None:
        """Take what has come, but not more than a turn's share."""
        receive = bound.recv
        for number in range(_DATAGRAMS_PER_TURN):
            try:
                data = receive(PACKET_BYTES_MAX + 1)  # of a longer one enough to see that it is
            except BlockingIOError:
                if number == 0:  # so it was the error queue that woke us
                    self._drain_errors(bound)
                return
            except OSError:  # the error of an earlier packet of ours
                self._drain_errors(bound)
                continue
            self._take(data)
            if self._is_closed():  # by what was heard
                return

    def _is_closed(self) -> bool:
        return not self._sockets

    def _take(self, data: bytes) -> None:
        """Open, decode, pass on; drop what is not a member's."""
        self.received += 1
        try:
            sender, body = self._seal.open(data)
            if not self._may_speak(sender):
                self.limited += 1
                return
            message = GOSSIP.unpack(body, PACKET_BYTES_MAX)
        except Malformed:
            self.dropped += 1
            return
        self._heard(sender, message)

    def _may_speak(self, sender: SiteId) -> bool:
        assert self._loop is not None, "heard only while open"
        now = self._loop.time()
        allowance = self._allowances.get(sender)
        if allowance is None:
            allowance = self._allowances[sender] = _Allowance(_PACKETS_AT_ONCE, now)
            if len(self._allowances) > _ALLOWANCES_MAX:
                self._allowances.popitem(last=False)
        self._allowances.move_to_end(sender)
        return allowance.take(now)

    def send(self, target: SiteId, endpoint: Endpoint, message: GossipMessage) -> None:
        """Seal and send; a local failure is reported as our own fault."""
        if not self._sockets:
            return
        try:
            packet = self._seal.seal(target, GOSSIP.pack(message))
            address = ipaddress.ip_address(endpoint.host)
        except (AtollError, ValueError) as error:
            _log.debug("no packet for %s: %s", target.hex()[:8], error)
            return
        assert len(packet) <= PACKET_BYTES_MAX
        bound = self._sockets.get(address.version)
        if bound is None or not _is_usable(address):
            # What a member says of its own address is no fault of this site: as good as silence.
            _log.debug("no packet for %s at %s", target.hex()[:8], address)
            return
        where = (str(address), endpoint.mesh_port)
        self._remember(where, target)
        self._send(bound, packet, where, target)

    def _remember(self, where: tuple[str, int], target: SiteId) -> None:
        sites = self._targets.setdefault(where, [])
        if target in sites:
            sites.remove(target)
        sites.append(target)
        del sites[:-_SITES_PER_ADDRESS]
        self._targets.move_to_end(where)
        if len(self._targets) > _ADDRESSES_MAX:
            self._targets.popitem(last=False)

    def _send(
        self, bound: socket.socket, packet: bytes, where: tuple[str, int], target: SiteId
    ) -> None:
        try:
            self._sendto(bound, packet, where)
        except BlockingIOError:
            pass  # the kernel's buffer is full: as good as lost, and probes expect loss
        except OSError as error:
            _log.debug("no packet leaves for %s: %s", where, error)
            if (
                error.errno != errno.EINVAL
            ):  # an address that cannot be used from ours, such as fe80::1
                self._send_failed(target)
        self.sent += 1

    def _sendto(self, bound: socket.socket, packet: bytes, where: tuple[str, int]) -> None:
        try:
            bound.sendto(packet, where)
        except BlockingIOError:
            raise
        except OSError:
            # The error of an earlier packet, perhaps to another member, is told in place of sending.
            self._drain_errors(bound)
            bound.sendto(packet, where)

    def _drain_errors(self, bound: socket.socket) -> None:
        """Tell which members' ports refused; "host unreachable" and the like say too little."""
        for _ in range(_ERRORS_PER_TURN):
            if self._is_closed():  # by what was told
                return
            try:
                _, ancillary, _, address = bound.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            if address and any(_is_refusal(level, data) for level, _, data in ancillary):
                for site in tuple(self._targets.get((address[0], address[1]), ())):
                    self._port_refused(site)

    def close(self) -> None:
        """Stop receiving; what was handed to the kernel still leaves."""
        for bound in self._sockets.values():
            assert self._loop is not None, "set together"
            self._loop.remove_reader(bound.fileno())
            bound.close()
        self._sockets = {}


def _is_usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether a datagram can be sent there at all, the state of the network apart."""
    return not (address.is_multicast or address.is_unspecified or address == _BROADCAST)


def _is_refusal(level: int, data: bytes) -> bool:
    """Whether a ``sock_extended_err`` (errno first, in the machine's order) tells of a closed port."""
    is_error = level in (socket.IPPROTO_IP, socket.IPPROTO_IPV6) and len(data) >= _ERRNO_BYTES
    return is_error and int.from_bytes(data[:_ERRNO_BYTES], sys.byteorder) == errno.ECONNREFUSED
