"""Which address this site announces when the operator left it to us.

``auto`` means: the address of the interface that holds the default route, else of the first usable
interface. Interfaces of containers and virtual machines on this host are never announced: other
sites cannot reach them (seen in the field: exo 858, edgemesh 446).
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import psutil

from agent.foundation.errors import ConfigError

BRIDGE_PREFIXES = (
    "docker", "br-", "veth", "virbr", "vnet", "cni", "flannel", "cali", "podman", "lxc", "lxdbr", "kube",
)  # fmt: skip
"""Names that container and virtual machine software gives its interfaces."""
ROUTES_READ_MAX = 4096
"""Lines of the kernel's routing table that are looked at for the default route."""


@dataclass(frozen=True, slots=True)
class Announced:
    """The address to bind and announce, and why this one."""

    host: str
    why: str


def announced_host(mesh_host: str, *, proc: Path = Path("/proc")) -> Announced:
    """The address for ``listen.mesh_host``, ``auto`` resolved against this machine.

    Raises:
        ConfigError: ``auto``, and no interface but loopback and container bridges is up.
    """
    if mesh_host != "auto":
        return Announced(mesh_host, "listen.mesh_host names it")
    return choose(usable_addresses(), default_route_interface(proc))


def choose(addresses: Mapping[str, tuple[str, ...]], default_interface: str | None) -> Announced:
    """The address to announce, of the ``addresses`` by interface.

    Raises:
        ConfigError: there is none.
    """
    if default_interface is not None and addresses.get(default_interface):
        return Announced(
            addresses[default_interface][0], f"{default_interface} has the default route"
        )
    for interface, found in sorted(addresses.items()):
        if found:
            return Announced(found[0], f"{interface} is up; there is no default route")
    raise ConfigError(
        "no address of this machine can be announced to other sites",
        why="no interface but loopback and container bridges is up",
        mend="set listen.mesh_host to the address at which other sites reach this one",
    )


def usable_addresses() -> dict[str, tuple[str, ...]]:
    """Addresses by interface that is up, IPv4 before IPv6; no loopback, bridges, link-local."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found: dict[str, tuple[str, ...]] = {}
    for name, entries in psutil.net_if_addrs().items():
        if name not in up or name.startswith(BRIDGE_PREFIXES):
            continue
        usable = [
            address
            for entry in entries
            if entry.family in {socket.AF_INET, socket.AF_INET6}
            and (address := _usable(entry.address)) is not None
        ]
        if usable:
            usable.sort(key=lambda address: address.version)
            found[name] = tuple(str(address) for address in usable)
    return found


def default_route_interface(proc: Path = Path("/proc")) -> str | None:
    """The interface of the IPv4 default route with the lowest metric; None without one."""
    try:
        lines = (proc / "net/route").read_text("ascii", "replace").splitlines()
    except OSError:
        return None
    best: tuple[int, str] | None = None
    for line in lines[1:ROUTES_READ_MAX]:  # Iface Destination Gateway Flags RefCnt Use Metric Mask
        columns = line.split()
        if len(columns) < 8 or columns[1] != "00000000" or columns[7] != "00000000":  # noqa: PLR2004 - columns above
            continue
        if columns[6].isdigit() and not columns[0].startswith(BRIDGE_PREFIXES):
            best = min(best or (int(columns[6]), columns[0]), (int(columns[6]), columns[0]))
    return best[1] if best else None


def _usable(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if address.is_loopback or address.is_link_local or address.is_unspecified:
        return None
    return address
