"""Multicast DNS: announce this site and browse for others (RFC 6762, RFC 6763).

A hint source, never a failure detector: a killed site's announcement lives for up to 75 minutes and
anyone on the LAN may announce anything. What was read is handed on at once and forgotten, so that a
flood of announcements fills no cache (the library would keep 10,000 records and name them all in
every question); ``mdns_gate`` bounds how much is read at all.

Names are not probed for before they are announced (RFC 6762, section 8.1): they follow from the
site's key, and waiting for an objection costs over a second. Somebody else under our name is told.
"""

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random

from zeroconf import (  # type: ignore[attr-defined]  # public, though missing in __all__
    DNSOutgoing,
    DNSPointer,
    DNSQuestion,
    DNSRecord,
    IPVersion,
    RecordUpdate,
    RecordUpdateListener,
    Zeroconf,
)
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from agent.drivers.bridges import BRIDGES
from agent.drivers.interfaces import Choice, choose_interfaces, read_interfaces
from agent.drivers.mdns_gate import Gate, Gated
from agent.foundation.errors import Malformed
from agent.foundation.ids import SiteId
from agent.wire.advert import Advert, read_advert
from agent.wire.records import Endpoint

SERVICE = "_atoll._udp.local."
RESOLVE_TIMEOUT_MS = 3000
RESOLVING_MAX, RESOLVING_PER_SENDER_MAX = 32, 4
"""Look-ups under way, for announcements that came without their address."""
RECORDS_MAX = 256
"""Of one packet; an honest one has six."""
ADDRESSES_MAX = 8
"""Of one announcement: a site has one address, or one of each family on each of a few networks."""
KNOWN_MAX = 32
"""Sites named in our questions so that they need not answer; with more the question is two packets."""
ASK_FIRST_S = (0.02, 0.12)
"""RFC 6762, section 5.2: hosts that start together do not ask at the same moment."""
ASK_AGAIN_S, ASK_AGAIN_MAX_S = 1.0, 3600.0
"""Questions are repeated after 1, 2, 4 ... seconds (the same section) ..."""
ASK_FLOODED_S = 1.5
"""... and this often while announcements are dropped: each answer has a chance to get through."""
START_AGAIN_S = 30.0
"""Where multicast did not work at the start, it is tried again, also when no interface changes."""

_QUERY_FLAGS, _CLASS_IN = 0x0000, 1
_A, _PTR, _TXT, _AAAA, _SRV = 1, 12, 16, 28, 33

_log = logging.getLogger("atoll.mdns")


@dataclass(frozen=True, slots=True)
class Sighting:
    """One address at which a site is said to be."""

    endpoint: Endpoint
    site: SiteId
    sequence: int
    """Of its record; a larger one than before: it has started anew or moved."""
    sender: str
    """The host that said so."""


Found = Callable[[Sighting], None]
_What = tuple[Choice, Endpoint, tuple[str, ...], int]


@dataclass(slots=True)
class Counts:
    """Announcements since the start, by what became of them."""

    taken: int = 0
    strangers: int = 0
    """Of other clusters."""
    malformed: int = 0
    unresolved: int = 0
    """Came without an address, and nobody gave one."""
    conflicts: int = 0
    """Other hosts that announced something under this site's name."""


def multicast_addresses(choice: Choice) -> list[str]:
    """What the library needs to know of the chosen interfaces: one address of each family of each."""
    found = []
    for interface in choice.used:
        v4 = [str(one.ip) for one in interface.usable if one.ip.version == 4]  # noqa: PLR2004 - IPv4
        v6 = [one.ip for one in interface.usable if one.ip.version == 6 and not one.ip.is_loopback]  # noqa: PLR2004 - IPv6
        v6.sort(
            key=lambda ip: not ip.is_link_local
        )  # senders have link-local addresses (section 20)
        found += [*v4[:1], *(str(ip) for ip in v6[:1])]
    return found


