"""The files of the blob store: where each stands, and the two ways in which one comes to be.

A blob being put is an ``Incoming`` file that becomes the blob or disappears; a blob being fetched is a
``PartialFile`` that stays where it is until it is whole. Both are synchronous and run in threads.
"""

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import stat
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from agent.distribution.manifest import Manifest, digest_of, encode
from agent.drivers.blob_room import BlobRoom
from agent.drivers.blob_shared import shared_chunks
from agent.drivers.disk import fault_of, synced
from agent.foundation.errors import Corruption, NotFound, Refused, StoreFault
from agent.foundation.ids import ID_BYTES, Digest, short
from agent.wire.limits import BLOB_BYTES_MAX, CHUNK_BYTES, MESH_BODY_BYTES_MAX

_log = logging.getLogger(__name__)


class BlobFiles:
    """The folders of one blob store and what is done to whole files."""

    def __init__(self, directory: Path, reserve_bytes: int, bytes_max: int = 0) -> None:
        """``reserve_bytes`` of the disk stay free; blobs take ``bytes_max`` together (0: any)."""
        self.manifests = directory / "manifests"
        self.data = directory / "data"
        self.partial = directory / "partial"
        self.incoming = directory / "incoming"
        self.room = BlobRoom(
            (self.data, self.partial), reserve_bytes=reserve_bytes, bytes_max=bytes_max
        )
        self._doomed: set[Digest] = set()
        self._removing = threading.Lock()

    def is_held(self, digest: Digest) -> bool:
        """Whether the blob is here completely."""
        return (self.data / name_of(digest)).is_file()

    def read_manifest(self, digest: Digest) -> bytes:
        """The encoded manifest; errors as ``BlobStore.read_manifest``."""
        path = self.manifests / name_of(digest)
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size  # read() makes room for all it may read
                encoded = stream.read(min(size, MESH_BODY_BYTES_MAX) + 1)
        except FileNotFoundError:
            raise absent(digest) from None
        except OSError as error:
            raise fault_of(error, f"manifest {short(digest)} cannot be read") from error
        if digest_of(encoded) != digest:
            path.unlink(missing_ok=True)
            self.demote(digest)
            raise Corruption(f"the manifest of blob {short(digest)} was damaged", why="disk error")
        return encoded

    def demote(self, digest: Digest) -> None:
        """A whole blob becomes a partial one."""
        self.partial.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileNotFoundError):
            (self.data / name_of(digest)).rename(self.partial / name_of(digest))
            synced(self.data)

    def make_folders(self) -> None:
        """Create what is missing, durably."""
        for folder in (self.manifests, self.data, self.partial, self.incoming):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                synced(folder.parent)
                synced(folder.parent.parent)

    def keep_manifest(self, digest: Digest, encoded: bytes) -> None:
        """Write the manifest durably, before any data."""
        path = self.manifests / name_of(digest)
        if path.is_file():
            return
        temporary = self.incoming / secrets.token_hex(16)
        try:
            with temporary.open("xb") as stream:
                stream.write(encoded)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.rename(path)
        finally:
            temporary.unlink(missing_ok=True)
        synced(self.manifests)

    def map_path(self, digest: Digest) -> Path:
        """Which chunks of a partial blob are there, a bit for each: a hint for whoever gives them away.

        It is not flushed, and may be of before a crash: a chunk is checked when it is read.
        """
        return self.partial / f"{name_of(digest)}.map"

    def promote(self, file: Path, digest: Digest) -> None:
        """A flushed file becomes the blob's data, durably."""
        self.room.move(file.name, name_of(digest))
        file.rename(self.data / name_of(digest))
        synced(self.data)
        self.map_path(digest).unlink(missing_ok=True)

    # --- removing --------------------------------------------------------------------------------
    def doom(self, digest: Digest) -> None:
        """The blob is about to be removed, unless somebody wants it before ``remove`` comes to it."""
        self._doomed.add(digest)

    def spare(self, digest: Digest) -> None:
        """It is wanted again: a removal that has not begun does nothing, one under way is awaited."""
        if digest in self._doomed:
            with self._removing:
                self._doomed.discard(digest)

    def remove(self, digest: Digest) -> None:
        """Unlink a doomed blob, whole or partial; ``StoreFault`` if the disk refuses."""
        with self._removing:
            if digest not in self._doomed:
                return
            # Data first: a manifest without data is harmless, data without a manifest is not.
            for path in (
                *(folder / name_of(digest) for folder in (self.data, self.partial)),
                self.map_path(digest),
                self.manifests / name_of(digest),
            ):
                try:
                    path.unlink()
                    synced(path.parent)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    raise fault_of(error, f"blob {short(digest)} cannot be removed") from error
            self._doomed.discard(digest)
            self.room.release(name_of(digest))


