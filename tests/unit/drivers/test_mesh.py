"""Calls between sites over real mutual TLS on loopback: who is answered, and who is believed."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from cluster_of_site_keys import founded, joined

from agent.drivers import door, mesh, tls
from agent.drivers.keystore import SiteKeys
from agent.drivers.mesh import CALL_PATH, CHAIN_PATH, JOIN_PATH, MeshClient, MeshServer, RemoteBlobs
from agent.drivers.pinned import server_name
from agent.foundation.errors import (
    ConfigError,
    Malformed,
    NotFound,
    Refused,
    StoreFault,
    Unreachable,
)
from agent.foundation.ids import Digest, SiteId
from agent.wire.mesh import Call, Declined, Done, Have, HaveReply, Reply, Watch
from agent.wire.records import Endpoint

BLOB = Digest(b"\3" * 32)


@pytest.fixture(autouse=True)
def _quick_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)


@dataclass
class Two:
    """A hub that listens and a member that calls."""

    hub: SiteKeys
    member: SiteKeys
    client: MeshClient
    server: MeshServer
    where: Endpoint
    heard: list[tuple[SiteId, Call]] = field(default_factory=list)
    revoked: set[bytes] = field(default_factory=set)
    reply: Reply | Exception = field(default_factory=Done)
    gate: asyncio.Event | None = None

    async def handle(self, sender: SiteId, message: Call) -> Reply:
        self.heard.append((sender, message))
        if self.gate is not None:
            await self.gate.wait()
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply

    async def join(self, body: bytes) -> bytes:
        if body == b"good":
            return b"welcome"
        if body == b"bad":
            raise Malformed("not a request")
        raise Refused("the token was used")


def port_of(server: MeshServer) -> int:
    assert server.door is not None
    return server.door.port


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Two]:
    hub = founded(tmp_path / "hub")
    member = joined(hub, tmp_path / "member")
    revoked: set[bytes] = set()

    def verify(keys: SiteKeys) -> tls.Verify:
        return tls.verifier(keys, lambda: revoked, lambda: datetime.now(UTC))

    client = MeshClient(member, verify(member))
    made: list[Two] = []

    async def handle(sender: SiteId, message: Call) -> Reply:
        return await made[0].handle(sender, message)

    async def join(body: bytes) -> bytes:
        return await made[0].join(body)

    server = MeshServer(hub, verify(hub), handle, b"chain", join)
    await server.start("127.0.0.1", 0)
    where = Endpoint("127.0.0.1", port_of(server), port_of(server))
    made.append(Two(hub, member, client, server, where, revoked=revoked))
    yield made[0]
    await client.close()
    await server.stop()


async def test_a_member_is_answered_and_known_by_its_certificate(two: Two) -> None:
    two.reply = HaveReply((True,))
    answer = await two.client.call(two.hub.site, two.where, Have((BLOB,)), 5)
    assert answer == (two.hub.site, HaveReply((True,)))
    assert two.heard == [(two.member.site, Have((BLOB,)))]


async def test_a_greeting_learns_who_is_there(two: Two) -> None:
    for _ in range(3):
        assert (await two.client.call(None, two.where, Have(()), 5))[0] == two.hub.site


async def test_nothing_is_sent_to_another_site_than_the_one_that_was_meant(two: Two) -> None:
    with pytest.raises(Unreachable, match="another site"):
        await two.client.call(SiteId(b"\5" * 32), two.where, Have(()), 5)
    assert two.heard == []


async def test_a_strange_cluster_is_not_spoken_to(two: Two, tmp_path: Path) -> None:
    stranger = founded(tmp_path / "stranger")
    client = MeshClient(stranger, tls.verifier(stranger, set, lambda: datetime.now(UTC)))
    with pytest.raises(Unreachable):
        await client.call(None, two.where, Have(()), 5)
    await client.close()
    assert two.heard == []


async def test_a_revoked_member_is_refused_on_an_open_connection(two: Two) -> None:
    await two.client.call(two.hub.site, two.where, Have(()), 5)
    two.revoked.add(two.member.site)
    with pytest.raises(Unreachable, match="revoked"):
        await two.client.call(two.hub.site, two.where, Have(()), 5)
    assert (len(two.heard), two.server.refused) == (1, 1)


async def test_a_fault_of_the_site_is_told_to_the_caller(two: Two) -> None:
    two.reply = StoreFault("the disk is full")
    with pytest.raises(Unreachable, match="the disk is full"):
        await two.client.call(two.hub.site, two.where, Have(()), 5)
    two.reply = Declined("no")
    assert await two.client.call(two.hub.site, two.where, Have(()), 5) == (
        two.hub.site, Declined("no"),
    )  # fmt: skip


async def test_a_site_that_does_not_answer_in_time_is_unreachable(two: Two) -> None:
    two.gate = asyncio.Event()
    with pytest.raises(Unreachable, match="no answer in time"):
        await two.client.call(two.hub.site, two.where, Have(()), 0.2)
    two.gate.set()


async def test_nobody_listening_is_unreachable_with_the_reason(two: Two) -> None:
    await two.server.stop()
    with pytest.raises(Unreachable, match=r"refused|Connect"):
        await two.client.call(two.hub.site, two.where, Have(()), 2)


async def test_more_watches_than_a_job_needs_do_not_keep_other_calls_waiting(two: Two) -> None:
    two.gate = asyncio.Event()
    watches = [
        asyncio.create_task(two.client.call(two.hub.site, two.where, Watch(f"j-{n}", 1, 1), 30))
        for n in range(40)
    ]
    async with asyncio.timeout(10):
        while len(two.heard) < len(watches):  # noqa: ASYNC110 - the server has no event for tests
            await asyncio.sleep(0.01)
    two.gate.set()
    assert all(reply == Done() for _, reply in await asyncio.gather(*watches))


@pytest.fixture
async def anonymous() -> AsyncIterator[aiohttp.ClientSession]:
    """A joiner: no certificate, and it verifies by other means."""
    connector = aiohttp.TCPConnector(ssl=tls.join_context())
    async with aiohttp.ClientSession(connector=connector) as session:
        yield session


async def test_without_a_certificate_only_joining_is_open(
    two: Two, anonymous: aiohttp.ClientSession
) -> None:
    base = f"https://127.0.0.1:{two.where.mesh_port}"
    async with anonymous.post(base + CALL_PATH, data=b"x") as response:
        assert (response.status, await response.text()) == (
            403, "members only; no certificate was shown",
        )  # fmt: skip
    async with anonymous.get(base + CHAIN_PATH) as response:
        assert await response.read() == b"chain"
    for body, status, text in (
        (b"good", 200, "welcome"),
        (b"bad", 400, "not a request"),
        (b"spent", 403, "the token was used"),
        (b"x" * (17 << 10), 413, "a request is at most 16 KiB"),
    ):
        async with anonymous.post(base + JOIN_PATH, data=body) as response:
            assert (response.status, await response.text()) == (status, text)


async def test_a_stranger_asks_little_on_one_connection(two: Two) -> None:
    reader, writer = await open_tls(two)
    request = f"GET {CHAIN_PATH} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    writer.write(request * 10)
    async with asyncio.timeout(5):
        answers = await reader.read()
    assert answers.count(b"HTTP/1.1 200") == mesh.STRANGER_REQUESTS_MAX
    assert answers.endswith(b"chain")
    writer.close()


async def test_noise_from_a_member_is_refused_and_counted(two: Two) -> None:
    url = f"https://127.0.0.1:{two.where.mesh_port}{CALL_PATH}"
    async with two.client._session.post(
        url,
        data=b"noise",
        server_hostname=server_name(two.hub.site),
        ssl=two.client._pinned.context,
    ) as response:
        assert response.status == 400
    assert two.server.refused == 1


async def test_a_connection_too_many_is_turned_away(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh, "CONNECTIONS_MAX", 2)
    held = [await open_tls(two) for _ in range(2)]
    third, _ = await open_tls(two)
    async with asyncio.timeout(5):
        assert await third.read() == b""
    for reader, writer in held:
        assert not reader.at_eof()
        writer.close()


async def open_tls(two: Two) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(
        "127.0.0.1", two.where.mesh_port, ssl=tls.join_context(), server_hostname="x"
    )


async def test_a_stranger_that_never_finishes_its_handshake_is_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "HANDSHAKE_TIMEOUT_S", 0.2)
    hub = founded(tmp_path / "slow")
    server = MeshServer(
        hub, tls.verifier(hub, set, lambda: datetime.now(UTC)), _never, b"", _never_join
    )
    await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
    await server.stop()


async def _never(_: SiteId, __: Call) -> Reply:
    raise AssertionError


async def _never_join(_: bytes) -> bytes:
    raise AssertionError


async def test_a_port_in_use_is_a_clear_error(two: Two) -> None:
    second = MeshServer(two.hub, lambda _: two.hub.identity, _never, b"", _never_join)
    with pytest.raises(ConfigError, match=r"cannot listen for members.*mesh_port"):
        await second.start("127.0.0.1", two.where.mesh_port)
    await second.stop()


async def test_a_member_is_a_source_of_blobs_that_says_what_it_does_not_have(two: Two) -> None:
    source = RemoteBlobs(two.client, two.hub.site, two.where)
    assert source.name == two.hub.site.hex()[:8]
    with pytest.raises(NotFound, match="404"):
        await source.manifest(BLOB)
    with pytest.raises(NotFound):
        await source.chunk(BLOB, 0)
    await two.server.stop()
    with pytest.raises(Unreachable):
        await source.manifest(BLOB)


def test_the_server_name_carries_the_site_in_labels_that_are_short_enough() -> None:
    name = server_name(SiteId(b"\xab" * 32))
    assert max(map(len, name.split("."))) <= 63
    assert ssl.HAS_SNI