class _Ear(RecordUpdateListener):
    """Reads announcements as they come and forgets them."""

    def __init__(
        self, cluster: str, me: Advert | None, gate: Gate, counts: Counts, found: Found
    ) -> None:
        self._cluster, self._gate, self._counts, self._found = cluster, gate, counts, found
        self._own = set() if me is None else {f"{me.instance}.{SERVICE}", _server(me)}
        self._zeroconf: Zeroconf | None = None
        self._fresh: list[DNSRecord] = []
        self._names: set[str] = set()
        self._resolving: dict[str, tuple[asyncio.Task[None], str]] = {}
        self.local: frozenset[str] = frozenset()
        """This host's own addresses."""
        self.conflict = ""
        """The last host that used this site's name."""
        self.known: dict[str, DNSPointer] = {}

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Part of ``RecordUpdateListener``: what one packet says; it is not in the cache yet."""
        self._zeroconf = zc
        for update in islice(records, RECORDS_MAX):
            record = update.new
            if record.key in self._own or (
                isinstance(record, DNSPointer) and record.alias.lower() in self._own
            ):
                self._watch_our_name(record)
                continue
            self._fresh.append(record)
            if record.is_expired(now):
                self.known.pop(record.alias.lower() if isinstance(record, DNSPointer) else "", None)
                continue  # a goodbye: membership finds out by itself
            if record.type == _PTR and record.key == SERVICE:
                assert isinstance(record, DNSPointer)
                self._names.add(record.alias)
            elif record.type in (_SRV, _TXT) and record.key.endswith(f".{SERVICE}"):
                self._names.add(record.name)
            elif record.type in (_A, _AAAA):
                self._names |= {one.name for one in zc.cache.entries_with_server(record.name)}
        self._fresh += (update.new for update in records[RECORDS_MAX:])

    def async_update_records_complete(self) -> None:
        """Part of ``RecordUpdateListener``: the packet is in the cache."""
        zeroconf, names, fresh = self._zeroconf, self._names, self._fresh
        if zeroconf is None:
            return
        self._names, self._fresh = set(), []
        for name in names:
            if name.lower().endswith(f".{SERVICE}") and name.lower() not in self._resolving:
                self._look(zeroconf, name)
        for record in fresh:
            with contextlib.suppress(KeyError):  # stated twice in one packet, or expired at once
                zeroconf.cache.async_remove_records((record,))

    def _watch_our_name(self, record: DNSRecord) -> None:
        if record.type in (_SRV, _TXT) and self._gate.sender not in self.local:
            self._counts.conflicts += 1
            if self.conflict != self._gate.sender:
                self.conflict = self._gate.sender
                _log.warning("%s announces something under this site's name", self.conflict)

    def _look(self, zeroconf: Zeroconf, name: str) -> None:
        info = AsyncServiceInfo(SERVICE, name)
        sender = self._gate.sender
        if info.load_from_cache(zeroconf):
            self._take(info, sender)
            return
        same = sum(1 for _, other in self._resolving.values() if other == sender)
        if len(self._resolving) >= RESOLVING_MAX or same >= RESOLVING_PER_SENDER_MAX:
            self._counts.unresolved += 1
            return
        task = asyncio.ensure_future(self._resolve(zeroconf, info, sender))
        self._resolving[name.lower()] = (task, sender)
        task.add_done_callback(lambda _: self._resolving.pop(name.lower(), None))

    async def _resolve(self, zeroconf: Zeroconf, info: AsyncServiceInfo, sender: str) -> None:
        if await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS):
            self._take(info, sender)
        else:
            self._counts.unresolved += 1

    def _take(self, info: AsyncServiceInfo, sender: str) -> None:
        try:
            advert = read_advert(info.text or b"", info.name.lower().removesuffix(f".{SERVICE}"))
            addresses = _usable(info.parsed_scoped_addresses(IPVersion.All))
        except (Malformed, ValueError):
            self._counts.malformed += 1
            return
        if advert.cluster != self._cluster:
            self._counts.strangers += 1
            return
        if not info.port or not addresses:
            self._counts.unresolved += 1
            return
        self._counts.taken += 1
        if len(self.known) < KNOWN_MAX:
            self.known[info.name.lower()] = info.dns_pointer()
        for address in addresses:
            endpoint = Endpoint(address, info.port, advert.data_port)
            self._found(Sighting(endpoint, advert.site, advert.sequence, sender))

    def stop(self) -> None:
        for task, _ in list(self._resolving.values()):
            task.cancel()


class Mdns:
    """Announces one site and reports what others announce for the same cluster."""

    def __init__(self, site: SiteId, cluster: bytes, found: Found, rng: Random) -> None:
        """``found(sighting)`` is called in the loop's thread, also for repeated news."""
        self._site, self._cluster, self._rng = site, cluster.hex()[:16], rng
        self._zeroconf: AsyncZeroconf | None = None
        self._info: AsyncServiceInfo | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._starting: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()
        self._on: list[str] = []
        self._excess = 0
        self.gate, self.counts = Gate(), Counts()
        me = Advert(self._cluster, site, 0, 1)
        self._ear = _Ear(self._cluster, me, self.gate, self.counts, found)
        self.choice = Choice((), ())
        self.announced: tuple[str, ...] = ()
        self.failure = "not started"
        """Why multicast DNS does not work here; empty while it does. For ``atoll peers --why``."""

    @property
    def outcome(self) -> str:
        """In words."""
        if self.failure:
            return self.failure
        return f"announced on {', '.join(one.name for one in self.choice.used) or 'no interface'}"

    @property
    def conflict(self) -> str:
        """The host that announces something else under this site's name; empty if none does."""
        return self._ear.conflict

    async def start(
        self, choice: Choice, endpoint: Endpoint, addresses: Sequence[str], sequence: int
    ) -> None:
        """Browse and announce; a network without multicast is told in ``failure``, not raised.

        Args:
            choice: the interfaces to use.
            endpoint: this site's, for its ports.
            addresses: what is announced, the best first.
            sequence: of this site's record.
        """
        async with self._changing:
            await self._start(choice, endpoint, addresses, sequence)

    async def _start(
        self, choice: Choice, endpoint: Endpoint, addresses: Sequence[str], sequence: int
    ) -> None:
        self.choice, self.announced = choice, tuple(addresses[:ADDRESSES_MAX])
        try:
            self._on = multicast_addresses(choice)
            self._zeroconf = AsyncZeroconf(interfaces=list(self._on), ip_version=_versions())
            zeroconf = self._zeroconf.zeroconf
            await zeroconf.async_wait_for_start()
            self._gated()
            zeroconf.async_add_listener(self._ear, None)
            self._info = self._announcement(endpoint, sequence)
            await self._zeroconf.async_register_service(self._info, cooperating_responders=True)
        except (OSError, RuntimeError, ZeroconfError) as error:
            self._failed(error, (choice, endpoint, tuple(addresses), sequence))
            return
        self.failure = ""
        _log.info("%s: %s", self.outcome, ", ".join(self.announced))
        self._ask_series()

    def _failed(self, error: Exception, again: _What) -> None:
        self.failure = f"multicast DNS does not work here: {error}"
        _log.warning("%s; seeds and known peers are still tried", self.failure)
        if self._asking is not None:
            self._asking.cancel()
        loop = asyncio.get_running_loop()
        self._asking = loop.call_later(START_AGAIN_S, self._start_again, again)

    def _start_again(self, again: _What) -> None:
        self._starting = asyncio.ensure_future(self.follow(*again))

    async def follow(
        self, choice: Choice, endpoint: Endpoint, addresses: Sequence[str], sequence: int
    ) -> None:
        """Interfaces or addresses have changed: announce on what is there now, and ask again."""
        async with self._changing:
            if self._zeroconf is None or self.failure:
                if self._asking is not None:
                    self._asking.cancel()
                await self._close()
                await self._start(choice, endpoint, addresses, sequence)
                return
            zeroconf = self._zeroconf.zeroconf
            before, self.choice = self._on, choice
            self._on = multicast_addresses(choice)
            announced, self.announced = self.announced, tuple(addresses[:ADDRESSES_MAX])
            if self._on == before and announced == self.announced:
                return
            self._info = self._announcement(endpoint, sequence)
            try:
                await self._zeroconf.async_update_service(self._info)
                if self._on != before:
                    await zeroconf.async_update_interfaces(list(self._on), _versions())
            except (OSError, RuntimeError, ZeroconfError) as error:
                self._failed(error, (choice, endpoint, tuple(addresses), sequence))
                return
            self._gated()
            self._ask_series()

    def _gated(self) -> None:
        """Put the gate before every socket that has none yet."""
        assert self._zeroconf is not None
        for reader in self._zeroconf.zeroconf.engine.readers:
            inner = reader.transport.get_protocol()
            if not isinstance(inner, Gated):
                reader.transport.set_protocol(Gated(inner, self.gate))
        self._ear.local = frozenset(
            str(address.ip) for one in self.choice.used for address in one.addresses
        ) | {"127.0.0.1", *self.announced}

    def _announcement(self, endpoint: Endpoint, sequence: int) -> AsyncServiceInfo:
        advert = Advert(self._cluster, self._site, sequence, endpoint.data_port)
        return AsyncServiceInfo(
            SERVICE,
            f"{advert.instance}.{SERVICE}",
            port=endpoint.mesh_port,
            parsed_addresses=list(self.announced),
            server=_server(advert),
            properties=advert.pack(),
        )

    # --- asking ----------------------------------------------------------------------------------
    def _ask_series(self) -> None:
        if self._asking is not None:
            self._asking.cancel()
        loop = asyncio.get_running_loop()
        self._asking = loop.call_later(self._rng.uniform(*ASK_FIRST_S), self._ask, ASK_AGAIN_S)

    def _ask(self, again_s: float) -> None:
        loop = asyncio.get_running_loop()
        is_flooded = self.gate.excess > self._excess
        self._excess = self.gate.excess
        if is_flooded and again_s > ASK_AGAIN_S:
            again_s = ASK_FLOODED_S
        self._asking = loop.call_later(again_s, self._ask, min(2 * again_s, ASK_AGAIN_MAX_S))
        if self._zeroconf is not None:
            _ask(self._zeroconf.zeroconf, self._ear, is_first=again_s == ASK_AGAIN_S)

    async def stop(self) -> None:
        """Say goodbye, so that others forget the announcement at once; takes about 0.3 s.

        The library's call returns as soon as the goodbyes are planned; they are sent by what it gives.
        """
        if self._asking is not None:
            self._asking.cancel()
        if self._starting is not None:
            self._starting.cancel()
        self._ear.stop()
        if self._zeroconf is not None and self._info is not None:
            with contextlib.suppress(OSError, asyncio.TimeoutError, ZeroconfError, KeyError):
                await (await self._zeroconf.async_unregister_service(self._info))
        await self._close()

    async def _close(self) -> None:
        if self._zeroconf is not None:
            zeroconf, self._zeroconf, self._info = self._zeroconf, None, None
            with contextlib.suppress(OSError, asyncio.TimeoutError, ZeroconfError):
                await zeroconf.async_close()


