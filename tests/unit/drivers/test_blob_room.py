from pathlib import Path

import pytest

from agent.drivers.blob_room import BlobRoom
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


def test_without_a_quota_only_the_reserve_bounds(tmp_path: Path) -> None:
    here = room(tmp_path / "not made yet", 0)
    here.take("one", 1 << 60)
    told: list[None] = []
    tight = BlobRoom((tmp_path,), reserve_bytes=1 << 60)
    tight.on_full = lambda: told.append(None)
    with pytest.raises(StoreFault, match="stay in reserve"):
        tight.require_free(1)
    assert told
