"""What ties the machine of a region to the whole job's, at one site.

``Whole`` is the region's side: what its aggregator knows of the whole job, and does next. ``Delegate`` is the
whole job's: it offers what the region has made. They tell each other by events, which the workshop hands on.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from agent.federation.desk import Desk, Surroundings
from agent.federation.events import FromRegion, FromWhole, LookAgain, Metrics, Tell, Trained
from agent.federation.history import Counted, Outline
from agent.federation.offering import Ears, Offering
from agent.federation.region import known_rounds, overlaps, regional
from agent.federation.value import Contributions, JobValue
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job, Region
from agent.wire.mesh import Offer

ALONE_AFTER_S = 5.0
"""The register of the whole job could not be read for so long: the region is taken to be cut off."""
Plan = Literal["adopt", "collect", "alone", "wait"]


class Whole:
    """What a region's machine knows of the whole job, and what its aggregator does next."""

    def __init__(
        self, job: Job, parent: JobId, desk: Desk,
        is_held: Callable[[Digest], bool] = lambda _: False,
    ) -> None:  # fmt: skip
        """``job``: the region's; ``parent``: the whole; ``is_held``: whether a blob is here."""
        self._is_held = is_held
        self._staleness_max, self._alone_max = job.staleness_max, job.local_rounds_max
        self._parent, self._desk = parent, desk
        self.news: FromWhole | None = None
        self._told: FromRegion | None = None

    def tell(
        self,
        value: JobValue | None,
        rounds: Mapping[int, Counted | Outline],
        surroundings: Surroundings,
        *,
        speaks: bool,
    ) -> None:
        """Let the whole job's machine know what this region has made, if that is news.

        Args:
            value: of the region's register.
            rounds: of the region, as far as they are known here.
            surroundings: tells what is held.
            speaks: this site aggregates the region.
        """
        above = None if value is None else value.above
        first = None if above is None else rounds.get(above.after + 1)
        blobs = set() if value is None else value.blobs - {value.contributions}
        is_here = all(surroundings.is_held(blob) for blob in blobs)
        figures = None if first is None else first.figures
        news = FromRegion(value, speaks, is_here, () if figures is None else figures.metrics)
        if news != self._told:
            self._told = news
            self._desk.emit(Tell(self._parent, news))

    def look_again(self) -> None:
        """Nobody speaks for the region: the whole job may be over."""
        self._desk.emit(Tell(self._parent, LookAgain()))

    def plan(self, value: JobValue, now: float, *, is_collecting: bool = False) -> Plan:
        """What follows from the region's ``value``.

        ``is_collecting``: a round is under way; it is given up only if it would count no more.
        """
        above, whole = value.above, None if self.news is None else self.news.value
        if whole is not None and whole.parameters is not None and whole.state == "running":
            if above is None:
                return "adopt"
            is_ahead = (whole.recoveries, whole.round) > (above.recoveries, above.round)
            is_in_reach = now < self.alone_at(value) or self._is_held(whole.parameters)
            if is_ahead and is_in_reach:
                is_lost = whole.recoveries > above.recoveries or (
                    whole.round - above.round > self._staleness_max
                )
                is_idle = not value.alone and not is_collecting
                if is_lost or is_idle or self._is_settled(value) or self._is_past(value):
                    return "adopt"
        if above is None:
            return "wait"
        if is_collecting or not value.is_waiting:
            return "collect"
        return "alone" if now >= self.alone_at(value) else "wait"

    def _is_settled(self, value: JobValue) -> bool:
        """Whether the whole job has counted all that the region has made, so far as its delegate knows."""
        return (
            self.news is not None and self.news.settled_until >= value.round and bool(value.alone)
        )

    def _is_past(self, value: JobValue) -> bool:
        """Whether the whole job has counted the region up to a round whose parameters nobody has kept.

        What came after that cannot be told from what was counted, and is lost.
        """
        above = value.above
        if self.news is None or above is None or not value.is_waiting:
            return False
        counted = self.news.settled_until
        return counted > above.after and counted not in (above.told_round, value.round)

    def alone_at(self, value: JobValue) -> float:
        """When the region goes on alone, should nothing be heard."""
        if not value.is_waiting or value.alone > self._alone_max:
            return NEVER
        if self.news is None or self.news.silent_since is None:
            return NEVER
        return self.news.silent_since + ALONE_AFTER_S


