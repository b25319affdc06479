"""How long a round waits for the sites that have not delivered yet.

The sites that have delivered tell how long this round takes: the deadline is their median, plus a few times
their spread (median absolute deviation, which no straggler can stretch), plus slack. A site that is known to
be slow is waited for by its own measure, so that a small board among servers is counted each time. One that
was too late once is given one longer chance; one that is stuck is not waited for again.

Every duration is counted from the opening of the round, in seconds.
"""

from collections.abc import Collection, Iterable, Sequence
from math import inf
from statistics import median

from agent.foundation.ids import SiteId

SPREADS = 6.0
"""Four standard deviations, were arrivals normal: who comes later has met something else."""
SPREAD_LEAST = 1.0
"""Of the median: two sites that come together say little of the third."""
SLACK_S = 2.0
"""One offer that was lost and is repeated, and the transfer of an update."""
OWN_FACTOR = 1.5
"""Of the time that the site itself took for an earlier round."""


def patience_s(arrived_s: Sequence[float], own_s: Iterable[float] = ()) -> float:
    """When to go on without the others.

    Args:
        arrived_s: when each update of this round arrived.
        own_s: how long those still open took for an earlier round, where that is known.

    Returns:
        Seconds; infinity if nothing is known that could tell (so far only late updates have come).
    """
    own = [OWN_FACTOR * one + SLACK_S for one in own_s]
    if not arrived_s:
        return max(own, default=inf)
    middle = median(arrived_s)
    spread = median(abs(one - middle) for one in arrived_s)
    common_s = middle + max(SPREADS * spread, SPREAD_LEAST * middle) + SLACK_S
    return max([common_s, *own])


class Paces:
    """What each site took for its rounds so far, as one aggregator has seen it."""

    def __init__(self) -> None:
        self._took_s: dict[SiteId, float] = {}
        self._missed: dict[SiteId, int] = {}

    def arrived(self, site: SiteId, after_s: float) -> None:
        """Its update came in time."""
        self._took_s[site] = after_s
        self._missed.pop(site, None)

    def closed(self, late: Iterable[SiteId], after_s: float) -> None:
        """The round goes on without ``late``."""
        for site in late:
            self._missed[site] = self._missed.get(site, 0) + 1
            if self._missed[site] == 1:
                self._took_s[site] = max(after_s, self._took_s.get(site, 0.0))
            else:
                self._took_s.pop(site, None)

    def of(self, sites: Collection[SiteId]) -> list[float]:
        """How long those of ``sites`` may take of whom it is known."""
        return [self._took_s[site] for site in sites if site in self._took_s]
