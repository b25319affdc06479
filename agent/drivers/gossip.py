"""The gossip socket: UDP datagrams in and out, sealed, counted, never trusted.

A datagram that does not open is counted and dropped; nothing is ever sent because of it. An ICMP
"port unreachable" is evidence that a process is gone while its host lives: Linux reports it for an
unconnected socket only with ``IP_RECVERR``, through the socket's error queue (ip(7)).
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from agent.foundation.errors import AtollError, ConfigError, Malformed
from agent.foundation.ids import SiteId
from agent.wire.gossip import GOSSIP, GossipMessage
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Endpoint

_IP_RECVERR, _IPV6_RECVERR = 11, 25
_ADDRESSES_MAX = 4096
"""Addresses remembered to name the site behind a refused port; the oldest give way."""
_ERRORS_PER_TURN = 64
"""Queued errors read at once: a burst must not hold the loop."""
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


class GossipSocket(asyncio.DatagramProtocol):
    """One bound UDP socket."""

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
        self._targets: OrderedDict[tuple[str, int], SiteId] = OrderedDict()
        self._socket: socket.socket | None = None
        self._transport: asyncio.DatagramTransport | None = None
        self.dropped = 0
        """Datagrams that did not open or decode."""
        self.sent = self.received = 0

    async def open(self, host: str, port: int) -> None:
        """Bind and start to receive.

        Raises:
            ConfigError: the address cannot be bound.
        """
        is_v6 = ":" in host
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_DGRAM)
        try:
            bound.setblocking(False)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            if is_v6:
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
        self._socket = bound
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: self, sock=bound)

    def connection_made(self, transport: Any) -> None:
        """Part of ``asyncio.DatagramProtocol``."""
        self._transport = transport  # not an asyncio.DatagramTransport by isinstance on 3.11

    def datagram_received(self, data: bytes, addr: tuple[str | Any, int]) -> None:  # noqa: ARG002
        """Open, decode, pass on; drop what is not a member's."""
        self.received += 1
        try:
            sender, body = self._seal.open(data)
            message = GOSSIP.unpack(body, PACKET_BYTES_MAX)
        except Malformed:
            self.dropped += 1
            return
        self._heard(sender, message)

    def error_received(self, exc: Exception) -> None:
        """A queued ICMP error: find out which member's port refused."""
        _log.debug("the gossip socket reports: %s", exc)
        self._drain_errors()

    def send(self, target: SiteId, endpoint: Endpoint, message: GossipMessage) -> None:
        """Seal and send; a local failure is reported as our own fault."""
        if self._transport is None:
            return
        try:
            packet = self._seal.seal(target, GOSSIP.pack(message))
            address = ipaddress.ip_address(endpoint.host)
        except (AtollError, ValueError) as error:
            _log.debug("no packet for %s: %s", target.hex()[:8], error)
            return
        assert len(packet) <= PACKET_BYTES_MAX
        where = (str(address), endpoint.mesh_port)
        self._targets[where] = target
        self._targets.move_to_end(where)
        if len(self._targets) > _ADDRESSES_MAX:
            self._targets.popitem(last=False)
        self._send(packet, where, target)

    def _send(self, packet: bytes, where: tuple[str, int], target: SiteId) -> None:
        assert self._socket is not None
        try:
            self._socket.sendto(packet, where)
        except ConnectionRefusedError:
            # The error of an earlier packet, perhaps to another member: this one was not sent.
            self._drain_errors()
            with contextlib.suppress(OSError):
                self._socket.sendto(packet, where)
        except BlockingIOError:
            pass  # the kernel's buffer is full: as good as lost, and probes expect loss
        except OSError:
            self._send_failed(target)
        self.sent += 1

    def _drain_errors(self) -> None:
        assert self._socket is not None
        for _ in range(_ERRORS_PER_TURN):
            try:
                _, _, _, address = self._socket.recvmsg(0, 512, socket.MSG_ERRQUEUE)
            except OSError:
                return
            if address and (site := self._targets.get((address[0], address[1]))) is not None:
                self._port_refused(site)

    def close(self) -> None:
        """Stop receiving; what was handed to the kernel still leaves."""
        if self._transport is not None:
            self._transport.close()
        self._transport = None
