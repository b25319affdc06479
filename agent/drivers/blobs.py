"""Content-addressed files on disk: a name is a hash, so nothing can be overwritten with something else.

Layout, below one directory (names are digests in hex, never anything from outside)::

    manifests/<digest>   the encoded manifest; there before any byte of data
    data/<digest>        the complete blob; its presence *is* completeness
    partial/<digest>     what a fetch has so far; chunks in place, the rest holes
    incoming/<random>    what is being put here; emptied by ``sweep``

Rules: a chunk is hashed before it is written; data moves to ``data/`` by rename after fsync, followed
by an fsync of the directory; a fetch that was killed re-hashes its partial file and goes on; a chunk
that turns out to be damaged moves the blob back to ``partial/``, so that the next fetch heals it by
asking for the damaged chunks only. The disk is never filled beyond ``reserve_bytes`` of free space, and
all blobs together never take more than ``bytes_max``.

Reading (``read_manifest``, ``read_chunk``, ``is_held``, ``path``) is synchronous and works from any
process of the site; everything that writes is for the one control process.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from agent.distribution.manifest import Manifest, parse
from agent.drivers.blob_fetch import BlobFetch, ChunkSource
from agent.drivers.blob_files import (
    BlobFiles,
    Incoming,
    PartialFile,
    absent,
    file_chunks,
    name_of,
)
from agent.drivers.disk import fault_of, files_in
from agent.foundation.errors import Busy, Corruption, NotFound
from agent.foundation.ids import ID_BYTES, Digest, short
from agent.foundation.randomness import Rng
from agent.wire.limits import BLOB_BYTES_MAX, CHUNK_BYTES

RESERVE_BYTES: Final = 64 << 20
"""Free space left to the database and the logs when blobs fill the disk."""

FETCHES_MAX: Final = 64
"""Blobs fetched at a time; each may have 8 MiB under way."""

MANIFESTS_CACHED_MAX: Final = 16
"""Parsed manifests kept in memory; the largest has 65,536 chunks (about 6 MB)."""

__all__ = ["BlobStore", "ChunkSource"]


class BlobStore:
    """The blobs that a site holds, below one directory."""

    def __init__(
        self,
        directory: Path,
        *,
        reserve_bytes: int = RESERVE_BYTES,
        bytes_max: int = 0,
        rng: Rng | None = None,
    ) -> None:
        """Use ``directory``, which need not exist; nothing is touched before the first write.

        Args:
            directory: only blobs are kept below it.
            reserve_bytes: free space of the disk that blobs never use.
            bytes_max: what all blobs may take together; 0 = as much as the disk has.
            rng: gives this site its own order of fetching; seeded by the system by default.
        """
        self._files = BlobFiles(directory, reserve_bytes, bytes_max)
        self.room = self._files.room
        self.disk = directory.parent
        """Somewhere on the same disk that is there before the first blob."""
        self._rng = rng or Rng(secrets.randbits(64))
        self._parsed: dict[Digest, Manifest] = {}
        self._fetches: dict[Digest, BlobFetch] = {}

    # --- reading (any process, synchronous) ------------------------------------------------------
    def is_held(self, digest: Digest) -> bool:
        """Whether the blob is here completely."""
        return self._files.is_held(digest)

    def path(self, digest: Digest) -> Path:
        """The file with the blob's bytes; read it, never write it.

        Raises:
            NotFound: the blob is not held completely.
        """
        path = self._files.data / name_of(digest)
        if not path.is_file():
            raise absent(digest)
        return path

    def size(self, digest: Digest) -> int:
        """How many bytes the blob has; ``NotFound`` if it is not held completely."""
        return self.path(digest).stat().st_size

    def read_manifest(self, digest: Digest) -> bytes:
        """The encoded manifest, also of a blob that is still being fetched.

        Raises:
            NotFound: it is not here.
            Corruption: the file is damaged; it has been removed, so that it can be fetched again.
        """
        return self._files.read_manifest(digest)

    def manifest(self, digest: Digest) -> Manifest:
        """The parsed manifest; errors as ``read_manifest``, and ``Malformed``."""
        if (known := self._parsed.get(digest)) is None:
            known = parse(digest, self.read_manifest(digest))
            if len(self._parsed) >= MANIFESTS_CACHED_MAX:
                self._parsed.clear()
            self._parsed[digest] = known
        return known

    def read_chunk(self, digest: Digest, index: int) -> bytes:
        """Chunk ``index``, checked against the manifest; of a partial blob too, if it is there.

        Raises:
            NotFound: no such blob or chunk here (now).
            Corruption: the chunk is damaged; the blob is no longer held and can be healed by a fetch.
        """
        manifest = self.manifest(digest)
        if not 0 <= index < len(manifest.chunks):
            raise NotFound(f"blob {short(digest)} has no chunk {index}")
        for folder in (self._files.data, self._files.partial):
            try:
                with (folder / name_of(digest)).open("rb", buffering=0) as stream:
                    data = os.pread(stream.fileno(), manifest.length(index), manifest.offset(index))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise fault_of(error, f"blob {short(digest)} cannot be read") from error
            if manifest.is_chunk(index, data):
                return data
            if folder is self._files.data:
                self.demote(digest)
                raise Corruption(
                    f"chunk {index} of blob {short(digest)} was damaged", why="disk error"
                )
        raise NotFound(f"chunk {index} of blob {short(digest)} is not here yet")

    def read_map(self, digest: Digest) -> bytes:
        """Which chunks are here, as ``agent.distribution.holding`` has them; of a partial blob a hint.

        Raises:
            NotFound: nothing of the blob is here, or nobody is fetching it.
            Corruption: as ``read_manifest``.
        """
        count = len(self.manifest(digest).chunks)
        if self.is_held(digest):
            return ((1 << count) - 1).to_bytes(-(-count // 8), "little")
        try:
            return self._files.map_path(digest).read_bytes()[: -(-count // 8)]
        except FileNotFoundError:
            raise absent(digest) from None
        except OSError as error:
            raise fault_of(error, f"blob {short(digest)} cannot be read") from error

    def list(self) -> "list[Digest]":
        """All blobs that are held completely, in no order."""
        with contextlib.suppress(FileNotFoundError):
            names = sorted(os.listdir(self._files.data))  # noqa: PTH208 - names only
            return [Digest(bytes.fromhex(name)) for name in names if len(name) == 2 * ID_BYTES]
        return []

    def list_partial(self) -> "dict[Digest, int]":
        """Blobs that are not whole: how many bytes of each are on the disk."""
        found: dict[Digest, int] = {}
        for name, facts in files_in(self._files.partial):
            if len(name) == 2 * ID_BYTES:
                found[Digest(bytes.fromhex(name))] = min(facts.st_size, facts.st_blocks * 512)
        return found

    def is_fetching(self, digest: Digest) -> bool:
        """Whether the blob is on its way here."""
        return digest in self._fetches

    def demote(self, digest: Digest) -> None:
        """Stop holding a blob that is damaged: its bytes become a partial file for the next fetch."""
        self._parsed.pop(digest, None)
        self._files.demote(digest)

    # --- checking --------------------------------------------------------------------------------
    async def is_sound(self, digest: Digest) -> bool:
        """Read the whole blob and compare it with its manifest; a damaged one is demoted."""

        def check() -> bool:
            try:
                for index in range(len(self.manifest(digest).chunks)):
                    self.read_chunk(digest, index)
            except (Corruption, NotFound):
                return False
            return self.is_held(digest)

        return await asyncio.to_thread(check)

    async def sha256(self, digest: Digest) -> bytes:
        """The plain SHA-256 of the blob's bytes (the digest is that of its manifest)."""

        def compute() -> bytes:
            with self.path(digest).open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").digest()

        return await asyncio.to_thread(compute)

    # --- putting ---------------------------------------------------------------------------------
    async def put_file(self, path: Path, chunks: range | None = None) -> Digest:
        """Copy a regular file (no symbolic link) into the store; durable when this returns.

        ``chunks``: of the file, these alone.

        Raises:
            NotFound, Refused: there is no such file, or it is no regular file, or too large.
            StoreFault: the disk is full or broken; nothing is left behind.
        """
        return self._put_here(await asyncio.to_thread(self._put, lambda: file_chunks(path, chunks)))

    async def put_bytes(self, data: bytes) -> Digest:
        """Keep ``data``; errors as ``put_file``."""
        view = memoryview(data)

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(view), CHUNK_BYTES):
                yield bytes(view[start : start + CHUNK_BYTES])

        return self._put_here(await asyncio.to_thread(self._put, chunks))

    async def put_stream(
        self, stream: AsyncIterator[bytes], *, bytes_max: int = BLOB_BYTES_MAX
    ) -> Digest:
        """Keep what ``stream`` yields (pieces of any size); errors as ``put_file``.

        At most one chunk and one piece are in memory.
        """
        writer = await asyncio.to_thread(Incoming, self._files, bytes_max)
        try:
            held = bytearray()
            async for piece in stream:
                held += piece
                while len(held) >= CHUNK_BYTES:
                    await asyncio.to_thread(writer.add, bytes(held[:CHUNK_BYTES]))
                    del held[:CHUNK_BYTES]
            if held:
                await asyncio.to_thread(writer.add, bytes(held))
            return self._put_here(await asyncio.to_thread(writer.publish))
        finally:
            await asyncio.to_thread(writer.close)

    def _put_here(self, digest: Digest) -> Digest:
        """The same bytes may have been here, and their removal decided on meanwhile."""
        self._files.spare(digest)
        if not self.is_held(digest):
            raise Busy(f"blob {short(digest)} was just being removed", mend="put it again")
        return digest

    def _put(self, chunks: Callable[[], Iterator[bytes]]) -> Digest:
        with Incoming(self._files, BLOB_BYTES_MAX) as writer:
            for chunk in chunks():
                writer.add(chunk)
            return writer.publish()

    # --- fetching --------------------------------------------------------------------------------
    async def fetch(
        self,
        digest: Digest,
        sources: Sequence[ChunkSource],
        bytes_max: int = BLOB_BYTES_MAX,
    ) -> Path:
        """Bring the blob here from several sources at once; its file when it is complete and durable.

        A second call for a blob that is being fetched joins the first and adds its sources. When the
        last caller is cancelled the fetch ends; what it has stays for the next one.

        Args:
            digest: the blob's name.
            sources: who may have it, wholly or in part; names must differ.
            bytes_max: a larger blob is refused before any data travels.

        Raises:
            Unreachable: the sources do not have it or do not answer; says why for each.
            Refused: the blob is larger than ``bytes_max``.
            Busy: ``FETCHES_MAX`` blobs are under way.
            StoreFault: the disk is full or broken.
        """
        self._files.spare(digest)
        if self.is_held(digest):
            return self.path(digest)
        fetch = self._fetches.get(digest)
        if fetch is None:
            if len(self._fetches) >= FETCHES_MAX:
                raise Busy("too many blobs are being fetched", why=f"the bound is {FETCHES_MAX}")
            fetch = BlobFetch(PartialFile(self._files, digest), digest, bytes_max, self._rng)
            self._fetches[digest] = fetch
            fetch.start(partial(self._forget, digest, fetch))
        fetch.add(sources)
        await fetch.wait()
        return self.path(digest)

    def _forget(self, digest: Digest, fetch: BlobFetch) -> None:
        if self._fetches.get(digest) is fetch:
            del self._fetches[digest]

    async def remove(self, digest: Digest) -> None:
        """Forget the blob, whole or partial; nothing happens if it is not here or wanted again meanwhile.

        Raises:
            Busy: it is being fetched.
            StoreFault: the disk refuses.
        """
        if digest in self._fetches:
            raise Busy(f"blob {short(digest)} is being fetched")
        self._parsed.pop(digest, None)
        self._files.doom(digest)
        await asyncio.to_thread(self._files.remove, digest)

    async def sweep(self) -> int:
        """Remove what interrupted puts and removals left behind; how many files. Once, before the first put."""

        def empty() -> int:
            files, count = self._files, 0
            with contextlib.suppress(FileNotFoundError):
                for path in files.incoming.iterdir():
                    path.unlink(missing_ok=True)
                    count += 1
            with contextlib.suppress(FileNotFoundError):
                for path in files.manifests.iterdir():
                    if not (
                        (files.data / path.name).exists() or (files.partial / path.name).exists()
                    ):
                        path.unlink(missing_ok=True)
                        count += 1
            return count

        return await asyncio.to_thread(empty)
