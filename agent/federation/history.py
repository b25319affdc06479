"""Which updates every committed round counted, as this site knows it.

The register names the last round's contributions by digest, and each of them names the one before:
a site that was away follows the chain back and ends with the same history as everybody else.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agent.federation.desk import Desk, Surroundings
from agent.federation.events import FetchBlob, ForgetBlob, Label, Metrics, Persist, ReadBlob
from agent.federation.value import ENDED, Contributions, JobValue, blob_digest
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.foundation.writes import Put, Scalar
from agent.wire.documents import Job
from agent.wire.schema import unpack

NOT_METRICS = ("round", "region", "until")
"""Words of a stored row beside those that are always there: what a site calls its metrics is its own affair."""
RETRY_AFTER_S = 2.0
RETRY_MAX_S = 8.0
RETRY_MAX_OVER_S = 60.0
"""When the job is over nothing waits for it but people."""
TRIES_CANCELLED_MAX = 5
"""Of a job that is cancelled nobody promises to keep the rounds, so the last may be nowhere."""
TRIES_REGION_MAX = 10
"""Five minutes. A region's rounds go with the whole job's, of which it may have left a tombstone elsewhere."""
ROUNDS_READ = 2
"""Of a job that is over: what came before had been tidied up when it ended."""
ROUNDS_BACK = 8
"""As many rounds more than late updates need are kept whole: after a recovery the job goes on from an earlier one."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a round's counted set comes to."""

    participants: int
    samples: int
    loss: float | None
    """Mean of the losses that its updates report, weighted by their samples; None if unreported."""
    metrics: Metrics
    """Of the round's base parameters over all hold-outs; empty if none was reported."""

    @property
    def accuracy(self) -> float | None:
        """Of the round's base parameters, weighted by hold-out sizes; None if unreported."""
        return dict(self.metrics).get("accuracy")


@dataclass(frozen=True, slots=True)
class Counted:
    """One committed round: who was counted, and how good its base parameters were."""

    contributions: Digest
    content: Contributions

    @property
    def round(self) -> int:
        """Which one."""
        return self.content.round

    @property
    def previous(self) -> Digest | None:
        """The contributions of the round before; None: it is the first."""
        return self.content.previous

    @property
    def figures(self) -> Figures:
        """For people, and for those whose base the parameters are."""
        return figures(
            (entry.samples, dict(entry.metrics), bool(entry.round))
            for entry in self.content.entries
        )


def figures(entries: Iterable[tuple[int, Mapping[str, float], bool]]) -> Figures:
    """What a counted set comes to.

    Args:
        entries: of each update its samples, what its site reports, and whether it was late: then that speaks
            of older parameters.
    """
    right = lost = total = reported = 0.0
    participants = samples = with_loss = 0
    for of_it, metrics, is_late in entries:
        participants += 1
        samples += of_it
        if "loss" in metrics:
            reported += metrics["loss"] * of_it
            with_loss += of_it
        if not is_late and "accuracy" in metrics and metrics.get("holdout", 0.0) > 0:
            right += metrics["accuracy"] * metrics["holdout"]
            lost += metrics.get("loss", 0.0) * metrics["holdout"]
            total += metrics["holdout"]
    means: Metrics = ()
    if total:
        means = (("accuracy", right / total), ("loss", lost / total), ("holdout", total))
    return Figures(participants, samples, reported / with_loss if with_loss else None, means)


@dataclass(frozen=True, slots=True)
class Outline:
    """One committed round, without who was counted: that is on disk."""

    round: int
    contributions: Digest
    previous: Digest | None
    figures: Figures | None = None
    """None: it was not read, its job being over."""


def read_back(
    named: Mapping[int, Digest],
    value: JobValue | None,
    read: Callable[[Digest], Contributions | None],
) -> tuple[Counted | Outline, ...]:
    """The rounds of a job as a machine wants them at its start.

    Of a job that is over only the last are read: a site may have kept hundreds of jobs of hundreds of sites.
    Each round names the one before, as the rows do, unless rounds were made anew after a recovery.

    Args:
        named: contributions by round, of those that are here.
        value: of the register, as it was read last.
        read: their content; None if they are damaged.
    """
    found: list[Counted | Outline] = []
    is_over = value is not None and value.state in ENDED and not value.recoveries
    last = value.round if value is not None else 0
    for number, digest in sorted(named.items()):
        is_linked = number == 1 or number - 1 in named
        if is_over and is_linked and number <= last - ROUNDS_READ:
            found.append(Outline(number, digest, named.get(number - 1)))
        elif (content := read(digest)) is not None:
            found.append(Counted(digest, content))
    return tuple(found)


