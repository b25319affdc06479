"""Opening the database file: pragmas, version, examination, and moving a damaged one aside."""

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import Final

from agent.drivers.disk import synced
from agent.drivers.sqlite_library import Database
from agent.drivers.store_log import log_damage
from agent.drivers.store_schema import (
    APPLICATION_ID,
    MIGRATIONS,
    SCHEMA_VERSION,
    TABLES,
    Table,
    damage,
)
from agent.foundation.errors import ConfigError, Corruption
from agent.foundation.writes import Scalar

WAL_BYTES_MAX: Final = 64 << 20
"""The log file is cut back to this after a checkpoint; 1,000 pages (4 MiB) are its normal size."""

SALVAGE_BYTES_MAX: Final = 64 << 20
"""What may be carried from a damaged file in memory: 10,000 peers and 10,000 usual documents."""

ASIDE_MAX: Final = 1000
"""Damaged files kept under their own names; a site with more has no working disk."""

_PRAGMAS: Final = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA foreign_keys=ON",
    "PRAGMA cell_size_check=ON",
    "PRAGMA mmap_size=0",
    "PRAGMA wal_autocheckpoint=1000",
    f"PRAGMA journal_size_limit={WAL_BYTES_MAX}",
)

FINDING: Final = "store.finding"
"""The ``meta`` row that repeats a finding at every boot until somebody has acted on it durably."""

_SUFFIXES: Final = ("", "-wal", "-shm", "-journal")

_Rescued = list[tuple[Table, tuple[Scalar, ...]]]


