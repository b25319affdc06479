"""Follows this machine's network: which address the site announces, and where multicast DNS runs.

A site starts without a network and goes on without one. When an interface comes up, goes down or gets
another address, everybody is told the new one: members by a new record, the LAN by multicast DNS.
While there is no usable address at all the last one stays: to say "loopback" would help nobody.
"""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from agent.config.addresses import LOOPBACK, Announced, announced_host, usable_addresses
from agent.config.settings import SiteSettings
from agent.drivers.interfaces import Choice, Interface, Watch, choose_interfaces, read_interfaces
from agent.drivers.mdns import Mdns
from agent.site.events import NetworkChanged
from agent.site.site import Site
from agent.wire.records import Endpoint

_log = logging.getLogger("atoll.links")


class Links:
    """One site's network, while the site runs."""

    def __init__(
        self,
        settings: SiteSettings,
        site: Site,
        mdns: Mdns | None,
        feed: Callable[[NetworkChanged], None],
        moved: Callable[[Endpoint], None],
        spawn: Callable[[Coroutine[Any, Any, Any]], Any],
    ) -> None:
        """``moved`` is told the new endpoint after the site was."""
        self._settings, self._site, self._mdns = settings, site, mdns
        self._feed, self._moved, self._spawn = feed, moved, spawn
        self._watch = Watch(self.look)
        self._found: tuple[Interface, ...] = ()
        self.announced: Announced | None = None
        self.choice = Choice((), ())

    def start(self) -> None:
        """Announce what is there now, and follow what changes."""
        self._read()
        if self._mdns is not None:
            self._spawn(self._mdns.start(self.choice, *self._what()))
        self._watch.start()

    def look(self) -> None:
        """See what has changed; cheap if nothing has."""
        before, was_choice, was = self._found, self.choice, self.announced
        self._read()
        if self._found == before and self.announced == was:
            return
        endpoint = self._endpoint()
        if endpoint != self._site.swim.record.endpoint:
            _log.info("this site is at %s now", endpoint.host)
            self._feed(NetworkChanged(endpoint))
            self._moved(endpoint)
        elif self._reachable(self._found) != self._reachable(before):
            self._feed(NetworkChanged(endpoint))
        if self._mdns is not None and (self.choice != was_choice or self.announced != was):
            self._spawn(self._mdns.follow(self.choice, *self._what()))

    def _read(self) -> None:
        part = self._settings.discovery
        self._found = read_interfaces()
        self.announced = announced_host(
            self._settings.listen.mesh_host, denied=part.deny_interfaces, interfaces=self._found
        )
        allowed = part.interfaces
        is_local = not self.announced.is_followed and _is_loopback(
            self._site.swim.record.endpoint.host
        )
        if is_local and not allowed:
            allowed = (LOOPBACK,)
        self.choice = choose_interfaces(self._found, allowed, part.deny_interfaces)

    def _reachable(self, found: tuple[Interface, ...]) -> dict[str, tuple[str, ...]]:
        # Not denied ones: a host that starts containers all day must not retry its seeds all day.
        return usable_addresses(found, self._settings.discovery.deny_interfaces)

    def _endpoint(self) -> Endpoint:
        now = self._site.swim.record.endpoint
        assert self.announced is not None, "read before"
        if not self.announced.is_followed or self.announced.host == LOOPBACK:
            return now
        return replace(now, host=self.announced.host)

    def _what(self) -> tuple[Endpoint, tuple[str, ...], int]:
        endpoint = self._endpoint()
        assert self.announced is not None, "read before"
        names = {one.name for one in self.choice.used}
        others = [
            address
            for address in self.announced.others
            if any(
                interface.name in names and any(str(one.ip) == address for one in interface.usable)
                for interface in self._found
            )
        ]
        return endpoint, (endpoint.host, *others), self._site.swim.record.sequence

    async def close(self) -> None:
        """Follow no more."""
        self._watch.close()


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback
