"""What the site owes its disk: rows and small blobs that a full or read-only disk has refused so far.

The machine's memory is ahead of the disk until they are written, so no promise (a vote, an offer, an
answer to the operator) may leave before; each is refused meanwhile and its sender tries again.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from agent.drivers.store_schema import TABLES
from agent.federation.events import StoreBytes
from agent.foundation.ids import Digest
from agent.foundation.writes import Delete, Put, Scalar, Write
from agent.site.events import Answer, Ask, Persist, Resolved, SiteEffect
from agent.wire.mesh import HaveReply, Push, SyncReply, SyncRequest

Promise = Ask | Answer | Resolved


def is_promise(effect: SiteEffect) -> TypeGuard[Promise]:
    """Whether ``effect`` tells somebody something that must still be true after a crash.

    State sync and lists of blobs say only what is known now.
    """
    match effect:
        case Ask():
            return not isinstance(effect.message, (SyncRequest, Push))
        case Answer():
            return not isinstance(effect.reply, (SyncReply, HaveReply))
        case Resolved():
            return True
        case _:
            return False


@dataclass(frozen=True, slots=True)
class Paid:
    """What has become durable."""

    blobs: tuple[Digest, ...]
    tokens: tuple[int, ...]
    """Of the ``Persist`` effects."""


class Debt:
    """Owed writes, the last one for each row: bounded by the rows that the machine may hold."""

    def __init__(self) -> None:
        """Owes nothing."""
        self._rows: dict[tuple[str, tuple[Scalar, ...]], Write] = {}
        self._blobs: dict[Digest, bytes] = {}
        self._tokens: list[int] = []

    def __bool__(self) -> bool:
        """Whether anything is owed."""
        return bool(self._rows or self._blobs or self._tokens)

    def __len__(self) -> int:
        """Rows and blobs owed."""
        return len(self._rows) + len(self._blobs)

    def take(self, effects: Sequence[SiteEffect]) -> None:
        """Owe what ``effects`` want durable."""
        for effect in effects:
            if isinstance(effect, StoreBytes):
                self._blobs[effect.digest] = effect.data
            elif isinstance(effect, Persist):
                for write in effect.writes:
                    row = (write.table, _key(write))
                    self._rows.pop(row, None)  # the order is that of the last writes
                    self._rows[row] = write
                if effect.token is not None:
                    self._tokens.append(effect.token)

    async def pay(
        self,
        store: Callable[[Digest, bytes], Awaitable[None]],
        commit: Callable[[Sequence[Write]], Awaitable[None]],
    ) -> Paid:
        """Write everything that is owed; blobs before the rows that name them.

        Only one call may be under way, and nothing is taken meanwhile.

        Raises:
            AtollError: the disk refuses; all that is not written yet stays owed.
        """
        stored: list[Digest] = []
        for digest, data in self._blobs.items():
            await store(digest, data)
            stored.append(digest)
        if self._rows:
            await commit(list(self._rows.values()))
        paid = Paid(tuple(stored), tuple(self._tokens))
        self._rows, self._blobs, self._tokens = {}, {}, []
        return paid


def _key(write: Write) -> tuple[Scalar, ...]:
    match write:
        case Put():
            return tuple(write.row[column] for column in TABLES[write.table].key)
        case Delete():
            return write.key
