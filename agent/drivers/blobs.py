"""Content-addressed files on disk: a name is a hash, so nothing can be overwritten with something else.

Layout, below one directory (names are digests in hex, never anything from outside)::

    manifests/<digest>   the encoded manifest; there before any byte of data
    data/<digest>        the complete blob; its presence *is* completeness
    partial/<digest>     what a fetch has so far; chunks in place, the rest holes
    incoming/<random>    what is being put here; emptied by ``sweep``

Rules: a chunk is hashed before it is written; data moves to ``data/`` by rename after fsync, followed
by an fsync of the directory; a fetch that was killed re-hashes its partial file and goes on; a chunk
that turns out to be damaged moves the blob back to ``partial/``, so that the next fetch heals it by
asking for the damaged chunks only. The disk is never filled beyond ``reserve_bytes`` of free space.

Reading (``read_manifest``, ``read_chunk``, ``is_held``, ``path``) is synchronous and works from any
process of the site; everything that writes is for the one control process.
"""

import asyncio
import contextlib
import errno
import hashlib
import os
import secrets
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from agent.distribution.manifest import Manifest, digest_of, encode, parse
from agent.drivers.blob_fetch import BlobFetch, ChunkSource
from agent.drivers.disk import fault_of, synced
from agent.foundation.errors import Busy, Corruption, NotFound, Refused, StoreFault
from agent.foundation.ids import ID_BYTES, Digest, short
from agent.foundation.randomness import Rng
from agent.wire.limits import BLOB_BYTES_MAX, CHUNK_BYTES, MESH_BODY_BYTES_MAX

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
        self, directory: Path, *, reserve_bytes: int = RESERVE_BYTES, rng: Rng | None = None
    ) -> None:
        """Use ``directory``, which need not exist; nothing is touched before the first write.

        Args:
            directory: only blobs are kept below it.
            reserve_bytes: free space of the disk that blobs never use.
            rng: gives this site its own order of fetching; seeded by the system by default.
        """
        self._manifests = directory / "manifests"
        self._data = directory / "data"
        self._partial = directory / "partial"
        self._incoming = directory / "incoming"
        self._reserve_bytes = reserve_bytes
        self._rng = rng or Rng(secrets.randbits(64))
        self._parsed: dict[Digest, Manifest] = {}
        self._fetches: dict[Digest, BlobFetch] = {}

    # --- reading (any process, synchronous) ------------------------------------------------------
    def is_held(self, digest: Digest) -> bool:
        """Whether the blob is here completely."""
        return (self._data / _name(digest)).is_file()

    def path(self, digest: Digest) -> Path:
        """The file with the blob's bytes; read it, never write it.

        Raises:
            NotFound: the blob is not held completely.
        """
        path = self._data / _name(digest)
        if not path.is_file():
            raise _absent(digest)
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
        path = self._manifests / _name(digest)
        try:
            with path.open("rb") as stream:
                encoded = stream.read(MESH_BODY_BYTES_MAX + 1)
        except FileNotFoundError:
            raise _absent(digest) from None
        except OSError as error:
            raise fault_of(error, f"manifest {short(digest)} cannot be read") from error
        if digest_of(encoded) != digest:
            path.unlink(missing_ok=True)
            self.demote(digest)
            raise Corruption(f"the manifest of blob {short(digest)} was damaged", why="disk error")
        return encoded

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
        for folder in (self._data, self._partial):
            try:
                with (folder / _name(digest)).open("rb", buffering=0) as stream:
                    data = os.pread(stream.fileno(), manifest.length(index), manifest.offset(index))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise fault_of(error, f"blob {short(digest)} cannot be read") from error
            if manifest.is_chunk(index, data):
                return data
            if folder is self._data:
                self.demote(digest)
                raise Corruption(
                    f"chunk {index} of blob {short(digest)} was damaged", why="disk error"
                )
        raise NotFound(f"chunk {index} of blob {short(digest)} is not here yet")

    def list(self) -> "list[Digest]":
        """All blobs that are held completely, in no order."""
        with contextlib.suppress(FileNotFoundError):
            names = sorted(os.listdir(self._data))  # noqa: PTH208 - names only
            return [Digest(bytes.fromhex(name)) for name in names if len(name) == 2 * ID_BYTES]
        return []

    def demote(self, digest: Digest) -> None:
        """Stop holding a blob that is damaged: its bytes become a partial file for the next fetch."""
        self._parsed.pop(digest, None)
        self._partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            (self._data / _name(digest)).rename(self._partial / _name(digest))
            synced(self._data)

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
    async def put_file(self, path: Path) -> Digest:
        """Copy a regular file (no symbolic link) into the store; durable when this returns.

        Raises:
            NotFound, Refused: there is no such file, or it is no regular file, or too large.
            StoreFault: the disk is full or broken; nothing is left behind.
        """
        return await asyncio.to_thread(self._put, lambda: _file_chunks(path))

    async def put_bytes(self, data: bytes) -> Digest:
        """Keep ``data``; errors as ``put_file``."""
        view = memoryview(data)

        def chunks() -> Iterator[bytes]:
            for start in range(0, len(view), CHUNK_BYTES):
                yield bytes(view[start : start + CHUNK_BYTES])

        return await asyncio.to_thread(self._put, chunks)

    async def put_stream(
        self, stream: AsyncIterator[bytes], *, bytes_max: int = BLOB_BYTES_MAX
    ) -> Digest:
        """Keep what ``stream`` yields (pieces of any size); errors as ``put_file``.

        At most one chunk and one piece are in memory.
        """
        writer = await asyncio.to_thread(_Incoming, self, bytes_max)
        with writer:
            held = bytearray()
            async for piece in stream:
                held += piece
                while len(held) >= CHUNK_BYTES:
                    await asyncio.to_thread(writer.add, bytes(held[:CHUNK_BYTES]))
                    del held[:CHUNK_BYTES]
            if held:
                await asyncio.to_thread(writer.add, bytes(held))
            return await asyncio.to_thread(writer.publish)

    def _put(self, chunks: Callable[[], Iterator[bytes]]) -> Digest:
        with _Incoming(self, BLOB_BYTES_MAX) as writer:
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
        if self.is_held(digest):
            return self.path(digest)
        fetch = self._fetches.get(digest)
        if fetch is None:
            if len(self._fetches) >= FETCHES_MAX:
                raise Busy("too many blobs are being fetched", why=f"the bound is {FETCHES_MAX}")
            fetch = BlobFetch(_Sink(self, digest), digest, bytes_max, self._rng)
            self._fetches[digest] = fetch
            fetch.start(partial(self._forget, digest, fetch))
        fetch.add(sources)
        await fetch.wait()
        return self.path(digest)

    def _forget(self, digest: Digest, fetch: BlobFetch) -> None:
        if self._fetches.get(digest) is fetch:
            del self._fetches[digest]

    async def remove(self, digest: Digest) -> None:
        """Forget the blob, whole or partial; nothing happens if it is not here.

        Raises:
            Busy: it is being fetched.
            StoreFault: the disk refuses.
        """
        if digest in self._fetches:
            raise Busy(f"blob {short(digest)} is being fetched")
        self._parsed.pop(digest, None)

        def unlink() -> None:
            # Data first: a manifest without data is harmless, data without a manifest is not.
            for folder in (self._data, self._partial, self._manifests):
                try:
                    (folder / _name(digest)).unlink()
                    synced(folder)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise fault_of(error, f"blob {short(digest)} cannot be removed") from error

        await asyncio.to_thread(unlink)

    async def sweep(self) -> int:
        """Remove what interrupted puts left behind; how many files. Once, before the first put."""

        def empty() -> int:
            count = 0
            with contextlib.suppress(FileNotFoundError):
                for path in self._incoming.iterdir():
                    path.unlink(missing_ok=True)
                    count += 1
            return count

        return await asyncio.to_thread(empty)

    # --- shared by putting and fetching (in a thread) ---------------------------------------------
    def _require_space(self, needed: int) -> None:
        """Refuse to go below the reserve; ``StoreFault`` says how much is missing."""
        free = _free_bytes(self._data)
        if free - needed < self._reserve_bytes:
            raise StoreFault(
                "the disk is full",
                why=f"{needed} bytes are needed, {free} are free, {self._reserve_bytes} stay in "
                "reserve",
                mend="free space on the disk of state_dir",
            )

    def _make_folders(self) -> None:
        for folder in (self._manifests, self._data, self._partial, self._incoming):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                synced(folder.parent)

    def _keep_manifest(self, digest: Digest, encoded: bytes) -> None:
        """Write the manifest durably, before any data."""
        path = self._manifests / _name(digest)
        if path.is_file():
            return
        temporary = self._incoming / secrets.token_hex(16)
        try:
            with temporary.open("xb") as stream:
                stream.write(encoded)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        synced(self._manifests)

    def _promote(self, file: Path, digest: Digest) -> None:
        """A flushed file becomes the blob's data, durably."""
        file.rename(self._data / _name(digest))
        synced(self._data)


