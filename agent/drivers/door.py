"""The door of a TLS listener: what those who are not let in yet can hold is small and soon over.

Asyncio makes its TLS state (about 300 KB) when a connection is accepted, and counts it nowhere until its
handshake has ended: two thousand silent connections are 600 MB. Here a connection is a bare socket until
it has said something; then it waits for its turn; only a few handshakes are under way at once.

Two classes. Connections from addresses of known members come first and have places of their own, so that
strangers, however many, keep no member waiting: a TCP source address cannot be forged by those who do
not see the answers. Strangers (joiners, sites that moved, floods) share what is left: so many a second,
and within each class the busiest network gives way to the others. Who has no certificate after the
handshake is a joiner or nobody and must be done in ``STRANGER_S``.
"""

import asyncio
import ipaddress
import logging
import socket
import ssl
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

HANDSHAKE_TIMEOUT_S = 5.0
"""From the first byte of a connection's handshake to the last; also how long it may be silent before."""
WAITING_MAX = 256
"""Bare sockets of one class that are silent or wait for their turn (about 1 KB each)."""
MEMBER_HANDSHAKES_MAX = 64
STRANGER_HANDSHAKES_MAX = 16
"""Handshakes under way: each costs about 1 ms of the loop's time and 300 KB until it ends."""
STRANGER_HANDSHAKES_PER_S, STRANGER_HANDSHAKES_AT_ONCE = 50.0, 100.0
"""What strangers may cost: 5 % of a core. A rollout of 100 sites joins at once, more join in turn."""
STRANGERS_MAX = 64
"""Finished handshakes without a certificate: joiners ask twice and go."""
STRANGER_S = 20.0
"""How long such a connection lives; a join takes about one second, over a slow link a few."""
ACCEPTS_PER_TURN = 32
"""Connections accepted before the loop's other work gets its turn."""
OUT_OF_FILES_PAUSE_S = 0.1
"""When the process has no file descriptor left; one silent stranger is turned away each time."""
FAMILIAR_S = 1.0
"""How old the list of members' addresses may be."""
BACKLOG = 512

_log = logging.getLogger("atoll.mesh")

Factory = Callable[[], asyncio.Protocol]
Familiar = Callable[[], Collection[str]]


@dataclass(slots=True, eq=False)
class _Visitor:
    connection: socket.socket
    network: str
    is_ready: bool = False
    """It has said something."""
    is_handed_over: bool = False
    """Asyncio's transport closes it from now on."""
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Class:
    """Visitors of one class: those who wait, by network, and the handshakes under way."""

    handshakes_max: int
    waiting: "OrderedDict[_Visitor, None]" = field(default_factory=OrderedDict)
    turns: "OrderedDict[str, deque[_Visitor]]" = field(default_factory=OrderedDict)
    """Those who have said something, a queue for each network; the first network is next."""
    shaking: "OrderedDict[asyncio.Task[None], str]" = field(default_factory=OrderedDict)


