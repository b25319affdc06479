"""Each way in which a site is not reached, made for real on loopback, gets its own cause."""

import asyncio
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.drivers import mesh, tls
from agent.drivers.keystore import SiteKeys, complete_join, found_cluster, prepare_join
from agent.drivers.mesh import MeshClient, MeshServer
from agent.drivers.reachability import cause_of, cause_of_refusal
from agent.foundation.errors import Malformed, Refused, StoreFault, Unreachable
from agent.foundation.ids import SiteId
from agent.identity.certificates import issue_site
from agent.site.causes import Cause
from agent.wire.mesh import Call, Done, Have, Reply
from agent.wire.records import Endpoint

NOW = datetime.now(UTC)
LONG_AGO, LATER = NOW - timedelta(days=40), NOW + timedelta(days=2)


@pytest.fixture(autouse=True)
def _quick_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)


def founded(directory: Path, now: datetime = NOW) -> SiteKeys:
    return found_cluster(
        directory, name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=now,
    ).keys  # fmt: skip


def joined(hub: SiteKeys, directory: Path, now: datetime = NOW) -> SiteKeys:
    own = prepare_join(directory)
    gossip = own.gossip_private.public_key().public_bytes_raw()
    claims = replace(hub.identity.claims, name=directory.name, gossip_key=gossip)
    assert hub.issuer is not None
    leaf = issue_site(hub.issuer, own.site_private.public_key(), claims, now)
    return complete_join(
        directory, chain=(leaf, hub.issuer.certificate), root=hub.root, trust=hub.trust
    )


async def handle(_: SiteId, __: Call) -> Reply:
    return Done()


async def join(_: bytes) -> bytes:
    return b""


@asynccontextmanager
async def listening(keys: SiteKeys, *revoked: bytes) -> AsyncIterator[Endpoint]:
    verify = tls.verifier(keys, lambda: set(revoked), lambda: datetime.now(UTC))
    server = MeshServer(keys, verify, handle, b"", join)
    await server.start("127.0.0.1", 0)
    assert server.door is not None
    try:
        yield Endpoint("127.0.0.1", server.door.port, server.door.port)
    finally:
        await server.stop()


async def cause(
    keys: SiteKeys, where: Endpoint, *revoked: bytes, site: SiteId | None = None
) -> Cause:
    verify = tls.verifier(keys, lambda: set(revoked), lambda: datetime.now(UTC))
    client = MeshClient(keys, verify)
    try:
        with pytest.raises(Unreachable) as raised:
            await client.call(site, where, Have(()), 3)
        return Cause(raised.value.cause)
    finally:
        await client.close()


async def test_certificates_of_the_other_side(tmp_path: Path) -> None:
    old = founded(tmp_path / "old", LONG_AGO)
    async with listening(old) as where:
        assert await cause(joined(old, tmp_path / "new"), where) is Cause.EXPIRED
    hub = founded(tmp_path / "hub")
    member = joined(hub, tmp_path / "member")
    async with listening(joined(hub, tmp_path / "early", LATER)) as where:
        assert await cause(member, where) is Cause.NOT_YET_VALID
    async with listening(founded(tmp_path / "strange")) as where:
        assert await cause(member, where) is Cause.WRONG_CLUSTER
    async with listening(hub) as where:
        assert await cause(member, where, hub.site) is Cause.REVOKED
        other = SiteId(b"\7" * 32)
        assert await cause(member, where, site=other) is Cause.OTHER_SITE


async def test_certificates_of_this_side(tmp_path: Path) -> None:
    hub = founded(tmp_path / "hub", LONG_AGO)
    server, member = joined(hub, tmp_path / "server"), joined(hub, tmp_path / "member")
    async with listening(server, member.site) as where:
        assert await cause(member, where) is Cause.WE_REVOKED
    async with listening(server) as where:
        assert await cause(joined(hub, tmp_path / "old", LONG_AGO), where) is Cause.WE_EXPIRED
        # The alert that says why is lost if our request was on its way already (RFC 8446, 4.4.4).
        early = await cause(joined(hub, tmp_path / "early", LATER), where)
        assert early in {Cause.WE_NOT_YET_VALID, Cause.BROKEN_OFF}