class Delegate:
    """Offers to the whole job what this site's region has made; stands in for ``Participant``.

    Only the region's aggregator *speaks*. What is to be offered follows from the region's register, so that
    any successor offers the same.
    """

    update = None
    training_from: frozenset[Digest] = frozenset()
    kept: frozenset[Digest] = frozenset()
    """Nothing beside what the region's own machine keeps."""

    def __init__(
        self, job: Job, region: Region, me: SiteId, desk: Desk, ears: Ears,
        sources: Callable[[], tuple[SiteId, ...]], known: Callable[[int], Contributions | None],
    ) -> None:  # fmt: skip
        """``job``: the whole. ``known``: what its committed rounds counted, as far as it was read."""
        self._job, self._name, self._desk = job, region.name, desk
        self._region_job = regional(job, region).id
        self._sources, self._known = sources, known
        self._offering = Offering(me, desk, ears, self._go_on)
        self.speaks = False
        self._value: JobValue | None = None
        self._region: JobValue | None = None
        self._is_here = False
        self._metrics: Metrics = ()
        self._silent_since: float | None = None
        self._told: FromWhole | None = None

    @property
    def activity(self) -> str:
        """For a person."""
        whose = f"region {self._name}"
        return f"speaks for {whose}" if self.speaks else f"takes part with {whose}"

    # --- what it hears ---------------------------------------------------------------------------
    def from_region(self, event: FromRegion, now: float) -> None:
        """The region's register has moved, or another site speaks for it by now."""
        if event.speaks and not self.speaks:
            self._told = None
        self._region, self.speaks, self._metrics = event.value, event.speaks, event.metrics
        self._is_here = event.is_here
        if self._value is not None:
            self._go_on(self._value, now)
        else:
            self.tell()

    def follow(self, value: JobValue, now: float) -> None:
        """The register of the whole job was read, and holds ``value``."""
        self._value, self._silent_since = value, None
        self._offering.follow(value)
        self._go_on(value, now)

    def _go_on(self, value: JobValue, now: float) -> None:
        self.tell()
        if not self.speaks or value.state != "running" or self._offering.is_over:
            return
        region = self._region
        if region is None or region.above is None or not region.alone or not self._is_here:
            return
        counted = self._counted(region, value)
        if counted is None:
            self._offering.retry(now)
        elif (offer := self._due(region, value, counted)) is not None:
            self._offering.offer(offer, now)

    def unreadable(self, now: float) -> None:
        """The register of the whole job cannot be read just now."""
        if self._silent_since is None:
            self._silent_since = now
            self.tell()

    def settled(self) -> None:
        """It has become known what a committed round counted."""
        self.tell()

    def end(self, value: JobValue | None) -> None:
        """The whole job is over."""
        self._value = value if value is not None else self._value
        self._offering.end()
        self.say_that_it_is_over()

    def give_up(self) -> None:
        """It has made nothing itself."""

    def say_that_it_is_over(self) -> None:
        """The region's machine asks, or ought to know."""
        self._desk.emit(Tell(self._region_job, FromWhole(self._value, 0, None, (), is_over=True)))

    def tell(self) -> None:
        """Let the region's machine know what matters to its aggregator."""
        if not self.speaks or self._offering.is_over:
            return
        region, value = self._region, self._value
        counted = None if region is None or value is None else self._counted(region, value)
        news = FromWhole(value, counted or 0, self._silent_since, self._sources())
        if news != self._told:
            self._told = news
            self._desk.emit(Tell(self._region_job, news))

    # --- what it offers --------------------------------------------------------------------------
    def _counted(self, region: JobValue, value: JobValue) -> int | None:
        """Up to which of its rounds the region is counted; None: rounds that may tell are not known here."""
        above = region.above
        if above is None:
            return 0
        rounds = known_rounds(range(above.round + 1, value.round + 1), self._known)
        if rounds is None:
            return None
        found = overlaps(self._name, above.after, rounds.values())
        return max((entry.until for entry in found), default=above.after)

    def _due(self, region: JobValue, value: JobValue, counted: int) -> Offer | None:
        above = region.above
        assert above is not None, "asked of a region that has taken parameters"
        made_for, late = above.round + 1, value.round - above.round
        if value.recoveries != above.recoveries or not 0 <= late <= self._job.staleness_max:
            return None
        if counted == above.after:
            base = above.parameters
        elif counted == above.told_round and above.told is not None and counted < region.round:
            base = above.told
        else:
            return None
        assert region.parameters is not None, "a region's round has made some"
        return Offer(
            self._job.id, value.epoch, made_for, base, region.parameters, above.samples,
            self._metrics, counted, region.round,
        )  # fmt: skip

    # --- what it has no part in ------------------------------------------------------------------
    def trained(self, event: Trained, now: float) -> None:
        """Its region trains."""

    def attempt_ended(self, round_: int, reason: str, now: float) -> None:
        """Its region trains."""

    def blob_arrived(self, digest: Digest, now: float) -> None:
        """Its region's machine waits for it."""

    def blob_missing(self, digest: Digest, now: float) -> None:
        """Its region's machine waits for it."""

    # --- time ------------------------------------------------------------------------------------
    def woke(self, now: float) -> None:
        """Offer again when due."""
        self._offering.woke(now)

    def wake_at(self) -> float:
        """When an offer is due again."""
        return self._offering.wake_at()