def open_examined(path: Path) -> tuple[Database, tuple[Corruption, ...]]:
    """The database at ``path``, created or examined, and what was found to be damaged.

    A finding is stored in ``meta`` under ``FINDING`` and reported at every boot until the row is
    deleted: best in the transaction that writes the site's fresh epoch.

    Raises:
        ConfigError: not an Atoll database, a newer one, or in use by another process.
        OSError, sqlite3.Error: the disk does not let the file be opened or created.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not os.access(path.parent, os.W_OK | os.X_OK):  # SQLite would only speak of an I/O error
        raise ConfigError(
            f"{path.parent} cannot be written",
            why="its file system is read-only, or it belongs to another user",
            mend="mount it for writing, or run the agent as the owner of its state_dir",
        )
    if path.is_symlink():
        raise ConfigError(f"{path} is a symbolic link", mend="put the database itself there")
    if not path.exists():
        was_moved = _aside(path, 1).exists()
        _make(path, [], "a start that moved it aside was interrupted" if was_moved else "")
    rescued: _Rescued = []
    database, wrong = _open(path, rescued)
    if wrong:
        if database is not None:
            with contextlib.suppress(sqlite3.Error):
                database.close()
        _move_aside(path)
        _make(path, rescued, wrong)
        database, wrong = _open(path, [])
    assert database is not None, f"a new database is damaged: {wrong}"
    assert not wrong, f"a new database is damaged: {wrong}"
    row = database.execute("SELECT value FROM meta WHERE key = ?", [FINDING]).fetchone()
    if row is None:
        return database, ()
    return database, (
        Corruption(
            "the database was damaged and has been moved aside",
            why=str(row[0]),
            mend="the site must not vote before it has a fresh epoch; check the disk, then remove "
            f"{path.name}.damaged-*",
        ),
    )


def _make(path: Path, rescued: _Rescued, reason: str) -> None:
    """Create the database under another name, whole, and rename it: an empty file is never ours.

    Args:
        path: where it shall be; nothing is there.
        rescued: rows to begin with.
        reason: what became of its predecessor; empty if there was none.
    """
    fresh = path.with_name(path.name + ".new")
    for suffix in _SUFFIXES:
        Path(f"{fresh}{suffix}").unlink(missing_ok=True)
    os.close(os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(fresh, isolation_level=None)
    try:
        database = _prepared(connection, fresh)
        with database.atomic():
            _upgrade(database)
            if reason:
                _restore(database, rescued, reason)
    finally:
        connection.close()
    # A log without its file would be replayed into the new one.
    orphan = Path(f"{path}-wal")
    if orphan.exists():
        numbers = (n for n in range(1, ASIDE_MAX) if not Path(f"{_aside(path, n)}-wal").exists())
        orphan.rename(f"{_aside(path, next(numbers, ASIDE_MAX))}-wal")
        synced(path.parent)
    fresh.rename(path)
    synced(path.parent)


def _open(path: Path, rescued: _Rescued) -> tuple[Database | None, str]:
    """The open database and what is wrong with it; sound rows of a damaged one go to ``rescued``.

    The file is opened by SQLite only: closing another descriptor of it would drop the locks that
    SQLite holds in this process (POSIX advisory locks belong to the process).
    """
    connection = sqlite3.connect(path, isolation_level=None, timeout=0.0)
    try:
        database = _prepared(connection, path)
        _check_owner(connection, path)
        wrong = log_damage(path.with_name(path.name + "-wal"))  # we hold the lock: nobody writes it
        if not wrong:
            with database.atomic():
                _upgrade(database)
    except sqlite3.DatabaseError as error:
        connection.close()
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            raise ConfigError(
                f"{path} is in use",
                why="another agent runs with this state_dir, or a tool has the file open",
                mend="stop it; one state_dir belongs to one agent",
            ) from None
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")) or name == "SQLITE_ERROR":
            return None, str(error)
        raise
    except Corruption as error:
        connection.close()
        return None, str(error)
    except BaseException:
        connection.close()
        raise
    found = damage(connection, _Collector(rescued).take)
    return database, "; ".join(part for part in (wrong, found) if part)


class _Collector:
    """Keeps rows up to ``SALVAGE_BYTES_MAX``."""

    def __init__(self, rows: _Rescued) -> None:
        self._rows = rows
        self._room = SALVAGE_BYTES_MAX

    def take(self, table: Table, values: tuple[Scalar, ...]) -> None:
        self._room -= sum(len(value) for value in values if isinstance(value, (bytes, str)))
        if self._room > 0:
            self._rows.append((table, values))


def _upgrade(database: Database) -> None:
    if MIGRATIONS.pending(database):
        MIGRATIONS.apply(database)
        database.conn.execute(f"PRAGMA application_id={APPLICATION_ID}")
        database.conn.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _prepared(connection: sqlite3.Connection, path: Path) -> Database:
    for pragma in _PRAGMAS:
        answer = connection.execute(pragma).fetchone()
        if pragma.endswith("=WAL") and (answer is None or answer[0] != "wal"):
            raise ConfigError(
                f"{path} cannot use a write-ahead log",
                why="the file system does not support it",
                mend="put state_dir on a local disk, not on a network file system",
            )
    return Database(connection, execute_plugins=False, recursive_triggers=False)


def _check_owner(connection: sqlite3.Connection, path: Path) -> None:
    """Take the lock and make sure that the file is ours."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not tables:
        raise Corruption("the database is empty", why="it lost its content")
    if application != APPLICATION_ID:
        raise ConfigError(
            f"{path} is not an Atoll database",
            why=f"its application id is {application}",
            mend="move it away, or set another state_dir",
        )
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by a newer Atoll",
            why=f"its schema is version {version}, this agent knows {SCHEMA_VERSION}",
            mend="install the newer version again",
        )


def _aside(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.damaged-{number}")


def _move_aside(path: Path) -> None:
    """Rename the file and its log to the first free ``<name>.damaged-<n>``, the file first.

    If the power fails in between, the next start finds no file but a damaged one, from which it
    concludes the finding again, and puts the log away. The other order would leave a file without
    its log: sound, older than what was promised, and unnoticed.
    """
    numbers = (n for n in range(1, ASIDE_MAX) if not _aside(path, n).exists())
    number = next(numbers, None)
    if number is None:
        raise ConfigError(
            f"{path} was damaged {ASIDE_MAX} times",
            mend="replace the disk, remove the damaged files",
        )
    for suffix in ("", "-wal"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{_aside(path, number)}{suffix}")  # noqa: PTH104 - suffixes
        synced(path.parent)


def _restore(database: Database, rescued: _Rescued, reason: str) -> None:
    for table, values in rescued:
        row = dict(zip(table.columns, values, strict=True))
        database.conn.execute(table.insert, table.values(row))
    meta = TABLES["meta"]
    why = f"{reason}; {len(rescued)} sound rows were kept"
    database.conn.execute(meta.insert, meta.values({"key": FINDING, "value": why}))
