"""One federated job as one site sees it: the whole loop, from nobody's job to a published model.

Theory of operation. The register (CASPaxos, on the job's pinned committee) is the only truth; every
message between sites is a hint to go and read it. A site that finds no aggregator, or finds it
gone, claims the next epoch; claims are ordered by rendezvous hashing and staggered, so that normally
one site proposes, and nothing breaks when several do. Whoever holds the epoch runs
``Aggregation``; every site runs ``Participant`` and keeps ``History``.

A finished job costs nothing: no packet, no timer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import assert_never

from agent.election.order import Candidate, claim_order, stagger_s
from agent.federation.aggregator import Aggregation
from agent.federation.desk import Desk, Surroundings
from agent.federation.events import (
    Answer,
    AttemptEnded,
    BlobArrived,
    BlobMissing,
    BlobRead,
    Called,
    Cancelled,
    FetchBlob,
    Finished,
    ForgetBlob,
    JobEffect,
    JobEvent,
    Label,
    Persist,
    Persisted,
    Progressed,
    ReleaseTrainer,
    Replied,
    Trained,
    ViewChanged,
    WorkDone,
    WorkFailed,
)
from agent.federation.history import Counted, History
from agent.federation.participant import Participant, Update
from agent.federation.register import Outcome, Register, RegisterRow, Settled
from agent.federation.value import Contributions, JobValue, claim
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Put, Scalar
from agent.wire.documents import Job
from agent.wire.mesh import (
    Accept,
    Declined,
    Done,
    Keep,
    Notice,
    NoticeReply,
    Offer,
    OfferReply,
    Prepare,
    Read,
    Reply,
    Watch,
    Withdraw,
)
from agent.wire.schema import pack

WATCH_HOLD_S = 20.0
WATCH_TIMEOUT_S = 30.0
"""A watch is answered after 20 s at the latest, so one unanswered for 30 s is broken."""
REFRESH_S = 10.0
"""Without a working watch, the register is read this often while the job runs."""
QUIET_S = 0.5
CLAIM_RTT_S = 0.1
"""Stagger between claim ranks where no round-trip time is known: two round trips of a WAN."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What this site's database holds of a job."""

    value: JobValue | None = None
    register: RegisterRow | None = None
    update: Update | None = None
    rounds: tuple[Counted, ...] = ()
    barred_because: str = ""
    """Why this site may not vote; empty if it may."""


