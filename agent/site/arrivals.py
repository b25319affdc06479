"""Newcomers that knock at the same time are answered together, so that one sync tells each of all.

When many sites are told of the same seed at once, answering each at once would tell the first of nobody
and the last of everybody; every gap then costs another TLS handshake between two newcomers. So the
answer to a site that was not known before waits until nobody else has knocked for ``QUIET_S``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER

Request = TypeVar("Request")

QUIET_S = 0.05
"""Several handshakes' time on a slow board; a single newcomer waits this long and does not notice."""
WAIT_MAX_S = 0.5
"""However many come, the first of them is answered by then."""
WAITING_MAX = 256
"""Their requests are kept (about 1 KB each, a newcomer knows nobody); one more ends the wait."""


@dataclass(slots=True)
class Arrivals(Generic[Request]):
    """Requests of newcomers that are not answered yet."""

    due_at: float = NEVER
    """When ``take`` wants to be called."""
    _latest_at: float = NEVER
    _waiting: list[tuple[int, SiteId, Request]] = field(default_factory=list)

    def add(self, call: int, site: SiteId, request: Request, now: float) -> None:
        """Somebody new asks."""
        if not self._waiting:
            self._latest_at = now + WAIT_MAX_S
        self._waiting.append((call, site, request))
        is_full = len(self._waiting) >= WAITING_MAX
        self.due_at = now if is_full else min(now + QUIET_S, self._latest_at)

    def take(self, now: float) -> Iterator[tuple[int, SiteId, Request]]:
        """Those to be answered now: all, or nobody yet."""
        if now < self.due_at:
            return iter(())
        taken, self._waiting = self._waiting, []
        self.due_at = NEVER
        return iter(taken)
