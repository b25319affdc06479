"""What the mesh does with a certificate that is renewed, that has ended, or that is refused."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from sites_with_keys import founded, joined, recertified

from agent.drivers import tls
from agent.drivers.keystore import SiteKeys, store_chain
from agent.drivers.mesh import CHAIN_PATH, REFUSALS_MAX, RENEWAL_PATH, MeshClient, MeshServer
from agent.foundation.errors import Refused, Unreachable
from agent.foundation.ids import SiteId
from agent.identity.certificates import Identity
from agent.wire.mesh import Call, Done, Have, Reply
from agent.wire.records import Endpoint

HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _quick_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)


@dataclass
class Hub:
    """A listening site, with a clock of the test's own."""

    keys: SiteKeys
    server: MeshServer
    where: Endpoint
    ahead: timedelta = timedelta(0)
    retired: set[SiteId] = field(default_factory=set)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def require_current(self, identity: Identity) -> None:
        if identity.site in self.retired:
            raise Refused(f"{identity.claims.name} is retired", why="a new site joined")


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    keys = founded(tmp_path / "hub")
    found: list[Hub] = []

    def verify(leaf: bytes) -> Identity:
        one = found[0]
        return tls.verifier(keys, frozenset, one.now, one.require_current)(leaf)

    async def handle(_: SiteId, __: Call) -> Reply:
        return Done()

    async def renew(body: bytes) -> bytes:
        if body == b"good":
            return b"chain"
        raise Refused("the clocks of the two sites differ too much")

    async def join(_: bytes) -> bytes:
        raise AssertionError

    server = MeshServer(keys, verify, handle, b"old", join, renew=renew)
    await server.start("127.0.0.1", 0)
    assert server.door is not None
    found.append(Hub(keys, server, Endpoint("127.0.0.1", server.door.port, 9)))
    yield found[0]
    await server.stop()


def client_of(keys: SiteKeys) -> MeshClient:
    return MeshClient(keys, tls.verifier(keys, frozenset, lambda: datetime.now(UTC)))


async def test_a_renewed_certificate_is_used_at_once_and_open_connections_stay(
    hub: Hub, tmp_path: Path
) -> None:
    keys = joined(hub.keys, tmp_path / "edge", ago=HOUR / 2, life_s=3600)
    client = client_of(keys)
    try:
        assert (await client.call(hub.keys.site, hub.where, Have(()), 5.0))[1] == Done()
        hub.ahead = 3 * HOUR / 4  # at the hub the first certificate has ended by now
        with pytest.raises(Unreachable, match="has expired"):
            await client.call(hub.keys.site, hub.where, Have(()), 5.0)
        renewed = store_chain(keys, recertified(hub.keys, keys, datetime.now(UTC)))
        client.recertified(renewed)
        assert (await client.call(hub.keys.site, hub.where, Have(()), 5.0))[1] == Done()
        assert client.refusals == {}
    finally:
        await client.close()


async def test_the_listener_shows_its_renewed_certificate(hub: Hub, tmp_path: Path) -> None:
    chain = recertified(hub.keys, hub.keys, datetime.now(UTC) + timedelta(seconds=5))
    hub.server.recertified(store_chain(hub.keys, chain), b"new")
    keys = joined(hub.keys, tmp_path / "edge")
    shown: list[bytes] = []

    def verify(leaf: bytes) -> Identity:
        shown.append(leaf)
        return tls.verifier(keys, frozenset, lambda: datetime.now(UTC))(leaf)

    client = MeshClient(keys, verify)
    try:
        await client.call(hub.keys.site, hub.where, Have(()), 5.0)
    finally:
        await client.close()
    assert shown == [chain[0]]
    async with aiohttp.ClientSession() as session:
        url = f"https://127.0.0.1:{hub.where.mesh_port}"
        async with session.get(url + CHAIN_PATH, ssl=tls.join_context()) as response:
            assert await response.read() == b"new"


async def test_a_site_whose_certificate_has_ended_calls_nobody_and_says_why(
    hub: Hub, tmp_path: Path
) -> None:
    client = client_of(joined(hub.keys, tmp_path / "edge", ago=HOUR / 2, life_s=60))
    try:
        with pytest.raises(Unreachable, match="this site's certificate ended") as caught:
            await client.call(hub.keys.site, hub.where, Have(()), 5.0)
        assert caught.value.cause == "it holds our certificate to be expired"
        with pytest.raises(Unreachable, match="it may only renew"):
            await client.get_blob_part(hub.keys.site, hub.where, "/blobs/x", 10)
    finally:
        await client.close()


async def test_what_refusing_members_say_is_kept_until_one_takes_a_call(
    hub: Hub, tmp_path: Path
) -> None:
    keys = joined(hub.keys, tmp_path / "edge")
    client = client_of(keys)
    try:
        hub.retired.add(keys.site)
        with pytest.raises(Unreachable, match="is retired"):
            await client.call(hub.keys.site, hub.where, Have(()), 5.0)
        where = f"127.0.0.1:{hub.where.mesh_port}"
        assert client.refusals == {where: "edge is retired; a new site joined"}
        hub.retired.clear()
        await client.call(hub.keys.site, hub.where, Have(()), 5.0)
        assert client.refusals == {}
        for number in range(REFUSALS_MAX + 5):
            client._refused(str(number), "no")
        assert len(client.refusals) == REFUSALS_MAX
    finally:
        await client.close()


async def test_renewal_is_open_to_whoever_shows_no_certificate(hub: Hub) -> None:
    url = f"https://127.0.0.1:{hub.where.mesh_port}{RENEWAL_PATH}"
    async with aiohttp.ClientSession() as session:
        for body, status, text in (
            (b"good", 200, "chain"),
            (b"bad", 403, "the clocks of the two sites differ too much"),
            (b"x" * (17 << 10), 413, "a request is at most 16 KiB"),
        ):
            async with session.post(url, data=body, ssl=tls.join_context()) as response:
                assert (response.status, await response.text()) == (status, text)


async def test_a_listener_without_renewal_says_so(hub: Hub) -> None:
    hub.server._renew = None
    url = f"https://127.0.0.1:{hub.where.mesh_port}{RENEWAL_PATH}"
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=b"good", ssl=tls.join_context()) as response,
    ):
        assert response.status == 403
