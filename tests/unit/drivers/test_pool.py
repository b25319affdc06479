"""Sessions that are open when a key is revoked end at once, at both ends; the others stay."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cluster_of_site_keys import Listener, founded, joined

from agent.drivers import tls
from agent.drivers.keystore import SiteKeys
from agent.drivers.mesh import MeshClient
from agent.drivers.pool import close_refused
from agent.foundation.errors import Unreachable
from agent.wire.mesh import Done, Have
from agent.wire.records import Endpoint


class Members:
    """A hub that listens and two members that call it; ``revoked`` is what everybody knows."""

    def __init__(self, hub: SiteKeys, one: SiteKeys, other: SiteKeys) -> None:
        self.revoked: dict[bytes, str] = {}
        self.keys = (hub, one, other)
        self.listener = Listener(hub, self.verify(hub))
        self.clients = [MeshClient(keys, self.verify(keys)) for keys in (one, other)]

    def verify(self, keys: SiteKeys) -> tls.Verify:
        return tls.verifier(keys, lambda: self.revoked, lambda: datetime.now(UTC))

    @property
    def where(self) -> Endpoint:
        return self.listener.where

    async def call(self, number: int) -> object:
        site = self.keys[0].site
        return await self.clients[number].call(site, self.where, Have(()), 5)


@pytest.fixture
async def members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Members]:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)
    hub = founded(tmp_path / "hub")
    made = Members(hub, joined(hub, tmp_path / "one"), joined(hub, tmp_path / "other"))
    await made.listener.start()
    yield made
    for client in made.clients:
        await client.close()
    await made.listener.stop()


async def test_the_listener_ends_a_revoked_sites_idle_session_and_no_other(
    members: Members,
) -> None:
    await members.call(0)
    await members.call(1)
    members.revoked[members.keys[1].site] = "lost"
    assert members.listener.server.close_refused() == 1
    with pytest.raises(Unreachable, match="disconnected"):
        await members.call(0)
    with pytest.raises(Unreachable, match="is revoked; lost"):
        await members.call(0)
    assert (await members.call(1)) == (members.keys[0].site, Done())


async def test_a_call_under_way_to_a_revoked_site_ends_at_once(members: Members) -> None:
    members.listener.gate = asyncio.Event()
    calls = [asyncio.create_task(members.call(number)) for number in (0, 1)]
    for _ in calls:
        await members.listener.heard.get()
    members.revoked[members.keys[0].site] = ""
    assert members.clients[0].close_refused() == 1
    with pytest.raises(Unreachable, match="does not answer"):
        await calls[0]
    assert not calls[1].done()
    assert members.clients[1].close_refused() == 1
    with pytest.raises(Unreachable):
        await calls[1]


async def test_a_pooled_session_is_not_used_again(members: Members) -> None:
    await members.call(0)
    assert members.clients[0].close_refused() == 0
    members.revoked[members.keys[0].site] = ""
    assert members.clients[0].close_refused() == 1
    with pytest.raises(Unreachable, match="is revoked"):
        await members.call(0)


async def test_anonymous_and_closed_connections_are_left_alone(members: Members) -> None:
    context = tls.renew_context(members.keys[1])
    reader, writer = await asyncio.open_connection(
        members.where.host, members.where.mesh_port, ssl=context
    )
    writer.write(b"GET /join/1/chain HTTP/1.1\r\nHost: a\r\n\r\n")
    assert b"200" in await reader.readline()
    members.revoked[members.keys[1].site] = ""
    assert members.listener.server.close_refused() == 0
    writer.close()
    assert close_refused([None, writer.transport], members.verify(members.keys[0])) == 0
