"""A site's own part in a job: train on the committed parameters, offer the update until it is counted.

Rule: an update is durable before it is offered, and is kept until the site has read a committed
round at least as high. A dead aggregator therefore loses no update: the same bytes are offered to the
next one.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from agent.federation.desk import Desk, Surroundings
from agent.federation.events import (
    FetchBlob,
    ForgetBlob,
    Label,
    Metrics,
    Persist,
    Progressed,
    Train,
    Trained,
)
from agent.federation.lateness import is_counted
from agent.federation.offering import OFFER_TIMEOUT_S, RETRY_AFTER_S, Ears, Offering
from agent.federation.value import Contributions, JobValue
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.foundation.writes import Put, Scalar
from agent.training.ranges import parts_of
from agent.wire.documents import Job
from agent.wire.mesh import Done, Offer, Reply, Withdraw

EARLIER_MAX = 8
"""Rounds whose counted sets may still be on their way while this site trains on."""
ATTEMPTS_MAX = 3
"""A data set or a recipe that fails three times in one round will not get better by itself."""


@dataclass(frozen=True, slots=True)
class Update:
    """This site's update for one round."""

    round: int
    base: Digest
    digest: Digest
    samples: int
    metrics: Metrics
    parts: tuple[Digest, ...] = ()
    """What ``digest`` names, where updates are cut."""

    @property
    def blobs(self) -> tuple[Digest, ...]:
        """What it consists of."""
        return (self.digest, *self.parts)


