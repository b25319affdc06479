import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from agent.drivers import store_boot
from agent.drivers.store import Store
from agent.drivers.store_boot import FINDING
from agent.drivers.store_schema import SCHEMA_VERSION, TABLES
from agent.foundation.errors import ConfigError
from agent.foundation.writes import Delete, Put, Scalar, Write

PEER = Put(
    "peers", {"site": b"s", "record": b"r" * 64, "signature": b"g", "passport": b"p", "seen_at": 5}
)
REGISTER = Put("register", {"job": "j", "promised_number": 7, "value": b"promised value " * 9})


async def make(path: Path, writes: list[Write]) -> None:
    store = await Store.open(path)
    await store.commit(writes)
    await store.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, needle: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(needle)] ^= 1
    path.write_bytes(data)


def count(db: Database) -> dict[str, int]:
    return {
        name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
        for name in TABLES
        if db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
    }


async def test_every_table_of_the_contract_is_there(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    found = await store.read(lambda db: set(db.table_names()))
    version = await store.read(lambda db: db.execute("PRAGMA user_version").fetchone()[0])
    await store.close()
    assert found >= set(TABLES)
    assert len(TABLES) == 19
    assert version == SCHEMA_VERSION


async def test_one_flipped_bit_in_a_value_is_found_and_sound_rows_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    await make(path, [PEER, REGISTER, Put("meta", {"key": "boot_epoch", "value": 9})])
    flip(path, b"promised value")
    store = await Store.open(path)
    (finding,) = store.findings
    assert "register does not match its hash" in str(finding)
    assert await store.read(count) == {"peers": 1, "meta": 2}
    assert (tmp_path / "atoll.db.damaged-1").exists()
    await store.close()


async def test_a_finding_is_repeated_until_it_is_acted_on(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    await make(path, [REGISTER])
    flip(path, b"promised value")
    for _ in range(2):
        store = await Store.open(path)
        assert len(store.findings) == 1
        await store.close()
    await make(path, [Delete("meta", (FINDING,)), Put("meta", {"key": "epoch", "value": 2})])
    store = await Store.open(path)
    assert store.findings == ()
    await store.close()


@pytest.mark.parametrize("kept", [0, 1, 100, 4096, 4097, 20_000, -1])
async def test_a_shortened_file_never_stops_the_start(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "atoll.db"
    await make(path, [PEER, REGISTER])
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    store = await Store.open(path)
    registers = await store.read(lambda db: db.execute("SELECT job FROM register").fetchall())
    assert len(store.findings) + len(registers) == 1  # reported, or nothing is lost
    assert store.findings or kept == -1  # the last byte of this file is padding
    await store.close()


async def test_garbage_is_moved_aside_each_time_under_its_own_name(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    for _ in range(3):
        path.write_bytes(b"garbage!" * 1000)
        store = await Store.open(path)
        assert len(store.findings) == 1
        await store.close()
    assert names(tmp_path) == [
        "atoll.db",
        "atoll.db.damaged-1",
        "atoll.db.damaged-2",
        "atoll.db.damaged-3",
    ]


async def test_a_start_interrupted_after_moving_aside_still_reports(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    (tmp_path / "atoll.db.damaged-1").write_bytes(b"garbage")
    store = await Store.open(path)
    assert "interrupted" in str(store.findings[0])
    await store.close()


async def test_an_undamaged_neighbour_of_old_damage_reports_nothing(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    await make(path, [PEER])
    (tmp_path / "atoll.db.damaged-1").write_bytes(b"garbage")
    store = await Store.open(path)
    assert store.findings == ()
    await store.close()


async def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not an Atoll database"):
        await Store.open(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    connection.close()
    assert before


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    await make(path, [PEER])
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(ConfigError, match="newer"):
        await Store.open(path)


async def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(ConfigError, match="symbolic link"):
        await Store.open(tmp_path / "link.db")


async def test_a_disk_full_of_damaged_files_is_the_operators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_boot, "ASIDE_MAX", 2)
    path = tmp_path / "atoll.db"
    (tmp_path / "atoll.db.damaged-1").write_bytes(b"")
    path.write_bytes(b"garbage!" * 1000)
    with pytest.raises(ConfigError, match="replace the disk"):
        await Store.open(path)


async def test_a_killed_store_keeps_its_log(tmp_path: Path) -> None:
    """What SIGKILL leaves: a file with an unfolded log. A copy of both stands for it."""
    path, copy = tmp_path / "atoll.db", tmp_path / "copy.db"
    store = await Store.open(path)
    await store.commit([PEER, REGISTER])
    shutil.copy(path, copy)
    shutil.copy(f"{path}-wal", f"{copy}-wal")
    await store.close()
    store = await Store.open(copy)
    assert store.findings == ()
    assert await store.read(count) == {"peers": 1, "register": 1}
    await store.close()


async def test_a_file_of_the_first_version_gets_the_tables_made_since_and_keeps_its_rows(
    tmp_path: Path,
) -> None:
    path = tmp_path / "atoll.db"
    store = await Store.open(path)
    row: dict[str, Scalar] = {"key": b"12345678", "crashes": 2, "reason": "it crashed"}
    await store.commit([Put("models", row)])
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TABLE overrides")
        connection.execute("DELETE FROM _sqlite_migrations WHERE name = 'm002_overrides'")
        connection.execute("PRAGMA user_version=1")
    store = await Store.open(path)
    decision: dict[str, Scalar] = {
        "name": "m", "version": "", "is_served": False, "who": "me", "at_s": 1.0,
    }  # fmt: skip
    await store.commit([Put("overrides", decision)])
    kept = await store.read(lambda db: [dict(one) for one in db["models"].rows])
    version = await store.read(lambda db: db.execute("PRAGMA user_version").fetchone()[0])
    await store.close()
    assert [(one["key"], one["crashes"]) for one in kept] == [(b"12345678", 2)]
    assert version == SCHEMA_VERSION
    assert not store.findings
