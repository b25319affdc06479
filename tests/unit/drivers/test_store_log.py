import shutil
from pathlib import Path

import pytest

from agent.drivers.store import Store
from agent.drivers.store_log import log_damage
from agent.foundation.writes import Put

FRAME = 24 + 4096


@pytest.fixture
async def log(tmp_path: Path) -> Path:
    """The log that eight commits leave when the process is killed."""
    path, copy = tmp_path / "atoll.db", tmp_path / "copy.db"
    store = await Store.open(path)
    for n in range(8):
        await store.commit([Put("jobs", {"job": f"job-{n}", "value": bytes([n]) * 200})])
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    await store.close()
    return tmp_path / "copy.db-wal"


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_sound_log_is_sound(log: Path) -> None:
    assert log_damage(log) == ""
    assert log_damage(log.with_name("absent")) == ""


async def test_a_flip_before_durable_commits_is_found_and_not_dropped(log: Path) -> None:
    flip(log, -5 * FRAME + 300)
    assert "durable commits" in log_damage(log)
    store = await Store.open(log.with_name("copy.db"))
    assert "write-ahead log is damaged" in str(store.findings[0])
    await store.close()


def test_a_flip_in_a_frame_header_is_found(log: Path) -> None:
    flip(log, log.stat().st_size - 5 * FRAME + 9)
    assert "durable commits" in log_damage(log)


def test_a_torn_end_is_no_damage(log: Path) -> None:
    size = log.stat().st_size
    for cut in (1, 100, FRAME, FRAME + 1):
        with log.open("r+b") as stream:
            stream.truncate(size - cut)
        assert log_damage(log) == ""


def test_a_damaged_header_is_found(log: Path) -> None:
    flip(log, 17)
    assert "header" in log_damage(log)


def test_any_flip_loses_nothing_silently(log: Path) -> None:
    """Each flipped byte is either reported or can only have hit the last, unfinished commit."""
    whole = log.read_bytes()
    last_two = len(whole) - 2 * FRAME
    for at in range(8, last_two, 997):
        log.write_bytes(whole)
        flip(log, at)
        assert log_damage(log), at
