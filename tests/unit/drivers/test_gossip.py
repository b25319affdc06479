"""The gossip socket on real loopback sockets; sealing is the test's own."""

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

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


async def test_a_send_that_this_host_refuses_is_its_own_fault(ends: tuple[End, End]) -> None:
    one, _ = ends
    unreachable = "2001:db8::1" if ":" not in one.host else "192.0.2.1"  # of the other family
    one.socket.send(OTHER, Endpoint(unreachable, 7411, 7412), Ping(1, ()))
    assert one.failed == [OTHER]


async def test_a_port_in_use_is_a_clear_error(ends: tuple[End, End]) -> None:
    third = End(OTHER, ends[0].host)
    with pytest.raises(ConfigError, match=r"cannot listen for gossip.*mesh_port"):
        await third.socket.open(ends[0].host, ends[0].port)
