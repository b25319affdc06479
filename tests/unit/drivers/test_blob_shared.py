import os
from pathlib import Path
from random import Random

import pytest

from agent.distribution.holding import Holding
from agent.drivers import blob_shared
from agent.drivers.blob_shared import shared_chunks
from agent.drivers.blobs import BlobStore
from agent.foundation.ids import Digest
from agent.wire.limits import CHUNK_BYTES

CHUNKS = [Random(n).randbytes(CHUNK_BYTES) for n in range(6)]


async def put(store: BlobStore, *numbers: int, tail: bytes = b"") -> Digest:
    return await store.put_bytes(b"".join(CHUNKS[n] for n in numbers) + tail)


def shared(store: BlobStore, folder: Path, of: Digest, elsewhere: BlobStore) -> dict[int, bytes]:
    manifest = elsewhere.manifest(of)
    return dict(shared_chunks(folder / "data", store.read_manifest, manifest, set()))


async def test_chunks_of_other_blobs_are_found_wherever_they_stand(tmp_path: Path) -> None:
    here, origin = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "origin")
    await put(here, 0, 1, 2)
    await put(here, 3)
    new = await put(origin, 1, 5, 1, 3, tail=b"x")
    found = shared(here, tmp_path / "here", new, origin)
    assert found == {0: CHUNKS[1], 2: CHUNKS[1], 3: CHUNKS[3]}


async def test_a_fetch_asks_only_for_what_no_other_blob_here_has(tmp_path: Path) -> None:
    here, origin = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "origin")
    old = await put(here, 0, 1, 2, 3)
    new = await put(origin, 0, 1, 4, 3)
    asked: list[int] = []

    class Source:
        name = "origin"

        async def manifest(self, digest: Digest) -> bytes:
            return origin.read_manifest(digest)

        async def held(self, digest: Digest) -> Holding:
            return Holding(origin.read_map(digest))

        async def chunk(self, digest: Digest, index: int) -> bytes:
            asked.append(index)
            return origin.read_chunk(digest, index)

    path = await here.fetch(new, [Source()])
    assert path.read_bytes() == origin.path(new).read_bytes()
    assert asked == [2]
    assert await here.is_sound(old)


async def test_a_damaged_blob_lends_nothing_wrong(tmp_path: Path) -> None:
    here, origin = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "origin")
    old, new = await put(here, 0, 1), await put(origin, 0, 1, 2)
    with here.path(old).open("r+b") as stream:
        stream.write(b"damage")
    found = shared(here, tmp_path / "here", new, origin)
    manifest = origin.manifest(new)
    assert [manifest.is_chunk(index, data) for index, data in sorted(found.items())] == [
        False, True,
    ]  # fmt: skip
    (tmp_path / "here" / "manifests" / old.hex()).write_bytes(b"damage")
    assert shared(here, tmp_path / "here", new, origin) == {}


async def test_no_more_is_looked_at_than_the_bounds_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, origin = BlobStore(tmp_path / "here"), BlobStore(tmp_path / "origin")
    older, newer = await put(here, 0), await put(here, 1)
    os.utime(here.path(older), (1, 1))
    new = await put(origin, 0, 1)
    monkeypatch.setattr(blob_shared, "BLOBS_LOOKED_AT_MAX", 1)
    assert list(shared(here, tmp_path / "here", new, origin)) == [1]
    monkeypatch.setattr(blob_shared, "BLOBS_LOOKED_AT_MAX", 9)
    monkeypatch.setattr(blob_shared, "MANIFEST_BYTES_READ_MAX", 1)
    assert list(shared(here, tmp_path / "here", new, origin)) == [1]
    assert here.is_held(newer)
