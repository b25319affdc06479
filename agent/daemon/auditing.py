"""Writes the audit entry of everything that leaves the site, before it leaves."""

import asyncio

from agent.audit.chain import AuditChain, Decision, head_of
from agent.drivers.clock import wall_s
from agent.drivers.store import Store
from agent.foundation.errors import AtollError
from agent.foundation.notary import Notary
from agent.wire.inside import AuditForward

LAST = "SELECT sequence, entry, hash FROM audit ORDER BY sequence DESC LIMIT 1"


class Auditing:
    """This site's audit chain and the database it lives in."""

    def __init__(self, chain: AuditChain, store: Store) -> None:
        """Use ``open``."""
        self._chain, self._store = chain, store
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, store: Store, notary: Notary) -> "Auditing":
        """Continue the chain where the database ends.

        Raises:
            Corruption: the last entry is damaged.
        """
        rows = await store.read(lambda database: list(database.query(LAST)))
        return cls(AuditChain(notary=notary, head=head_of(rows[0] if rows else None)), store)

    async def forwarded(self, message: AuditForward) -> str:
        """An error text; empty when the entry of this request is on disk."""
        decision = Decision(
            "forward", message.request[:200], message.receiver, message.label, message.bytes,
            message.model[:200],
        )  # fmt: skip
        # One at a time, so that a failed commit rewinds only itself; commits of other parts of the
        # site share the disk's flush all the same.
        async with self._lock:
            before = self._chain.head
            writes, _ = self._chain.append(decision, int(wall_s() * 1000))
            try:
                await self._store.commit(writes)
            except AtollError as fault:
                self._chain.rewind(before)
                return f"the audit entry cannot be written: {fault}"
        return ""
