import sqlite3

import pytest
from sqlite_utils import Database

from agent.drivers.store_schema import (
    MIGRATIONS,
    ROW_HASH,
    SCHEMA_VERSION,
    TABLES,
    Table,
    damage,
    row_hash,
)
from agent.foundation.writes import Scalar


@pytest.fixture
def database() -> Database:
    return Database(memory=True)


def test_the_version_counts_the_migrations(database: Database) -> None:
    assert len(MIGRATIONS.pending(database)) == SCHEMA_VERSION
    database.close()


def test_every_table_is_strict_and_proves_its_rows(database: Database) -> None:
    MIGRATIONS.apply(database)
    for table in TABLES.values():
        assert database.table(table.name).strict
        assert list(database.table(table.name).columns_dict) == [*table.columns, ROW_HASH]
        assert tuple(database.table(table.name).pks) == table.key
    database.close()


def test_values_are_as_sqlite_returns_them(database: Database) -> None:
    MIGRATIONS.apply(database)
    rows: dict[str, dict[str, Scalar]] = {
        "peers": {"site": b"s", "seen_at": 3},
        "models": {"key": b"k", "crashes": True, "reason": "é\0"},
        "meta": {"key": "k", "value": 1.5},
        "rounds": {"job": "j", "round": 2**63 - 1, "committed_at": 0},
    }
    for name, row in rows.items():
        table = TABLES[name]
        database.conn.execute(table.insert, table.values(row))
    found: list[tuple[Table, tuple[Scalar, ...]]] = []
    assert damage(database.conn, lambda *row: found.append(row)) == ""
    assert [(table.name, values[0]) for table, values in found] == [("meta", "k"), ("peers", b"s")]
    database.close()


def test_a_row_that_was_changed_is_damage(database: Database) -> None:
    MIGRATIONS.apply(database)
    table = TABLES["jobs"]
    database.conn.execute(table.insert, table.values({"job": "a", "value": b"1"}))
    assert damage(database.conn, lambda *_: None) == ""
    database.conn.execute("UPDATE jobs SET value = x'32'")
    assert "table jobs" in damage(database.conn, lambda *_: None)
    database.close()


def test_a_missing_table_is_damage() -> None:
    connection = sqlite3.connect(":memory:")
    assert "no such table" in damage(connection, lambda *_: None)
    connection.close()


def test_a_value_in_another_column_is_another_row() -> None:
    assert row_hash("t", ("a", None)) != row_hash("t", (None, "a"))
    assert row_hash("t", (b"a",)) != row_hash("t", ("a",))
    assert row_hash("t", (1,)) != row_hash("t", (1.0,))


def test_a_database_of_the_first_version_gets_all_newer_tables_and_keeps_its_rows(
    database: Database,
) -> None:
    MIGRATIONS.apply(database, stop_before="m002_overrides")
    assert "application_tokens" not in database.table_names()
    models = TABLES["models"]
    database.conn.execute(models.insert, models.values({"key": b"k", "crashes": 3, "reason": "x"}))
    MIGRATIONS.apply(database)
    assert set(TABLES) <= set(database.table_names())
    assert database.execute("SELECT crashes FROM models").fetchall() == [(3,)]
    assert damage(database.conn, lambda *_: None) == ""
    database.close()
