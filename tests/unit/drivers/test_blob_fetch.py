import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest

from agent.distribution.fetch import SHARED_CHUNKS_MIN
from agent.distribution.holding import Holding
from agent.distribution.manifest import build, encode
from agent.drivers import blob_fetch, blob_room
from agent.drivers.blobs import BlobStore, ChunkSource
from agent.foundation.errors import NotFound, Refused, StoreFault, Unreachable
from agent.foundation.ids import Digest
from agent.wire.limits import CHUNK_BYTES

CHUNKS = 12
DATA = b"".join(hashlib.sha256(bytes([n])).digest() * (CHUNK_BYTES // 32) for n in range(CHUNKS))[
    :-1000
]


class FromStore:
    """A site that hands out what its store has."""

    def __init__(self, store: BlobStore, name: str) -> None:
        self.store, self.name, self.sent = store, name, 0
        self.gate: asyncio.Event | None = None
        self.is_held_up = asyncio.Event()
        """Three chunks were sent and stored: four more requests, all there may be, wait at the gate."""
        self.waiting = 0

    async def manifest(self, digest: Digest) -> bytes:
        return self.store.read_manifest(digest)

    async def held(self, digest: Digest) -> Holding:
        return Holding(self.store.read_map(digest))

    async def chunk(self, digest: Digest, index: int) -> bytes:
        if self.gate is not None and self.sent >= 3:
            self.waiting += 1
            if self.waiting == 4:
                self.is_held_up.set()
            await self.gate.wait()
        self.sent += 1
        return await asyncio.to_thread(self.store.read_chunk, digest, index)


class Liar(FromStore):
    async def chunk(self, digest: Digest, index: int) -> bytes:
        return bytes(len(await super().chunk(digest, index)))


class Forger(FromStore):
    async def manifest(self, _digest: Digest) -> bytes:
        return encode(build([b"something else"]))


class Dead(FromStore):
    async def manifest(self, _digest: Digest) -> bytes:
        raise Unreachable("no route")

    async def held(self, _digest: Digest) -> Holding:
        raise Unreachable("no route")

    async def chunk(self, _digest: Digest, _index: int) -> bytes:
        raise Unreachable("no route")


class Broken(FromStore):
    async def chunk(self, _digest: Digest, _index: int) -> bytes:
        raise TypeError("a defect")


@pytest.fixture
async def origin(tmp_path: Path) -> tuple[FromStore, Digest]:
    store = BlobStore(tmp_path / "origin")
    return FromStore(store, "origin"), await store.put_bytes(DATA)


def sink(tmp_path: Path, name: str = "here", **options: int) -> BlobStore:
    return BlobStore(tmp_path / name, rng=Random(5), **options)


async def test_a_blob_is_fetched_whole(tmp_path: Path, origin: tuple[FromStore, Digest]) -> None:
    source, digest = origin
    store = sink(tmp_path)
    path = await store.fetch(digest, [source])
    assert path.read_bytes() == DATA
    assert source.sent == CHUNKS
    assert await store.is_sound(digest)
    await store.fetch(digest, [])
    assert source.sent == CHUNKS


async def test_an_empty_blob_is_fetched_too(tmp_path: Path) -> None:
    there = BlobStore(tmp_path / "there")
    digest = await there.put_bytes(b"")
    store = sink(tmp_path)
    assert (await store.fetch(digest, [FromStore(there, "there")])).read_bytes() == b""


async def test_bad_sources_do_no_harm_beside_a_good_one(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    source, digest = origin
    store = sink(tmp_path)
    others = [kind(source.store, kind.__name__) for kind in (Forger, Liar, Dead)]
    path = await store.fetch(digest, [*others, source])
    assert path.read_bytes() == DATA
    assert source.sent >= CHUNKS - others[0].sent - others[1].sent
    assert others[2].sent == 0


@pytest.mark.parametrize("kind", [Liar, Forger, Dead])
async def test_only_bad_sources_fail_and_name_the_reason(
    tmp_path: Path,
    origin: tuple[FromStore, Digest],
    kind: type[FromStore],
) -> None:
    source, digest = origin
    store = sink(tmp_path)
    bad = kind(source.store, "bad one")
    with pytest.raises(Unreachable, match="bad one"):
        await store.fetch(digest, [bad])
    assert not store.is_held(digest)
    with pytest.raises(Unreachable, match="no source is known"):
        await store.fetch(Digest(bytes(32)), [])


async def test_a_defect_of_a_source_is_raised_not_hidden(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    source, digest = origin
    with pytest.raises(TypeError, match="a defect"):
        await sink(tmp_path).fetch(digest, [Broken(source.store, "broken")])


async def test_a_fetch_that_was_broken_off_goes_on_where_it_was(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    source, digest = origin
    source.gate = asyncio.Event()
    task = asyncio.create_task(sink(tmp_path).fetch(digest, [source]))
    await source.is_held_up.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    kept = len(_chunks_on_disk(tmp_path, digest))
    assert kept == 3
    source.gate, source.sent = None, 0
    store = sink(tmp_path)  # another start of the process
    path = await store.fetch(digest, [source])
    assert path.read_bytes() == DATA
    assert source.sent == CHUNKS - kept


def _chunks_on_disk(tmp_path: Path, digest: Digest) -> list[int]:
    store, found = BlobStore(tmp_path / "here"), []
    for index in range(CHUNKS):
        try:
            store.read_chunk(digest, index)
        except NotFound:
            continue
        found.append(index)
    return found


async def test_a_damaged_blob_heals_by_its_damaged_chunks_only(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    source, digest = origin
    store = sink(tmp_path)
    path = await store.fetch(digest, [source])
    with path.open("r+b") as stream:
        stream.seek(5 * CHUNK_BYTES)
        stream.write(b"damage")
    assert not await store.is_sound(digest)
    source.sent = 0
    assert (await store.fetch(digest, [source])).read_bytes() == DATA
    assert source.sent == 1


async def test_two_callers_share_one_fetch(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    source, digest = origin
    store = sink(tmp_path)
    source.gate = asyncio.Event()
    first = asyncio.create_task(store.fetch(digest, [source]))
    await source.is_held_up.wait()
    second = asyncio.create_task(store.fetch(digest, [FromStore(source.store, "second")]))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).read_bytes() == DATA
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_sites_that_fetch_at_once_serve_each_other(tmp_path: Path) -> None:
    """Five sites, one origin (what that saves at scale: simulation/test_fetch_world)."""
    there = BlobStore(tmp_path / "origin")
    chunks = 2 * SHARED_CHUNKS_MIN
    digest = await there.put_bytes(b"".join(bytes([n]) * CHUNK_BYTES for n in range(chunks)))

    class Origin(FromStore):
        place = 0

        async def held(self, digest: Digest) -> Holding:
            return Holding(self.store.read_map(digest), 5, self.place)

    stores = [BlobStore(tmp_path / f"s{n}", rng=Random(n)) for n in range(5)]
    peers: Sequence[FromStore] = [FromStore(store, f"s{n}") for n, store in enumerate(stores)]
    origins = [Origin(there, "origin") for _ in stores]
    for place, origin in enumerate(origins):
        origin.place = place
    await asyncio.gather(
        *[
            store.fetch(digest, [start, *[peer for peer in peers if peer.store is not store]])
            for store, start in zip(stores, origins, strict=True)
        ]
    )
    assert all(store.is_held(digest) for store in stores)
    assert sum(origin.sent for origin in origins) <= 2 * chunks
    assert sum(peer.sent for peer in peers) >= 3 * chunks


async def test_what_has_come_of_a_blob_can_be_told_and_given_and_its_map_goes_with_it(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    start, digest = origin
    start.gate = asyncio.Event()
    store = sink(tmp_path)
    with pytest.raises(NotFound):
        store.read_map(digest)
    fetching = asyncio.create_task(store.fetch(digest, [start]))
    await start.is_held_up.wait()
    told = Holding(store.read_map(digest)).mask
    assert told.bit_count() == 3
    for index in range(CHUNKS):
        if told >> index & 1:
            assert store.read_chunk(digest, index) == DATA[index * CHUNK_BYTES :][:CHUNK_BYTES]
    start.gate.set()
    await fetching
    assert Holding(store.read_map(digest)).mask == (1 << CHUNKS) - 1
    await store.remove(digest)
    assert [path for path in (tmp_path / "here").rglob("*") if path.is_file()] == []


async def test_a_map_of_before_a_crash_is_made_anew(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    start, digest = origin
    start.gate = asyncio.Event()
    store = sink(tmp_path)
    fetching = asyncio.create_task(store.fetch(digest, [start]))
    await start.is_held_up.wait()
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching
    (file,) = (tmp_path / "here" / "partial").glob("*.map")
    file.write_bytes(b"\xff" * 100)
    start.gate.set()
    await sink(tmp_path).fetch(digest, [start])
    assert start.sent == CHUNKS, "nothing was asked twice, nothing that lacks was believed"


async def test_a_blob_larger_than_allowed_is_refused_before_any_data(
    tmp_path: Path, origin: tuple[FromStore, Digest]
) -> None:
    source, digest = origin
    with pytest.raises(Refused, match="at most 1000"):
        await sink(tmp_path).fetch(digest, [source], bytes_max=1000)
    assert source.sent == 0


async def test_a_full_disk_keeps_what_was_fetched(
    tmp_path: Path, origin: tuple[FromStore, Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, digest = origin
    free = 5 * CHUNK_BYTES + 100
    store = sink(tmp_path, reserve_bytes=0)
    calls = 0

    def shrinking(_: Path) -> int:
        nonlocal calls
        calls += 1
        return len(DATA) if calls == 1 else free - (calls - 1) * CHUNK_BYTES

    monkeypatch.setattr(blob_room, "_free_bytes", shrinking)
    with pytest.raises(StoreFault, match="disk is full"):
        await store.fetch(digest, [source])
    monkeypatch.undo()
    kept = len(_chunks_on_disk(tmp_path, digest))
    assert kept >= 3
    source.sent = 0
    await store.fetch(digest, [source])
    assert source.sent == CHUNKS - kept


async def test_a_source_that_never_answers_is_left_behind(
    tmp_path: Path, origin: tuple[FromStore, Digest], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, digest = origin
    monkeypatch.setattr(blob_fetch, "MANIFEST_STAGGER_S", 0.01)

    class Silent(FromStore):
        async def manifest(self, _digest: Digest) -> bytes:
            await asyncio.Event().wait()
            return b""

        async def chunk(self, _digest: Digest, _index: int) -> bytes:
            await asyncio.Event().wait()
            return b""

    silent: ChunkSource = Silent(source.store, "silent")
    path = await asyncio.wait_for(sink(tmp_path).fetch(digest, [silent, source]), 5)
    assert path.read_bytes() == DATA
