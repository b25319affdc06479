"""The audit chain on disk: many decisions at once, one order, nothing carried out that is not written.

Entries are chained in the order in which they are committed, so only one commit of the chain is under
way; what arrives meanwhile is chained and committed together (group commit once more). A commit that
fails takes the chain back to what is on disk, and every decision in it is refused.

How a decision ended is noted afterwards. Nobody waits for that, so it goes with the next commit, or
with one of its own a moment later: a commit for each would hold up the decisions that come meanwhile.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import partial
from typing import Final

from agent.audit.chain import AuditChain, Decision, Head, Verifier, head_of
from agent.drivers.sqlite_library import Database
from agent.drivers.store import Store
from agent.foundation.errors import Busy
from agent.foundation.ids import SiteId
from agent.foundation.notary import Notary
from agent.foundation.writes import Scalar, Write

WAITING_MAX: Final = 2048
"""Decisions that may wait for the disk: a fifth of a second at the slowest rate measured."""

NOTES_MAX: Final = 1024
"""So many are written at once, whoever waits."""
NOTE_DELAY_S: Final = 1.0
"""What a power cut may cost of them: the decisions themselves are on disk."""

_LAST: Final = "SELECT sequence, entry, hash FROM audit ORDER BY sequence DESC LIMIT 1"
_PAGE: Final = (
    "SELECT sequence, entry, hash FROM audit WHERE sequence > ? ORDER BY sequence LIMIT ?"
)
PAGE_ROWS: Final = 1000
"""About 10 ms of the store's thread."""

_log = logging.getLogger(__name__)

_Waiting = tuple[Decision, int, "asyncio.Future[Head] | None"]


class AuditLog:
    """This site's audit chain. Make one with ``await AuditLog.open(...)``."""

    def __init__(self, store: Store, site: SiteId, notary: Notary, head: Head) -> None:
        """Not for callers: use ``open``."""
        self._store = store
        self._site = site
        self._notary = notary
        self._chain = AuditChain(notary=notary, head=head)
        self._waiting: list[_Waiting] = []
        self._notes: list[_Waiting] = []
        self._note_timer: asyncio.TimerHandle | None = None
        self._writer: asyncio.Task[None] | None = None
        self._durable = head

    @classmethod
    async def open(cls, store: Store, *, site: SiteId, notary: Notary) -> "AuditLog":
        """Continue the chain that the store holds.

        Raises:
            Corruption: its last entry is damaged.
            StoreFault: the store cannot be read.
        """
        last = await store.read(_last)
        return cls(store, site, notary, head_of(last))

    @property
    def head(self) -> Head:
        """The last durable entry: worth telling others."""
        return self._durable

    async def write(self, decision: Decision, at_ms: int) -> Head:
        """Make the decision's entry durable; only then may it be carried out.

        Args:
            decision: what is about to leave.
            at_ms: Unix time, milliseconds.

        Raises:
            Busy: ``WAITING_MAX`` decisions wait.
            StoreFault: it could not be written, so it must not be carried out.
        """
        if len(self._waiting) >= WAITING_MAX:
            raise Busy(
                "the audit log is overloaded", why=f"{WAITING_MAX} entries wait for the disk"
            )
        done: asyncio.Future[Head] = asyncio.get_running_loop().create_future()
        self._waiting.append((decision, at_ms, done))
        self._start()
        return await done

    def note(self, outcome: Decision, at_ms: int) -> None:
        """Chain how a decision ended, soon; lost where the disk fails, which is logged."""
        self._notes.append((outcome, at_ms, None))
        if len(self._notes) >= NOTES_MAX:
            self._start()
        elif self._note_timer is None:
            loop = asyncio.get_running_loop()
            self._note_timer = loop.call_later(NOTE_DELAY_S, self._start)

    def _start(self) -> None:
        if self._note_timer is not None:
            self._note_timer.cancel()
            self._note_timer = None
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all(), name="audit-log")

    async def findings(self, *known: Head) -> list[str]:
        """Verify the whole chain, and that it still contains ``known``; empty if it is sound."""
        return (await self.verified(known)).findings()

    async def verified(self, known: Iterable[Head]) -> Verifier:
        """As ``findings``, with what else is known of the chain afterwards."""
        verifier = Verifier(site=self._site, notary=self._notary, heads=known)
        async for rows in self.pages():
            await asyncio.to_thread(_add_all, verifier, rows)
            if verifier.is_hopeless:
                break
        return verifier

    async def pages(self, after: int = -1) -> AsyncIterator[list[Mapping[str, Scalar]]]:
        """Rows behind entry ``after``, ``PAGE_ROWS`` at a time, so that commits go on meanwhile."""
        while rows := await self._store.read(partial(_page, after=after)):
            columns = ("sequence", "entry", "hash")
            yield [dict(zip(columns, row, strict=True)) for row in rows]
            after = rows[-1][0]

    async def close(self) -> None:
        """Wait until everything is written."""
        if self._notes:
            self._start()
        if self._writer is not None:
            await self._writer

    async def _write_all(self) -> None:
        """Commit batch after batch until nobody waits."""
        try:
            while self._waiting or self._notes:
                batch = self._notes + self._waiting
                self._notes, self._waiting = [], []
                await self._write_batch(batch)
        finally:
            self._writer = None

    async def _write_batch(self, batch: list[_Waiting]) -> None:
        writes: list[Write] = []
        heads: list[Head] = []
        for decision, at_ms, _ in batch:
            rows, head = self._chain.append(decision, at_ms)
            writes.extend(rows)
            heads.append(head)
        try:
            await self._store.commit(writes)
        except BaseException as error:
            self._chain.rewind(self._durable)
            for outcome, _, done in batch:
                if done is None:
                    _log.error("not in the audit log: %s of %s: %s",
                               outcome.detail, outcome.subject, error)  # fmt: skip
                elif not done.done():
                    done.set_exception(error)
            if isinstance(error, Exception):
                return  # told to everybody whose decision it was
            raise
        self._durable = heads[-1]
        for (_, _, done), head in zip(batch, heads, strict=True):
            if done is not None and not done.done():
                done.set_result(head)


def _last(database: Database) -> Mapping[str, Scalar] | None:
    return next(iter(list(database.query(_LAST))), None)


def _page(database: Database, *, after: int) -> list[tuple[int, bytes, bytes]]:
    return list(database.execute(_PAGE, [after, PAGE_ROWS]).fetchall())


def _add_all(verifier: Verifier, rows: list[Mapping[str, Scalar]]) -> None:
    for row in rows:
        verifier.add(row)