class _Incoming:
    """One blob being put: a temporary file that becomes the blob or disappears."""

    def __init__(self, store: BlobStore, bytes_max: int) -> None:
        self._store = store
        self._bytes_max = min(bytes_max, BLOB_BYTES_MAX)
        self._bytes = 0
        self._hashes: list[bytes] = []
        try:
            store._make_folders()  # noqa: SLF001 - one module
            self._path = store._incoming / secrets.token_hex(16)  # noqa: SLF001
            self._file: BinaryIO = self._path.open("xb", buffering=0)
        except OSError as error:
            raise fault_of(error, "a blob cannot be stored") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def add(self, chunk: bytes) -> None:
        """Append one chunk (``CHUNK_BYTES`` long, the last one shorter)."""
        self._bytes += len(chunk)
        if self._bytes > self._bytes_max:
            raise Refused("the blob is too large", why=f"the bound is {self._bytes_max} bytes")
        self._store._require_space(len(chunk))  # noqa: SLF001
        self._hashes.append(hashlib.sha256(chunk).digest())
        try:
            _write_all(self._file, chunk)
        except OSError as error:
            raise fault_of(error, "a blob cannot be stored") from error

    def publish(self) -> Digest:
        """Flush and rename; the blob's name."""
        encoded = encode(Manifest(self._bytes, CHUNK_BYTES, tuple(self._hashes)))
        digest = digest_of(encoded)
        if not self._store.is_held(digest):
            try:
                os.fsync(self._file.fileno())
                self._store._keep_manifest(digest, encoded)  # noqa: SLF001
                self._store._promote(self._path, digest)  # noqa: SLF001
            except OSError as error:
                raise fault_of(error, "a blob cannot be stored") from error
        return digest


