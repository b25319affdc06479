"""Announce and browse with the real library, over multicast on loopback."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address
from os import urandom
from random import Random

import pytest
from zeroconf import DNSOutgoing  # type: ignore[attr-defined]
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from agent.drivers import mdns
from agent.drivers.interfaces import Address, Choice, Interface, choose_interfaces, read_interfaces
from agent.drivers.mdns import (
    ADDRESSES_MAX,
    RECORDS_MAX,
    RESOLVING_PER_SENDER_MAX,
    SERVICE,
    Mdns,
    Sighting,
    browse_once,
    multicast_addresses,
)
from agent.foundation.ids import SiteId
from agent.wire.advert import Advert
from agent.wire.records import Endpoint

Found = asyncio.Queue[Sighting]
HERE, THERE = Endpoint("127.1.2.3", 7411, 7412), Endpoint("127.1.2.4", 7511, 7512)


def loopback() -> Choice:
    return choose_interfaces(read_interfaces(), ("127.0.0.1",))


def service(cluster: bytes) -> tuple[SiteId, Mdns, Found]:
    site, found = SiteId(urandom(32)), Found()
    return site, Mdns(site, cluster, found.put_nowait, Random(1)), found


@asynccontextmanager
async def announced(
    cluster: bytes, where: Endpoint, addresses: Sequence[str] = (), sequence: int = 1
) -> AsyncIterator[tuple[SiteId, Mdns, Found]]:
    site, one, found = service(cluster)
    await one.start(loopback(), where, addresses or (where.host,), sequence)
    try:
        assert one.outcome == "announced on lo"
        yield site, one, found
    finally:
        await one.stop()


async def until(found: Found, where: Endpoint) -> Sighting:
    while True:
        seen = await found.get()
        if seen.endpoint == where:
            return seen


async def test_sites_of_one_cluster_find_each_other_and_nobody_else() -> None:
    cluster = urandom(32)
    async with (
        announced(urandom(32), Endpoint("127.1.2.5", 1, 2)) as (_, stranger, strangers),
        announced(cluster, HERE) as (one, _, found_by_one),
        announced(cluster, THERE) as (other, last, found_by_other),
        asyncio.timeout(15),
    ):
        assert (await found_by_one.get()).site == other
        seen = await found_by_other.get()
        assert (seen.endpoint, seen.site, seen.sequence) == (HERE, one, 1)
        assert seen.sender == "127.0.0.1"
        assert strangers.empty()
        assert stranger.counts.strangers > 0
        assert last.counts.conflicts == 0


async def test_addresses_of_both_families_are_announced_and_scoped_ones_are_not_taken() -> None:
    cluster = urandom(32)
    addresses = ("127.1.2.3", "2001:db8::7", "fe80::7", "169.254.7.7")
    async with (
        announced(cluster, HERE, addresses),
        announced(cluster, THERE) as (_, _, found),
        asyncio.timeout(15),
    ):
        hosts: set[str] = set()
        while len(hosts) < 3:
            hosts.add((await found.get()).endpoint.host)
        assert hosts == {"127.1.2.3", "2001:db8::7", "169.254.7.7"}


async def test_what_was_read_is_not_kept() -> None:
    cluster = urandom(32)
    async with (
        announced(cluster, HERE) as (one, first, _),
        announced(cluster, THERE) as (_, _, found),
        asyncio.timeout(15),
    ):
        await found.get()
        assert first._zeroconf is not None
        names = " ".join(first._zeroconf.zeroconf.cache.names())
        for name in names.split():
            assert name == SERVICE or one.hex()[:16] in name, "only what is our own"


async def test_an_address_that_changed_is_announced_anew_under_the_same_name() -> None:
    cluster = urandom(32)
    async with (
        announced(cluster, HERE) as (one, first, _),
        announced(cluster, THERE) as (_, _, found),
        asyncio.timeout(15),
    ):
        await until(found, HERE)
        moved = Endpoint("127.1.2.9", 7411, 7412)
        await first.follow(loopback(), moved, ("127.1.2.9",), 2)
        seen = await until(found, moved)
        assert (seen.site, seen.sequence) == (one, 2)
        assert first.outcome == "announced on lo"


async def test_interfaces_that_come_and_go_are_followed() -> None:
    cluster = urandom(32)
    async with announced(cluster, THERE) as (_, _, found), asyncio.timeout(20):
        _, late, _ = service(cluster)
        await late.start(Choice((), ()), HERE, ("127.1.2.3",), 1)
        assert late.outcome == "announced on no interface"
        assert found.empty()
        await late.follow(loopback(), HERE, ("127.1.2.3",), 1)
        await until(found, HERE)
        assert late.outcome == "announced on lo"
        await late.follow(Choice((), ()), HERE, ("127.1.2.3",), 1)
        assert late._zeroconf is not None
        assert late._zeroconf.zeroconf.engine.senders == []
        await late.stop()


async def test_one_browses_without_announcing() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (one, _, found):
        # What was multicast within a second is not repeated at once.
        assert await browse_once(cluster, ("127.0.0.1",), 3.0) == [(HERE, one)]
        assert await browse_once(urandom(32), ("127.0.0.1",), 0.1) == []
        assert found.empty()


async def test_no_interface_at_all_finds_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await browse_once(urandom(32), ("no-such-interface",), 0.05) == []

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no multicast")

    monkeypatch.setattr(mdns, "AsyncZeroconf", fail)
    with pytest.raises(OSError, match="no multicast"):
        await browse_once(urandom(32), (), 0.05)


@pytest.mark.parametrize("error", [OSError("no multicast"), ZeroconfError("name taken")])
async def test_a_network_without_multicast_is_told_and_tried_again_when_it_changes(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    _, one, _ = service(urandom(32))
    with monkeypatch.context() as patch:
        patch.setattr(AsyncZeroconf, "async_register_service", fail)
        await one.start(loopback(), HERE, (HERE.host,), 1)
    assert str(error) in one.outcome
    await one.follow(loopback(), HERE, (HERE.host,), 1)
    assert one.outcome == "announced on lo"
    await one.stop()


async def test_a_network_without_multicast_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = urandom(32)
    _, one, _ = service(cluster)
    monkeypatch.setattr(mdns, "START_AGAIN_S", 0.01)

    def fail(*_: object, **__: object) -> None:
        raise OSError("port 5353 is taken")

    async with announced(cluster, THERE) as (_, _, found), asyncio.timeout(15):
        with monkeypatch.context() as patch:
            patch.setattr(mdns, "AsyncZeroconf", fail)
            await one.start(loopback(), HERE, (HERE.host,), 1)
        assert "port 5353 is taken" in one.outcome
        await until(found, HERE)
        await one.stop()


# --- what others send ----------------------------------------------------------------------------
def advert(cluster: bytes, number: int = 1, sequence: int = 1) -> Advert:
    return Advert(cluster.hex()[:16], SiteId(number.to_bytes(2, "big") * 16), sequence, 7412)


def packet(
    said: Advert,
    text: bytes | None = None,
    addresses: Sequence[str] = ("10.0.0.9",),
    name: str = "",
) -> bytes:
    instance = name or said.instance
    info = AsyncServiceInfo(
        SERVICE, f"{instance}.{SERVICE}", port=7411, server=f"atoll-{instance}.local.",
        properties=said.pack() if text is None else text, parsed_addresses=list(addresses),
    )  # fmt: skip
    out = DNSOutgoing(0x8400)
    for record in (info.dns_pointer(), info.dns_service(), info.dns_text(), *info.dns_addresses()):
        out.add_answer_at_time(record, 0)
    return bytes(out.packets()[0])


def send(one: Mdns, data: bytes, sender: str = "10.0.0.9") -> None:
    assert one._zeroconf is not None
    reader = one._zeroconf.zeroconf.engine.readers[0]
    reader.transport.get_protocol().datagram_received(data, (sender, 5353))  # type: ignore[attr-defined]


async def test_malformed_announcements_are_counted_and_nothing_else() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (_, one, found):
        said = advert(cluster)
        send(one, packet(said, b"\x05id=ab"))
        send(one, packet(advert(cluster, 2), said.pack()))
        send(one, packet(advert(cluster, 3), b"\xff" + b"x" * 255 + b"\xc8" + b"y" * 200))
        send(one, packet(advert(cluster, 4), b"\x04\x00\x01\x02\x03"))
        send(one, packet(said, said.pack() + said.pack()))
        assert one.counts.malformed == 5
        assert found.empty()
        send(one, b"\0\0\x84\0\xff\xff\xff\xff\0\0\0\0 atoll" + urandom(200))
        send(one, packet(said))
        assert (await found.get()).endpoint == Endpoint("10.0.0.9", 7411, 7412)


async def test_a_newer_sequence_and_a_repetition_are_told_each_time() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (_, one, found):
        for sequence in (1, 2, 3):
            send(one, packet(advert(cluster, 1, sequence)))
        assert [found.get_nowait().sequence for _ in range(3)] == [1, 2, 3]


async def test_few_addresses_of_one_announcement_are_taken_and_those_of_no_host_are_not() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (_, one, found):
        many = [f"10.0.1.{number}" for number in range(1, 20)]
        send(one, packet(advert(cluster), addresses=many))
        assert found.qsize() == ADDRESSES_MAX
        send(one, packet(advert(cluster, 2), addresses=("fe80::1", "224.0.0.1", "0.0.0.0", "::")))
        assert found.qsize() == ADDRESSES_MAX
        assert one.counts.unresolved == 1


async def test_somebody_else_under_our_name_is_told() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (site, one, found):
        mine = Advert(cluster.hex()[:16], site, 9, 7412)
        send(one, packet(mine), sender="10.0.0.66")
        assert one.conflict == "10.0.0.66"
        assert one.counts.conflicts > 0
        assert found.empty()


async def test_announcements_without_an_address_occupy_few_places_of_one_sender() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (_, one, _):
        for number in range(1, 50):
            send(one, packet(advert(cluster, number), addresses=()))
        assert len(one._ear._resolving) == RESOLVING_PER_SENDER_MAX
        assert one.counts.unresolved == 49 - RESOLVING_PER_SENDER_MAX


async def test_ten_thousand_false_announcements_leave_nothing_behind() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (_, one, found):
        for number in range(1, 10_001):
            send(one, packet(advert(cluster, number)), sender=f"10.7.{number % 97}.1")
        assert one._zeroconf is not None
        assert len(one._zeroconf.zeroconf.cache.names()) <= 4
        assert len(one._ear.known) <= mdns.KNOWN_MAX
        assert found.qsize() == one.counts.taken
        assert one.gate.excess > 5000


async def test_a_packet_of_very_many_records_is_read_in_part() -> None:
    cluster = urandom(32)
    async with announced(cluster, HERE) as (_, one, found):
        out = DNSOutgoing(0x8400)
        for number in range(1, 200):
            said = advert(cluster, number)
            info = AsyncServiceInfo(SERVICE, f"{said.instance}.{SERVICE}", server="atoll-x.local.")
            out.add_answer_at_time(info.dns_pointer(), 0)
        for data in out.packets():
            send(one, bytes(data))
        assert found.empty()
        assert one.counts.unresolved <= RECORDS_MAX
        assert one._zeroconf is not None
        assert len(one._zeroconf.zeroconf.cache.names()) <= 4


def test_each_interface_is_named_to_the_library_by_one_address_of_each_family() -> None:
    texts = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "fe80::1")
    eth0 = Interface("eth0", 2, True, tuple(Address(ip_address(text)) for text in texts))
    lo = Interface("lo", 1, True, (Address(ip_address("127.0.0.1")), Address(ip_address("::1"))))
    assert multicast_addresses(Choice((lo, eth0), ())) == ["127.0.0.1", "192.0.2.1", "fe80::1"]
