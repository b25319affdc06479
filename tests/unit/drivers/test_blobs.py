import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.distribution.holding import Holding
from agent.distribution.manifest import digest_of, parse
from agent.drivers.blob_files import BlobFiles
from agent.drivers.blobs import BlobStore
from agent.foundation.errors import Busy, Corruption, NotFound, Refused, StoreFault, Unreachable
from agent.foundation.ids import Digest
from agent.wire.limits import CHUNK_BYTES

DATA = b"".join(
    hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(20_000)
)  # 640 kB


def put_file(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, len(DATA)])
async def test_what_is_put_is_read_back_by_any_way(tmp_path: Path, size: int) -> None:
    store = BlobStore(tmp_path / "blobs")
    data = DATA[:size]

    async def stream() -> AsyncIterator[bytes]:
        for at in range(0, size, 100_001):
            yield data[at : at + 100_001]

    digest = await store.put_bytes(data)
    assert await store.put_file(put_file(tmp_path / "f", data)) == digest
    assert await store.put_stream(stream()) == digest
    assert store.is_held(digest)
    assert store.path(digest).read_bytes() == data
    assert store.size(digest) == size
    assert store.list() == [digest]
    manifest = parse(digest, store.read_manifest(digest))
    assert b"".join(store.read_chunk(digest, n) for n in range(len(manifest.chunks))) == data
    assert await store.sha256(digest) == hashlib.sha256(data).digest()
    assert await store.is_sound(digest)
    assert files(tmp_path / "blobs") == [f"data/{digest.hex()}", f"manifests/{digest.hex()}"]


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    digest = Digest(bytes(32))
    assert not store.is_held(digest)
    assert store.list() == []
    for read in (store.path, store.size, store.read_manifest):
        with pytest.raises(NotFound):
            read(digest)
    with pytest.raises(NotFound):
        store.read_chunk(digest, 0)
    with pytest.raises(NotFound, match="digest"):
        store.is_held(Digest(b"../../etc/passwd"))
    await store.remove(digest)
    assert not (tmp_path / "blobs").exists()