def tries_max(job: Job, *, is_region: bool) -> int | None:
    """How often in a row a round of an ended job is sought; None: until it is found."""
    if job.is_cancelled:
        return TRIES_CANCELLED_MAX
    return TRIES_REGION_MAX if is_region else None


class History:
    """Follows the chain of contributions back to the first round."""

    def __init__(
        self,
        job: Job,
        desk: Desk,
        surroundings: Surroundings,
        sources: Callable[[], tuple[SiteId, ...]],
        settled: Callable[[Contributions], None],
    ) -> None:
        """``settled`` is called once for each round whose counted set has become known."""
        self._job, self._desk, self._surroundings = job, desk, surroundings
        self._sources, self._settled = sources, settled
        self._rounds: dict[int, Counted | Outline] = {}
        self._outlined = 0
        """Up to this round."""
        self.names: set[Digest] = set()
        """Of the contributions of all rounds known here."""
        self._head: tuple[int, Digest] | None = None
        self._complete = self._recoveries = 0
        self._unreadable: set[Digest] = set()
        self._seeking: Digest | None = None
        self._retry_at = NEVER
        self._tries = 0
        self._tries_max: int | None = None
        self._retry_max_s = RETRY_MAX_S
        self.has_given_up = False
        self._is_doubted = False
        """The rounds here may be others than those that the register has come to."""

    @property
    def rounds(self) -> Mapping[int, Counted | Outline]:
        """Committed rounds known here, by number."""
        return self._rounds

    def content(self, round_: int) -> Contributions | None:
        """What that round counted, if it is known here, and not only what it had counted before a recovery.

        Of rounds so old that no update for them can be counted any more, it is let go of.
        """
        counted = None if self._is_doubted else self._rounds.get(round_)
        return counted.content if isinstance(counted, Counted) else None

    def sought(self) -> set[Digest]:
        """Contributions that have not been read yet, and those of newer versions that cannot be."""
        links = (counted.previous for counted in self._rounds.values())
        head = self._head[1] if self._head is not None else None
        one_by_one = (*links, head, self._seeking)
        return {digest for digest in one_by_one if digest is not None} | self._unreadable

    def restore(self, counted: Counted | Outline) -> None:
        """A round read back from this site's database at start."""
        self._rounds[counted.round] = counted
        self.names.add(counted.contributions)

    def follow(self, value: JobValue) -> None:
        """The register names ``value.contributions``: have it, and every round before it."""
        if value.recoveries > self._recoveries:
            self._recovered(value)
        if value.contributions is not None and (self._head is None or value.round > self._head[0]):
            self._head = value.round, value.contributions
        self._seek_gap()

    def _recovered(self, value: JobValue) -> None:
        """Rounds that only the lost members knew are made anew: what is known here is to be read again."""
        self._recoveries = value.recoveries
        for number in [number for number in self._rounds if number > value.round]:
            self.names.discard(self._rounds.pop(number).contributions)
        self._head, self._complete, self._seeking = None, 0, None
        self._outlined = min(self._outlined, value.round)
        self._is_doubted, self._retry_at = True, NEVER

    def give_up(self) -> None:
        """Nobody keeps the rounds that are missing."""
        self._head = self._seeking = None
        self._retry_at, self.has_given_up = NEVER, True

    def end(self, tries_max: int | None = None) -> None:
        """The job is over; after so many tries in a row what is missing is given up."""
        self._retry_max_s = RETRY_MAX_OVER_S
        self._tries_max = tries_max
        if tries_max is not None and self._tries >= tries_max:
            self.give_up()

    def record(self, digest: Digest, content: Contributions, now: float) -> None:
        """A round's counted set has become known (also called by the aggregator that made it)."""
        known = self._rounds.get(content.round)
        if known is not None and known.contributions == digest:
            return
        if known is not None:
            self.names.discard(known.contributions)
        self._rounds[content.round] = Counted(digest, content)
        self.names.add(digest)
        counted = [
            {
                **{name: figure for name, figure in e.metrics if name not in NOT_METRICS},
                "site": e.site.hex(),
                "update": e.update.hex(),
                "samples": e.samples,
                **({"round": e.round} if e.round else {}),
                **({"region": e.region, "until": e.until} if e.region else {}),
            }
            for e in content.entries
        ]
        row: dict[str, Scalar] = {
            "job": self._job.id, "round": content.round, "epoch": content.epoch,
            "aggregator": content.aggregator, "parameters": content.parameters,
            "contributions": digest, "counted": json.dumps(counted), "committed_at": self._surroundings.unix_s(now),
        }  # fmt: skip
        self._desk.emit(Persist((Put("rounds", row),)), Label(digest, self._job.residency))
        self._settled(content)
        self._seek_gap()
        if not self._job.regions:  # a region that was cut off for long asks for all since
            self._let_go(self._complete - self._job.staleness_max - ROUNDS_BACK)

    def let_go(self) -> None:
        """The job is over, and nobody asks any more who was counted: what the rounds come to stays."""
        self._let_go(max(self._rounds, default=0))

    def _let_go(self, until: int) -> None:
        for number in range(self._outlined + 1, until + 1):
            known, before = self._rounds.get(number), self._rounds.get(number - 1)
            if not isinstance(known, Counted):
                continue
            previous = known.previous
            if before is not None and before.contributions == previous:
                previous = before.contributions  # the same bytes: one object
            self._rounds[number] = Outline(number, known.contributions, previous, known.figures)
        self._outlined = max(self._outlined, until)

    def blob_arrived(self, digest: Digest, _now: float) -> None:
        """Go on when the sought contributions are here."""
        if digest == self._seeking:
            self._desk.emit(ReadBlob(digest))

    def blob_missing(self, digest: Digest, now: float) -> None:
        """Try again later, less and less often: some site that was counted still has it."""
        if digest != self._seeking:
            return
        self._tries += 1
        if self._tries_max is not None and self._tries >= self._tries_max:
            self.give_up()
            return
        pause_s = RETRY_AFTER_S * 2.0 ** min(self._tries - 1, 16)
        self._retry_at = now + min(pause_s, self._retry_max_s)

    def blob_read(self, digest: Digest, data: bytes, now: float) -> None:
        """Take the contributions, if the bytes are the ones that were named."""
        if digest != self._seeking:
            return
        if blob_digest(data) != digest:  # damaged on this site's disk: have it anew
            self._desk.emit(ForgetBlob(digest))
            self._retry_at = now + RETRY_AFTER_S
            return
        self._seeking, self._tries = None, 0
        try:
            content = unpack(Contributions, data)
        except Malformed:
            # Committed by a newer version of Atoll: the round stands, its details are unreadable.
            self._unreadable.add(digest)
            return
        self.record(digest, content, now)
        self._seek_gap()

    def woke(self, now: float) -> None:
        """Retry when due."""
        if now >= self._retry_at:
            self._retry_at = NEVER
            if self._seeking is not None:
                self._seek(self._seeking)

    def wake_at(self) -> float:
        """When a retry is due."""
        return self._retry_at

    def _seek_gap(self) -> None:
        """Seek the newest round that is missing; one at a time, since each names the one before."""
        while not self._is_doubted and self._complete + 1 in self._rounds:
            self._complete += 1
        if self._seeking is not None or self._head is None:
            return
        round_, digest = self._head
        while round_ > self._complete and digest not in self._unreadable:
            known = self._rounds.get(round_)
            if known is None or known.contributions != digest:
                self._seek(digest)
                return
            if known.previous is None:
                break
            round_, digest = round_ - 1, known.previous
        self._is_doubted = False

    def _seek(self, digest: Digest) -> None:
        self._seeking = digest
        if self._surroundings.is_held(digest):
            self._desk.emit(ReadBlob(digest))
        else:
            self._desk.emit(FetchBlob(digest, self._sources()))
