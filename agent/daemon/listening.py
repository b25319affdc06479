"""Where this site listens: checked before anything starts, so that a mistake is one clear line.

The gateway binds its ports itself, in a process of its own, which can only fail and be started again;
so they are tried here first.
"""

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import ExitStack

from agent.config.settings import ListenPart
from agent.drivers.served_certificate import ServedCertificate
from agent.foundation.errors import ConfigError


def shown(host: str, port: int) -> str:
    """``host:port`` as people and URLs write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def mesh_address(host: str) -> str:
    """The address that stands for ``host`` in this site's record.

    Raises:
        ConfigError: it is no address of any host, or one that others cannot connect to.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ConfigError(
            f"[listen] mesh_host {host!r} is not known",
            why=error.strerror or str(error),
            mend="give the IP address at which other sites reach this one, or auto",
        ) from None
    address = str(found[0][4][0])
    if ipaddress.ip_address(address.partition("%")[0]).is_unspecified:
        raise ConfigError(
            f"[listen] mesh_host {host} is no address that others can connect to",
            why="it is announced to the other sites as it is",
            mend="give the IP address at which other sites reach this one, or auto",
        )
    return address


def require_free(listen: ListenPart, mesh_hosts: Sequence[str]) -> None:
    """Every port of this site can be bound.

    Raises:
        ConfigError: names each that cannot, with its setting.
    """
    mesh = (
        (listen.mesh_port, socket.SOCK_DGRAM, "gossip", "mesh_port"),
        (listen.mesh_port, socket.SOCK_STREAM, "members", "mesh_port"),
        (listen.data_port, socket.SOCK_STREAM, "members' data", "data_port"),
    )
    wanted = [
        *((host, *one) for one in mesh for host in mesh_hosts),
        (listen.http_host, listen.http_port, socket.SOCK_STREAM, "applications", "http_port"),
    ]
    for port, purpose, key in (
        (listen.grpc_port, "gRPC", "grpc_port"),
        (listen.metrics_port, "metrics", "metrics_port"),
    ):
        if port:
            wanted.append((listen.http_host, port, socket.SOCK_STREAM, purpose, key))
    troubles: list[tuple[str, str, str]] = []
    for host, port, kind, purpose, key in wanted:
        try:
            _bind(host, port, kind)
        except OSError as error:
            what = "UDP" if kind == socket.SOCK_DGRAM else "TCP"
            where = f"{shown(host, port)} ({what}) for {purpose}"
            troubles.append((where, error.strerror or str(error), key))
    if troubles:
        keys = ", ".join(dict.fromkeys(key for _, _, key in troubles))
        raise ConfigError(
            "cannot listen at " + ", ".join(where for where, _, _ in troubles),
            why=", ".join(dict.fromkeys(why for _, why, _ in troubles)),
            mend=f"stop what holds the port (ss -lntup shows it), or change [listen] {keys}",
        )


def certificate_arguments(listen: ListenPart) -> list[str]:
    """What the gateway is told of the certificate for applications.

    Raises:
        ConfigError: it cannot be used.
    """
    chain, key = listen.http_certificate, listen.http_key
    if chain is None or key is None:
        return []
    ServedCertificate(chain, key)
    return ["--http-certificate", str(chain), "--http-key", str(key)]


def _bind(host: str, port: int, kind: socket.SocketKind) -> None:
    family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
    with ExitStack() as stack:
        probe = stack.enter_context(socket.socket(family, kind))
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        if kind == socket.SOCK_STREAM:
            probe.listen(1)  # SO_REUSEADDR lets a second socket bind, but not listen
