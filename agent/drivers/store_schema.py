"""The tables of a site's database, how their rows prove themselves, and how a file is examined.

Rule: every row carries a hash of its own content, made on write and checked for every row at boot,
because SQLite notices a broken page structure but not a flipped bit inside a value, and a register
that comes back with another value than was promised is worse than one that is gone.

Schema versions are sqlite-utils migrations; ``user_version`` counts them, so a file made by a newer
agent is refused instead of being misread.
"""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgpack

from agent.drivers.sqlite_library import Database, Migrations
from agent.foundation.writes import Scalar

APPLICATION_ID: Final = 0x41544F4C
"""``ATOL``: tells an Atoll database from any other SQLite file (``file(1)`` shows it)."""

ROW_HASH: Final = "row_hash"
_ROW_HASH_BYTES: Final = 8
"""Against accident, not against an attacker with the disk: 2^-64 of missing a damaged row."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its name, its columns with their types, and how many of them are the key."""

    name: str
    keys: int
    columns: Mapping[str, str]
    since: int = 1
    """The schema version that made it."""
    outlives_damage: bool = False
    """Its sound rows are carried over from a damaged file: they are signed by their authors, or (meta)
    an old value is better than none: a boot epoch that restarts at zero would repeat nonces."""
    insert: str = field(init=False)
    delete: str = field(init=False)

    def __post_init__(self) -> None:
        """Compose the statements; every name comes from this module, never from outside."""
        names = [*self.columns, ROW_HASH]
        marks = ", ".join("?" * len(names))
        object.__setattr__(
            self,
            "insert",
            f"INSERT OR REPLACE INTO {self.name} ({', '.join(names)}) VALUES ({marks})",  # noqa: S608 - constants
        )
        where = " AND ".join(f"{name} IS ?" for name in self.key)
        object.__setattr__(self, "delete", f"DELETE FROM {self.name} WHERE {where}")  # noqa: S608 - constants

    @property
    def key(self) -> tuple[str, ...]:
        """Names of the primary key's columns."""
        return tuple(self.columns)[: self.keys]

    def values(self, row: Mapping[str, Scalar]) -> tuple[Scalar, ...]:
        """The row in column order with its hash.

        Raises:
            AssertionError: a column is unknown, a key is absent, or a value has another type: a
                defect in this program, never input from outside.
        """
        unknown = set(row) - set(self.columns)
        assert not unknown, f"table {self.name} has no column {sorted(unknown)}"
        values = tuple(
            self._typed(name, kind, row.get(name)) for name, kind in self.columns.items()
        )
        return (*values, row_hash(self.name, values))

    def key_values(self, key: tuple[Scalar, ...]) -> tuple[Scalar, ...]:
        """The primary key as SQLite stores it; ``AssertionError`` as in ``values``."""
        assert len(key) == self.keys, f"the key of {self.name} is {self.key}"
        return tuple(
            self._typed(name, self.columns[name], value)
            for name, value in zip(self.key, key, strict=True)
        )

    def _typed(self, name: str, kind: str, value: Scalar) -> Scalar:
        self._assert_storable(name, value)
        if value is None:
            assert name not in self.key, f"{self.name}.{name} is part of the key and absent"
            return None
        if kind == "REAL" and isinstance(value, int):
            return float(value)
        if kind == "INTEGER" and isinstance(value, bool):
            return int(value)
        if kind == "ANY":
            assert isinstance(value, (int, float, str, bytes)), f"{self.name}.{name} is no scalar"
            return value
        expected = {"INTEGER": int, "REAL": float, "TEXT": str, "BLOB": bytes}[kind]
        assert type(value) is expected, f"{self.name}.{name} is {kind}, not {type(value).__name__}"
        return value

    @staticmethod
    def _assert_storable(name: str, value: Scalar) -> None:
        if isinstance(value, int):
            assert -(2**63) <= value < 2**63, f"{name} is beyond 64 bits"
        if isinstance(value, str):
            assert value.encode(errors="replace").decode() == value, f"{name} is not text"


def row_hash(table: str, values: tuple[Scalar, ...]) -> bytes:
    """What a row's ``row_hash`` column must hold (BLAKE2b over table name and values)."""
    return hashlib.blake2b(
        msgpack.packb((table, *values), use_bin_type=True), digest_size=_ROW_HASH_BYTES
    ).digest()


