"""Addresses are checked before anything starts."""

import socket

import pytest

from agent.config.settings import ListenPart
from agent.daemon.listening import mesh_address, require_free, shown
from agent.foundation.errors import ConfigError


def test_addresses_are_shown_as_urls_write_them() -> None:
    assert shown("127.0.0.1", 80) == "127.0.0.1:80"
    assert shown("::1", 80) == "[::1]:80"


def test_a_name_becomes_an_address_and_nonsense_a_clear_error() -> None:
    assert mesh_address("127.0.0.9") == "127.0.0.9"
    assert mesh_address("localhost") in ("127.0.0.1", "::1")
    with pytest.raises(ConfigError, match="is not known"):
        mesh_address("no-such-host.invalid")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_nobody_can_connect_to_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="no address that others can connect to"):
        mesh_address(host)


def ports(count: int) -> list[int]:
    found = []
    for _ in range(count):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
    return found


@pytest.mark.parametrize(
    ("kind", "which", "key"),
    [
        (socket.SOCK_DGRAM, 0, "mesh_port"),
        (socket.SOCK_STREAM, 0, "mesh_port"),
        (socket.SOCK_STREAM, 1, "data_port"),
        (socket.SOCK_STREAM, 2, "http_port"),
        (socket.SOCK_STREAM, 3, "grpc_port"),
        (socket.SOCK_STREAM, 4, "metrics_port"),
    ],
)
def test_every_port_in_use_is_named_with_its_setting(
    kind: socket.SocketKind, which: int, key: str
) -> None:
    mesh, data, http, grpc, metrics = numbers = ports(5)
    listen = ListenPart(
        "127.0.0.1", "auto", None, None, http, (), grpc, metrics, "127.0.0.1", mesh, data
    )
    require_free(listen, ("127.0.0.1",))
    with socket.socket(socket.AF_INET, kind) as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind == socket.SOCK_STREAM)
        held.bind(("127.0.0.1", numbers[which]))
        if kind == socket.SOCK_STREAM:
            held.listen()
        with pytest.raises(ConfigError, match=f"{numbers[which]}.*{key}"):
            require_free(listen, ("127.0.0.1",))
    require_free(listen, ("127.0.0.1",))


def test_an_address_of_another_machine_is_refused() -> None:
    listen = ListenPart("127.0.0.1", "auto", None, None, 0, (), 0, 0, "127.0.0.1", 0, 0)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1:0 .*mesh_port"):
        require_free(listen, ("192.0.2.1",))