async def test_a_chunk_beyond_the_blob_is_not_found(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(b"small")
    for index in (-1, 1, 10**9):
        with pytest.raises(NotFound):
            store.read_chunk(digest, index)


async def test_a_damaged_chunk_is_never_handed_out(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(DATA)
    flip(store.path(digest), CHUNK_BYTES + 7)
    assert store.read_chunk(digest, 0) == DATA[:CHUNK_BYTES]
    with pytest.raises(Corruption, match="chunk 1"):
        store.read_chunk(digest, 1)
    assert not store.is_held(digest)
    assert store.read_chunk(digest, 0) == DATA[:CHUNK_BYTES]
    with pytest.raises(NotFound, match="not here yet"):
        store.read_chunk(digest, 1)


async def test_a_shortened_file_is_noticed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(DATA)
    os.truncate(store.path(digest), 100)
    assert not await store.is_sound(digest)
    assert not store.is_held(digest)


async def test_a_damaged_manifest_is_never_believed(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(DATA)
    flip(tmp_path / "manifests" / digest.hex(), 20)
    assert digest_of(b"") != digest
    with pytest.raises(Corruption):
        store.read_manifest(digest)
    assert not store.is_held(digest)
    assert await store.put_bytes(DATA) == digest
    assert await store.is_sound(digest)


async def test_removing_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(DATA)
    await store.remove(digest)
    await store.remove(digest)
    assert files(tmp_path) == []
    assert store.list() == []


async def test_a_put_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)

    async def stream() -> AsyncIterator[bytes]:
        yield DATA
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await store.put_stream(stream())
    with pytest.raises(Refused, match="too large"):
        await store.put_stream(_once(DATA), bytes_max=1000)
    assert files(tmp_path) == []


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_a_cancelled_put_leaves_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    started = asyncio.Event()

    async def stream() -> AsyncIterator[bytes]:
        yield DATA
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(store.put_stream(stream()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert files(tmp_path) == []


async def test_only_regular_files_are_put(tmp_path: Path) -> None:
    store = BlobStore(tmp_path / "blobs")
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFound):
        await store.put_file(tmp_path / "absent")
    for name in ("link", "pipe", "."):
        with pytest.raises(Refused):
            await store.put_file(tmp_path / name)
    assert store.list() == []


async def test_the_reserve_of_the_disk_is_kept(tmp_path: Path) -> None:
    whole = BlobStore(tmp_path)
    digest = await whole.put_bytes(b"before")
    store = BlobStore(tmp_path, reserve_bytes=1 << 60)
    with pytest.raises(StoreFault, match="disk is full"):
        await store.put_bytes(DATA)
    assert files(tmp_path) == files(tmp_path / ".")
    assert store.list() == [digest]
    assert not (tmp_path / "incoming").exists() or files(tmp_path / "incoming") == []


async def test_the_quota_holds_for_puts_and_ends_with_a_removal(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, reserve_bytes=0, bytes_max=len(DATA) + 100)
    told: list[None] = []
    store.room.on_full = lambda: told.append(None)
    digest = await store.put_bytes(DATA)
    with pytest.raises(StoreFault, match="quota"):
        await store.put_bytes(b"x" * 101)
    assert told
    assert files(tmp_path / "incoming") == []
    assert store.room.used_bytes == len(DATA)
    assert BlobStore(tmp_path, bytes_max=1).room.used_bytes == len(DATA)  # after a restart too
    await store.remove(digest)
    await store.put_bytes(b"x" * 101)
    assert store.room.used_bytes == 101


async def test_a_blob_too_large_for_the_quota_is_refused_before_it_travels(tmp_path: Path) -> None:
    origin = BlobStore(tmp_path / "origin")
    digest = await origin.put_bytes(DATA)
    here = BlobStore(tmp_path / "here", reserve_bytes=0, bytes_max=len(DATA) - 1)

    class Source:
        name = "origin"

        async def manifest(self, digest: Digest) -> bytes:
            return origin.read_manifest(digest)

        async def held(self, _: Digest) -> Holding:
            raise AssertionError("nothing but the manifest is to be asked for")

        async def chunk(self, _: Digest, __: int) -> bytes:
            raise AssertionError("nothing but the manifest is to be asked for")

    with pytest.raises(StoreFault, match="quota"):
        await here.fetch(digest, [Source()])
    assert here.room.used_bytes == 0
    assert here.list_partial() == {}


async def test_what_is_wanted_again_before_it_is_removed_stays(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(DATA)
    removing = asyncio.create_task(store.remove(digest))
    await asyncio.sleep(0)  # the removal is decided and handed to a thread
    for again in (store.fetch(digest, ()), store.put_bytes(DATA)):
        try:
            await again
        except (Busy, NotFound, Unreachable):
            assert not store.is_held(digest)  # it came too late, and says so
        else:
            assert store.is_held(digest)
    await removing
    assert await store.put_bytes(DATA) == digest
    await asyncio.gather(removing)
    assert store.is_held(digest)
    assert store.path(digest).read_bytes() == DATA


async def test_a_removal_that_was_taken_back_removes_nothing(tmp_path: Path) -> None:
    files_ = BlobFiles(tmp_path, 0)
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(DATA)
    files_.doom(digest)
    files_.spare(digest)
    files_.remove(digest)
    assert store.is_held(digest)
    files_.doom(digest)
    files_.remove(digest)
    assert not store.is_held(digest)


async def test_what_is_partial_is_listed_with_what_it_has(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    assert store.list_partial() == {}
    digest = await store.put_bytes(DATA)
    store.demote(digest)
    (held,) = store.list_partial().values()
    assert 0 < held <= len(DATA)
    assert not store.is_fetching(digest)
    await store.remove(digest)
    assert store.list_partial() == {}


async def test_a_manifest_without_a_blob_is_swept(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest, partial = await store.put_bytes(DATA), await store.put_bytes(b"partial")
    store.demote(partial)
    store.path(digest).unlink()
    assert await store.sweep() == 1
    assert files(tmp_path / "manifests") == [partial.hex()]


async def test_leftovers_of_a_killed_put_are_swept(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    digest = await store.put_bytes(DATA)
    put_file(tmp_path / "incoming" / "0123", b"half")
    assert await store.sweep() == 1
    assert await store.sweep() == 0
    assert store.list() == [digest]