@asynccontextmanager
async def plain(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[Endpoint]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = int(server.sockets[0].getsockname()[1])
    yield Endpoint("127.0.0.1", port, port)
    server.close()
    await server.wait_closed()


async def test_something_else_listens_there(tmp_path: Path) -> None:
    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    keys = founded(tmp_path / "hub")
    async with plain(http) as where:
        assert await cause(keys, where) is Cause.NOT_ATOLL
    async with plain(silent) as where:
        assert await cause(keys, where) in {Cause.BROKEN_OFF, Cause.NOT_ATOLL}


async def test_nothing_listens_there_or_nobody_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = founded(tmp_path / "hub")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = int(held.getsockname()[1])
        assert await cause(keys, Endpoint("127.0.0.1", port, port)) is Cause.REFUSED
        assert await cause(keys, Endpoint("no-such-host.invalid", 1, 2)) is Cause.UNKNOWN_NAME
        assert await cause(keys, Endpoint("255.255.255.255", 1, 2)) in {
            Cause.NO_ROUTE,
            Cause.NOT_ALLOWED,
        }
        monkeypatch.setattr(mesh, "CONNECT_TIMEOUT_S", 0.2)
        held.listen(0)
        with socket.create_connection(("127.0.0.1", port)):  # the queue is full: no answer at all
            found = await cause(keys, Endpoint("127.0.0.1", port, port))
        assert found is Cause.TIMED_OUT


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EHOSTUNREACH, Cause.NO_ROUTE),
        (errno.ENETUNREACH, Cause.NO_ROUTE),
        (errno.EPERM, Cause.NOT_ALLOWED),
        (errno.ECONNRESET, Cause.BROKEN_OFF),
        (errno.ETIMEDOUT, Cause.TIMED_OUT),
        (errno.ENOSPC, Cause.OTHER),
    ],
)
def test_what_the_kernel_says(number: int, expected: Cause) -> None:
    assert cause_of(OSError(number, "words")) is expected


def test_what_is_behind_an_error_counts() -> None:
    outer = aiohttp.ServerDisconnectedError()
    assert cause_of(outer) is Cause.BROKEN_OFF
    outer.__cause__ = ssl.SSLError(1, "[SSL: TLSV1_ALERT_UNKNOWN_CA] alert")
    outer.__cause__.reason = "TLSV1_ALERT_UNKNOWN_CA"
    assert cause_of(outer) is Cause.WE_WRONG_CLUSTER
    assert cause_of(Malformed("no certificate")) is Cause.NOT_ATOLL
    assert cause_of(StoreFault("full")) is Cause.OTHER
    assert cause_of(Refused("certificate of a is revoked")) is Cause.REVOKED
    assert cause_of(ValueError("x")) is Cause.OTHER


def test_a_ring_of_errors_ends() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__cause__, other.__cause__ = other, one
    assert cause_of(one) is Cause.OTHER


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (403, "certificate of a is revoked; join again", Cause.WE_REVOKED),
        (403, "certificate of a has expired; ...", Cause.WE_EXPIRED),
        (403, "certificate of a is not valid yet", Cause.WE_NOT_YET_VALID),
        (403, "members only", Cause.TURNED_AWAY),
        (404, "not found", Cause.NOT_ATOLL),
        (503, "too many calls wait here", Cause.TURNED_AWAY),
    ],
)
def test_what_a_site_answers(status: int, text: str, expected: Cause) -> None:
    assert cause_of_refusal(status, text) is expected


async def test_a_name_is_looked_up_at_each_attempt_and_all_its_addresses_are_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = founded(tmp_path / "hub")
    member = joined(hub, tmp_path / "member")
    asked: list[object] = []
    hosts = ["127.0.0.91", "127.0.0.92"]  # nobody, then somebody; later only somebody else
    true_lookup = socket.getaddrinfo

    def lookup(host: Any, port: Any, *more: Any, **words: Any) -> Any:
        if host != "seed.test":
            return true_lookup(host, port, *more, **words)
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in hosts]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    verify = tls.verifier(hub, set, lambda: datetime.now(UTC))
    server = MeshServer(hub, verify, handle, b"", join)
    await server.start("127.0.0.92", 0)
    assert server.door is not None
    where = Endpoint("seed.test", server.door.port, 1)
    client = MeshClient(member, tls.verifier(member, set, lambda: datetime.now(UTC)))
    try:
        assert (await client.call(None, where, Have(()), 5))[0] == hub.site
        hosts[:] = ["127.0.0.93"]
        with pytest.raises(Unreachable) as raised:
            await client.call(None, where, Have(()), 5)
        assert raised.value.cause is Cause.REFUSED
        assert len(asked) == 2
    finally:
        await client.close()
        await server.stop()
