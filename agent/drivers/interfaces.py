"""The network interfaces of this machine: what they are, which of them may be used, when they change.

An interface counts as up when its link is (``IFF_UP`` and ``IFF_RUNNING``): a pulled cable leaves the
addresses in place. An IPv6 address is usable once the kernel has found it to be unique on its link
(RFC 4862, section 5.4); the kernel tells so in ``/proc/net/if_inet6``.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import ifaddr
import psutil

from agent.drivers.bridges import BRIDGES

SETTLE_S = 0.05
"""One cable makes a dozen messages of the kernel; they are looked at together."""
SPACING_S = 0.25
"""Least time between two looks, whatever the kernel tells: a host may start containers all day."""
POLL_S = 3.0
"""Without netlink. One look costs half a millisecond."""

_RTMGRP = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""Links, IPv4 and IPv6 addresses and routes (rtnetlink(7))."""
_MESSAGES_PER_TURN = 64
_TENTATIVE, _DUPLICATE, _DEPRECATED, _TEMPORARY = 0x40, 0x08, 0x20, 0x01
"""Flags of an IPv6 address (linux/if_addr.h)."""

_log = logging.getLogger("atoll.interfaces")


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface."""

    ip: IPv4Address | IPv6Address
    """Without a zone."""
    why_not: str = ""
    """Why nobody can connect to it now; empty if somebody may."""
    is_temporary: bool = False
    """A privacy address (RFC 8981): it changes every day, so others come first."""

    @property
    def rank(self) -> tuple[bool, int, bool]:
        """Lower is better to announce: routable before link-local, IPv4 before IPv6, lasting first."""
        return (self.ip.is_link_local, self.ip.version, self.is_temporary)


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface."""

    name: str
    index: int
    is_up: bool
    addresses: tuple[Address, ...]

    @property
    def is_loopback(self) -> bool:
        """Whether it leads nowhere."""
        return any(address.ip.is_loopback for address in self.addresses)

    @property
    def usable(self) -> tuple[Address, ...]:
        """Addresses that others on the link can connect to, the best first."""
        if not self.is_up:
            return ()
        found = [address for address in self.addresses if not address.why_not]
        return tuple(sorted(found, key=lambda address: address.rank))


@dataclass(frozen=True, slots=True)
class Choice:
    """Interfaces that are used, and those that are not with the reason."""

    used: tuple[Interface, ...]
    left_out: tuple[tuple[str, str], ...]
    """(interface's name, reason)."""


def read_interfaces(proc: Path = Path("/proc")) -> tuple[Interface, ...]:
    """All interfaces now, in the kernel's order."""
    flags = _ipv6_flags(proc)
    stats = psutil.net_if_stats()
    found = []
    for adapter in ifaddr.get_adapters(include_unconfigured=True):
        name = str(adapter.name)
        addresses = []
        for one in adapter.ips:
            text = one.ip if isinstance(one.ip, str) else one.ip[0]
            with contextlib.suppress(ValueError):
                ip = ip_address(text.partition("%")[0])
                addresses.append(_address(ip, flags.get((name, ip), 0)))
        is_up = name in stats and stats[name].isup
        found.append(Interface(name, adapter.index or 0, is_up, tuple(addresses)))
    return tuple(found)


def _address(ip: IPv4Address | IPv6Address, flags: int) -> Address:
    why_not = ""
    if flags & _DUPLICATE:
        why_not = "another host on the link has it"
    elif flags & _TENTATIVE:
        why_not = "the kernel is still checking that no other host has it"
    elif flags & _DEPRECATED:
        why_not = "it is being withdrawn (deprecated)"
    return Address(ip, why_not, bool(flags & _TEMPORARY))


def _ipv6_flags(proc: Path) -> dict[tuple[str, IPv4Address | IPv6Address], int]:
    try:
        lines = (proc / "net/if_inet6").read_text("ascii", "replace").splitlines()
    except OSError:
        return {}
    found: dict[tuple[str, IPv4Address | IPv6Address], int] = {}
    for line in lines:  # address index prefix scope flags name
        columns = line.split()
        with contextlib.suppress(ValueError, IndexError):
            ip = IPv6Address(bytes.fromhex(columns[0]))
            found[columns[5], ip] = int(columns[4], 16)
    return found


def choose_interfaces(
    found: Sequence[Interface], allowed: Sequence[str] = (), denied: Sequence[str] = BRIDGES
) -> Choice:
    """Which interfaces to use.

    Args:
        found: all of this machine.
        allowed: names, patterns of names (``eth*``) or addresses; empty: all but loopback.
        denied: the same; it wins over ``allowed``.
    """
    used, left_out = [], []
    for one in found:
        denial = next((entry for entry in denied if _matches(entry, one)), None)
        if denial is not None:
            left_out.append((one.name, f"denied by {denial!r}"))
        elif allowed and not any(_matches(entry, one) for entry in allowed):
            left_out.append((one.name, "not among the interfaces that are allowed"))
        elif not allowed and one.is_loopback:
            left_out.append((one.name, "loopback leads to no other host"))
        elif not one.is_up:
            left_out.append((one.name, "its link is down"))
        elif not one.usable:
            why = next((address.why_not for address in one.addresses), "it has no address")
            left_out.append((one.name, why))
        else:
            used.append(one)
    absent = [entry for entry in allowed if not any(_matches(entry, one) for one in found)]
    left_out += [(entry, "no interface has this name or address") for entry in absent]
    return Choice(tuple(used), tuple(left_out))


def _matches(entry: str, interface: Interface) -> bool:
    try:
        ip = ip_address(entry.partition("%")[0])
    except ValueError:
        return fnmatchcase(interface.name, entry)
    if ip.is_loopback and interface.is_loopback:
        return True  # all of 127/8 is there, though one address is listed
    return any(address.ip == ip for address in interface.addresses)


class Watch:
    """Calls back soon after an interface, an address or a route has changed. Idle, it costs nothing."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """``changed`` runs in the loop's thread, at most every ``SPACING_S``."""
        self._changed = changed
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._told_at = float("-inf")
        self.is_polling = False

    def start(self) -> None:
        """Listen to the kernel; where it does not tell (no netlink), look every ``POLL_S``."""
        try:
            found = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            found.setblocking(False)
            found.bind((0, _RTMGRP))
        except (OSError, AttributeError) as error:
            _log.info("netlink is not to be had (%s): interfaces are looked at now and then", error)
            self.is_polling = True
            self._poll()
            return
        self._socket = found
        asyncio.get_running_loop().add_reader(found.fileno(), self._readable)

    def _readable(self) -> None:
        assert self._socket is not None
        for _ in range(_MESSAGES_PER_TURN):
            try:
                self._socket.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError:  # ENOBUFS: messages were lost, so something changed
                continue
        if self._timer is None:
            loop = asyncio.get_running_loop()
            at = max(loop.time() + SETTLE_S, self._told_at + SPACING_S)
            self._timer = loop.call_at(at, self._tell)

    def _tell(self) -> None:
        self._timer = None
        self._told_at = asyncio.get_running_loop().time()
        self._changed()

    def _poll(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(POLL_S, self._poll)
        if self._told_at > float("-inf"):
            self._changed()
        self._told_at = loop.time()

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None
