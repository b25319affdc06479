"""When to run a state sync (anti-entropy), with whom and why.

Sync repairs what gossip missed. It happens once at start (as often as it takes), periodically with
a random member, and for a reason: an unknown member, a catalog that differs, a member that answers
only over TCP. Bounded: few at once, one target not too often, own jitter for each reason.
"""

from collections.abc import Callable
from dataclasses import dataclass

from agent.foundation.ids import SiteId
from agent.foundation.randomness import Rng
from agent.membership.settings import Settings


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

    def ended(self, site: SiteId, *, succeeded: bool) -> None:
        """A sync is over."""
        if (target := self._targets.get(site)) is not None:
            target.is_open = False
        self.has_joined |= succeeded

    def _open(self, now: float) -> int:
        """Count open syncs and forget what no longer matters."""
        timeout_s = self._settings.sync_timeout_s
        self._targets = {
            site: target
            for site, target in self._targets.items()
            if now - target.started_at < timeout_s
        }
        return sum(target.is_open for target in self._targets.values())

    # --- join and periodic -----------------------------------------------------------------------
    @property
    def wake_at(self) -> float:
        """When ``run`` wants to be called."""
        return min(
            self._periodic_at, float("inf") if self._catalog_at is None else self._catalog_at
        )

    def hasten(self, now: float) -> None:
        """Members became known before the first sync: do not wait."""
        if not self.has_joined:
            self._periodic_at = min(self._periodic_at, now)

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
        if reachable:
            reason = "periodic" if self.has_joined else "join"
            self.want(self._rng.choice(reachable), reason, now, spacing_s=1.0)

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
        if sites and self.want(self._rng.choice(sites), "catalog differs", now, spacing_s=0.5):
            self._catalog_free_at = now + self._catalog_delay_s * self._rng.uniform(0.5, 1.0)
            self._catalog_delay_s = min(
                self._catalog_delay_s * 2, self._settings.catalog_backoff_max_s
            )
