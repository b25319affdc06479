"""The gossip socket on real loopback sockets; sealing is the test's own."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator

import pytest

from agent.drivers import gossip
from agent.drivers.gossip import GossipSocket
from agent.foundation.errors import ConfigError, Malformed, NotFound
from agent.foundation.ids import SiteId
from agent.wire.gossip import Ack, GossipMessage, Ping
from agent.wire.records import Endpoint

ONE, OTHER = SiteId(b"\1" * 32), SiteId(b"\2" * 32)
MARK = b"sealed"


class Seal:
    """Marks packets with their sender."""

    def __init__(self, me: SiteId) -> None:
        self.me = me

    def seal(self, target: SiteId, body: bytes) -> bytes:
        if target == self.me:
            raise NotFound("no key")
        return MARK + self.me + body

    def open(self, packet: bytes) -> tuple[SiteId, bytes]:
        if not packet.startswith(MARK):
            raise Malformed("no member's")
        return SiteId(packet[len(MARK) : len(MARK) + 32]), packet[len(MARK) + 32 :]


class End:
    def __init__(self, me: SiteId, host: str) -> None:
        self.heard: asyncio.Queue[tuple[SiteId, GossipMessage]] = asyncio.Queue()
        self.failed: list[SiteId] = []
        self.refused: asyncio.Queue[SiteId] = asyncio.Queue()
        self.socket = GossipSocket(
            Seal(me),
            lambda sender, message: self.heard.put_nowait((sender, message)),
            self.failed.append,
            self.refused.put_nowait,
        )
        self.host, self.port = host, free_port(host)

    @property
    def where(self) -> Endpoint:
        return Endpoint(self.host, self.port, 1)


def free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@pytest.fixture(params=["127.0.0.1", "::1"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[tuple[End, End]]:
    one, other = End(ONE, request.param), End(OTHER, request.param)
    for end in (one, other):
        await end.socket.open(end.host, end.port)
    yield one, other
    for end in (one, other):
        end.socket.close()
    await asyncio.sleep(0)


async def test_a_message_arrives_with_its_sender(ends: tuple[End, End]) -> None:
    one, other = ends
    one.socket.send(OTHER, other.where, Ping(7, ()))
    async with asyncio.timeout(5):
        assert await other.heard.get() == (ONE, Ping(7, ()))


async def test_what_does_not_open_or_decode_is_counted_and_dropped(ends: tuple[End, End]) -> None:
    one, other = ends
    family = socket.AF_INET6 if ":" in one.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as stranger:
        for data in (b"", b"noise", MARK + OTHER + b"not a message", b"x" * 9000):
            stranger.sendto(data, (one.host, one.port))
    other.socket.send(ONE, one.where, Ack(1, OTHER, ()))
    async with asyncio.timeout(5):
        assert await one.heard.get() == (OTHER, Ack(1, OTHER, ()))
    assert (one.socket.received, one.socket.dropped) == (5, 4)


async def test_a_closed_port_is_told_with_the_site_behind_it(ends: tuple[End, End]) -> None:
    one, other = ends
    other.socket.close()
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while one.refused.empty():
            one.socket.send(OTHER, other.where, Ping(1, ()))
            await asyncio.sleep(0.01)
    assert one.refused.get_nowait() == OTHER


async def test_a_target_without_a_key_or_with_a_name_for_an_address_gets_no_packet(
    ends: tuple[End, End],
) -> None:
    one, other = ends
    one.socket.send(ONE, other.where, Ping(1, ()))
    one.socket.send(OTHER, Endpoint("host.example.org", 7411, 7412), Ping(1, ()))
    assert (one.socket.sent, one.failed) == (0, [])


@pytest.mark.parametrize(("number", "blamed"), [(errno.ENETUNREACH, 1), (errno.EINVAL, 0)])
async def test_a_send_that_this_host_refuses_is_its_own_fault(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch, number: int, blamed: int
) -> None:
    """No route is; a member's address that cannot be used from here is not."""
    one, other = ends

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(one.socket, "_sendto", refuse)
    one.socket.send(OTHER, other.where, Ping(1, ()))
    assert one.failed == [OTHER] * blamed


