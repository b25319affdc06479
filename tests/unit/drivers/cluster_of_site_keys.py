"""Identity folders of a small cluster, and a mesh listener of one of its sites."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from agent.drivers import tls
from agent.drivers.keystore import SiteKeys, complete_join, found_cluster, prepare_join
from agent.drivers.mesh import MeshServer
from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId
from agent.identity.certificates import issue_site
from agent.wire.mesh import Call, Done, Reply
from agent.wire.records import Endpoint


def founded(directory: Path) -> SiteKeys:
    return found_cluster(
        directory, name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=datetime.now(UTC),
    ).keys  # fmt: skip


def joined(hub: SiteKeys, directory: Path) -> SiteKeys:
    own = prepare_join(directory)
    gossip = own.gossip_private.public_key().public_bytes_raw()
    claims = replace(hub.identity.claims, name=directory.name, gossip_key=gossip)
    assert hub.issuer is not None
    leaf = issue_site(hub.issuer, own.site_private.public_key(), claims, datetime.now(UTC))
    return complete_join(
        directory, chain=(leaf, hub.issuer.certificate), root=hub.root, trust=hub.trust
    )


class Listener:
    """Answers every call with ``reply``, when ``gate`` opens."""

    def __init__(self, keys: SiteKeys, verify: tls.Verify) -> None:
        self.server = MeshServer(keys, verify, self._handle, b"chain", self._join)
        self.heard: asyncio.Queue[tuple[SiteId, Call]] = asyncio.Queue()
        self.gate: asyncio.Event | None = None
        self.reply: Reply = Done()

    @property
    def where(self) -> Endpoint:
        assert self.server.door is not None
        return Endpoint("127.0.0.1", self.server.door.port, self.server.door.port)

    async def start(self) -> None:
        await self.server.start("127.0.0.1", 0)

    async def stop(self) -> None:
        await self.server.stop()

    async def _handle(self, sender: SiteId, message: Call) -> Reply:
        self.heard.put_nowait((sender, message))
        if self.gate is not None:
            await self.gate.wait()
        return self.reply

    async def _join(self, _: bytes) -> bytes:
        raise Refused("nobody joins here")
