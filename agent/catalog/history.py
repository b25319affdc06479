"""What documents said before: kept at each site as it saw it, for looking back and for going back.

Not replicated and not needed by anybody else: a rollback is a new document with old content.
"""

from collections.abc import Iterable

from agent.catalog.catalog import Entry
from agent.foundation.writes import Put
from agent.wire.documents import Key, Stamp, key_of
from agent.wire.schema import pack

TABLE = "former_documents"
FORMER_MAX = 10
"""Of one document: with 10,000 of 300 bytes that is 30 MB at most."""


class History:
    """Which former documents the database holds; the bytes stay there."""

    def __init__(self, stored: Iterable[tuple[Key, int, Stamp]] = ()) -> None:
        """``stored``: key, slot and stamp of each row."""
        self._slots: dict[Key, dict[int, Stamp]] = {}
        for key, slot, stamp in stored:
            self._slots.setdefault(key, {})[slot] = stamp

    def note(self, former: Entry) -> Put:
        """The row that keeps a document which is about to be replaced, in place of the oldest."""
        key, stamp = key_of(former.body), former.document.stamp
        slots = self._slots.setdefault(key, {})
        slot = len(slots) if len(slots) < FORMER_MAX else min(slots, key=lambda one: slots[one])
        slots[slot] = stamp
        return Put(
            TABLE,
            {
                "kind": key.kind, "name": key.name, "slot": slot,
                "wall_ms": stamp.wall_ms, "count": stamp.count, "document": pack(former.document),
            },
        )  # fmt: skip
