"""The site's one SQLite file: what must not be forgotten, whatever happens to the power.

Rules:

- When ``commit`` returns, the rows are on disk (WAL, ``synchronous=FULL``).
- There is exactly one connection, in one thread, and the file is locked exclusively. SQLite 3.7.0 to
  3.51.2 can corrupt a WAL database that two connections write (sqlite.org/wal.html#walresetbug), and
  Debian 12 ships 3.40; so nobody else may open the file while the agent runs.
- Everything that was queued while a commit ran goes into the next transaction (group commit), each
  commit in its own savepoint: one that cannot be carried out does not take the others with it.
- At boot the file is examined whole. A damaged one is moved aside, never repaired in place; rows that
  are signed by their authors (peers, documents, trust log) or settings of the site (meta), and match
  their hash, are taken over (possibly older than the last commit), all else starts empty, and ``findings`` says so: the site must not vote until it has a fresh epoch.

Errors: ``StoreFault`` with ``is_fatal`` False (disk full, read-only): nothing of that transaction was
written and the store goes on when the disk does. ``is_fatal`` True (fsync failed, file damaged while
open): what is on disk is no longer known, because the kernel may have dropped the dirty pages it
could not write; the store refuses everything from then on and the process must end and start anew.
"""

import asyncio
import contextlib
import queue
import sqlite3
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from agent.drivers.sqlite_library import Database
from agent.drivers.store_boot import open_examined
from agent.drivers.store_schema import TABLES
from agent.foundation.errors import AtollError, Busy, Corruption, StoreFault
from agent.foundation.writes import Delete, Put, Scalar, Write

T = TypeVar("T")
Statement = tuple[str, tuple[Scalar, ...]]

QUEUE_MAX: Final = 10_000
"""Commits and reads that may wait: about a minute of single-row commits on the slowest disk measured."""

GROUP_STATEMENTS_MAX: Final = 1000
"""Rows of one transaction, so that the first commit of a group does not wait for seconds."""

_FATAL: Final = frozenset(
    {
        "SQLITE_CORRUPT",
        "SQLITE_CORRUPT_INDEX",
        "SQLITE_CORRUPT_VTAB",
        "SQLITE_NOTADB",
        "SQLITE_IOERR_CORRUPTFS",
        "SQLITE_IOERR_DATA",
        "SQLITE_IOERR_DIR_FSYNC",
        "SQLITE_IOERR_FSYNC",
        "SQLITE_IOERR_SHORT_READ",
    }
)


@dataclass(frozen=True, slots=True)
class _Commit:
    statements: tuple[Statement, ...]
    done: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Query:
    query: Callable[[Database], Any]
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Close:
    done: asyncio.Future[None]


_Task = _Commit | _Query | _Close
_Outcome = tuple[asyncio.Future[Any], Any, BaseException | None]