class Participant:
    """Trains and offers; ``follow`` is called whenever the register is known to have moved."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        sources: Callable[[], tuple[SiteId, ...]],
        ears: Ears,
        withdraw: Callable[[SiteId, int, str, float], None],
        known: Callable[[int], Contributions | None],
    ) -> None:
        """``withdraw`` is this site's own aggregation's, if it is the aggregator.

        ``known``: what a committed round counted, as far as this site has read it.
        """
        self._job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._sources, self._withdraw, self._known = sources, withdraw, known
        self._offering = Offering(me, desk, ears, self.follow)
        self.update: Update | None = None
        self._activity = "waiting"
        self._earlier: dict[int, Update] = {}
        self._training: tuple[int, frozenset[Digest]] | None = None
        self._awaiting: Digest | None = None
        self._failures = 0
        self._reason = ""
        self._withdrawn: tuple[int, int] | None = None
        self._is_telling = False
        self._again_at = NEVER
        self._value: JobValue | None = None
        self._is_over = False

    @property
    def activity(self) -> str:
        """What this site does for the job, for a person."""
        update, value = self.update, self._value
        is_taken = update and value and self._offering.is_taken(update.digest, value)
        return "offered" if is_taken and self._activity == "offering" else self._activity

    @property
    def training_from(self) -> frozenset[Digest]:
        """What the trainer reads at present."""
        return frozenset() if self._training is None else self._training[1]

    @property
    def kept(self) -> set[Digest]:
        """What this site gives to whoever counts its update."""
        if self.update is None:
            return set()
        return set(self._blobs_of(self.update))

    def _blobs_of(self, update: Update) -> tuple[Digest, ...]:
        return (*update.blobs, update.base) if self._job.staleness_max else update.blobs

    def _is_here(self, update: Update) -> bool:
        """Whether it can be given to others; one of whose parts nothing is known cannot."""
        is_whole = bool(update.parts) == (parts_of(self._job) > 1)
        return is_whole and all(map(self._surroundings.is_held, update.blobs))

    def restore(self, update: Update) -> None:
        """The open update read back from this site's database at start."""
        self.update = update
        self._review()

    def end(self, value: JobValue | None) -> None:
        """The job is over: nothing more is trained or offered.

        An update that no committed round can have counted is dropped; any other waits for its
        round's counted set.
        """
        self._is_over, self._value, self._again_at = True, value, NEVER
        self._offering.end()
        self._activity = "over"
        update = self.update
        if update is not None and (value is None or update.round > value.round):
            self._close(update, "missed")
        else:
            self._review()

    def give_up(self) -> None:
        """The job is over, and all is known that will be of what it counted."""
        if self.update is not None:
            self._close(self.update, "missed")

    def follow(self, value: JobValue, now: float) -> None:
        """Do what ``value`` calls for: fetch, train, offer, or nothing."""
        if self._is_over:
            return
        if self._value is None or self._value.round != value.round:
            self._failures = 0
        self._value = value
        self._offering.follow(value)
        if value.state != "running" or value.parameters is None:
            self._activity = value.state
            return
        if self._surroundings.refusal(self._job):
            self._activity = "not taking part"
            return
        if value.is_waiting:
            self._activity = "waiting for the whole job"
            return
        update = self.update
        is_current = (
            update is not None
            and update.round == value.round + 1
            and update.base == value.parameters
        )
        is_here = update is not None and self._is_here(update)
        if update is not None and is_here and (is_current or self._is_late(update.round, value)):
            self._offer(update, value, now)
        if is_current and is_here:
            return
        if self._training is not None:
            self._activity = "training"
        elif self._failures < ATTEMPTS_MAX:
            carried = value.carried if self._job.correction != "none" else None
            self._prepare(value.round + 1, value.parameters, carried)
        else:
            self._give_up(value, now)

    def _is_late(self, round_: int, value: JobValue) -> bool:
        """Whether the open round may still count an update for ``round_``."""
        return 0 < value.round + 1 - round_ <= self._job.staleness_max

    def _prepare(self, round_: int, base: Digest, carried: Digest | None) -> None:
        needed = [one for one in (base, carried) if one is not None]
        missing = next((one for one in needed if not self._surroundings.is_held(one)), None)
        if missing is None:
            self._training, self._awaiting = (round_, frozenset(needed)), None
            self._activity = "training"
            self._desk.emit(*(Label(one, self._job.residency) for one in needed))
            self._desk.emit(Train(self._job, round_, base, carried))
        elif self._awaiting != missing:
            self._awaiting = missing
            self._activity = "fetching parameters"
            self._desk.emit(FetchBlob(missing, self._sources()))

    def blob_arrived(self, digest: Digest, now: float) -> None:
        """Train as soon as the parameters are here."""
        if digest == self._awaiting and self._value is not None:
            self._awaiting = None
            self.follow(self._value, now)

    def blob_missing(self, digest: Digest, now: float) -> None:
        """Ask again: another site may have them by then."""
        if digest == self._awaiting and not self._is_over:
            self._awaiting = None
            self._offering.retry(now)

    def trained(self, event: Trained, now: float) -> None:
        """Make the update durable, then offer it."""
        self._training = None
        update = Update(
            event.round, event.base, event.update, event.samples, event.metrics, event.parts
        )
        value = self._value
        is_too_late = (
            value is not None
            and value.round >= event.round
            and not self._is_late(event.round, value)
        )
        if self._is_over or is_too_late:
            self._persist(update, "missed")
            self._desk.emit(*(ForgetBlob(blob) for blob in update.blobs))
        else:
            if (old := self.update) is not None and old.round < update.round:
                # Its round is committed, what it counted is not known here yet.
                self._earlier[old.round] = old
                if len(self._earlier) > EARLIER_MAX:
                    del self._earlier[min(self._earlier)]
                self._close(old, "missed")
            elif old is not None and old.digest != update.digest:
                self._desk.emit(*(ForgetBlob(blob) for blob in self._blobs_of(old)))
            self._persist(update, "open")
            self.update = update
            self._desk.emit(*(Label(blob, self._job.residency) for blob in update.blobs))
            self._desk.emit(Progressed())
        if value is not None:
            self.follow(value, now)

    def _close(self, update: Update, state: str) -> None:
        self._persist(update, state)
        self.update = None
        self._desk.emit(*(ForgetBlob(blob) for blob in self._blobs_of(update)))

    def _persist(self, update: Update, state: str) -> None:
        row: dict[str, Scalar] = {
            "job": self._job.id, "round": update.round, "base": update.base,
            "digest": update.digest, "samples": update.samples,
            "metrics": json.dumps(update.metrics), "state": state,
        }  # fmt: skip
        self._desk.emit(Persist((Put("updates", row),)))

    def attempt_ended(self, round_: int, reason: str, now: float) -> None:
        """Try again a few times, then tell the aggregator not to wait."""
        if self._training is None or self._training[0] != round_:
            return
        self._training = None
        value = self._value
        if self._is_over or value is None:
            return
        if value.round + 1 == round_:  # else its parameters were forgotten under it: no fault
            self._failures += 1
            self._reason = reason
            self._activity = f"attempt failed: {reason}"[:400]
            self._desk.emit(Progressed())
            if self._failures < ATTEMPTS_MAX:
                self._again_at = now + RETRY_AFTER_S * 2**self._failures
                return
        self.follow(value, now)

    def _give_up(self, value: JobValue, now: float) -> None:
        """Tell each epoch's aggregator that this site will have no update for the round."""
        key = (value.epoch, value.round)
        if self._withdrawn == key or self._is_telling:
            return
        self._activity = f"gave up: {self._reason}"[:400]
        if value.aggregator == self._me:
            self._withdrawn = key
            self._withdraw(self._me, value.round + 1, self._reason, now)
            return
        self._is_telling = True

        def answered(reply: Reply | None, at: float) -> None:
            self._is_telling = False
            if isinstance(reply, Done):
                self._withdrawn = key
            if not self._is_over:
                self._offering.retry(at)

        message = Withdraw(self._job.id, value.epoch, value.round + 1, self._reason[:400])
        self._desk.ask(value.aggregator, message, OFFER_TIMEOUT_S, answered)

    def settled(self) -> None:
        """It has become known what a committed round counted: some update may have served."""
        self._review()
        for round_, update in list(self._earlier.items()):
            was_counted = self._is_counted(update)
            if was_counted is not None:
                del self._earlier[round_]
            if was_counted:
                self._persist(update, "counted")

    def _review(self) -> None:
        update = self.update
        if update is not None and (was_counted := self._is_counted(update)) is not None:
            self._close(update, "counted" if was_counted else "missed")

    def _is_counted(self, update: Update) -> bool | None:
        """None: a round that may have counted it is not known, or not committed."""
        until = update.round + self._job.staleness_max
        if self._is_over and self._value is not None:
            until = min(until, self._value.round)
        rounds = {
            number: content
            for number in range(update.round, until + 1)
            if (content := self._known(number)) is not None
        }
        return is_counted(self._me, update.round, rounds, until)

    def woke(self, now: float) -> None:
        """Retry when due."""
        self._offering.woke(now)
        if now >= self._again_at:
            self._again_at = NEVER
            if self._value is not None:
                self.follow(self._value, now)

    def wake_at(self) -> float:
        """When a retry is due."""
        return min(self._again_at, self._offering.wake_at())

    def _offer(self, update: Update, value: JobValue, now: float) -> None:
        offer = Offer(
            self._job.id, value.epoch, update.round, update.base, update.digest, update.samples,
            update.metrics, parts=update.parts,
        )  # fmt: skip
        self._offering.offer(offer, now)
        self._activity = "offering"