async def browse_once(
    cluster: bytes,
    interfaces: Sequence[str] = (),
    for_s: float = 2.0,
    denied: Sequence[str] = BRIDGES,
) -> list[tuple[Endpoint, SiteId]]:
    """Whoever announces itself for ``cluster`` within ``for_s`` seconds; nothing is announced.

    Args:
        cluster: the cluster's id.
        interfaces: names, patterns or addresses; empty: all but loopback and ``denied``.
        for_s: how long to listen, seconds.
        denied: interfaces that are not used.

    Raises:
        OSError: multicast does not work here.
    """
    sightings: dict[tuple[Endpoint, SiteId], None] = {}

    def found(sighting: Sighting) -> None:
        if len(sightings) < RECORDS_MAX:
            sightings[sighting.endpoint, sighting.site] = None

    gate = Gate()
    ear = _Ear(cluster.hex()[:16], None, gate, Counts(), found)
    on = multicast_addresses(choose_interfaces(read_interfaces(), interfaces, denied))
    try:
        zeroconf = AsyncZeroconf(interfaces=on, ip_version=_versions())
    except (RuntimeError, ZeroconfError) as error:
        raise OSError(f"multicast DNS does not work here: {error}") from None
    try:
        await zeroconf.zeroconf.async_wait_for_start()
        for reader in zeroconf.zeroconf.engine.readers:
            reader.transport.set_protocol(Gated(reader.transport.get_protocol(), gate))
        zeroconf.zeroconf.async_add_listener(ear, None)
        end = asyncio.get_running_loop().time() + for_s
        while (left_s := end - asyncio.get_running_loop().time()) > 0:
            # Never for an answer to us alone: of the programs on this host that use multicast DNS
            # the kernel gives it to one.
            _ask(zeroconf.zeroconf, ear, is_first=False)
            await asyncio.sleep(min(left_s, ASK_AGAIN_S))
    finally:
        ear.stop()
        await zeroconf.async_close()
    return list(sightings)


