"""When this site tries to become the aggregator.

Claims are ordered by rendezvous hashing and staggered, so that normally one site proposes; nothing breaks
when several do. The committee comes first (its sites are the steadiest, and hold the parameters), then
everyone else. Epochs in which nothing was achieved make the next claim wait longer, so that a fault that
every aggregator meets (a full disk everywhere) does not turn into a storm of claims.
"""

from collections.abc import Callable

from agent.election.order import Candidate, claim_order, stagger_s
from agent.federation.desk import Desk, Surroundings
from agent.federation.register import Outcome, Register
from agent.federation.value import JobValue, claim
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job

CLAIM_RTT_S = 0.1
"""Stagger between claim ranks where no round-trip time is known: two round trips of a WAN."""
BARREN_PAUSE_S = 1.0
BARREN_PAUSE_MAX_S = 60.0


class Claims:
    """One site's claims of one job."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        register: Register,
        settled: Callable[[Outcome, float], None],
    ) -> None:
        """``settled`` takes what came of a claim."""
        self._job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._register, self._settled = register, settled
        self._at = NEVER
        self.is_under_way = False
        self._barren = 0

    def consider(self, value: JobValue | None, now: float, *, has_resigned: bool = False) -> None:
        """Schedule a claim by this site's rank among the living, unless one is scheduled."""
        if self._at != NEVER or self.is_under_way:
            return
        if not self._surroundings.can_aggregate():
            return
        if not self._surroundings.may_hold(self._job, self._me):
            return
        pause_s = 0.0
        if has_resigned:
            pause_s = min(BARREN_PAUSE_S * 2 ** min(self._barren, 10), BARREN_PAUSE_MAX_S)
        self._at = now + pause_s + stagger_s(self._rank(value), CLAIM_RTT_S)

    def moved(self, before: JobValue | None, value: JobValue) -> None:
        """The register has moved, so somebody aggregates: withdraw what was scheduled."""
        self._at = NEVER
        has_progressed = before is None or before.achieved != value.achieved
        self._barren = 0 if has_progressed else self._barren + 1

    def stop(self) -> None:
        """The job is over."""
        self._at = NEVER

    def woke(self, value: JobValue | None, now: float) -> None:
        """Claim when due."""
        if now < self._at:
            return
        self._at, self.is_under_way = NEVER, True
        expected = value.epoch if value is not None else 0

        def settled(outcome: Outcome, at: float) -> None:
            self.is_under_way = False
            self._settled(outcome, at)

        change = claim(self._job, self._me, expected, self._desk.operation())
        self._register.change(change, now, settled)

    def wake_at(self) -> float:
        """When the claim is due."""
        return self._at

    def _rank(self, value: JobValue | None) -> int:
        gone = value.aggregator if value is not None and value.aggregator != self._me else None
        alive = {s: weight for s, weight in self._surroundings.alive().items() if s != gone}
        alive.setdefault(self._me, 1.0)
        epoch = value.epoch + 1 if value is not None else 1
        order = claim_order(self._job.id, epoch, [Candidate(s, w) for s, w in alive.items()])
        committee = set(self._register.members)
        return sorted(order, key=lambda site: site not in committee).index(self._me)
