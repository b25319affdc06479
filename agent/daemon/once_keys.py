"""Idempotency keys on disk: which requests were given to a model, whatever ends afterwards.

The gateway decides what a key means (``agent.gateway.once``); here it is only remembered, in the order in
which keys were claimed, because wall clocks jump.
"""

from agent.drivers.sqlite_library import Database
from agent.drivers.store import Store
from agent.foundation.writes import Delete, Put, Write
from agent.wire.limits import ONCE_KEYS_MAX

TABLE = "once_keys"
_ALL = "SELECT key, sequence FROM once_keys ORDER BY sequence"


class OnceKeys:
    """The keys of one site. Make one with ``await OnceKeys.open(...)``."""

    def __init__(self, store: Store, known: dict[bytes, int]) -> None:
        """Not for callers: use ``open``."""
        self._store = store
        self._known = known
        self._last = max(known.values(), default=0)

    @classmethod
    async def open(cls, store: Store) -> "OnceKeys":
        """With the keys that the store holds; ``StoreFault`` if it cannot be read."""
        return cls(store, dict(await store.read(_all)))

    async def claim(self, key: bytes) -> bool:
        """Return when ``key`` is on disk; False if it was claimed before.

        Raises:
            StoreFault: it could not be written, so nothing may be done in its name.
        """
        if key in self._known:
            return False
        self._last += 1
        self._known[key] = self._last
        writes: list[Write] = [Put(TABLE, {"key": key, "sequence": self._last})]
        while len(self._known) > ONCE_KEYS_MAX:
            oldest = next(iter(self._known))
            del self._known[oldest]
            writes.append(Delete(TABLE, (oldest,)))
        try:
            await self._store.commit(writes)
        except BaseException:
            self._known.pop(key, None)
            raise
        return True

    async def release(self, key: bytes) -> None:
        """Nothing was done in its name."""
        if self._known.pop(key, None) is not None:
            await self._store.commit([Delete(TABLE, (key,))])


def _all(database: Database) -> list[tuple[bytes, int]]:
    return list(database.execute(_ALL).fetchall())