def _ask(zeroconf: Zeroconf, ear: _Ear, *, is_first: bool) -> None:
    """Ask who is there; the first time answers may come to us alone (RFC 6762, section 5.4)."""
    question = DNSQuestion(SERVICE, _PTR, _CLASS_IN)
    question.unicast = is_first
    out = DNSOutgoing(_QUERY_FLAGS)
    out.add_question(question)
    for pointer in ear.known.values():
        out.add_answer_at_time(pointer, 0)
    zeroconf.async_send(out)


def _server(advert: Advert) -> str:
    return f"atoll-{advert.instance}.local."


def _versions() -> IPVersion:
    """Both families, unless this kernel has no IPv6."""
    try:
        with open("/proc/net/if_inet6", encoding="ascii") as file:  # noqa: PTH123 - a probe
            return IPVersion.All if file.readline() else IPVersion.V4Only
    except OSError:
        return IPVersion.V4Only


def _usable(addresses: Sequence[str]) -> list[str]:
    """The first few that a site's record can hold, IPv4 first.

    An IPv6 link-local address means nothing without an interface, and so nothing to a third site.
    """
    found = []
    for text in addresses:
        ip = ipaddress.ip_address(text.partition("%")[0])
        is_scoped = ip.version == 6 and ip.is_link_local  # noqa: PLR2004 - IPv6
        if not (is_scoped or ip.is_multicast or ip.is_unspecified):
            found.append(ip)
    found.sort(key=lambda ip: ip.version)
    return [str(ip) for ip in found[:ADDRESSES_MAX]]
