"""Trying lost members for ever: no partition is final.

One dead or departed member is tried every few seconds, each with its own capped back-off. As soon
as one comes back the pace rises for a short time: whoever was lost with it is likely back too, so
a healed cut spreads through both halves like a rumor.
"""

from collections.abc import Callable

from agent.foundation.machine import NEVER
from agent.foundation.randomness import Rng
from agent.membership.member import Peer
from agent.membership.roster import Roster
from agent.membership.settings import Settings


class Recovery:
    """Chooses which lost member to try, and when."""

    def __init__(
        self,
        roster: Roster,
        settings: Settings,
        rng: Rng,
        attempt: Callable[[Peer, bool, float], None],
    ) -> None:
        """``attempt(peer, with_sync, now)`` pings it and, if asked, tries a state sync."""
        self._roster, self._settings, self._rng, self._attempt = roster, settings, rng, attempt
        self._next_at = NEVER
        self._fast_until = 0.0

    @property
    def wake_at(self) -> float:
        """When ``run`` wants to be called."""
        return self._next_at

    def lost(self, now: float) -> None:
        """A member died or left: see to it that somebody tries it."""
        if self._next_at == NEVER:
            self._next_at = now + self._interval_s(now)

    def came_back(self, now: float) -> bool:
        """A lost member is back: hurry. True if another one came back shortly before."""
        was_fast = now < self._fast_until
        self._fast_until = now + self._settings.recovery_fast_for_s
        self._next_at = min(self._next_at, now + self._interval_s(now))
        return was_fast

    def run(self, now: float, *, is_isolated: bool) -> None:
        """Try one lost member if it is time."""
        if self._next_at > now:
            return
        lost = self._roster.lost()
        if not lost:
            self._next_at = NEVER
            return
        self._next_at = now + min(self._interval_s(now), 1.0 if is_isolated else NEVER)
        if now < self._fast_until:
            dead = [peer for peer in lost if peer.state == "dead"]
            if dead:
                self._attempt(self._rng.choice(dead), False, now)
            return
        peer = min(lost, key=lambda lost_peer: lost_peer.retry_at)
        if peer.retry_at <= now or is_isolated:
            settings = self._settings
            cap_s = settings.retry_cap_s(self._roster.sites)
            if peer.state == "left":
                cap_s = settings.retry_left_cap_s
            peer.retry_delay_s = min(cap_s, max(1.0, 2 * peer.retry_delay_s))
            peer.retry_at = now + peer.retry_delay_s * self._rng.uniform(0.75, 1.0)
            self._attempt(peer, True, now)

    def _interval_s(self, now: float) -> float:
        fast = now < self._fast_until
        mean_s = self._settings.recovery_fast_s if fast else self._settings.recovery_interval_s
        return mean_s * self._rng.uniform(0.75, 1.25)
