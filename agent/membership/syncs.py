"""When to run a state sync (anti-entropy), with whom and why.

Sync repairs what gossip missed. It happens once at start (as often as it takes), periodically with
a random member, and for a reason: an unknown member, a catalog that differs, a member that answers
only over TCP. Bounded: few at once, one target not too often, own jitter for each reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.foundation.randomness import Rng
from agent.membership.events import CATALOG_DIFFERS
from agent.membership.settings import Settings

PARTNERS_MAX = 3
"""Members tried for one periodic sync: one may be in a sync with us already."""
REPEAT_S = (1.0, 2.0)
"""After a periodic sync that failed; each costs its partner's timeout first, so this is no loop."""
REPAIR_JOIN_S = (0.8, 2.5)
"""When the first periodic sync follows the join: it finds whoever joined at the same time and was missed."""
JOIN_AFTER_MEETING_S = (0.3, 0.6)
"""When a site that others have greeted joins by a sync of its own, unless one of its greetings ends first."""
LOOK_UP_AFTER_S = (0.0, 0.02)
"""After word of an unknown member: when several join at once, one sync then brings them all."""
LOOK_UP_SPACING_S = 0.1
"""Least time between two such syncs, whoever speaks of unknown members: each is a TLS handshake."""

CATALOG_TARGET_SPACING_S = 0.5
"""Least time between two syncs with one member when catalogs differ."""


@dataclass(slots=True)
class _Target:
    started_at: float
    is_open: bool