class JobMachine:
    """Machine[JobEvent, JobEffect] of one job at one site."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        boot_epoch: int,
        desk: Desk,
        surroundings: Surroundings,
        rng: Random,
        now: float,
        restored: Restored,
    ) -> None:
        """``desk`` is this job's own; ``restored`` is empty for a job never seen here."""
        self.job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._rng = rng
        self._register = Register(
            job, me, boot_epoch, desk, rng, restored.register, restored.barred_because
        )
        self.value: JobValue | None = restored.value
        self.history = History(job, desk, surroundings, self._sources, self._on_settled)
        self.participant = Participant(
            job, me, desk, surroundings, self._sources, self._collect, self._on_silence,
            self._refresh,
        )  # fmt: skip
        for counted in restored.rounds:
            self.history.restore(counted)
        if restored.update is not None:
            self.participant.restore(restored.update)
        self._label_restored(restored)
        self.aggregation: Aggregation | None = None
        self.is_over = self.value is not None and self.value.state in ("finished", "failed")
        self._reading = self._read_again = False
        self._refresh_at = NEVER if self.is_over else now + rng.uniform(0.0, QUIET_S)
        self._claim_at = NEVER
        self._claiming = False
        self._watching: tuple[SiteId, int] | None = None
        self._watch_failures = 0
        self._watchers: dict[int, float] = {}
        self._keeping: dict[int, set[Digest]] = {}

    def _label_restored(self, restored: Restored) -> None:
        """What others may still fetch here after a restart; labels are not stored."""
        blobs = [counted.contributions for counted in restored.rounds]
        if restored.update is not None:
            blobs.append(restored.update.digest)
        if restored.value is not None and restored.value.parameters is not None:
            blobs.append(restored.value.parameters)
        self._desk.emit(*(Label(blob, self.job.residency) for blob in blobs))

    # --- the machine -----------------------------------------------------------------------------
    def step(self, event: JobEvent, now: float) -> list[JobEffect]:  # noqa: C901, PLR0912 - one case an event
        """Take one event; effects in order, ``Persist`` before what depends on it."""
        match event:
            case Called():
                self._called(event, now)
            case Replied(call, reply):
                self._desk.replied(call, reply, now)
            case ViewChanged():
                self._view_changed(now)
            case BlobArrived(digest):
                self._blob_arrived(digest, now)
            case BlobMissing(digest, _):
                self._blob_missing(digest, now)
            case BlobRead(digest, data):
                self.history.blob_read(digest, data, now)
            case Trained():
                self.participant.trained(event, now)
            case AttemptEnded(round_, reason):
                self.participant.attempt_ended(round_, reason, now)
            case WorkDone(token, digest, size):
                if self.aggregation is not None:
                    self.aggregation.work_done(token, digest, size, now)
            case WorkFailed(token, reason, culprits):
                if self.aggregation is not None:
                    self.aggregation.work_failed(token, reason, culprits, now)
            case Persisted(token):
                self._register.persisted(token, now)
            case Cancelled():
                self._end(now)
            case Woke():
                self._woke(now)
            case _:
                assert_never(event)
        return self._desk.take()

    def wake_at(self) -> float:
        """The earliest thing put off by any part."""
        if self.is_over and not self._keeping:
            return self.history.wake_at() or NEVER
        due = [
            self._refresh_at, self._claim_at, self._register.wake_at(), self.participant.wake_at(),
            self.history.wake_at() or NEVER,
        ]  # fmt: skip
        if self.aggregation is not None:
            due.append(self.aggregation.wake_at())
        due.extend(self._watchers.values())
        return min(due)

    def _woke(self, now: float) -> None:
        self._register.woke(now)
        self.history.woke(now)
        if self.is_over:
            return
        self.participant.woke(now)
        if self.aggregation is not None:
            self.aggregation.woke(now)
        if now >= self._refresh_at:
            self._refresh(now)
        if now >= self._claim_at:
            self._claim(now)
        for call in [call for call, at in self._watchers.items() if now >= at]:
            del self._watchers[call]
            self._desk.emit(Answer(call, Declined("no change yet")))

    # --- the register ----------------------------------------------------------------------------
    def _refresh(self, now: float) -> None:
        """Read the register, once at a time."""
        self._refresh_at = now + REFRESH_S
        if self._reading:
            self._read_again = True
            return
        self._reading = True
        self._register.read(now, self._on_read)

    def _on_read(self, outcome: Outcome, now: float) -> None:
        self._reading = False
        if isinstance(outcome, Settled):
            if outcome.value is None:
                self._consider_claim(now)
            else:
                self._adopt(outcome.value, now)
        else:
            self._refresh_at = min(self._refresh_at, now + QUIET_S + self._rng.uniform(0, QUIET_S))
        if self._read_again:
            self._read_again = False
            self._refresh(now)

    def _adopt(self, value: JobValue, now: float) -> None:
        """``value`` was decided: go on from it, unless something later is known already."""
        before = self.value
        if before is not None and value.progress < before.progress:
            return
        if before is not None and value.progress == before.progress:
            if self.aggregation is None:
                self._carry_on(value, now)
            return
        self.value = value
        row: dict[str, Scalar] = {"job": self.job.id, "value": pack(value), "note": ""}
        self._desk.emit(Persist((Put("jobs", row),)), Progressed())
        if before is None or before.epoch != value.epoch:
            self._claim_at, self._watch_failures = NEVER, 0
            self.participant.forget_offer()
        self._release(before, value)
        for call in self._watchers:
            self._desk.emit(Answer(call, Done()))
        self._watchers.clear()
        self.history.follow(value)
        if self.aggregation is not None and self.aggregation.epoch != value.epoch:
            self.aggregation = None
        if self.aggregation is not None:
            self.aggregation.announce(value)
        if value.state in ("finished", "failed"):
            self._end(now)
            return
        if self.aggregation is not None:
            self.aggregation.begin(value, now)
        self._carry_on(value, now)

    def _carry_on(self, value: JobValue, now: float) -> None:
        self.participant.follow(value, now)
        if value.aggregator != self._me:
            self._watch(value)
            if value.aggregator not in self._surroundings.alive():
                self._consider_claim(now)
        elif self.aggregation is None and not self._claiming:
            self._consider_claim(now)  # an earlier process of this site held the epoch

    def _release(self, before: JobValue | None, value: JobValue) -> None:
        """Parameters two rounds old serve nobody: every site reads the register before it trains."""
        old = before.parameters if before is not None else None
        if old is not None and old != value.parameters and value.round > 1:
            self._desk.emit(ForgetBlob(old))

    def _end(self, now: float) -> None:  # noqa: ARG002 - same shape as every transition
        if self.is_over:
            return
        self.is_over = True
        self._refresh_at = self._claim_at = NEVER
        self.aggregation = None
        value = self.value
        self._desk.emit(ReleaseTrainer(self.job))
        if value is not None:
            self._desk.emit(Finished(self.job, value.exported, value.exported_bytes, value.round))

    def _on_settled(self, content: Contributions) -> None:
        self.participant.settled(content)
        self._desk.emit(Progressed())

    # --- who aggregates --------------------------------------------------------------------------
    def _consider_claim(self, now: float) -> None:
        """Schedule this site's claim by its rank among the living."""
        if (
            self.is_over
            or self._claim_at != NEVER
            or self._claiming
            or self.aggregation is not None
        ):
            return
        if not self._surroundings.can_aggregate():
            return
        if not self._surroundings.may_hold(self.job, self._me):
            return
        self._claim_at = now + stagger_s(self._rank(), CLAIM_RTT_S)

    def _rank(self) -> int:
        value = self.value
        gone = value.aggregator if value is not None and value.aggregator != self._me else None
        alive = self._surroundings.alive()
        pool = {site: alive[site] for site in self.job.committee if site in alive and site != gone}
        pool.setdefault(self._me, alive.get(self._me, 1.0))
        epoch = value.epoch + 1 if value is not None else 1
        candidates = [Candidate(site, capacity) for site, capacity in sorted(pool.items())]
        order = claim_order(self.job.id, epoch, candidates)
        # A site outside the committee waits until its members have had their turn.
        return order.index(self._me) + (0 if self._me in self.job.committee else len(pool))

    def _claim(self, now: float) -> None:
        self._claim_at, self._claiming = NEVER, True
        expected = self.value.epoch if self.value is not None else 0
        operation = self._desk.operation()

        def settled(outcome: Outcome, at: float) -> None:
            self._claiming = False
            if not isinstance(outcome, Settled) or outcome.value is None:
                self._refresh_at = at + QUIET_S + self._rng.uniform(0.0, QUIET_S)
                return
            value = outcome.value
            if outcome.is_ours and value.aggregator == self._me:
                self.aggregation = Aggregation(
                    self.job, self._me, self._desk, self._surroundings, self._register, value,
                    self._adopt, self.history.record, at,
                )  # fmt: skip
            self._adopt(value, at)

        self._register.change(claim(self.job, self._me, expected, operation), now, settled)

    def _collect(self, sender: SiteId, offer: Offer, now: float) -> OfferReply:
        if self.aggregation is None:
            return OfferReply("elsewhere")
        if offer.epoch != self.aggregation.epoch:
            return OfferReply("stale")
        return self.aggregation.collect(sender, offer, now)

    def _on_silence(self, now: float) -> None:
        """The aggregator did not take an offer: look again, and be ready to replace it."""
        self._refresh(now)
        value = self.value
        if value is not None and self._watching is None:
            self._watch(value)

    def _watch(self, value: JobValue) -> None:
        target = (value.aggregator, value.epoch)
        if self._watching == target or value.aggregator == self._me or self.is_over:
            return
        self._watching = target

        def answered(reply: Reply | None, now: float) -> None:
            if self._watching == target:
                self._watching = None
            self._watch_answered(target, reply, now)

        message = Watch(self.job.id, value.epoch, value.round)
        self._desk.ask(value.aggregator, message, WATCH_TIMEOUT_S, answered)

    def _watch_answered(self, target: tuple[SiteId, int], reply: Reply | None, now: float) -> None:
        value = self.value
        if value is None or self.is_over:
            return
        if reply is None and (value.aggregator, value.epoch) == target:
            self._watch_failures += 1
            if self._watch_failures > 1:  # one broken connection may be an accident
                self._consider_claim(now)
                self._refresh_at = min(self._refresh_at, now + QUIET_S)
                return
            self._watch(value)
        elif isinstance(reply, Declined) and reply.reason != "no change yet":
            self._watch_failures += 1
            self._refresh_at = min(self._refresh_at, now + QUIET_S)
            if reply.reason.startswith("resigned"):
                self._consider_claim(now)
        else:
            self._watch_failures = 0
            if isinstance(reply, Done):
                self._refresh(now)
            else:
                self._watch(value)

    def _view_changed(self, now: float) -> None:
        if self.is_over:
            return
        if self.aggregation is not None:
            self.aggregation.view_changed(now)
        value = self.value
        if value is not None and value.aggregator not in self._surroundings.alive():
            self._consider_claim(now)

    # --- calls from other sites ------------------------------------------------------------------
    def _called(self, event: Called, now: float) -> None:
        call, sender, message = event.call, event.sender, event.message
        match message:
            case Prepare() | Accept() | Read():
                self._desk.emit(Answer(call, self._register.called(sender, message)))
            case Notice():
                self._noticed(call, message, now)
            case Offer():
                self._desk.emit(Answer(call, self._collect(sender, message, now)))
            case Withdraw():
                if self.aggregation is not None:
                    self.aggregation.withdrawn(sender, message.round, message.reason, now)
                self._desk.emit(Answer(call, Done()))
            case Keep():
                self._keep(call, sender, message)
            case Watch():
                self._watched(call, message, now)
            case _:
                self._desk.emit(Answer(call, Declined("not a call about a job")))

    def _noticed(self, call: int, notice: Notice, now: float) -> None:
        reason = "the job has ended here" if self.is_over else self._surroundings.refusal(self.job)
        self._desk.emit(Answer(call, NoticeReply(not reason, reason)))
        value = self.value
        known = (0, 0) if value is None else (value.epoch, value.round)
        if not self.is_over and (notice.epoch, notice.round) > known:
            self._refresh(now)

    def _watched(self, call: int, watch: Watch, now: float) -> None:
        value = self.value
        if value is None or value.aggregator != self._me or self.aggregation is None:
            if self.is_over:
                self._desk.emit(Answer(call, Done()))
            else:
                self._desk.emit(Answer(call, Declined("not the aggregator")))
        elif self.aggregation.phase == "resigned":
            self._desk.emit(
                Answer(call, Declined(f"resigned: {self.aggregation.waiting_for}"[:400]))
            )
        elif (value.epoch, value.round) > (watch.epoch, watch.round):
            self._desk.emit(Answer(call, Done()))
        else:
            self._watchers[call] = now + WATCH_HOLD_S

    def _keep(self, call: int, sender: SiteId, keep: Keep) -> None:
        if not self._surroundings.may_hold(self.job, self._me):
            self._desk.emit(Answer(call, Declined("the job's residency does not allow it here")))
            return
        missing = {blob for blob in keep.blobs if not self._surroundings.is_held(blob)}
        if not missing:
            self._kept(call, keep.blobs)
            return
        self._keeping[call] = missing
        self._desk.emit(*(FetchBlob(blob, (sender,)) for blob in sorted(missing)))
        self._desk.emit(*(Label(blob, self.job.residency) for blob in keep.blobs))

    def _kept(self, call: int, blobs: tuple[Digest, ...]) -> None:
        self._desk.emit(*(Label(blob, self.job.residency) for blob in blobs))
        self._desk.emit(Answer(call, Done()))

    def _blob_arrived(self, digest: Digest, now: float) -> None:
        for call, missing in list(self._keeping.items()):
            missing.discard(digest)
            if not missing:
                del self._keeping[call]
                self._desk.emit(Answer(call, Done()))
        self.history.blob_arrived(digest)
        self.participant.blob_arrived(digest, now)
        if self.aggregation is not None:
            self.aggregation.blob_arrived(digest, now)

    def _blob_missing(self, digest: Digest, now: float) -> None:
        for call, missing in list(self._keeping.items()):
            if digest in missing:
                del self._keeping[call]
                self._desk.emit(Answer(call, Declined("the blob could not be fetched")))
        self.history.blob_missing(digest, now)
        self.participant.blob_missing(digest, now)
        if self.aggregation is not None:
            self.aggregation.blob_missing(digest, now)

    def _sources(self) -> tuple[SiteId, ...]:
        """Where the job's blobs may be had: the aggregator, the committee, then everyone alive."""
        alive: Mapping[SiteId, float] = self._surroundings.alive()
        first = () if self.value is None else (self.value.aggregator,)
        order = dict.fromkeys((*first, *self.job.committee, *alive))
        return tuple(site for site in order if site != self._me and site in alive)[:16]
