"""What the operator sees of blobs (implements ``agent.api.blobs``)."""

import asyncio
import math
import shutil
from contextlib import suppress

from agent.api.bodies import Json
from agent.daemon.driver import Driver
from agent.daemon.outside import Outside
from agent.distribution.retention import Standing
from agent.drivers.blobs import BlobStore
from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError
from agent.foundation.ids import Digest
from agent.foundation.machine import NEVER
from agent.site.events import BlobsFull, CollectRequested


class BlobDesk:
    """Reads one site's blobs, and has room made for more."""

    def __init__(self, driver: Driver, outside: Outside, blobs: BlobStore) -> None:
        self._driver, self._outside, self._blobs = driver, outside, blobs
        loop = asyncio.get_running_loop()
        blobs.room.on_full = lambda: loop.call_soon_threadsafe(driver.feed, BlobsFull())

    async def blobs(self) -> Json:
        """See ``BlobOperations.blobs``."""
        site, now = self._driver.site, monotonic_s()
        names = site.keeping.names()
        sizes, parts, free_bytes = await asyncio.to_thread(self._on_disk)
        rows = []
        for digest in sorted(sizes.keys() | parts.keys()):
            named = names.get(digest, [])
            standing = max((one for _, one in named), default=Standing.UNNAMED)
            goes_at = site.keeping.goes_at(digest)
            state = "whole" if digest in sizes else "partial"
            rows.append(
                {
                    "digest": digest.hex(),
                    "bytes": sizes.get(digest, parts.get(digest, 0)),
                    "state": "fetching" if self._blobs.is_fetching(digest) else state,
                    "standing": standing.name.lower(),
                    "names": sorted({text for text, _ in named}),
                    "residency": list(site.labels.get(digest, ())),
                    "goes_in_s": None if goes_at == NEVER else math.ceil(max(0.0, goes_at - now)),
                }
            )
        room = self._blobs.room
        return {
            "blobs": rows, "used_bytes": room.used_bytes, "bytes_max": room.bytes_max,
            "free_bytes": free_bytes, "reserve_bytes": room.reserve_bytes,
        }  # fmt: skip

    async def collect(self) -> list[str]:
        """See ``BlobOperations.collect``."""
        token, answer = self._outside.expect()
        self._driver.feed(CollectRequested(token))
        return list(await answer)

    def _on_disk(self) -> tuple[dict[Digest, int], dict[Digest, int], int]:
        sizes: dict[Digest, int] = {}
        for digest in self._blobs.list():
            with suppress(AtollError, OSError):  # gone meanwhile
                sizes[digest] = self._blobs.size(digest)
        return sizes, self._blobs.list_partial(), shutil.disk_usage(self._blobs.disk).free
