"""At the aggregator: have each part of a round's mean made by another site, then join them.

Rules:

- What is summed is what is counted. Every site is told the same list, which is fixed when the sharing begins. If
  one update of it cannot be had or counted, all ranges are given up, and a new list is made without it.
- Any site makes the same bytes of a range, so a range whose site is gone, refuses or is slow is simply asked of
  another, this one at last.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from agent.federation.desk import Desk, Surroundings
from agent.federation.events import FetchBlob
from agent.federation.summing import Summing
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job
from agent.wire.mesh import Offer, RangeNotSummed, RangeSummed, Reply, Summand, SumRange

SUM_TIMEOUT_S = 20.0
"""Whoever needs longer goes on; the next call joins that work."""
TURNS_MAX = 3
"""Times that each site is asked for one range; then something is wrong that no site can mend."""
TICK_S = 1.0
"""A call that took so much less than it may has not timed out but failed."""
NEXT_S = 0.01
PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Counted:
    """An update that is to be counted."""

    offer: Offer
    site: SiteId
    weight: int
    is_late: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """What came of it."""

    ranges: tuple[Digest, ...]
    """All parts of the mean, here, in their order; empty: it failed."""
    missing: frozenset[Digest] = frozenset()
    """Updates that could not be had just now."""
    spoiled: frozenset[Digest] = frozenset()
    """Updates that cannot be counted."""
    reason: str = ""
    is_ours: bool = True
    """This site's own work came to that, not what a helper says."""


@dataclass(slots=True)
class _Range:
    part: int
    site: SiteId | None = None
    asks: int = 0
    """Sites that were asked for it so far."""
    joins: int = 0
    began_at: float = 0.0
    """When this site was asked first."""
    asked_at: float = 0.0
    again_at: float = NEVER
    result: Digest | None = None
    state: Literal["open", "asked", "fetching", "here"] = "open"