def _tables() -> Iterator[Table]:
    yield Table("meta", 1, {"key": "TEXT", "value": "ANY"}, outlives_damage=True)
    yield Table(
        "peers",
        1,
        {
            "site": "BLOB",
            "record": "BLOB",
            "signature": "BLOB",
            "passport": "BLOB",
            "seen_at": "REAL",
        },
        outlives_damage=True,
    )
    yield Table(
        "documents",
        2,
        {"kind": "TEXT", "name": "TEXT", "document": "BLOB"},
        outlives_damage=True,
    )
    yield Table(
        "register",
        1,
        {
            "job": "TEXT",
            "promised_number": "INTEGER",
            "promised_proposer": "BLOB",
            "accepted_number": "INTEGER",
            "accepted_proposer": "BLOB",
            "value": "BLOB",
        },
    )
    yield Table("jobs", 1, {"job": "TEXT", "value": "BLOB", "note": "TEXT"})
    yield Table(
        "updates",
        2,
        {
            "job": "TEXT",
            "round": "INTEGER",
            "base": "BLOB",
            "digest": "BLOB",
            "samples": "INTEGER",
            "metrics": "TEXT",
            "state": "TEXT",
        },
    )
    yield Table(
        "rounds",
        2,
        {
            "job": "TEXT",
            "round": "INTEGER",
            "epoch": "INTEGER",
            "aggregator": "BLOB",
            "parameters": "BLOB",
            "contributions": "BLOB",
            "counted": "TEXT",
            "committed_at": "REAL",
        },
    )
    yield Table("tokens", 1, {"id": "BLOB", "row": "BLOB", "expires_at": "REAL"})
    yield Table("trust", 1, {"height": "INTEGER", "entry": "BLOB"}, outlives_damage=True)
    yield Table("audit", 1, {"sequence": "INTEGER", "entry": "BLOB", "hash": "BLOB"})
    yield Table("models", 1, {"key": "BLOB", "crashes": "INTEGER", "reason": "TEXT"})
    yield Table(
        "overrides",
        2,
        {"name": "TEXT", "version": "TEXT", "is_served": "INTEGER", "who": "TEXT", "at_s": "REAL"},
        since=2,
        outlives_damage=True,
    )
    # Not kept from a damaged file: what is lost there might be a revocation.
    yield Table(
        "application_tokens",
        1,
        {
            "name": "TEXT",
            "hash": "BLOB",
            "scopes": "TEXT",
            "created_at": "REAL",
            "expires_at": "REAL",
            "revoked_at": "REAL",
        },
        since=3,
    )
    yield Table(
        "former_documents",
        3,
        {
            "kind": "TEXT",
            "name": "TEXT",
            "slot": "INTEGER",
            "wall_ms": "INTEGER",
            "count": "INTEGER",
            "document": "BLOB",
        },
        since=4,
        outlives_damage=True,
    )
    yield Table(
        "witnessed",
        1,
        {"site": "BLOB", "receipt": "BLOB", "contradiction": "BLOB"},
        since=5,
        outlives_damage=True,
    )
    yield Table(
        "receipts", 1, {"witness": "BLOB", "receipt": "BLOB"}, since=5, outlives_damage=True
    )
    yield Table(
        "once_keys", 1, {"key": "BLOB", "sequence": "INTEGER"}, since=6, outlives_damage=True
    )
    yield Table(
        "rollouts",
        1,
        {
            "model": "TEXT",
            "rollout": "BLOB",
            "stage": "INTEGER",
            "gate": "INTEGER",
            "reason": "TEXT",
        },
        since=7,
        outlives_damage=True,
    )
    yield Table("tombstones", 1, {"job": "BLOB", "content": "BLOB"}, since=8, outlives_damage=True)


TABLES: Final[Mapping[str, Table]] = {table.name: table for table in _tables()}
"""Every table a ``Put`` or ``Delete`` may name."""

MIGRATIONS: Final = Migrations("atoll")


@MIGRATIONS()
def m001_first_tables(db: Database) -> None:
    """Version 1: the first tables."""
    _create(db, 1)


@MIGRATIONS()
def m002_overrides(db: Database) -> None:
    """Version 2: what is decided at a site against the catalog."""
    _create(db, 2)


@MIGRATIONS()
def m003_application_tokens(db: Database) -> None:
    """Version 3: tokens of applications."""
    _create(db, 3)


@MIGRATIONS()
def m004_former_documents(db: Database) -> None:
    """Version 4: what documents said before."""
    _create(db, 4)


@MIGRATIONS()
def m005_witnesses(db: Database) -> None:
    """Version 5: where audit logs ended, as others have seen it."""
    _create(db, 5)


@MIGRATIONS()
def m006_once_keys(db: Database) -> None:
    """Version 6: idempotency keys."""
    _create(db, 6)


@MIGRATIONS()
def m007_rollouts(db: Database) -> None:
    """Version 7: parts in rollouts."""
    _create(db, 7)


@MIGRATIONS()
def m008_tombstones(db: Database) -> None:
    """Version 8: jobs that are over."""
    _create(db, 8)


def _create(db: Database, since: int) -> None:
    """The tables of one version (STRICT, so that no value changes its type)."""
    for table in TABLES.values():
        if table.since != since:
            continue
        columns = ", ".join(
            f"{name} {kind}{' NOT NULL' if name in table.key else ''}"
            for name, kind in table.columns.items()
        )
        db.execute(
            f"CREATE TABLE {table.name} ({columns}, {ROW_HASH} BLOB NOT NULL, "
            f"PRIMARY KEY ({', '.join(table.key)})) STRICT"
        )


SCHEMA_VERSION: Final = 8
"""How many migrations there are: written to ``user_version``."""


def damage(
    connection: sqlite3.Connection, on_row: Callable[[Table, tuple[Scalar, ...]], None]
) -> str:
    """Examine the whole file; empty if it is sound, else what is wrong first.

    Args:
        connection: open on the file, migrations applied.
        on_row: called with each sound row of each table that outlives damage.
    """
    wrong: list[str] = []
    try:
        found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(5)")]
        if found != ["ok"]:
            wrong.extend(found)
    except sqlite3.DatabaseError as error:
        wrong.append(str(error))
    for table in TABLES.values():
        names = ", ".join([*table.columns, ROW_HASH])
        try:
            for *row, stored in connection.execute(f"SELECT {names} FROM {table.name}"):  # noqa: S608 - constants
                values = tuple(row)
                if row_hash(table.name, values) != stored:
                    wrong.append(f"a row of table {table.name} does not match its hash")
                elif table.outlives_damage:
                    on_row(table, values)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            wrong.append(f"table {table.name}: {error}")
    return "; ".join(wrong[:3])
