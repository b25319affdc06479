"""Which sites hold the replicas of a deployment: the same choice at every site, with nobody to ask.

Rule: of the sites that match, those with the highest scores hold it (rendezvous hashing, Thaler and
Ravishankar 1998; weighted by capacity as in Schindelhauer and Schomaker 2005), edge sites before
regional before core. A site that goes costs only the replicas it held; one that comes takes at most
the replicas it is now first for. Sites whose views differ for a while choose differently for a while:
there may be more holders than wanted, or fewer than that by those who are gone.

Who is alive decides who serves, never who may: residency is judged before (``catalog/placement.py``).
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from agent.foundation.ids import SiteId

TIERS = ("edge", "regional", "core")
"""Nearest to who asks first; the others take what the edge cannot hold."""
LINGER_S = 60.0
"""A site that is no longer chosen goes on for so long: one that flutters does not make others load and
unload with it."""
SCORES_REMEMBERED_MAX = 65_536
"""A thousand sites with sixty deployments; a hash costs a microsecond."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A site that matches a deployment."""

    site: SiteId
    tier: str
    capacity: float
    """Relative strength; 0 takes no part."""


def holders(model: str, replicas: int, candidates: Iterable[Candidate]) -> list[SiteId]:
    """The sites that should serve, best first; fewer than ``replicas`` if there are no more.

    Args:
        model: its name; a new version stays where the former is.
        replicas: how many.
        candidates: each site once, in any order.
    """
    ranked = sorted(
        (_tier(one.tier), -_score(one.site, model, one.capacity), one.site)
        for one in candidates
        if one.capacity > 0
    )
    return [site for _, _, site in ranked[:replicas]]


def _tier(name: str) -> int:
    return TIERS.index(name) if name in TIERS else len(TIERS)


@lru_cache(SCORES_REMEMBERED_MAX)
def _score(site: SiteId, model: str, capacity: float) -> float:
    digest = hashlib.sha256(b"atoll replica\0" + site + model.encode()).digest()
    point = (int.from_bytes(digest[:8], "big") + 0.5) / 2**64  # in (0, 1)
    return -capacity / math.log(point)


class Lingering:
    """Models that are served on for a while where they are not wanted any more."""

    def __init__(self) -> None:
        self._since: dict[bytes, float] = {}

    def update(
        self, outside: Collection[bytes], missing: Mapping[bytes, Collection[SiteId]], now: float
    ) -> set[bytes]:
        """Which of ``outside`` to keep.

        Args:
            outside: keys of models that are ready here, though others are chosen for them.
            missing: for each of them the chosen sites that do not serve it yet: nobody leaves before
                those who follow are there.
            now: monotonic seconds.
        """
        self._since = {key: self._since.get(key, now) for key in outside}
        return {
            key for key, since in self._since.items() if missing.get(key) or now < since + LINGER_S
        }

    def wake_at(self) -> float:
        """When the first has lingered long enough; also in the past while its followers are missing."""
        return min(self._since.values(), default=math.inf) + LINGER_S
