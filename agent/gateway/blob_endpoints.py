"""Blobs for members: manifests and chunks, within their residency label.

Rule: a blob that the view does not list does not exist, whoever asks; one that it lists goes only to
members whose certificate places them inside its label. A blob that is being fetched is given as far as
it has come. Before the first part of a blob goes to a member, and again after it has not asked for a
while, an audit entry is on disk.
"""

import asyncio
from collections import OrderedDict
from functools import partial
from math import inf
from pathlib import Path
from typing import Protocol

from aiohttp import web

from agent.distribution.holding import READERS_MAX, Holding, encode_holding
from agent.distribution.ration import Ration
from agent.drivers.blobs import BlobStore
from agent.drivers.clock import monotonic_s
from agent.foundation.errors import Corruption, NotFound, Refused, UsageError
from agent.foundation.ids import ID_BYTES, Digest, SiteId, short
from agent.gateway.endpoints import CALLER
from agent.gateway.members import Callers
from agent.gateway.site import SiteState
from agent.wire.residency import is_within

READER_S = 10.0
"""Without a question for so long a site reads no more: a fetch looks at its sources each second."""
BLOBS_MAX = 64
"""Blobs whose readers are told apart at a time."""
READS_AT_ONCE = 8
"""Disk reads under way: beyond it chunks wait here rather than in the executor's queue."""
_BYTES = "application/octet-stream"


class Audit(Protocol):
    """Writes down what leaves the site, before it leaves."""

    async def blob(
        self, digest: Digest, receiver: SiteId, label: tuple[str, ...], size: int
    ) -> None:
        """Return when the entry is on disk; ``Unreachable`` if it cannot be written."""
        ...


class Readers:
    """Who reads which blob now; bounded in both."""

    def __init__(self) -> None:
        self._blobs: OrderedDict[Digest, dict[SiteId, float]] = OrderedDict()
        """When each site has asked for a part last; the blob and the site that asked last are the last."""

    def note(self, digest: Digest, site: SiteId, now: float) -> None:
        """The site asks for a part of the blob."""
        readers = self._blobs.setdefault(digest, {})
        self._blobs.move_to_end(digest)
        if len(self._blobs) > BLOBS_MAX:
            self._blobs.popitem(last=False)
        readers.pop(site, None)
        readers[site] = now
        if len(readers) > READERS_MAX:
            del readers[next(iter(readers))]

    def is_one(self, digest: Digest, site: SiteId, now: float) -> bool:
        """Whether the site has asked lately."""
        return self._blobs.get(digest, {}).get(site, -inf) > now - READER_S

    def crowd(self, digest: Digest, site: SiteId, now: float) -> tuple[int, int]:
        """How many read the blob, ``site`` included whenever it asked, and its place among them."""
        others = [one for one in self._blobs.get(digest, {}) if self.is_one(digest, one, now)]
        active = sorted({site, *others})
        return min(len(active), READERS_MAX), min(active.index(site), READERS_MAX - 1)


class Line:
    """The way out, where it is rationed."""

    def __init__(self, bytes_per_s: float) -> None:
        """Needs a running loop when it is used."""
        self._ration: Ration[asyncio.Future[None]] = Ration(bytes_per_s)
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, receiver: SiteId, size: int) -> None:
        """Return when ``size`` bytes may go to ``receiver``; ``Busy`` if that would take long."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ration.ask(receiver, size, mine)
        self._release()
        await mine

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        for one in self._ration.ready(loop.time()):
            if (
                not one.done()
            ):  # else its receiver has hung up; what it would have taken is not given to another
                one.set_result(None)
        wake_at = self._ration.wake_at()
        self._timer = loop.call_at(wake_at, self._release) if wake_at < inf else None


class BlobEndpoints:
    """``GET /blobs/<hex>/manifest``, ``.../held`` and ``.../chunks/<index>`` on the data port."""

    def __init__(
        self,
        state: SiteState,
        callers: Callers,
        directory: Path,
        audit: Audit,
        bytes_per_s: float = 0.0,
    ) -> None:
        """``bytes_per_s``: what chunks of all blobs may take together; 0 = as much as there is."""
        self._state = state
        self._line = Line(bytes_per_s) if bytes_per_s else None
        self._audit = audit
        self._entries: dict[tuple[Digest, SiteId], asyncio.Task[None]] = {}
        """Those that are being written; bounded by the requests under way."""
        self._callers = callers
        self._store = BlobStore(directory)
        self._readers = Readers()
        self._reads = asyncio.Semaphore(READS_AT_ONCE)

    def routes(self) -> list[web.RouteDef]:
        """For the data port only."""
        return [
            web.get("/blobs/{digest}/manifest", self.manifest),
            web.get("/blobs/{digest}/held", self.held),
            web.get("/blobs/{digest}/chunks/{index}", self.chunk),
        ]

    async def manifest(self, request: web.Request) -> web.Response:
        """The encoded manifest."""
        digest = await self._allowed(request)
        async with self._reads:
            data = await asyncio.to_thread(self._store.read_manifest, digest)
        return web.Response(body=data, content_type=_BYTES)

    async def held(self, request: web.Request) -> web.Response:
        """Which chunks are here, and who is reading."""
        digest = await self._allowed(request)
        async with self._reads:
            chunks = await asyncio.to_thread(self._store.read_map, digest)
        crowd = self._readers.crowd(digest, request[CALLER], monotonic_s())
        body = encode_holding(Holding(chunks, *crowd))
        return web.Response(body=body, content_type=_BYTES)

    async def chunk(self, request: web.Request) -> web.Response:
        """One chunk, checked against the manifest when it was read."""
        digest = await self._allowed(request)
        index = request.match_info["index"]
        if not (index.isascii() and index.isdigit() and len(index) <= 6):  # noqa: PLR2004 - 65,536 chunks
            raise UsageError("a chunk has a number")
        async with self._reads:
            try:
                data = await asyncio.to_thread(self._store.read_chunk, digest, int(index))
            except Corruption as error:  # the store heals it; the asker goes to another site
                raise NotFound(f"chunk {index} of blob {short(digest)} is not here") from error
        if self._line is not None:
            await self._line.turn(request[CALLER], len(data))
        return web.Response(body=data, content_type=_BYTES)

    async def _allowed(self, request: web.Request) -> Digest:
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
        if not is_within(identity.claims.jurisdiction, label, self._state.view.groups):
            raise Refused(
                f"blob {short(digest)} must not go to {identity.claims.name}",
                why=f"it may be held in {', '.join(label)}, the site is in "
                f"{identity.claims.jurisdiction}",
            )
        await self._entered(digest, identity.site, label)
        self._readers.note(digest, identity.site, monotonic_s())
        return digest

    async def _entered(self, digest: Digest, site: SiteId, label: tuple[str, ...]) -> None:
        """There is an entry that the member reads this blob."""
        if self._readers.is_one(digest, site, monotonic_s()):
            return
        try:
            manifest = await asyncio.to_thread(self._store.manifest, digest)
        except Corruption as error:  # as in ``chunk``
            raise NotFound(f"blob {short(digest)} is not here") from error
        key = (digest, site)
        if (entry := self._entries.get(key)) is None:
            writing = self._audit.blob(digest, site, label, manifest.bytes)
            entry = self._entries[key] = asyncio.create_task(writing)
            entry.add_done_callback(partial(self._written, key))
        await asyncio.shield(entry)

    def _written(self, key: tuple[Digest, SiteId], entry: "asyncio.Task[None]") -> None:
        del self._entries[key]
        if not entry.cancelled():
            entry.exception()  # who waited may be gone; the loop need not complain
