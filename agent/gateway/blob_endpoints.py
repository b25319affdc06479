"""Blobs for members: manifests and chunks, within their residency label.

Rule: a blob that the view does not list does not exist, whoever asks; one that it lists goes only to
members whose certificate places them inside its label.
"""

import asyncio
from pathlib import Path

from aiohttp import web

from agent.drivers.blobs import BlobStore
from agent.foundation.errors import Corruption, NotFound, Refused, UsageError
from agent.foundation.ids import ID_BYTES, Digest, short
from agent.gateway.endpoints import CALLER
from agent.gateway.members import Callers
from agent.gateway.site import SiteState
from agent.routing.policy import is_within

READS_AT_ONCE = 8
"""Disk reads under way: beyond it chunks wait here rather than in the executor's queue."""
_BYTES = "application/octet-stream"


class BlobEndpoints:
    """``GET /blobs/<hex>/manifest`` and ``GET /blobs/<hex>/chunks/<index>`` on the data port."""

    def __init__(self, state: SiteState, callers: Callers, directory: Path) -> None:
        self._state = state
        self._callers = callers
        self._store = BlobStore(directory)
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    def routes(self) -> list[web.RouteDef]:
        """For the data port only."""
        return [
            web.get("/blobs/{digest}/manifest", self.manifest),
            web.get("/blobs/{digest}/chunks/{index}", self.chunk),
        ]

    async def manifest(self, request: web.Request) -> web.Response:
        """The encoded manifest."""
        digest = self._allowed(request)
        async with self._reads:
            data = await asyncio.to_thread(self._store.read_manifest, digest)
        return web.Response(body=data, content_type=_BYTES)

    async def chunk(self, request: web.Request) -> web.Response:
        """One chunk, checked against the manifest when it was read."""
        digest = self._allowed(request)
        index = request.match_info["index"]
        if not (index.isascii() and index.isdigit() and len(index) <= 6):  # noqa: PLR2004 - 65,536 chunks
            raise UsageError("a chunk has a number")
        async with self._reads:
            try:
                data = await asyncio.to_thread(self._store.read_chunk, digest, int(index))
            except Corruption as error:  # the store heals it; the asker goes to another site
                raise NotFound(f"chunk {index} of blob {short(digest)} is not here") from error
        return web.Response(body=data, content_type=_BYTES)

    def _allowed(self, request: web.Request) -> Digest:
        identity = self._callers.identify(request.transport)
        assert request.get(CALLER) == identity.site
        text = request.match_info["digest"]
        try:
            digest = Digest(bytes.fromhex(text))
        except ValueError:
            raise UsageError("a blob is named by its digest in hex") from None
        if len(digest) != ID_BYTES:
            raise UsageError("a blob is named by its digest in hex")
        label = self._state.residency_of_blob.get(digest)
        if label is None:
            raise NotFound(f"no blob {short(digest)} here")
        if not is_within(identity.claims.jurisdiction, label):
            raise Refused(
                f"blob {short(digest)} must not go to {identity.claims.name}",
                why=f"it may be held in {', '.join(label)}, the site is in "
                f"{identity.claims.jurisdiction}",
            )
        return digest