class _Sink:
    """The partial file of one fetch (``agent.drivers.blob_fetch.ChunkSink``); called in threads."""

    def __init__(self, store: BlobStore, digest: Digest) -> None:
        self._store = store
        self._digest = digest
        self._path = store._partial / _name(digest)  # noqa: SLF001 - one module
        self._file: BinaryIO | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        """A thread may still be writing when the fetch is given up and its file closed."""

    def known_manifest(self) -> bytes | None:
        """The manifest, if it is here."""
        try:
            return self._store.read_manifest(self._digest)
        except (NotFound, Corruption):
            return None

    def open(self, encoded: bytes, manifest: Manifest) -> set[int]:
        """Keep the manifest, open the partial file, and say which chunks it has."""
        try:
            self._store._make_folders()  # noqa: SLF001
            self._store._keep_manifest(self._digest, encoded)  # noqa: SLF001
            with self._lock:
                if self._is_closed:  # the fetch was given up before it began
                    return set()
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._file = os.fdopen(descriptor, "r+b", 0)
                self._file.truncate(manifest.bytes)
                held = set(_sound_chunks(self._file, manifest))
        except OSError as error:
            raise fault_of(error, f"blob {short(self._digest)} cannot be fetched") from error
        lacking = sum(manifest.length(i) for i in range(len(manifest.chunks)) if i not in held)
        self._store._require_space(lacking)  # noqa: SLF001
        return held

    def write(self, manifest: Manifest, index: int, data: bytes) -> bool:
        """Store the chunk if it is the right one; False: it is not, and nothing was written."""
        if not manifest.is_chunk(index, data):
            return False
        self._store._require_space(len(data))  # noqa: SLF001
        with self._lock:
            if self._file is None:  # the fetch was given up meanwhile
                return False
            try:
                self._file.seek(manifest.offset(index))
                _write_all(self._file, data)
            except OSError as error:
                raise fault_of(error, f"blob {short(self._digest)} cannot be fetched") from error
        return True

    def publish(self) -> None:
        """All chunks are there: flush, rename, flush the directory."""
        with self._lock:
            if self._file is not None:
                self._flush_and_promote(self._file)

    def _flush_and_promote(self, file: BinaryIO) -> None:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            # The kernel may have dropped pages that it could not write: start from nothing.
            self._path.unlink(missing_ok=True)
            raise fault_of(error, f"blob {short(self._digest)} cannot be flushed") from error
        try:
            self._store._promote(self._path, self._digest)  # noqa: SLF001
        except OSError as error:
            raise fault_of(error, f"blob {short(self._digest)} cannot be stored") from error

    def close(self) -> None:
        """Let go of the file, when nobody writes it."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
                self._file = None


def _name(digest: Digest) -> str:
    if len(digest) != ID_BYTES:
        raise NotFound("that is no digest", why=f"a digest has {ID_BYTES} bytes")
    return digest.hex()


def _absent(digest: Digest) -> NotFound:
    return NotFound(f"blob {short(digest)} is not here")


def _free_bytes(path: Path) -> int:
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def _write_all(file: BinaryIO, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def _file_chunks(path: Path) -> Iterator[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path.name}") from None
    except OSError as error:
        raise Refused(f"file {path.name} cannot be read", why=error.strerror or "") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused(f"{path.name} is not a regular file")
    with os.fdopen(descriptor, "rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk


def _sound_chunks(file: BinaryIO, manifest: Manifest) -> Iterator[int]:
    """Chunks of a partial file that match the manifest; holes are skipped without reading them."""
    descriptor = file.fileno()
    data_from = 0
    for index in range(len(manifest.chunks)):
        start, length = manifest.offset(index), manifest.length(index)
        if data_from < start:
            try:
                data_from = os.lseek(descriptor, start, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # no data after `start`
                    raise
                return
        if data_from >= start + length:
            continue
        if manifest.is_chunk(index, os.pread(descriptor, length, start)):
            yield index
