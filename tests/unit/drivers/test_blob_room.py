from pathlib import Path

import pytest

from agent.drivers.blob_files import BlobFiles, PartialFile
from agent.drivers.blob_room import BlobRoom
from agent.drivers.blobs import BlobStore
from agent.foundation.errors import StoreFault


def room(folder: Path, bytes_max: int) -> BlobRoom:
    return BlobRoom((folder,), reserve_bytes=0, bytes_max=bytes_max)


def test_what_is_there_counts_and_what_grows_beyond_the_quota_is_refused(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(60))
    (tmp_path / "one.map").write_bytes(bytes(500))  # no blob
    told: list[None] = []
    here = room(tmp_path, 100)
    here.on_full = lambda: told.append(None)
    assert here.used_bytes == 60
    here.take("two", 30)
    here.take("two", 40)
    assert here.used_bytes == 100
    with pytest.raises(StoreFault, match=r"quota.*1 bytes more.*100 of 100"):
        here.take("two", 41)
    assert here.used_bytes == 100
    assert len(told) == 1
    here.take("two", 10)
    here.release("one")
    here.release("one")
    assert here.used_bytes == 10


def test_a_file_that_takes_the_place_of_another_counts_once(tmp_path: Path) -> None:
    here = room(tmp_path, 100)
    here.take("incoming", 40)
    here.take("blob", 40)
    here.move("incoming", "blob")
    here.move("unknown", "blob")
    assert here.used_bytes == 40


async def test_a_blob_that_the_disk_has_no_room_for_takes_nothing_of_the_quota(
    tmp_path: Path,
) -> None:
    origin = BlobStore(tmp_path / "origin")
    digest = await origin.put_bytes(b"model" * 180_000)
    files = BlobFiles(tmp_path / "here", 1 << 60, 1 << 30)
    part = PartialFile(files, digest)
    with pytest.raises(StoreFault, match="stay in reserve"):
        part.open(origin.read_manifest(digest), origin.manifest(digest))
    part.close()
    assert files.room.used_bytes == 0
    assert list(files.partial.iterdir()) == []
    # What has come before the disk was full stays for the next try, and counts.
    roomy = BlobFiles(tmp_path / "here", 0, 1 << 30)
    begun = PartialFile(roomy, digest)
    begun.open(origin.read_manifest(digest), origin.manifest(digest))
    assert begun.write(origin.manifest(digest), 0, origin.read_chunk(digest, 0))
    begun.close()
    files = BlobFiles(tmp_path / "here", 1 << 60, 1 << 30)
    again = PartialFile(files, digest)
    with pytest.raises(StoreFault, match="stay in reserve"):
        again.open(origin.read_manifest(digest), origin.manifest(digest))
    again.close()
    assert files.room.used_bytes == 900_000


def test_without_a_quota_only_the_reserve_bounds(tmp_path: Path) -> None:
    here = room(tmp_path / "not made yet", 0)
    here.take("one", 1 << 60)
    told: list[None] = []
    tight = BlobRoom((tmp_path,), reserve_bytes=1 << 60)
    tight.on_full = lambda: told.append(None)
    with pytest.raises(StoreFault, match="stay in reserve"):
        tight.require_free(1)
    assert told
