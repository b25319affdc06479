"""The handshake itself fails unless the site that was meant answers (see also ``test_mesh``)."""

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.drivers import tls
from agent.drivers.keystore import SiteKeys, found_cluster
from agent.drivers.pinned import PinnedContext, server_name
from agent.foundation.ids import SiteId


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteKeys:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)
    return found_cluster(
        tmp_path / "hub", name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=datetime.now(UTC),
    ).keys  # fmt: skip


async def connect(keys: SiteKeys, pinned: PinnedContext, name: str) -> None:
    def gone(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(gone, "127.0.0.1", 0, ssl=tls.server_context(keys))
    port = server.sockets[0].getsockname()[1]
    try:
        _, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=pinned.context, server_hostname=name
        )
        writer.close()
        await writer.wait_closed()
    finally:
        server.close()
        await server.wait_closed()


def pinned_to(keys: SiteKeys) -> PinnedContext:
    return PinnedContext(keys, tls.verifier(keys, set, lambda: datetime.now(UTC)))


async def test_the_site_that_was_meant_is_connected_to(keys: SiteKeys) -> None:
    pinned = pinned_to(keys)
    await connect(keys, pinned, server_name(keys.site))
    assert pinned.greeted(server_name(keys.site)) is None


async def test_another_site_ends_the_handshake(keys: SiteKeys) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="another site"):
        await connect(keys, pinned_to(keys), server_name(SiteId(b"\1" * 32)))


async def test_a_greeting_remembers_once_who_answered(keys: SiteKeys) -> None:
    pinned = pinned_to(keys)
    await connect(keys, pinned, "greeting-1")
    identity = pinned.greeted("greeting-1")
    assert identity is not None
    assert identity.site == keys.site
    assert pinned.greeted("greeting-1") is None