class Sharing:
    """The ranges of one round's mean."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        summing: Summing,
        borrow: Callable[[Digest], None],
        ended: Callable[[Ended, float], None],
    ) -> None:
        """``summing``: this site's own; ``borrow`` keeps a range until the round is over here.

        ``ended`` takes what comes of what was begun.
        """
        self._borrow = borrow
        self._job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._summing, self._ended = summing, ended
        self._ranges: list[_Range] = []
        self._order: tuple[SiteId, ...] = ()
        self._wanted: SumRange | None = None
        self._counted: tuple[Counted, ...] = ()
        self._number = 0
        """Counts what was begun: an answer to an earlier question changes nothing."""

    def begin(
        self, round_: int, epoch: int, base: Digest, counted: Sequence[Counted], now: float,
        *, is_alone: bool = False,
    ) -> None:  # fmt: skip
        """Share out the mean of ``counted``, whose offers all have equally many parts.

        ``is_alone``: this site makes every range itself.
        """
        self.stop()
        # In one order everywhere: where floats are summed it is part of the result.
        self._counted = tuple(sorted(counted, key=lambda one: one.offer.update))
        parts = len(self._counted[0].offer.parts)
        self._wanted = SumRange(self._job.id, epoch, round_, base, 0, parts, ())
        others = sorted({one.site for one in self._counted} - {self._me})
        turn = round_ % max(1, len(others))
        # Not the same sites first in every round; this one, whose link the ranges come in by, last.
        helpers = () if is_alone else (*others[turn:], *others[:turn])
        self._order = (*(site for site in helpers if self._may_help(site)), self._me)
        self._ranges = [_Range(part) for part in range(parts)]
        number = self._number
        for one in self._ranges:
            if number == self._number:  # else what this site had made already has ended it
                self._assign(one, now)

    def _may_help(self, site: SiteId) -> bool:
        return self._surroundings.may_hold(self._job, site)

    def stop(self) -> None:
        """Nothing more is wanted."""
        self._number += 1
        self._ranges, self._counted, self._wanted = [], (), None

    @property
    def waiting_for(self) -> str:
        """For a person."""
        left = sum(one.state != "here" for one in self._ranges)
        return f"{left} of {len(self._ranges)} ranges of the mean" if left else ""

    # --- asking ----------------------------------------------------------------------------------
    def _assign(self, one: _Range, now: float) -> None:
        """Ask the next site that may make it."""
        one.again_at, one.result, one.joins = NEVER, None, 0
        alive = self._surroundings.alive()
        for _ in self._order:
            if one.asks >= TURNS_MAX * len(self._order):
                self._fail(Ended((), reason=f"no site makes range {one.part} of the mean"), now)
                return
            site = self._order[(one.part + one.asks) % len(self._order)]
            one.asks += 1
            if site == self._me or site in alive:
                one.began_at = now
                self._ask(one, site, now)
                return

    def _ask(self, one: _Range, site: SiteId, now: float) -> None:
        assert self._wanted is not None, "begun"
        one.site, one.state, one.asked_at = site, "asked", now
        wanted = SumRange(
            self._wanted.job, self._wanted.epoch, self._wanted.round, self._wanted.base, one.part,
            self._wanted.parts,
            tuple(
                Summand(
                    counted.offer.parts[one.part], counted.site, counted.weight,
                    counted.offer.base if counted.is_late else None,
                )
                for counted in self._counted
            ),
        )  # fmt: skip
        number, asks = self._number, (one.asks, one.joins)

        def answered(reply: Reply | None, at: float) -> None:
            is_current = number == self._number and asks == (one.asks, one.joins)
            if is_current and one.state == "asked":
                self._answered(one, site, reply, at)

        if site == self._me:
            self._summing.sum(self._me, wanted, answered, now)
        else:
            self._desk.ask(site, wanted, SUM_TIMEOUT_S, answered)

    def _answered(self, one: _Range, site: SiteId, reply: Reply | None, now: float) -> None:
        match reply:
            case RangeSummed(digest):
                one.result = digest
                self._borrow(digest)
                if self._surroundings.is_held(digest):
                    one.state = "here"
                    self._end_if_all_here(now)
                else:
                    one.state = "fetching"
                    self._desk.emit(FetchBlob(digest, (site,)))
            case RangeNotSummed(missing, spoiled, reason) if self._names(one, missing, spoiled):
                self._fail(
                    Ended(
                        (), self._names(one, missing), self._names(one, spoiled), reason,
                        site == self._me,
                    ),
                    now,
                )  # fmt: skip
            case None if (
                now - one.asked_at >= SUM_TIMEOUT_S - TICK_S
                and site in self._surroundings.alive()
                and now - one.began_at
                < max(self._job.round_timeout_s - SUM_TIMEOUT_S, SUM_TIMEOUT_S)
            ):
                one.joins += 1
                self._ask(one, site, now)
            case _:
                self._put_off(one, now)

    def _names(self, one: _Range, *parts: tuple[Digest, ...]) -> frozenset[Digest]:
        """The updates of which these are parts; what nobody asked for is none."""
        whole = {counted.offer.parts[one.part]: counted.offer.update for counted in self._counted}
        return frozenset(whole[part] for some in parts for part in some if part in whole)

    def _put_off(self, one: _Range, now: float) -> None:
        """The next site soon; after a whole turn with a pause, since that may be everybody's fault."""
        one.state, one.site = "open", None
        one.again_at = now + (NEXT_S if one.asks < len(self._order) else PAUSE_S)

    def _fail(self, ended: Ended, now: float) -> None:
        self.stop()
        self._ended(ended, now)

    def _end_if_all_here(self, now: float) -> None:
        if self._ranges and all(one.state == "here" for one in self._ranges):
            ranges = tuple(one.result for one in self._ranges if one.result is not None)
            self.stop()
            self._ended(Ended(ranges), now)

    # --- what happens meanwhile ------------------------------------------------------------------
    def blob_arrived(self, digest: Digest, now: float) -> None:
        """A range may be here."""
        for one in self._ranges:
            if one.state == "fetching" and one.result == digest:
                one.state = "here"
        self._end_if_all_here(now)

    def blob_missing(self, digest: Digest, now: float) -> None:
        """Who made it is gone, perhaps: have it made again."""
        for one in tuple(self._ranges):
            if one.state == "fetching" and one.result == digest:
                self._put_off(one, now)

    def view_changed(self, now: float) -> None:
        """What was asked of a site that is gone is asked of another."""
        alive = self._surroundings.alive()
        for one in tuple(self._ranges):
            if one.state == "asked" and one.site != self._me and one.site not in alive:
                self._put_off(one, now)

    def woke(self, now: float) -> None:
        """Ask again what is due."""
        for one in tuple(self._ranges):
            if now >= one.again_at and one in self._ranges:
                self._assign(one, now)

    def wake_at(self) -> float:
        """When a range is to be asked for again."""
        return min((one.again_at for one in self._ranges), default=NEVER)