class Store:
    """The open database. Make one with ``await Store.open(path)``; close it with ``await close()``."""

    def __init__(self) -> None:
        """Not for callers: use ``open``."""
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._waiting = 1  # the opening itself
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._fault: StoreFault | None = None
        self.findings: tuple[Corruption, ...] = ()

    @classmethod
    async def open(cls, path: Path) -> "Store":
        """Open or create the database at ``path``.

        Returns:
            A store whose ``findings`` say what was moved aside, if anything was.

        Raises:
            ConfigError: the file belongs to something else, to a newer agent or to a running one.
            StoreFault: the disk does not let the file be opened or created.
        """
        store = cls()
        opened: asyncio.Future[tuple[Corruption, ...]] = store._loop.create_future()
        thread = threading.Thread(
            target=store._run, args=(path, opened), name="atoll-store", daemon=True
        )
        thread.start()
        store.findings = await opened
        store._thread = thread
        return store

    async def commit(self, writes: Sequence[Write]) -> None:
        """Make ``writes`` durable, all or none, in order; on disk when this returns.

        Cancelling the caller does not undo a commit that is queued: its outcome is then unknown.

        Raises:
            AssertionError: a row does not fit its table.
            Busy: ``QUEUE_MAX`` commits wait already.
            StoreFault: see the module's text.
        """
        statements = tuple(_statement(write) for write in writes)
        if statements:
            await self._submit(lambda done: _Commit(statements, done), self._loop.create_future())

    async def read(self, query: Callable[[Database], T]) -> T:
        """What ``query`` finds, in the store's thread, after all commits queued before it.

        ``query`` must return plain values (not an iterator over rows) and cannot write.

        Raises:
            Busy, StoreFault: as ``commit``; whatever ``query`` itself raises.
        """
        done: asyncio.Future[T] = self._loop.create_future()
        return await self._submit(lambda future: _Query(query, future), done)

    async def close(self) -> None:
        """Finish what is queued, fold the log into the file, end the thread. May be called twice."""
        if self._is_closed or self._thread is None:
            return
        self._is_closed = True
        done: asyncio.Future[None] = self._loop.create_future()
        self._waiting += 1
        self._queue.put(_Close(done))
        await done
        self._thread.join()

    async def _submit(
        self, task: Callable[[asyncio.Future[T]], _Task], done: "asyncio.Future[T]"
    ) -> T:
        if self._is_closed:
            raise StoreFault("the store is closed", why="the agent is stopping")
        if self._fault is not None:
            raise self._fault
        if self._waiting >= QUEUE_MAX:
            raise Busy("the store is overloaded", why=f"{QUEUE_MAX} operations wait for the disk")
        self._waiting += 1
        self._queue.put(task(done))
        return await done

    # --- the store's thread ----------------------------------------------------------------------
    def _run(self, path: Path, opened: "asyncio.Future[tuple[Corruption, ...]]") -> None:
        try:
            database, findings = open_examined(path)
        except BaseException as error:  # noqa: BLE001 - carried to whoever awaits `open`
            self._tell([(opened, None, _clear(error))])
            return
        self._tell([(opened, findings, None)])
        carried: _Task | None = None
        while True:
            first = carried or self._queue.get()
            if isinstance(first, _Close):
                closed = _closing(database)
                self._tell([(first.done, None, closed)])
                return
            group, carried = self._group(first)
            self._tell(self._carry_out(database, group))

    def _group(self, first: _Task) -> tuple[list[_Commit | _Query], _Task | None]:
        """All that waits, up to the bound; a task that no longer fits is returned apart."""
        group: list[_Commit | _Query] = []
        rows = 0
        task: _Task | None = first
        while task is not None and not isinstance(task, _Close):
            rows += len(task.statements) if isinstance(task, _Commit) else 1
            if group and rows > GROUP_STATEMENTS_MAX:
                return group, task
            group.append(task)
            try:
                task = self._queue.get_nowait()
            except queue.Empty:
                task = None
        return group, task

    def _carry_out(self, database: Database, group: Sequence[_Commit | _Query]) -> list[_Outcome]:
        commits = [task for task in group if isinstance(task, _Commit)]
        outcomes = self._write(database.conn, commits)
        for task in group:
            if isinstance(task, _Query):
                outcomes.append(self._query(database, task))
        return outcomes

    def _write(self, connection: sqlite3.Connection, commits: Sequence[_Commit]) -> list[_Outcome]:
        if not commits:
            return []
        if self._fault is not None:
            return [(commit.done, None, self._fault) for commit in commits]
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [
                (commit.done, None, _apply(connection, commit.statements)) for commit in commits
            ]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            fault = self._note(_fault(error))
            return [(commit.done, None, fault) for commit in commits]
        return outcomes

    def _query(self, database: Database, task: _Query) -> _Outcome:
        if self._fault is not None:
            return task.done, None, self._fault
        try:
            database.conn.execute("PRAGMA query_only=ON")
            result = task.query(database)
            assert not isinstance(result, Generator), "a query returns values, not a generator"
        except sqlite3.Error as error:
            return task.done, None, self._note(_fault(error))
        except Exception as error:  # noqa: BLE001 - carried to whoever awaits `read`
            return task.done, None, error
        else:
            return task.done, result, None
        finally:
            if database.conn.in_transaction:
                database.conn.execute("ROLLBACK")
            database.conn.execute("PRAGMA query_only=OFF")

    def _note(self, fault: StoreFault) -> StoreFault:
        if fault.is_fatal:
            self._fault = fault
        return fault

    def _tell(self, outcomes: Sequence[_Outcome]) -> None:
        """Wake everybody who waits for these outcomes, with one hop into the loop."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, outcomes)

    def _settle(self, outcomes: Sequence[_Outcome]) -> None:
        self._waiting -= len(outcomes)
        for done, result, error in outcomes:
            if done.done():  # the caller was cancelled
                continue
            if error is None:
                done.set_result(result)
            else:
                done.set_exception(error)


def _statement(write: Write) -> Statement:
    table = TABLES.get(write.table)
    assert table is not None, f"there is no table {write.table}"
    match write:
        case Put():
            return table.insert, table.values(write.row)
        case Delete():
            return table.delete, table.key_values(write.key)


def _apply(connection: sqlite3.Connection, statements: Sequence[Statement]) -> BaseException | None:
    """Carry out one commit of a group; a row that SQLite refuses undoes this commit alone."""
    connection.execute("SAVEPOINT one")
    try:
        for sql, values in statements:
            connection.execute(sql, values)
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.InterfaceError) as error:
        connection.execute("ROLLBACK TO one")
        return AssertionError(f"a row does not fit its table: {error}")
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE one")
    return None


def _fault(error: BaseException) -> StoreFault:
    """What a failed statement means for whoever waits."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if name in _FATAL:
        return StoreFault(
            "the disk lost or damaged the database",
            why=f"{name}: {error}",
            mend="the agent stops; it examines the file when it starts again. Check the disk",
            is_fatal=True,
        )
    if name == "SQLITE_FULL":
        return StoreFault("the disk is full", why=str(error), mend="free space on the state_dir")
    return StoreFault(
        "the database could not be used", why=f"{name}: {error}", mend="check the disk of state_dir"
    )


def _clear(error: BaseException) -> BaseException:
    if isinstance(error, AtollError):
        return error
    if isinstance(error, (sqlite3.Error, OSError)):
        return _fault(error)
    return error


def _closing(database: Database) -> StoreFault | None:
    try:
        database.close()
    except sqlite3.Error as error:
        return _fault(error)
    return None
