"""Multicast DNS: announce this site and browse for others (RFC 6762, RFC 6763).

A hint source, never a failure detector: a killed site's announcement lives for up to 75 minutes and
anyone on the LAN may announce anything. TXT stays below 400 B; python-zeroconf registers larger
records that nobody ever sees. A re-registered name gives ``Updated``, never a second ``Added``.
"""

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from itertools import islice

import ifaddr
from zeroconf import Error as ZeroconfError
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from agent.foundation.ids import SiteId
from agent.wire.records import Endpoint

SERVICE = "_atoll._udp.local."
RESOLVE_TIMEOUT_MS = 3000
RESOLVING_MAX = 32
"""Look-ups under way: a flood of announcements is answered at this pace."""
ADDRESSES_MAX = 4
"""Of one announcement: a site has one address, perhaps one of each family."""
BRIDGES = ("docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "podman")
"""Interfaces of containers and virtual machines: announcing there misleads other hosts."""

_log = logging.getLogger("atoll.mdns")

Found = Callable[[Endpoint, SiteId | None], None]


def usable_interfaces(wanted: Sequence[str]) -> list[str]:
    """Addresses to use: those asked for, else IPv4 of every interface but container bridges."""
    if wanted:
        return list(wanted)
    return [
        str(ip.ip)
        for adapter in ifaddr.get_adapters()
        if not adapter.name.startswith(BRIDGES)
        for ip in adapter.ips
        if ip.is_IPv4
    ]


class Mdns:
    """Announces one site and reports what others announce for the same cluster."""

    def __init__(self, site: SiteId, cluster: bytes, endpoint: Endpoint, found: Found) -> None:
        """``found(endpoint, site)`` is called in the loop's thread, also for repeated news."""
        self._site, self._cluster = site, cluster.hex()[:16]
        self._endpoint, self._found = endpoint, found
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._resolving: set[asyncio.Task[None]] = set()
        self.outcome = "not started"
        """For ``atoll peers --why``."""

    async def start(self, interfaces: Sequence[str], sequence: int) -> None:
        """Browse and announce; a network without multicast is reported in ``outcome``, not raised."""
        addresses = usable_interfaces(interfaces)
        try:
            self._zeroconf = AsyncZeroconf(interfaces=addresses, ip_version=IPVersion.V4Only)
            self._browser = AsyncServiceBrowser(
                self._zeroconf.zeroconf, SERVICE, handlers=[self._changed]
            )
            self._info = self._announcement(sequence)
            await self._zeroconf.async_register_service(self._info)
        except (OSError, RuntimeError, ZeroconfError) as error:
            self.outcome = f"multicast DNS does not work here: {error}"
            _log.warning("%s; seeds and known peers are still tried", self.outcome)
            return
        self.outcome = f"announced on {', '.join(addresses)}"

    def _announcement(self, sequence: int) -> AsyncServiceInfo:
        short = self._site.hex()[:16]
        return AsyncServiceInfo(
            SERVICE,
            f"{short}.{SERVICE}",
            port=self._endpoint.mesh_port,
            addresses=[ipaddress.ip_address(self._endpoint.host).packed],
            server=f"atoll-{short}.local.",
            properties={
                "cluster": self._cluster, "id": self._site.hex(), "seq": str(sequence),
                "data": str(self._endpoint.data_port), "v": "1",
            },
        )  # fmt: skip

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed or len(self._resolving) >= RESOLVING_MAX:
            return
        task = asyncio.ensure_future(self._resolve(zeroconf, service_type, name))
        self._resolving.add(task)
        task.add_done_callback(self._resolving.discard)

    async def _resolve(self, zeroconf: Zeroconf, service_type: str, name: str) -> None:
        info = AsyncServiceInfo(service_type, name)
        if not await info.async_request(zeroconf, RESOLVE_TIMEOUT_MS):
            return
        texts = {key: value for key, value in info.decoded_properties.items() if value}
        if texts.get("cluster") != self._cluster or texts.get("id") == self._site.hex():
            return
        try:
            raw = bytes.fromhex(texts.get("id", ""))
            data_port = int(texts.get("data", ""))
            addresses = _usable(info.parsed_addresses(IPVersion.All))
        except ValueError:
            return
        if len(raw) != 32 or not 0 < data_port < 65_536 or not info.port:  # noqa: PLR2004 - an id's bytes, a port
            return
        for address in addresses:
            self._found(Endpoint(address, info.port, data_port), SiteId(raw))

    async def stop(self) -> None:
        """Say goodbye, so that others forget the announcement at once; takes about 0.3 s.

        The library's call returns as soon as the goodbyes are planned; they are sent by what it gives.
        """
        for task in list(self._resolving):
            task.cancel()
        if self._browser is not None:
            await self._browser.async_cancel()
        if self._zeroconf is not None:
            with contextlib.suppress(OSError, asyncio.TimeoutError, ZeroconfError):
                if self._info is not None:
                    await (await self._zeroconf.async_unregister_service(self._info))
            await self._zeroconf.async_close()


def _usable(addresses: Sequence[str]) -> list[str]:
    """The first few, without link-local ones: those mean nothing without an interface."""
    plain = (text for text in addresses if not ipaddress.ip_address(text).is_link_local)
    return [*islice(plain, ADDRESSES_MAX)]


def address_towards_the_world() -> str:
    """The address of the interface with the default route; 127.0.0.1 if there is none.

    No packet is sent: connecting a datagram socket only consults the routing table.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # TEST-NET-1 (RFC 5737): never a real host
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