class Door:
    """One listening socket; ``factory`` makes a protocol for each connection that was let in."""

    def __init__(
        self,
        factory: Factory,
        context: ssl.SSLContext,
        familiar: Familiar = tuple,
        *,
        is_for_all: bool = False,
    ) -> None:
        """``familiar`` lists the addresses of known members.

        ``is_for_all``: nobody is asked for a certificate, and everybody has a member's places.
        """
        self._is_for_all = is_for_all
        self._factory, self._context, self._familiar = factory, context, familiar
        self._known: frozenset[str] = frozenset()
        self._known_until = float("-inf")
        self._listening: socket.socket | None = None
        self._members = _Class(MEMBER_HANDSHAKES_MAX)
        self._strangers = _Class(STRANGER_HANDSHAKES_MAX)
        self._anonymous: OrderedDict[asyncio.Transport, asyncio.TimerHandle] = OrderedDict()
        self._allowance, self._allowance_at = STRANGER_HANDSHAKES_AT_ONCE, float("-inf")
        self._retry: asyncio.TimerHandle | None = None
        self.turned_away = 0
        """Connections ended before they could say who they are, or after their time was over."""

    @property
    def port(self) -> int:
        """The port that was bound."""
        assert self._listening is not None, "asked while open"
        return int(self._listening.getsockname()[1])

    def open(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be bound.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                is_one_family = host != "::"  # the wildcard takes IPv4 too
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_one_family)
            listening.setblocking(False)
            listening.bind((host, port))
            listening.listen(BACKLOG)
        except OSError:
            listening.close()
            raise
        self._listening = listening
        asyncio.get_running_loop().add_reader(listening.fileno(), self._accept)

    async def close(self) -> None:
        """Take no more connections, and end those that were not let in yet."""
        loop = asyncio.get_running_loop()
        if self._listening is not None:
            loop.remove_reader(self._listening.fileno())
            self._listening.close()
            self._listening = None
        if self._retry is not None:
            self._retry.cancel()
        for group in (self._members, self._strangers):
            for visitor in list(group.waiting):
                self._dismiss(group, visitor)
            for task in list(group.shaking):
                task.cancel()
            await asyncio.gather(*group.shaking, return_exceptions=True)
        for transport in list(self._anonymous):
            self._forget(transport)
            if not transport.is_closing():  # CPython 3.11.2 fails on a TLS transport that is gone
                transport.abort()

    # --- accepting -------------------------------------------------------------------------------
    def _accept(self) -> None:
        assert self._listening is not None, "readable only while open"
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, address = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                self._out_of_files(error)
                return
            connection.setblocking(False)
            self._receive(connection, str(address[0]).removeprefix("::ffff:"))

    def _out_of_files(self, error: OSError) -> None:
        """The connection stays in the kernel's queue; make room and try again soon."""
        assert self._listening is not None, "readable only while open"
        _log.warning("connections wait: %s", error)
        if self._strangers.waiting:
            self._dismiss(self._strangers, next(iter(self._strangers.waiting)))
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listening.fileno())
        loop.call_later(OUT_OF_FILES_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening.fileno(), self._accept)

    def _receive(self, connection: socket.socket, host: str) -> None:
        loop = asyncio.get_running_loop()
        is_known = self._is_for_all or host in self._members_addresses()
        group = self._members if is_known else self._strangers
        visitor = _Visitor(connection, _network(host))
        group.waiting[visitor] = None
        visitor.timer = loop.call_later(HANDSHAKE_TIMEOUT_S, self._dismiss, group, visitor)
        loop.add_reader(connection.fileno(), self._speaks, group, visitor)
        if len(group.waiting) > WAITING_MAX:
            self._dismiss(group, _oldest_of_busiest(group))

    def _members_addresses(self) -> frozenset[str]:
        now = asyncio.get_running_loop().time()
        if now >= self._known_until:
            self._known, self._known_until = frozenset(self._familiar()), now + FAMILIAR_S
        return self._known

    def _speaks(self, group: _Class, visitor: _Visitor) -> None:
        """The first bytes have come (or its end): it is in turn."""
        asyncio.get_running_loop().remove_reader(visitor.connection.fileno())
        visitor.is_ready = True
        group.turns.setdefault(visitor.network, deque()).append(visitor)
        self._admit()

    def _dismiss(self, group: _Class, visitor: _Visitor) -> None:
        self._take_out(group, visitor)
        if visitor.is_ready:
            queue = group.turns[visitor.network]
            queue.remove(visitor)
            if not queue:
                del group.turns[visitor.network]
        visitor.connection.close()
        self.turned_away += 1

    def _take_out(self, group: _Class, visitor: _Visitor) -> None:
        del group.waiting[visitor]
        if visitor.timer is not None:
            visitor.timer.cancel()
        if not visitor.is_ready:
            asyncio.get_running_loop().remove_reader(visitor.connection.fileno())

    # --- handshakes ------------------------------------------------------------------------------
    def _admit(self) -> None:
        """Begin handshakes: members', then as many of strangers as they are allowed."""
        if self._listening is None:
            return
        while self._members.turns and self._has_place(self._members):
            self._begin(self._members)
        while self._strangers.turns and self._has_place(self._strangers):
            wait_s = self._stranger_wait_s()
            if wait_s > 0:
                if self._retry is None:
                    self._retry = asyncio.get_running_loop().call_later(wait_s, self._try_again)
                return
            self._begin(self._strangers)

    def _try_again(self) -> None:
        self._retry = None
        self._admit()

    def _stranger_wait_s(self) -> float:
        """0 if a stranger's handshake may begin now (and is charged), else how long to wait."""
        now = asyncio.get_running_loop().time()
        gained = (now - self._allowance_at) * STRANGER_HANDSHAKES_PER_S
        self._allowance = min(STRANGER_HANDSHAKES_AT_ONCE, self._allowance + gained)
        self._allowance_at = now
        if self._allowance < 1.0:
            return (1.0 - self._allowance) / STRANGER_HANDSHAKES_PER_S
        self._allowance -= 1.0
        return 0.0

    def _has_place(self, group: _Class) -> bool:
        """Whether one more may shake hands; a network with several gives way to one that has fewer."""
        if len(group.shaking) < group.handshakes_max:
            return True
        held = list(group.shaking.values())
        next_network = next(iter(group.turns))
        busiest = max(held, key=held.count)
        if held.count(busiest) <= held.count(next_network) + 1:
            return False
        slowest = next(task for task, network in group.shaking.items() if network == busiest)
        del group.shaking[slowest]
        slowest.cancel()
        return True

    def _begin(self, group: _Class) -> None:
        network, queue = next(iter(group.turns.items()))
        visitor = queue.popleft()
        if queue:
            group.turns.move_to_end(network)
        else:
            del group.turns[network]
        self._take_out(group, visitor)
        task = asyncio.get_running_loop().create_task(self._shake(visitor))
        group.shaking[task] = network

        def ended(task: asyncio.Task[None]) -> None:
            group.shaking.pop(task, None)
            if not visitor.is_handed_over:  # cancelled before it began
                visitor.connection.close()
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error  # a defect: reaches the loop's exception handler
            self._admit()

        task.add_done_callback(ended)

    async def _shake(self, visitor: _Visitor) -> None:
        loop = asyncio.get_running_loop()
        visitor.is_handed_over = True
        try:
            transport, _ = await loop.connect_accepted_socket(
                self._factory, visitor.connection, ssl=self._context,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )  # fmt: skip
        except OSError:  # what TLS finds wrong and time-outs are OSErrors too
            self.turned_away += 1
            return
        except asyncio.CancelledError:
            self.turned_away += 1
            raise
        if self._is_for_all or transport.get_extra_info("peercert"):
            return
        timer = loop.call_later(STRANGER_S, self._end, transport)
        self._anonymous[transport] = timer
        if len(self._anonymous) > STRANGERS_MAX:
            ended = next((one for one in self._anonymous if one.is_closing()), None)
            self._end(next(iter(self._anonymous)) if ended is None else ended)

    def _end(self, transport: asyncio.Transport) -> None:
        self._forget(transport)
        if not transport.is_closing():
            transport.abort()
            self.turned_away += 1

    def _forget(self, transport: asyncio.Transport) -> None:
        self._anonymous.pop(transport).cancel()


def _network(host: str) -> str:
    """Who is held to account for a connection: an IPv4 address, or the /64 of an IPv6 one."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return host


def _oldest_of_busiest(group: _Class) -> _Visitor:
    counts: dict[str, int] = {}
    for visitor in group.waiting:
        counts[visitor.network] = counts.get(visitor.network, 0) + 1
    busiest = max(counts, key=lambda network: counts[network])
    return next(visitor for visitor in group.waiting if visitor.network == busiest)
