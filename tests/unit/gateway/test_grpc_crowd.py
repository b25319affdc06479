"""Which connections of the gRPC door give way, found among this process's real sockets."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from agent.gateway import grpc_crowd
from agent.gateway.grpc_crowd import (
    GrpcCrowd,
    Seen,
    connections_at,
    dispensable,
    make_room,
    read_peer,
)

Pairs = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_crowd, "CROWDED", 4)
    monkeypatch.setattr(grpc_crowd, "SPACIOUS", 2)


@pytest.fixture
def pairs() -> Iterator[tuple[int, Pairs]]:
    """Five connections: both ends of each, and the port they came to."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = listening.getsockname()[1]
        made: Pairs = []
        for _ in range(5):
            ours = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            made.append((ours, stack.enter_context(listening.accept()[0])))
        yield port, made


def seen(*silent_s: float) -> list[Seen]:
    return [Seen(("192.0.2.7", number), one, -1) for number, one in enumerate(silent_s)]


@pytest.mark.usefixtures("small")
def test_the_longest_silent_give_way_until_there_is_room() -> None:
    crowd = seen(3.0, 9.0, 2.0, 7.0, 5.0)
    assert [one.silent_s for one in dispensable(crowd, ())] == [9.0, 7.0, 5.0]
    assert dispensable(crowd[:4], ()) == []


@pytest.mark.usefixtures("small")
def test_who_has_a_call_under_way_or_has_just_spoken_stays() -> None:
    crowd = seen(0.9, 9.0, 0.0, 7.0, 5.0)
    assert [one.silent_s for one in dispensable(crowd, {("192.0.2.7", 1)})] == [7.0, 5.0]


def test_connections_are_found_by_their_port_and_nothing_stays_open(
    pairs: tuple[int, Pairs],
) -> None:
    port, made = pairs
    before = len(grpc_crowd._descriptors())
    found = connections_at(port)
    assert {one.peer for one in found} == {ours.getsockname() for ours, _ in made}
    for one in found:
        os.close(one.descriptor)
    assert len(grpc_crowd._descriptors()) == before


@pytest.mark.usefixtures("small")
def test_giving_way_ends_a_connection_at_both_ends_and_spares_the_others(
    pairs: tuple[int, Pairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_crowd, "SILENT_S", 0.0)
    port, made = pairs
    before = len(grpc_crowd._descriptors())
    busy = {made[0][0].getsockname(), made[3][0].getsockname()}
    assert make_room(port, busy) == 3
    for ours, theirs in made:
        ours.settimeout(5)
        if ours.getsockname() in busy:
            theirs.sendall(b"x")
            assert ours.recv(1) == b"x"
        else:
            assert ours.recv(1) == b""
    assert len(grpc_crowd._descriptors()) == before


def test_a_peer_asks_as_long_as_any_of_its_calls_is_under_way() -> None:
    crowd = GrpcCrowd()
    with crowd.asking("ipv4:192.0.2.7:1"):
        with crowd.asking("ipv4:192.0.2.7:1"):
            pass
        assert list(crowd._asking) == [("192.0.2.7", 1)]
    assert not crowd._asking


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ipv4:127.0.0.1:54321", ("127.0.0.1", 54321)),
        ("ipv6:%5B::1%5D:7", ("::1", 7)),
        ("unix:", ("", 0)),
        ("", ("", 0)),
    ],
)
def test_a_peer_is_read_as_the_library_writes_it(text: str, expected: tuple[str, int]) -> None:
    assert read_peer(text) == expected