async def test_an_address_that_cannot_be_meant_costs_no_packet_and_no_blame(
    ends: tuple[End, End],
) -> None:
    one, _ = ends
    other_family = "2001:db8::1" if ":" not in one.host else "192.0.2.1"
    for host in (other_family, "224.0.0.1", "255.255.255.255", "0.0.0.0", "::", "ff02::1"):
        one.socket.send(OTHER, Endpoint(host, 7411, 7412), Ping(1, ()))
    assert (one.socket.sent, one.failed) == (0, [])


async def test_a_refused_port_is_told_of_every_member_that_claims_it(
    ends: tuple[End, End],
) -> None:
    one, other = ends
    other.socket.close()
    liar = SiteId(b"\3" * 32)
    told: set[SiteId] = set()
    async with asyncio.timeout(5):
        while told != {OTHER, liar}:
            for target in (OTHER, liar):
                one.socket.send(target, other.where, Ping(1, ()))
            await asyncio.sleep(0.01)
            while not one.refused.empty():
                told.add(one.refused.get_nowait())


async def test_a_burst_is_read_in_parts_so_that_other_work_gets_its_turn(
    ends: tuple[End, End],
) -> None:
    one, other = ends
    for number in range(100):
        other.socket.send(ONE, one.where, Ping(number, ()))
    most, before = 0, 0
    async with asyncio.timeout(5):
        while one.socket.received < 100:
            await asyncio.sleep(0)
            most, before = max(most, one.socket.received - before), one.socket.received
    assert 1 < most <= 32


async def test_a_member_that_floods_is_heard_no_more_than_its_share(
    ends: tuple[End, End], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = ends
    monkeypatch.setattr(gossip, "_PACKETS_AT_ONCE", 10.0)
    monkeypatch.setattr(gossip, "_PACKETS_PER_S", 0.0)
    for number in range(30):
        other.socket.send(ONE, one.where, Ping(number, ()))
    one.socket.send(ONE, one.where, Ping(99, ()))  # no key: not sent at all
    third = End(SiteId(b"\3" * 32), one.host)
    await third.socket.open(third.host, third.port)
    third.socket.send(ONE, one.where, Ping(7, ()))
    async with asyncio.timeout(5):
        while one.socket.received < 31:  # noqa: ASYNC110 - the socket has no event for tests
            await asyncio.sleep(0.01)
    heard = [one.heard.get_nowait() for _ in range(one.heard.qsize())]
    assert [sender for sender, _ in heard].count(OTHER) == 10
    assert heard[-1] == (SiteId(b"\3" * 32), Ping(7, ())), "nobody else pays for it"
    assert (one.socket.limited, one.socket.dropped) == (20, 0)
    third.socket.close()


async def test_a_port_in_use_is_a_clear_error(ends: tuple[End, End]) -> None:
    third = End(OTHER, ends[0].host)
    with pytest.raises(ConfigError, match=r"cannot listen for gossip.*mesh_port"):
        await third.socket.open(ends[0].host, ends[0].port)


async def test_one_socket_takes_datagrams_of_both_families() -> None:
    both, four, six = End(ONE, "127.0.0.1"), End(OTHER, "127.0.0.1"), End(OTHER, "::1")
    await both.socket.open(("127.0.0.1", "::1"), both.port)
    await four.socket.open(four.host, four.port)
    await six.socket.open(six.host, six.port)
    try:
        async with asyncio.timeout(5):
            for end in (four, six):
                end.socket.send(ONE, Endpoint(end.host, both.port, 1), Ping(7, ()))
                assert await both.heard.get() == (OTHER, Ping(7, ()))
                both.socket.send(OTHER, end.where, Ping(8, ()))
                assert await end.heard.get() == (ONE, Ping(8, ()))
    finally:
        for end in (both, four, six):
            end.socket.close()


async def test_if_one_address_cannot_be_bound_none_is(ends: tuple[End, End]) -> None:
    third, (one, _) = End(OTHER, "127.0.0.1"), ends
    other_family = "::1" if ":" not in one.host else "127.0.0.1"
    with pytest.raises(ConfigError, match=r"cannot listen for gossip"):
        await third.socket.open((other_family, one.host), one.port)
    await third.socket.open(other_family, one.port)
    third.socket.close()
