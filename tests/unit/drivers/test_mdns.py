"""Announce and browse with the real library, over multicast on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import urandom

import pytest
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncZeroconf

from agent.drivers import mdns
from agent.drivers.mdns import Mdns, usable_interfaces
from agent.foundation.ids import SiteId
from agent.wire.records import Endpoint

LOOPBACK = ("127.0.0.1",)
Found = asyncio.Queue[tuple[Endpoint, SiteId | None]]


@asynccontextmanager
async def announced(cluster: bytes, where: Endpoint) -> AsyncIterator[tuple[SiteId, Found]]:
    site, found = SiteId(urandom(32)), Found()
    service = Mdns(site, cluster, where, lambda at, who: found.put_nowait((at, who)))
    await service.start(LOOPBACK, 1)
    try:
        assert service.outcome == "announced on 127.0.0.1"
        yield site, found
    finally:
        await service.stop()


async def test_sites_of_one_cluster_find_each_other_and_nobody_else() -> None:
    cluster = urandom(32)
    here, there = Endpoint("127.1.2.3", 7411, 7412), Endpoint("127.1.2.4", 7511, 7512)
    async with (
        announced(urandom(32), Endpoint("127.1.2.5", 1, 2)) as (_, strangers),
        announced(cluster, here) as (one, found_by_one),
        announced(cluster, there) as (other, found_by_other),
        asyncio.timeout(15),
    ):
        assert await found_by_one.get() == (there, other)
        assert await found_by_other.get() == (here, one)
    assert strangers.empty()


async def test_an_ipv6_address_is_announced_too() -> None:
    cluster, where = urandom(32), Endpoint("2001:db8::7", 7411, 7412)
    async with (
        announced(cluster, where) as (one, _),
        announced(cluster, Endpoint("127.1.2.4", 1, 2)) as (_, found),
        asyncio.timeout(15),
    ):
        assert await found.get() == (where, one)


@pytest.mark.parametrize("error", [OSError("no multicast"), ZeroconfError("name taken")])
async def test_a_network_without_multicast_is_told_and_no_defect(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(AsyncZeroconf, "async_register_service", fail)
    service = Mdns(SiteId(urandom(32)), urandom(32), Endpoint("127.0.0.1", 1, 2), lambda *_: None)
    await service.start(LOOPBACK, 1)
    assert str(error) in service.outcome
    await service.stop()


def test_link_local_addresses_are_left_out_and_few_are_taken() -> None:
    many = [f"10.0.0.{n}" for n in range(10)]
    assert mdns._usable(["fe80::1", "169.254.1.1", *many]) == many[: mdns.ADDRESSES_MAX]


def test_the_interfaces_asked_for_are_used_and_else_no_container_bridge() -> None:
    assert usable_interfaces(["10.0.0.1"]) == ["10.0.0.1"]
    assert "127.0.0.1" in usable_interfaces([])
