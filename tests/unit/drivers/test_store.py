import asyncio
import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from agent.drivers import store as store_module
from agent.drivers.store import Store
from agent.foundation.errors import Busy, ConfigError, StoreFault
from agent.foundation.writes import Delete, Put, Write


def job(name: str, value: bytes = b"v") -> Put:
    return Put("jobs", {"job": name, "value": value, "note": ""})


def names(db: Database) -> list[str]:
    return [row[0] for row in db.execute("SELECT job FROM jobs ORDER BY job").fetchall()]


async def test_a_commit_is_there_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "state" / "atoll.db"
    store = await Store.open(path)
    await store.commit([job("a"), job("b", b"\0\xff"), Put("meta", {"key": "k", "value": 2**62})])
    await store.commit([job("a", b"again"), Delete("jobs", ("b",)), Delete("jobs", ("absent",))])
    await store.close()
    store = await Store.open(path)
    rows = await store.read(lambda db: db.execute("SELECT job, value FROM jobs").fetchall())
    number = await store.read(lambda db: db.execute("SELECT value FROM meta").fetchone())
    assert (rows, number, store.findings) == ([("a", b"again")], (2**62,), ())
    await store.close()
    assert path.stat().st_mode & 0o077 == 0


async def test_the_connection_is_durable_and_alone(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")

    def pragmas(db: Database) -> list[object]:
        wanted = ("journal_mode", "synchronous", "trusted_schema", "application_id")
        return [db.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted]

    assert await store.read(pragmas) == ["wal", 2, 0, 0x41544F4C]
    with pytest.raises(ConfigError, match="in use"):
        await Store.open(tmp_path / "atoll.db")
    await store.commit([job("still works")])
    await store.close()


async def test_a_commit_that_does_not_fit_fails_alone(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    bad: list[list[Write]] = [
        [job("x"), Put("nonsense", {})],
        [job("x"), Put("jobs", {"job": "y", "colour": 1})],
        [job("x"), Put("jobs", {"value": b""})],
        [job("x"), Put("jobs", {"job": "y", "value": "text"})],
        [job("x"), Delete("documents", ("only one",))],
        [job("x"), Put("jobs", {"job": "\ud800", "value": b""})],
        [job("x"), Put("rounds", {"job": "y", "round": 2**63})],
    ]
    outcomes = await asyncio.gather(
        store.commit([job("before")]),
        *[store.commit(writes) for writes in bad],
        store.commit([job("after")]),
        return_exceptions=True,
    )
    assert [type(outcome) for outcome in outcomes[1:-1]] == [AssertionError] * len(bad)
    assert outcomes[0] is None
    assert outcomes[-1] is None
    assert await store.read(names) == ["after", "before"]
    await store.close()


async def test_a_full_disk_is_a_clear_error_and_passes(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")

    def limit(db: Database) -> int:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        return int(db.execute(f"PRAGMA max_page_count={pages}").fetchone()[0])

    await store.read(limit)
    with pytest.raises(StoreFault, match="disk is full") as caught:
        await store.commit([job("small"), job("big", bytes(100_000))])
    assert not caught.value.is_fatal
    assert await store.read(names) == []
    await store.read(lambda db: db.execute("PRAGMA max_page_count=100000").fetchone())
    await store.commit([job("big", bytes(100_000))])
    assert await store.read(names) == ["big"]
    await store.close()


async def test_concurrent_commits_share_transactions(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    transactions = 0

    def count(sql: str) -> None:
        nonlocal transactions
        transactions += sql.startswith("COMMIT")

    await store.read(lambda db: db.conn.set_trace_callback(count))
    await asyncio.gather(*[store.commit([job(f"{n:04}")]) for n in range(500)])
    await store.read(lambda db: db.conn.set_trace_callback(None))
    assert len(await store.read(names)) == 500
    assert 1 <= transactions < 50
    await store.close()


async def test_a_read_sees_what_was_queued_before_it_and_cannot_write(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    commit = asyncio.create_task(store.commit([job("first")]))
    await asyncio.sleep(0)
    assert await store.read(names) == ["first"]
    await commit
    with pytest.raises(StoreFault, match="readonly"):
        await store.read(lambda db: db.execute("DELETE FROM jobs").fetchall())
    with pytest.raises(AssertionError, match="generator"):
        await store.read(lambda db: db["jobs"].rows)
    with pytest.raises(ZeroDivisionError):
        await store.read(lambda _: 1 // 0)
    await store.commit([job("second")])
    assert await store.read(names) == ["first", "second"]
    await store.close()


async def test_a_cancelled_caller_does_not_disturb_the_others(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    tasks = [asyncio.create_task(store.commit([job(f"{n}")])) for n in range(5)]
    await asyncio.sleep(0)
    tasks[2].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(asyncio.CancelledError) == 1
    assert await store.read(names) == ["0", "1", "2", "3", "4"]
    await store.close()


async def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "QUEUE_MAX", 3)
    store = await Store.open(tmp_path / "atoll.db")
    outcomes = await asyncio.gather(
        *[store.commit([job(f"{n}")]) for n in range(10)], return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 3 + [Busy] * 7
    await store.commit([job("later")])
    await store.close()


async def test_closing_finishes_what_is_queued_and_refuses_the_rest(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    commits = [asyncio.create_task(store.commit([job(f"{n}")])) for n in range(20)]
    await asyncio.sleep(0)
    await store.close()
    await asyncio.gather(*commits)
    await store.close()
    with pytest.raises(StoreFault, match="closed"):
        await store.commit([job("late")])
    with sqlite3.connect(tmp_path / "atoll.db") as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (20,)
    connection.close()


async def test_damage_while_open_stops_the_store_for_good(tmp_path: Path) -> None:
    path = tmp_path / "atoll.db"
    store = await Store.open(path)
    await store.commit([job(f"{n:03}", bytes(3000)) for n in range(400)])
    await store.close()
    store = await Store.open(path)
    await store.read(lambda db: db.execute("PRAGMA cache_size=1").fetchall())
    damaged = bytearray(path.read_bytes())
    for page in range(4, len(damaged) // 4096):
        damaged[page * 4096 : page * 4096 + 8] = b"\xff" * 8
    with path.open("r+b") as stream:  # closing drops POSIX locks; no second agent is in this test
        stream.write(damaged)
    with pytest.raises(StoreFault) as caught:
        await store.read(names)
    assert caught.value.is_fatal
    with pytest.raises(StoreFault, match="damaged"):
        await store.commit([job("new")])
    await store.close()