class Incoming:
    """One blob being put: a temporary file that becomes the blob or disappears."""

    def __init__(self, files: BlobFiles, bytes_max: int) -> None:
        self._files = files
        self._bytes_max = min(bytes_max, BLOB_BYTES_MAX)
        self._bytes = 0
        self._hashes: list[bytes] = []
        self._is_closed = False
        self._lock = threading.Lock()
        """A thread may still be writing when the put is given up and its file closed."""
        try:
            files.make_folders()
            self._path = files.incoming / secrets.token_hex(16)
            self._file: BinaryIO = self._path.open("xb", buffering=0)
        except OSError as error:
            raise fault_of(error, "a blob cannot be stored") from error

    def __enter__(self) -> Self:
        """The file is open."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what did not become a blob."""
        self.close()

    def close(self) -> None:
        """Remove what did not become a blob; waits for a write in another thread."""
        with self._lock:
            self._is_closed = True
            self._file.close()
            self._path.unlink(missing_ok=True)
            self._files.room.release(self._path.name)

    def add(self, chunk: bytes) -> None:
        """Append one chunk (``CHUNK_BYTES`` long, the last one shorter).

        Raises:
            Refused: the blob would be larger than allowed.
            StoreFault: the disk is full or broken.
        """
        self._bytes += len(chunk)
        if self._bytes > self._bytes_max:
            raise Refused("the blob is too large", why=f"the bound is {self._bytes_max} bytes")
        self._files.room.require_free(len(chunk))
        self._files.room.take(self._path.name, self._bytes)
        self._hashes.append(hashlib.sha256(chunk).digest())
        with self._lock:
            if self._is_closed:  # the put was given up meanwhile
                return
            try:
                _write_all(self._file, chunk)
            except OSError as error:
                raise fault_of(error, "a blob cannot be stored") from error

    def publish(self) -> Digest:
        """Flush and rename; the blob's name."""
        if self._is_closed:
            raise Refused("the blob was given up", why="its stream ended early")
        encoded = encode(Manifest(self._bytes, CHUNK_BYTES, tuple(self._hashes)))
        digest = digest_of(encoded)
        self._files.spare(digest)
        if not self._files.is_held(digest):
            try:
                os.fsync(self._file.fileno())
                self._files.keep_manifest(digest, encoded)
                self._files.promote(self._path, digest)
            except OSError as error:
                raise fault_of(error, "a blob cannot be stored") from error
        return digest


