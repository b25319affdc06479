"""Bytes that may be given away each second, shared fairly among those who ask: a pure machine.

Start-time fair queueing over receivers (as ``agent.serving.fair``, with bytes for work and equal weights):
whoever has got least goes first, and who comes back after a rest begins with the others, so that rest
is not saved up. The line itself is a bucket of ``BURST_S``.
"""

from collections import deque
from collections.abc import Hashable
from math import inf
from typing import Generic, TypeVar

from agent.foundation.errors import Busy

BURST_S = 0.25
"""What an idle line may send at once: a few chunks, so that a small blob does not wait."""
WAIT_S_MAX = 10.0
"""Whoever would wait longer asks another site; less than the patience of a fetch (15 s)."""

Item = TypeVar("Item")


class Ration(Generic[Item]):
    """What waits to be sent; bounded by ``WAIT_S_MAX`` of the rate."""

    def __init__(self, bytes_per_s: float) -> None:
        """``bytes_per_s`` > 0."""
        self._rate = bytes_per_s
        self._free_at = -inf
        self._waiting: dict[Hashable, deque[tuple[int, Item]]] = {}
        """By receiver; none of them is empty."""
        self._bytes = 0
        self._tags: dict[Hashable, float] = {}
        """Bytes that each of those who wait has got, as if all had begun together."""
        self._now = 0.0

    def ask(self, receiver: Hashable, size: int, item: Item) -> None:
        """Let ``item`` of ``size`` bytes wait for its turn.

        Raises:
            Busy: it would have to wait too long.
        """
        if self._bytes > WAIT_S_MAX * self._rate:
            raise Busy(
                "more is asked for than this site may send", why="[serving] blob_bytes_per_s"
            )
        if receiver not in self._waiting:
            self._waiting[receiver] = deque()
            self._tags[receiver] = max(self._tags.get(receiver, 0.0), self._now)
        self._waiting[receiver].append((size, item))
        self._bytes += size

    def ready(self, now: float) -> list[Item]:
        """Those whose turn it is at monotonic time ``now`` (seconds)."""
        found: list[Item] = []
        self._free_at = max(self._free_at, now - BURST_S)
        while self._waiting and self._free_at <= now:
            receiver = min(self._waiting, key=self._tags.__getitem__)
            size, item = self._waiting[receiver].popleft()
            self._now = self._tags[receiver]
            self._tags[receiver] += size
            if not self._waiting[receiver]:
                del self._waiting[receiver]
            self._bytes -= size
            self._free_at += size / self._rate
            found.append(item)
        if not self._waiting:
            self._tags.clear()
            self._now = 0.0
        return found

    def wake_at(self) -> float:
        """When ``ready`` has the next one; never while nobody waits."""
        return self._free_at if self._waiting else inf
