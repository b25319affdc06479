"""At any site of a round: make one part of its mean for the aggregator, of that part of every update.

Where a job cuts its updates (``ranges``), nobody but a round's participants has a whole one: each of several
sites fetches one part of every update from whoever made it, sums those, and gives the result to the
aggregator, which joins them (``sharing``). So no link carries all updates.

Nothing here is durable, and nothing need be: who asks again, or the next aggregator, has it made again, and
gets the same bytes. What is made stays until the round is committed.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from agent.federation.desk import SOURCES_MAX, Desk, Surroundings
from agent.federation.events import AggregateRange, Answer, Counting, FetchBlob, ForgetBlob, Label
from agent.federation.value import JobValue
from agent.foundation.ids import Digest, SiteId
from agent.wire.documents import RANGES_MAX, Job
from agent.wire.mesh import Declined, RangeNotSummed, RangeSummed, Reply, SumRange

FETCHES_MAX = 8
"""At a time: enough to keep a link busy, few enough that their senders do not crowd it."""
WORKS_MAX = RANGES_MAX
"""All ranges of one round may come to the only site that is left."""
UNWANTED_MAX = 2 * FETCHES_MAX * WORKS_MAX
"""Fetches under way for works that were given up."""

Then = Callable[[Reply, float], None]


@dataclass(slots=True)
class _Work:
    wanted: SumRange
    inputs: frozenset[Digest]
    """Parts, and older parameters that late ones started from."""
    asking: list[Then]
    to_fetch: deque[tuple[Digest, tuple[SiteId, ...]]] = field(default_factory=deque)
    under_way: set[Digest] = field(default_factory=set)
    missing: set[Digest] = field(default_factory=set)
    token: int = -1
    result: Digest | None = None


class Summing:
    """The ranges that this site makes for one job."""

    def __init__(self, job: Job, me: SiteId, desk: Desk, surroundings: Surroundings) -> None:
        """Nothing is asked for yet."""
        self._job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._works: list[_Work] = []
        self._unwanted: dict[Digest, None] = {}
        self._value: JobValue | None = None
        self._is_over = False

    # --- what is needed --------------------------------------------------------------------------
    def needs(self, digest: Digest) -> bool:
        """Whether the blob is not to go."""
        return any(
            digest in one.inputs or digest in (one.wanted.base, one.result) for one in self._works
        )

    @property
    def kept(self) -> set[Digest]:
        """All that are not to go."""
        results = {one.result for one in self._works if one.result is not None}
        return results.union(*(one.inputs | {one.wanted.base} for one in self._works))

    # --- asked -----------------------------------------------------------------------------------
    def called(self, call: int, sender: SiteId, wanted: SumRange, now: float) -> None:
        """The aggregator asks."""
        self.sum(sender, wanted, lambda reply, _: self._desk.emit(Answer(call, reply)), now)

    def sum(self, sender: SiteId, wanted: SumRange, then: Then, now: float) -> None:
        """``then`` takes what comes of it: ``RangeSummed``, ``RangeNotSummed`` or ``Declined``.

        ``sender`` has the parameters that the round started from.
        """
        if reason := self._refusal(sender, wanted):
            then(Declined(reason), now)
            return
        # Of which epoch it is changes nothing: a new aggregator finds what the last one had made.
        wanted = replace(wanted, epoch=0)
        work = next((one for one in self._works if one.wanted == wanted), None)
        if work is None:
            if len(self._works) >= WORKS_MAX:
                self._end(self._works[0], Declined("other ranges came"), now)
            inputs = (blob for one in wanted.summands for blob in (one.part, one.started_from))
            work = _Work(wanted, frozenset(blob for blob in inputs if blob is not None), [then])
            self._works.append(work)
            self._begin(work, sender, now)
        elif work.result is not None:
            then(RangeSummed(work.result), now)
        else:
            # Who asks again has given up the call before; two aggregators at most ask at a time.
            work.asking = [*work.asking[-1:], then]

    def _refusal(self, sender: SiteId, wanted: SumRange) -> str:
        value = self._value
        if self._is_over:
            return "the job has ended here"
        if value is None or sender != value.aggregator or wanted.epoch != value.epoch:
            return "not the aggregator, as far as is known here"
        if wanted.round != value.round + 1:
            return "not the round that is open, as far as is known here"
        if not wanted.part < wanted.parts or not wanted.summands:
            return "there is no such part"
        if not self._surroundings.may_hold(self._job, self._me):
            return "the job's residency does not allow it here"
        return "" if self._surroundings.can_aggregate() else "this site does not aggregate"

    def _begin(self, work: _Work, sender: SiteId, now: float) -> None:
        summands = work.wanted.summands
        sources: dict[Digest, list[SiteId]] = {work.wanted.base: [sender]}
        for one in summands:
            sources.setdefault(one.part, []).append(one.site)
            if one.started_from is not None:
                sources.setdefault(one.started_from, []).append(one.site)
        for digest, sites in sources.items():
            if not self._surroundings.is_held(digest):
                work.to_fetch.append((digest, tuple(sites[:SOURCES_MAX])))
        self._go_on(work, now)

    def _go_on(self, work: _Work, now: float) -> None:
        while work.to_fetch and len(work.under_way) < FETCHES_MAX:
            digest, sites = work.to_fetch.popleft()
            work.under_way.add(digest)
            self._unwanted.pop(digest, None)
            self._desk.emit(Label(digest, self._job.residency), FetchBlob(digest, sites))
        if work.to_fetch or work.under_way:
            return
        if work.missing:
            self._end(work, self._told(work), now)
            return
        wanted, work.token = work.wanted, self._desk.number()
        counted = [Counting(one.part, one.weight, one.started_from) for one in wanted.summands]
        part = (wanted.part, wanted.parts)
        self._desk.emit(
            AggregateRange(work.token, self._job, wanted.round, wanted.base, counted, part)
        )

    def _told(self, work: _Work) -> Reply:
        parts = tuple(
            one.part
            for one in work.wanted.summands
            if one.part in work.missing or one.started_from in work.missing
        )
        if not parts:
            return Declined("the parameters of the round could not be had")
        return RangeNotSummed(parts, (), "parts of updates could not be had")

    # --- blobs and work --------------------------------------------------------------------------
    def blob_arrived(self, digest: Digest, now: float) -> None:
        """One is here."""
        for work in tuple(self._works):
            if digest in work.under_way:
                work.under_way.discard(digest)
                self._go_on(work, now)
        if digest in self._unwanted:
            del self._unwanted[digest]
            self._desk.emit(ForgetBlob(digest))

    def blob_missing(self, digest: Digest, now: float) -> None:
        """One cannot be had just now; the aggregator decides what becomes of its update."""
        self._unwanted.pop(digest, None)
        for work in tuple(self._works):
            if digest in work.under_way:
                work.under_way.discard(digest)
                work.missing.add(digest)
                self._go_on(work, now)

    def work_done(self, token: int, digest: Digest, now: float) -> bool:
        """A range is made. False if it is not wanted."""
        work = self._by_token(token)
        if work is None:
            return False
        work.token, work.result = -1, digest
        if digest not in work.inputs:  # the mean of one update is that one, whose label is set
            self._desk.emit(Label(digest, self._job.residency))
        self._answer(work, RangeSummed(digest), now)
        return True

    def work_failed(
        self, token: int, reason: str, culprits: tuple[Digest, ...], now: float
    ) -> None:
        """It cannot be made."""
        work = self._by_token(token)
        if work is not None:
            spoiled = RangeNotSummed((), culprits, reason[:400])
            self._end(work, spoiled if culprits else Declined(reason[:400]), now)

    def _by_token(self, token: int) -> _Work | None:
        return next((one for one in self._works if one.token == token), None)

    # --- given up --------------------------------------------------------------------------------
    def moved(self, value: JobValue, now: float) -> None:
        """The register holds ``value``: what was for earlier rounds has served."""
        self._value = value
        for work in tuple(self._works):
            if work.wanted.round <= value.round or value.state != "running":
                self._end(work, Declined("the job has moved on"), now)

    def end(self, now: float) -> None:
        """The job is over."""
        self._is_over = True
        for work in tuple(self._works):
            self._end(work, Declined("the job has ended here"), now)

    def _end(self, work: _Work, reply: Reply, now: float) -> None:
        self._works.remove(work)
        self._answer(work, reply, now)
        gone = {*work.inputs, *(() if work.result is None else (work.result,))} - work.under_way
        held = (digest for digest in sorted(gone) if self._surroundings.is_held(digest))
        self._desk.emit(*(ForgetBlob(digest) for digest in held))
        if len(self._unwanted) < UNWANTED_MAX:
            self._unwanted.update(dict.fromkeys(sorted(work.under_way)))

    def _answer(self, work: _Work, reply: Reply, now: float) -> None:
        asking, work.asking = work.asking, []
        for then in asking:
            then(reply, now)