class SyncPlan:
    """Bookkeeping of syncs asked for."""

    def __init__(
        self, settings: Settings, rng: Rng, ask: Callable[[SiteId, str], None], now: float
    ) -> None:
        """``ask(site, reason)`` emits the effect."""
        self._settings, self._rng, self._ask = settings, rng, ask
        self._targets: dict[SiteId, _Target] = {}
        self.has_joined = False
        """Whether one sync has succeeded in this life."""
        self._periodic_at = now
        self._is_brought_forward = False
        self._look_up_at, self._look_up_free_at = NEVER, now
        self._look_up_with: SiteId | None = None
        self._periodic_with: SiteId | None = None
        self._catalog_with: SiteId | None = None
        self._catalog_at: float | None = None
        self._catalog_delay_s = settings.catalog_spacing_s
        self._catalog_free_at = now

    def try_silent(self, site: SiteId, reason: str, now: float) -> bool:
        """Ask for a sync with a member that may well not answer: half of the open syncs at most."""
        return self._open(now) < self._settings.syncs_max // 2 and self.want(site, reason, now)

    def want(self, site: SiteId, reason: str, now: float, spacing_s: float | None = None) -> bool:
        """Ask for a sync now unless too many are open or this target had one lately."""
        if self._open(now) >= self._settings.syncs_max:
            return False
        spacing = self._settings.sync_spacing_s if spacing_s is None else spacing_s
        target = self._targets.get(site)
        if target is not None and (target.is_open or now - target.started_at < spacing):
            return False
        self._targets[site] = _Target(now, is_open=True)
        self._ask(site, reason)
        return True

    def ended(self, site: SiteId, *, succeeded: bool, now: float) -> None:
        """A sync is over; the first that succeeds is the join."""
        if (target := self._targets.get(site)) is not None:
            target.is_open = False
        if site == self._catalog_with:
            self._catalog_with = None
            if not succeeded and self._catalog_at is None:
                self._catalog_at = max(now, self._catalog_free_at)
        if site == self._periodic_with:
            self._periodic_with = None
            if not succeeded and self.has_joined:
                # Somebody else, and soon: who misses a sync misses what rumors left out.
                self._periodic_at = min(self._periodic_at, now + self._rng.uniform(*REPEAT_S))
        if succeeded and not self.has_joined:
            self.has_joined = True
            self._periodic_at = now + self._rng.uniform(*REPAIR_JOIN_S)

    def _open(self, now: float) -> int:
        """Count open syncs and forget what no longer matters."""
        timeout_s = self._settings.sync_timeout_s
        self._targets = {
            site: target
            for site, target in self._targets.items()
            if now - target.started_at < timeout_s
        }
        return sum(target.is_open for target in self._targets.values())

    # --- join ------------------------------------------------------------------------------------
    @property
    def wake_at(self) -> float:
        """When one of the ``run_``s wants to be called."""
        catalog_at = NEVER if self._catalog_at is None else self._catalog_at
        return min(self._periodic_at, self._look_up_at, catalog_at)

    def hasten(self, now: float) -> None:
        """Members became known before the first sync: do not wait."""
        if not self.has_joined:
            self._periodic_at = min(self._periodic_at, now)

    def met(self, now: float) -> None:
        """Members became known by a sync with another: if that is not our join, join soon.

        Often it is: the answer to a greeting introduces members, and its end is told a moment later. A
        site that is greeted by many must not call each of them back.
        """
        if not self.has_joined and self._periodic_at <= now:
            self._periodic_at = now + self._rng.uniform(*JOIN_AFTER_MEETING_S)

    # --- unknown members -------------------------------------------------------------------------
    def look_up(self, sender: SiteId, now: float) -> None:
        """``sender`` speaks of somebody who is unknown here: have a sync with it soon."""
        self._look_up_with = sender
        if self._look_up_at == NEVER:
            after_s = self._rng.uniform(*LOOK_UP_AFTER_S)
            self._look_up_at = max(now + after_s, self._look_up_free_at)

    def run_look_up(self, now: float) -> None:
        """Ask whoever spoke last, if that is due; what is still unknown then comes up again."""
        if self._look_up_at > now:
            return
        self._look_up_at, self._look_up_free_at = NEVER, now + LOOK_UP_SPACING_S
        assert self._look_up_with is not None, "due because somebody spoke"
        self.want(self._look_up_with, "unknown member", now, spacing_s=LOOK_UP_SPACING_S)

    # --- periodic --------------------------------------------------------------------------------
    def bring_forward(self, now: float) -> None:
        """Have the next periodic sync soon, at most once each period."""
        if not self._is_brought_forward:
            self._is_brought_forward = True
            self._periodic_at = min(self._periodic_at, now + self._rng.uniform(2.0, 4.0))

    def run_periodic(self, reachable: tuple[SiteId, ...], sites: int, now: float) -> None:
        """Start the periodic sync if it is due; before the first success, one a second."""
        if self._periodic_at > now:
            return
        self._is_brought_forward = False
        period_s = self._settings.sync_period_s(sites) if self.has_joined else 1.0
        self._periodic_at = now + period_s * self._rng.uniform(0.8, 1.2)
        reason = "periodic" if self.has_joined else "join"
        for site in self._rng.sample(reachable, min(PARTNERS_MAX, len(reachable))):
            if self.want(site, reason, now, spacing_s=1.0):
                self._periodic_with = site
                break

    # --- catalog ---------------------------------------------------------------------------------
    def catalog_differs(self, sites: int, now: float) -> None:
        """Plan a catalog sync, spread over time by cluster size."""
        if self._catalog_at is None:
            spread_s = 0.02 + sites * self._settings.catalog_jitter_s
            self._catalog_at = max(self._catalog_free_at, now + self._rng.uniform(0, spread_s))

    def catalog_changed(self) -> None:
        """Our catalog moved: syncing helps, so do not slow down."""
        self._catalog_delay_s = self._settings.catalog_spacing_s

    def run_catalog(self, candidates: Callable[[], list[SiteId]], now: float) -> None:
        """Start the planned catalog sync if it is due and somebody still differs."""
        if self._catalog_at is None or self._catalog_at > now:
            return
        self._catalog_at = None
        sites = candidates()
        if not sites:
            return
        site = self._rng.choice(sites)
        if not self.want(site, CATALOG_DIFFERS, now, spacing_s=CATALOG_TARGET_SPACING_S):
            # What is under way may have begun before the news: nobody would speak of it again.
            self._catalog_at = now + CATALOG_TARGET_SPACING_S
            return
        self._catalog_with = site
        self._catalog_free_at = now + self._catalog_delay_s * self._rng.uniform(0.5, 1.0)
        self._catalog_delay_s = min(self._catalog_delay_s * 2, self._settings.catalog_backoff_max_s)
