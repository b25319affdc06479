"""A site's own part in a job: train on the committed parameters, offer the update until it is counted.

Rule: an update is durable before it is offered, and is kept until the site has read a committed
round. A dead aggregator therefore loses no update: the same bytes are offered to the next one.
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
from agent.federation.value import Contributions, JobValue
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.foundation.writes import Put, Scalar
from agent.wire.documents import Job
from agent.wire.mesh import Offer, OfferReply, Reply, Withdraw

OFFER_TIMEOUT_S = 5.0
RETRY_AFTER_S = 0.5
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


class Participant:
    """Trains and offers; ``follow`` is called whenever the register is known to have moved."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        sources: Callable[[], tuple[SiteId, ...]],
        collect: Callable[[SiteId, Offer, float], OfferReply],
        aggregator_silent: Callable[[float], None],
        refresh: Callable[[float], None],
    ) -> None:
        """``collect`` is this site's own aggregation, used when it is the aggregator itself."""
        self._job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._sources, self._collect = sources, collect
        self._aggregator_silent, self._refresh = aggregator_silent, refresh
        self.update: Update | None = None
        self.activity = "waiting"
        self._training: tuple[int, Digest] | None = None
        self._awaiting: Digest | None = None
        self._failures = 0
        self._offered: tuple[int, Digest] | None = None
        self._offering = False
        self._again_at = NEVER
        self._value: JobValue | None = None

    def restore(self, update: Update) -> None:
        """The open update read back from this site's database at start."""
        self.update = update

    def follow(self, value: JobValue, now: float) -> None:
        """Do what ``value`` calls for: fetch, train, offer, or nothing."""
        if self._value is None or self._value.round != value.round:
            self._failures = 0
        self._value = value
        if value.state != "running" or value.parameters is None:
            self.activity = value.state
            return
        if self._surroundings.refusal(self._job):
            self.activity = "not taking part"
            return
        update = self.update
        if (
            update is not None
            and update.round == value.round + 1
            and update.base == value.parameters
        ):
            self._offer(update, value, now)
        elif self._training is None and self._failures < ATTEMPTS_MAX:
            self._prepare(value.round + 1, value.parameters)

    def _prepare(self, round_: int, base: Digest) -> None:
        if self._surroundings.is_held(base):
            self._training, self._awaiting = (round_, base), None
            self.activity = "training"
            self._desk.emit(Label(base, self._job.residency), Train(self._job, round_, base))
        elif self._awaiting != base:
            self._awaiting = base
            self.activity = "fetching parameters"
            self._desk.emit(FetchBlob(base, self._sources()))

    def blob_arrived(self, digest: Digest, now: float) -> None:
        """Train as soon as the parameters are here."""
        if digest == self._awaiting and self._value is not None:
            self._awaiting = None
            self.follow(self._value, now)

    def blob_missing(self, digest: Digest, now: float) -> None:
        """Ask again: another site may have them by then."""
        if digest == self._awaiting:
            self._awaiting, self._again_at = None, now + RETRY_AFTER_S

    def trained(self, event: Trained, now: float) -> None:
        """Make the update durable, then offer it."""
        self._training = None
        update = Update(event.round, event.base, event.update, event.samples, event.metrics)
        is_late = self._value is not None and self._value.round >= event.round
        self._persist(update, "missed" if is_late else "open")
        if is_late:
            self._desk.emit(ForgetBlob(update.digest))
        else:
            self.update = update
            self._desk.emit(Label(update.digest, self._job.residency), Progressed())
        if self._value is not None:
            self.follow(self._value, now)

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
        self._failures += 1
        self.activity = f"attempt failed: {reason}"[:400]
        self._desk.emit(Progressed())
        if self._failures < ATTEMPTS_MAX:
            self._again_at = now + RETRY_AFTER_S * 2**self._failures
        elif (value := self._value) is not None and value.aggregator != self._me:
            message = Withdraw(self._job.id, value.epoch, round_, reason[:400])
            self._desk.ask(value.aggregator, message, OFFER_TIMEOUT_S, lambda _reply, _now: None)

    def settled(self, contributions: Contributions) -> None:
        """A round is committed: the update for it has served, counted or not."""
        update = self.update
        if update is None or update.round != contributions.round:
            return
        is_counted = any(entry.update == update.digest for entry in contributions.entries)
        self._persist(update, "counted" if is_counted else "missed")
        self._desk.emit(ForgetBlob(update.digest))
        self.update = None

    def woke(self, now: float) -> None:
        """Retry when due."""
        if now >= self._again_at:
            self._again_at = NEVER
            if self._value is not None:
                self.follow(self._value, now)

    def wake_at(self) -> float:
        """When a retry is due."""
        return self._again_at

    def _offer(self, update: Update, value: JobValue, now: float) -> None:
        if self._offering or self._offered == (value.epoch, update.digest):
            return
        self.activity = "offering"
        offer = Offer(
            self._job.id, value.epoch, update.round, update.base, update.digest, update.samples,
            update.metrics,
        )  # fmt: skip
        if value.aggregator == self._me:
            self._offer_answered(value.epoch, update, self._collect(self._me, offer, now), now)
            return
        self._offering = True

        def answered(reply: Reply | None, at: float) -> None:
            self._offering = False
            self._offer_answered(value.epoch, update, reply, at)

        self._desk.ask(value.aggregator, offer, OFFER_TIMEOUT_S, answered)

    def _offer_answered(self, epoch: int, update: Update, reply: Reply | None, now: float) -> None:
        if isinstance(reply, OfferReply) and reply.outcome == "collected":
            self._offered = (epoch, update.digest)
            self.activity = "offered"
            return
        self._again_at = now + RETRY_AFTER_S
        if reply is None:
            self._aggregator_silent(now)
        else:
            self._refresh(now)

    def forget_offer(self) -> None:
        """The aggregator may have lost what it collected: offer again."""
        self._offered = None