class PartialFile:
    """The partial file of one fetch (``agent.drivers.blob_fetch.ChunkSink``); called in threads."""

    def __init__(self, files: BlobFiles, digest: Digest) -> None:
        self._files = files
        self._digest = digest
        self._path = files.partial / name_of(digest)
        self._file: BinaryIO | None = None
        self._map: BinaryIO | None = None
        self._bits = bytearray()
        self._is_closed = False
        self._lock = threading.Lock()
        """A thread may still be writing when the fetch is given up and its file closed."""

    def known_manifest(self) -> bytes | None:
        """The manifest, if it is here."""
        try:
            return self._files.read_manifest(self._digest)
        except (NotFound, Corruption):
            return None

    def open(self, encoded: bytes, manifest: Manifest) -> set[int]:
        """Keep the manifest, open the partial file, and say which chunks it has."""
        try:
            self._files.make_folders()
            self._files.keep_manifest(self._digest, encoded)
            with self._lock:
                if self._is_closed:  # the fetch was given up before it began
                    return set()
                self._files.room.take(self._path.name, manifest.bytes)
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._file = os.fdopen(descriptor, "r+b", 0)
                self._file.truncate(manifest.bytes)
                held = set(_sound_chunks(self._file, manifest))
                self._map = self._files.map_path(self._digest).open("wb", 0)
                self._bits = bytearray(-(-len(manifest.chunks) // 8))
                for index in held:
                    self._bits[index // 8] |= 1 << index % 8
                _write_all(self._map, self._bits)
        except OSError as error:
            raise fault_of(error, f"blob {short(self._digest)} cannot be fetched") from error
        lacking = sum(manifest.length(i) for i in range(len(manifest.chunks)) if i not in held)
        try:
            self._files.room.require_free(lacking)
        except StoreFault:
            if not held:
                self._give_up()
            raise
        return held | self._copied(manifest, held)

    def _give_up(self) -> None:
        """Nothing has come and there is no room: the empty file shall not count."""
        self.close()
        self._path.unlink(missing_ok=True)
        self._files.map_path(self._digest).unlink(missing_ok=True)
        self._files.room.release(self._path.name)

    def _copied(self, manifest: Manifest, held: set[int]) -> set[int]:
        """Chunks that were in other blobs here, and are in this file now."""
        copied: set[int] = set()
        files = self._files
        for index, data in shared_chunks(files.data, files.read_manifest, manifest, held):
            if self.write(manifest, index, data):
                copied.add(index)
        if copied:
            _log.info(
                "blob %s: %d of its %d chunks are in other blobs here", short(self._digest),
                len(copied), len(manifest.chunks),
            )  # fmt: skip
        return copied

    def write(self, manifest: Manifest, index: int, data: bytes) -> bool:
        """Store the chunk if it is the right one; False: it is not, and nothing was written."""
        if not manifest.is_chunk(index, data):
            return False
        self._files.room.require_free(len(data))
        with self._lock:
            if self._file is None:  # the fetch was given up meanwhile
                return False
            try:
                self._file.seek(manifest.offset(index))
                _write_all(self._file, data)
                self._note(index)
            except OSError as error:
                raise fault_of(error, f"blob {short(self._digest)} cannot be fetched") from error
        return True

    def _note(self, index: int) -> None:
        """The chunk may be given away from now on."""
        assert self._map is not None
        self._bits[index // 8] |= 1 << index % 8
        self._map.seek(index // 8)
        self._map.write(self._bits[index // 8 : index // 8 + 1])

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
            self._files.promote(self._path, self._digest)
        except OSError as error:
            raise fault_of(error, f"blob {short(self._digest)} cannot be stored") from error

    def close(self) -> None:
        """Let go of the file, when nobody writes it."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()
                self._file = None
            if self._map is not None:
                self._map.close()
                self._map = None


def name_of(digest: Digest) -> str:
    """The file name of a blob; ``NotFound`` for anything that is no digest, so no path gets in."""
    if len(digest) != ID_BYTES:
        raise NotFound("that is no digest", why=f"a digest has {ID_BYTES} bytes")
    return digest.hex()


def absent(digest: Digest) -> NotFound:
    """The error for a blob that is not here."""
    return NotFound(f"blob {short(digest)} is not here")


def _write_all(file: BinaryIO, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


def file_chunks(path: Path, wanted: range | None = None) -> Iterator[bytes]:
    """The chunks of a regular file, or those ``wanted``; ``NotFound`` or ``Refused`` if it cannot be read."""
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
        stream.seek(0 if wanted is None else wanted.start * CHUNK_BYTES)
        for _ in count() if wanted is None else wanted:
            if not (chunk := stream.read(CHUNK_BYTES)):
                return
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
