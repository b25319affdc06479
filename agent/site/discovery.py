"""Where members may be: every hint from every mechanism, tried with capped back-off, for ever.

A hint is an address, never a membership: a greeting over TLS decides who is there. mDNS hints can
be forged by anyone on the LAN, so they are few (``HINTS_MAX``) and the least useful one gives way.
"""

from collections.abc import Collection
from dataclasses import dataclass
from random import Random

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.wire.records import Endpoint

HINTS_MAX = 64
"""A flood of false announcements cannot push out what the operator configured (seeds, token)."""
RETRY_MIN_S, RETRY_MAX_S = 0.5, 30.0
MET = "a living member"
CONFIGURED = frozenset({"seed", "token", "book"})


@dataclass(slots=True)
class Hint:
    """One address and what came of it; times in seconds of the site's clock."""

    endpoint: Endpoint
    mechanism: str
    site: SiteId | None = None
    failures: int = 0
    next_at: float = 0.0
    last_at: float | None = None
    outcome: str = "not tried yet"
    is_under_way: bool = False


class Discovery:
    """Candidates to greet."""

    def __init__(self, rng: Random) -> None:
        """``rng`` spreads retries."""
        self._rng = rng
        self._hints: dict[tuple[str, int], Hint] = {}

    @property
    def hints(self) -> list[Hint]:
        """All candidates, for ``atoll peers --why``."""
        return list(self._hints.values())

    def learn(self, endpoint: Endpoint, mechanism: str, site: SiteId | None, now: float) -> None:
        """Take a hint; a repeated one is tried again soon if it says something new."""
        key = (endpoint.host, endpoint.mesh_port)
        known = self._hints.get(key)
        if known is not None:
            if site is not None and known.site != site:
                known.site, known.failures, known.next_at = site, 0, now
            return
        if len(self._hints) >= HINTS_MAX and not self._make_room(mechanism):
            return
        self._hints[key] = Hint(endpoint, mechanism, site, next_at=now)

    def _make_room(self, mechanism: str) -> bool:
        loose = [key for key, hint in self._hints.items() if hint.mechanism not in CONFIGURED]
        if not loose:
            return False
        worst = max(loose, key=lambda key: self._hints[key].failures)
        if mechanism not in CONFIGURED and self._hints[worst].failures == 0:
            return False
        del self._hints[worst]
        return True

    def due(
        self, now: float, met: set[tuple[str, int]], alive: Collection[SiteId] = ()
    ) -> list[Hint]:
        """Candidates to greet now.

        Args:
            now: the site's clock, seconds.
            met: addresses of members that are alive already, and this site's own.
            alive: those members and this site itself: a hint may be a host name, which is no
                member's address; who is behind it is known from the last greeting.
        """
        ready = []
        for key, hint in self._hints.items():
            if key in met or (hint.site in alive and hint.outcome in ("answered", MET)):
                hint.outcome, hint.failures = MET, 0
                hint.next_at = now + RETRY_MAX_S
            elif not hint.is_under_way and now >= hint.next_at:
                hint.is_under_way, hint.last_at = True, now
                ready.append(hint)
        return ready

    def ended(self, endpoint: Endpoint, error: str, site: SiteId | None, now: float) -> None:
        """A greeting ended; ``error`` empty: ``site`` answered."""
        hint = self._hints.get((endpoint.host, endpoint.mesh_port))
        if hint is None:
            return
        hint.is_under_way = False
        hint.failures = hint.failures + 1 if error else 0
        hint.outcome = error or "answered"
        if site is not None:
            hint.site = site
        wait_s = min(RETRY_MIN_S * 2.0 ** min(hint.failures, 10), RETRY_MAX_S)
        hint.next_at = now + (wait_s if error else RETRY_MAX_S) * self._rng.uniform(0.7, 1.0)

    def wake_at(self) -> float:
        """When the next candidate is due."""
        return min((h.next_at for h in self._hints.values() if not h.is_under_way), default=NEVER)
