"""Which address this site announces, and which it binds, when the operator left it to us.

``auto`` means: bind every address of this machine, and announce that of the interface that holds the
default route, else of the first usable interface. So a changed address needs no new socket. Both
ports are safe to bind everywhere: a call needs a certificate of the cluster, a gossip packet opens
only under a key of two members, and nothing is answered before. Interfaces of containers and virtual
machines on this host are never announced: other sites cannot reach them.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from agent.drivers.bridges import BRIDGES
from agent.drivers.interfaces import Interface, choose_interfaces, read_interfaces

ROUTES_READ_MAX = 4096
"""Lines of the kernel's routing table that are looked at for the default route."""
LOOPBACK = "127.0.0.1"
_V4 = 4
_GATEWAY = "00000000000000000000000000000000"


@dataclass(frozen=True, slots=True)
class Announced:
    """The address to announce, and why this one."""

    host: str
    why: str
    binds: tuple[str, ...]
    """What to listen at: the address itself, or one wildcard of each family."""
    others: tuple[str, ...] = ()
    """Further addresses at which others may reach this site, the best first."""

    @property
    def is_followed(self) -> bool:
        """Whether the address is another when this machine's interfaces change."""
        return self.host not in self.binds


def announced_host(
    mesh_host: str,
    *,
    proc: Path = Path("/proc"),
    denied: Sequence[str] = BRIDGES,
    interfaces: Sequence[Interface] | None = None,
) -> Announced:
    """The address for ``listen.mesh_host``, ``auto`` resolved against this machine now.

    Without any network ``auto`` is loopback: the site serves its own applications until a link comes
    up, and then announces that.

    Args:
        mesh_host: the setting.
        proc: where the kernel tells of its routes.
        denied: ``discovery.deny_interfaces``.
        interfaces: what this machine has; read now if None.
    """
    if mesh_host != "auto":
        return Announced(mesh_host, "listen.mesh_host names it", (mesh_host,))
    if interfaces is None:
        interfaces = read_interfaces(proc)
    return choose(usable_addresses(interfaces, denied), default_route_interface(proc, denied))


def choose(addresses: Mapping[str, tuple[str, ...]], default_interface: str | None) -> Announced:
    """The address to announce, of the ``addresses`` by interface."""
    has_default = default_interface is not None and default_interface in addresses
    first = [default_interface] if has_default and default_interface is not None else []
    order = [*first, *sorted(set(addresses) - set(first))]
    every = tuple(dict.fromkeys(address for name in order for address in addresses[name]))
    if not every:
        why = "no interface but loopback and denied ones is up; it is followed"
        return Announced(LOOPBACK, why, wildcards())
    why = "has the default route" if first else "is up; there is no default route"
    return Announced(every[0], f"{order[0]} {why}", wildcards(), every[1:])


def usable_addresses(
    interfaces: Sequence[Interface], denied: Sequence[str] = BRIDGES
) -> dict[str, tuple[str, ...]]:
    """Addresses that can stand in a site's record, by interface that is up, the best first.

    Not among them: loopback, denied interfaces, and IPv6 link-local addresses, which mean nothing
    without an interface (IPv4 ones, 169.254/16, are the last choice).
    """
    found = {}
    for one in choose_interfaces(interfaces, (), denied).used:
        usable = tuple(
            str(address.ip)
            for address in one.usable
            if address.ip.version == _V4 or not address.ip.is_link_local
        )
        if usable:
            found[one.name] = usable
    return found


def wildcards() -> tuple[str, ...]:
    """What "every address" is here: IPv4, and IPv6 where the kernel has it."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::", 0))
    except OSError:
        return ("0.0.0.0",)  # noqa: S104 - on purpose, see the module's text
    return ("0.0.0.0", "::")  # noqa: S104 - the same


def default_route_interface(
    proc: Path = Path("/proc"), denied: Sequence[str] = BRIDGES
) -> str | None:
    """The interface of the default route with the lowest metric, IPv4 before IPv6; None without one."""
    found = []
    for line in _lines(proc / "net/route")[1:]:  # Iface Destination Gateway Flags ... Metric Mask
        columns = line.split()
        is_default = len(columns) > 7 and columns[1] == columns[7] == "00000000"  # noqa: PLR2004 - columns above
        if is_default and columns[6].isdigit():
            found.append((_V4, int(columns[6]), columns[0]))
    for line in _lines(proc / "net/ipv6_route"):  # destination length ... metric ... interface
        columns = line.split()
        is_default = len(columns) > 9 and columns[0] == _GATEWAY and columns[1] == "00"  # noqa: PLR2004 - columns above
        if is_default and columns[9] != "lo":
            found.append((6, int(columns[5], 16), columns[9]))
    usable = [one for one in found if not any(fnmatchcase(one[2], entry) for entry in denied)]
    return min(usable)[2] if usable else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("ascii", "replace").splitlines()[:ROUTES_READ_MAX]
    except OSError:
        return []
