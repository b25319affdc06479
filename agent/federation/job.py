"""One federated job as one site sees it: the whole loop, from nobody's job to a published model.

Theory of operation. The register (CASPaxos, on the job's pinned committee) is the only truth; every
message between sites is a hint to go and read it. A site that finds no aggregator, or finds it
gone, claims the next epoch; claims are ordered by rendezvous hashing and staggered, so that normally
one site proposes, and nothing breaks when several do. Whoever holds the epoch runs
``Aggregation``; every site runs ``Participant`` and keeps ``History``.

A finished job costs nothing: no packet, no timer.
"""

from dataclasses import replace
from random import Random
from typing import assert_never

from agent.election.roster import Roster
from agent.federation.aggregator import Aggregation
from agent.federation.burial import ended
from agent.federation.claims import Claims
from agent.federation.custody import Custody
from agent.federation.desk import BlobTaker, Desk, Surroundings, sources
from agent.federation.events import (
    Answer,
    AttemptEnded,
    BlobArrived,
    BlobMissing,
    BlobRead,
    Called,
    Cancelled,
    ForgetBlob,
    FromRegion,
    FromWhole,
    JobEffect,
    JobEvent,
    Label,
    LookAgain,
    Persist,
    Persisted,
    Progressed,
    RecoverRegister,
    ReleaseTrainer,
    ReplaceMember,
    Replied,
    Trained,
    ViewChanged,
    WorkDone,
    WorkFailed,
    finished,
)
from agent.federation.history import Counted, History, tries_max
from agent.federation.offering import Ears
from agent.federation.participant import Participant
from agent.federation.region import Place, region_of
from agent.federation.register import Outcome, Register, Settled
from agent.federation.restored import References, Restored, references
from agent.federation.summing import Summing
from agent.federation.swaps import Swap, Swaps
from agent.federation.ties import Delegate, Whole
from agent.federation.value import ENDED, Contributions, JobValue
from agent.federation.watch import (
    ENDED_HERE,
    NOT_THE_AGGREGATOR,
    RESIGNED,
    Watchers,
    Watching,
    answer,
)
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Put, Scalar
from agent.wire import mesh
from agent.wire.documents import Job
from agent.wire.schema import pack

REFRESH_S = 10.0
"""Without a working watch, the register is read this often while the job runs."""
PASSIVE_REFRESH_S = 60.0
"""By a site whose region speaks for it; it hears of the end from there."""
PASSIVE_QUIET_S = 10.0
LOOK_AGAIN_S = 0.5
QUIET_S = 0.5
READ_PAUSE_S = 0.05
"""What is asked for while a read is under way waits so long after it: news comes in bursts."""


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
        place: Place | None = None,
    ) -> None:
        """``desk`` is this job's own; ``restored`` is empty for a job never seen here.

        ``place``: what the machine is, where the job has regions.
        """
        place = place or Place()
        self.job, self._me, self._desk, self._surroundings = job, me, desk, surroundings
        self._rng, self._began_at = rng, now
        self.value: JobValue | None = restored.value
        has_ended = restored.value is not None and restored.value.state in ENDED
        self.is_over = job.is_cancelled or place.is_over or has_ended
        self.register = Register(
            job, me, boot_epoch, desk, rng, restored.register, restored.barred_because,
            self._on_buried, self._adopt,
        )  # fmt: skip
        self._custody = Custody(job, me, desk, surroundings, lambda: self.value)
        self.history = History(job, desk, surroundings, self._sources, self._on_settled)
        ears = Ears(self._collect, self._refresh)
        region = region_of(job, place.region)
        is_held = surroundings.is_held
        self.whole = Whole(job, place.parent, desk, is_held) if place.parent else None
        """What the machine of a region knows of the whole job; None: this is no region's."""
        self.participant: Participant | Delegate
        if region is not None:
            self.participant = Delegate(
                job, region, me, desk, ears, self._sources, self.history.content
            )
        else:
            self.participant = Participant(
                job, me, desk, surroundings, self._sources, ears, self._on_withdrawn,
                self.history.content,
            )  # fmt: skip
        if restored.value is not None:
            self.register.learn(restored.value.roster)
        self.summing = Summing(job, me, desk, surroundings)
        self.swaps = Swaps(job, me, desk, surroundings, self.register, self._adopt)
        self._claims = Claims(job, me, desk, surroundings, self.register, self._on_claimed)
        self._watching = Watching(
            job,
            desk,
            lambda: None if self.is_over else self.value,
            self._look,
            self._on_doubt,
            lambda now: self._claims.consider(self.value, now, has_resigned=True),
        )
        self._watchers = Watchers(desk)
        self.aggregation: Aggregation | None = None
        self._seen: SiteId | None = None
        self._reading = self._read_again = self._has_tidied = False
        self._refresh_at = NEVER if self.is_over else now + rng.uniform(0.0, QUIET_S)
        self._restore(restored)

    def _restore(self, restored: Restored) -> None:
        """Pick up what the last process left; effects go out with the first step."""
        value, update = restored.value, restored.update
        for one in restored.rounds:
            self.history.restore(one)
        if update is not None and isinstance(self.participant, Participant):
            self.participant.restore(update)
        # What others may still fetch here; labels are not stored.
        blobs = [*(one.contributions for one in restored.rounds), *self.participant.kept]
        if value is not None:
            blobs += sorted(value.blobs)
        self._desk.emit(*(Label(blob, self.job.residency) for blob in blobs))
        whole = (one.content for one in restored.rounds if isinstance(one, Counted))
        self._custody.restore(value, whole)
        if value is not None:
            self.summing.moved(value, self._began_at)
            self.history.follow(value)
        if self.is_over:
            self._end_parts(self._began_at)

    # --- the machine -----------------------------------------------------------------------------
    def step(self, event: JobEvent, now: float) -> list[JobEffect]:  # noqa: C901, PLR0912 - one case an event
        """Take one event; effects in order, ``Persist`` before what depends on it."""
        match event:
            case Called():
                self._called(event, now)
            case Replied(call, reply):
                self._desk.replied(call, reply, now)
            case ViewChanged():
                if not self.is_over:
                    self._view_changed(now)
            case BlobArrived(digest):
                for part in self._takers:
                    part.blob_arrived(digest, now)
            case BlobMissing(digest, _):
                for part in self._takers:
                    part.blob_missing(digest, now)
            case BlobRead(digest, data):
                self.history.blob_read(digest, data, now)
            case Trained():
                self.participant.trained(event, now)
            case AttemptEnded(round_, reason):
                self.participant.attempt_ended(round_, reason, now)
            case WorkDone():
                self._work_done(event, now)
            case WorkFailed(token, reason, culprits):
                self.summing.work_failed(token, reason, culprits, now)
                if self.aggregation is not None:
                    self.aggregation.work_failed(token, reason, culprits, now)
                    self._tell_if_resigned(now)
            case Persisted(token):
                self.register.persisted(token, now)
            case ReplaceMember(gone, by):
                if self.value is not None and not self.is_over:
                    self.swaps.replace(Swap(gone, by), self.value, now)
            case RecoverRegister(survivors, members):
                if not self.is_over:
                    self.swaps.recover(survivors, members, self.value, now)
            case FromWhole() | FromRegion() | LookAgain():
                self._told(event, now)
            case Cancelled():
                self.job = replace(self.job, is_cancelled=True)
                self._end(now)
            case Woke():
                self._woke(now)
            case _:
                assert_never(event)
        if self.is_over and not self._has_tidied:
            self._tidy()
        if self.whole is not None:
            speaks = self.aggregation is not None and not self.is_over
            self.whole.tell(self.value, self.history.rounds, self._surroundings, speaks=speaks)
        return [
            effect
            for effect in self._desk.take()
            if not isinstance(effect, ForgetBlob) or not self.needs(effect.digest)
        ]

    def _work_done(self, done: WorkDone, now: float) -> None:
        token, made = done.token, self.aggregation
        is_wanted = self.summing.work_done(token, done.digest, now) or (
            made is not None and made.work_done(token, done.digest, done.bytes, now, done.carried)
        )
        if not is_wanted:
            blobs = (done.digest, done.carried)
            self._desk.emit(*(ForgetBlob(blob) for blob in blobs if blob is not None))

    @property
    def committee(self) -> tuple[SiteId, ...]:
        """Who holds the register by now."""
        return self.register.members

    @property
    def holders(self) -> tuple[SiteId, ...]:
        """The committee, and those that are about to take over or may still count."""
        return self.register.voters().everyone

    def needs(self, digest: Digest) -> bool:
        """Whether this job still needs the blob at this site, whatever else has served."""
        participant = self.participant
        return (
            self._custody.needs(digest)
            or self.summing.needs(digest)
            or digest in participant.kept
            or (digest in participant.training_from and not self.is_over)
        )

    def references(self) -> References:
        """Which blobs this job is about, whether they are here or not.

        Raises:
            Malformed: a newer version has decided something that this one cannot read.
        """
        needed = self._custody.kept() | self.participant.kept | self.summing.kept
        needed |= set() if self.is_over else self.participant.training_from
        values = (self.value, self.register.accepted())
        return references(needed, values, self.history, is_over=self.is_over)

    def wake_at(self) -> float:
        """The earliest thing put off by any part."""
        if not self._desk.is_empty:
            return self._began_at  # what the constructor found to do
        if self.is_over:
            return self.history.wake_at()
        due = [
            self._refresh_at, self._claims.wake_at(), self.register.wake_at(),
            self.participant.wake_at(), self.history.wake_at(), self._watchers.wake_at(),
            self.swaps.wake_at(),
        ]  # fmt: skip
        if self.aggregation is not None:
            due.append(self.aggregation.wake_at())
        return min(due)

    def _woke(self, now: float) -> None:
        self.history.woke(now)
        if self.is_over:
            return
        self.register.woke(now)
        self.participant.woke(now)
        if self.aggregation is not None:
            self.aggregation.woke(now)
            self._tell_if_resigned(now)
        if now >= self._refresh_at:
            self._refresh(now)
        self._claims.woke(self.value, now)
        self._watchers.woke(now)
        self.swaps.woke(self.value, now, is_aggregator=self.aggregation is not None)

    # --- the register ----------------------------------------------------------------------------
    def _refresh(self, now: float) -> None:
        if self.is_over:
            return
        self._refresh_at = now + (PASSIVE_REFRESH_S if self._is_passive else REFRESH_S)
        if self._reading:
            self._read_again = True
            return
        self._reading = True
        self.register.read(now, self._on_read)

    def _look(self, now: float, pause_s: float) -> None:
        if pause_s > 0:
            self._refresh_at = min(self._refresh_at, now + pause_s)
        else:
            self._refresh(now)

    def _on_read(self, outcome: Outcome, now: float) -> None:
        self._reading = False
        if self.is_over:
            return
        if not isinstance(outcome, Settled):
            quiet_s = PASSIVE_QUIET_S if self._is_passive else QUIET_S
            self._look(now, quiet_s + self._rng.uniform(0, quiet_s))
            if isinstance(self.participant, Delegate):
                self.participant.unreadable(now)
            if others := [site for site in self._surroundings.alive() if site != self._me]:
                self.register.ask_who_holds_it(self._rng.choice(others), now)
        elif outcome.value is None:
            if not self._is_passive:
                self._claims.consider(None, now)
        else:
            self._adopt(outcome.value, now)
        if self._read_again:
            self._read_again = False
            self._look(now, READ_PAUSE_S)

    def _adopt(self, value: JobValue, now: float) -> None:
        """``value`` was decided: go on from it, unless something later is known already."""
        before = self.value
        if self.is_over or (before is not None and value.progress < before.progress):
            return
        if before is not None and value.progress == before.progress:
            self._carry_on(value, now)
            return
        self._note(value)
        self._claims.moved(before, value)
        self._watching.moved(is_other_epoch=before is None or before.epoch != value.epoch)
        self._custody.moved(value)
        self.summing.moved(value, now)
        self._watchers.answer(mesh.Done())
        self.history.follow(value)
        self._prune()
        if self.aggregation is not None and self.aggregation.epoch != value.epoch:
            self._drop_aggregation()
        if self.aggregation is not None:
            self.aggregation.announce(value)
        if value.state in ENDED:
            self._end(now)
            return
        if self.aggregation is not None:
            if before is not None and before.progress[:-1] == value.progress[:-1]:
                self.aggregation.holders_changed(value, now)
            else:
                self.aggregation.begin(value, now)
        self._carry_on(value, now)

    def _note(self, value: JobValue, note: str = "") -> None:
        self.value = value
        row: dict[str, Scalar] = {"job": self.job.id, "value": pack(value), "note": note}
        self._desk.emit(Persist((Put("jobs", row),)), Progressed())

    def _carry_on(self, value: JobValue, now: float) -> None:
        self.participant.follow(value, now)
        self.swaps.consider(value, now, is_aggregator=self.aggregation is not None)
        if self._is_passive:
            return
        if value.aggregator != self._me:
            self._watching.watch(value, now)
            self._look_for(value, now)
        elif self.aggregation is None:
            self._claims.consider(value, now)  # an earlier process of this site held the epoch

    def _end(self, now: float) -> None:
        if self.is_over:
            return
        self.is_over = True
        self._refresh_at = NEVER
        self._claims.stop()
        self.swaps.stop()
        self._drop_aggregation()
        self._watchers.answer(mesh.Declined(ENDED_HERE))
        self._end_parts(now)
        self._desk.emit(ReleaseTrainer(self.job), Progressed())
        if self.whole is None:
            self._desk.emit(finished(self.job, self.value))

    def _end_parts(self, now: float) -> None:
        self.register.hush(self.value)
        self.summing.end(now)
        self.participant.end(self.value)
        self.history.end(tries_max(self.job, is_region=self.whole is not None))

    @property
    def is_settled(self) -> bool:
        """Whether the job is over here, and nothing is missing or under way any more."""
        return self.is_over and self._has_tidied and self.wake_at() == NEVER

    def _on_buried(self, told: mesh.Buried, now: float) -> None:
        """Nobody has kept more than how it ended: rounds that are not known here never will be."""
        if self.is_over:
            return
        if told.end == "cancelled":
            self.job = replace(self.job, is_cancelled=True)
        else:
            is_all = len(self.history.rounds) >= told.round
            value = ended(told, self.value, self.job.id, self._me, has_history=is_all)
            self._note(value, "told by a tombstone")
        self.history.give_up()
        self._end(now)

    def _tidy(self) -> None:
        """Forget what only the way to the end needed, once no round's counted set is missing."""
        value, known = self.value, len(self.history.rounds)
        is_short = value is not None and value.contributions is not None and known < value.round
        if not is_short or self.history.has_given_up:
            self._has_tidied = True
            self.participant.give_up()
            named = {counted.previous for counted in self.history.rounds.values()}
            self._custody.end(named, has_result=self.whole is None)
            self.history.let_go()

    # --- regions ---------------------------------------------------------------------------------
    @property
    def _is_passive(self) -> bool:
        """Of a job with regions, at a site that neither speaks for its own nor holds the register."""
        delegate = self.participant
        return (
            isinstance(delegate, Delegate)
            and not delegate.speaks
            and self.aggregation is None
            and self._me not in self.holders
        )

    def _told(self, news: FromWhole | FromRegion | LookAgain, now: float) -> None:
        """The machine of a region hears from the whole job's, or the other way about."""
        delegate, was_passive = self.participant, self._is_passive
        if isinstance(news, FromWhole):
            if self.whole is None or self.is_over:
                return
            self.whole.news = news
            if news.is_over:
                self._end(now)
            elif self.aggregation is not None:
                self.aggregation.whole_moved(now)
        elif isinstance(delegate, Delegate) and self.is_over:
            delegate.say_that_it_is_over()
        elif isinstance(news, LookAgain):
            self._look(now, LOOK_AGAIN_S)
        elif isinstance(delegate, Delegate):
            delegate.from_region(news, now)
            if was_passive and not self._is_passive:
                self._refresh(now)

    def _prune(self) -> None:
        names, value = self.history.names, self.value
        if value is not None and len(names) >= value.round and not self.is_over:
            self._custody.settled(names)

    def _on_settled(self, _: Contributions) -> None:
        self.participant.settled()
        self._prune()
        self._desk.emit(Progressed())

    # --- who aggregates --------------------------------------------------------------------------
    def _on_claimed(self, outcome: Outcome, now: float) -> None:
        if self.is_over:
            return
        if not isinstance(outcome, Settled) or outcome.value is None:
            self._look(now, QUIET_S + self._rng.uniform(0.0, QUIET_S))
            return
        value = outcome.value
        self._adopt(value, now)
        # By now a later epoch may be known, or a read may have told of this one before.
        newest = self.value
        if newest is None or newest.epoch != value.epoch or newest.state in ENDED:
            return
        if outcome.is_ours and value.aggregator == self._me:
            self._drop_aggregation()
            self.aggregation = Aggregation(
                self.job, self._me, self._desk, self._surroundings, self.register,
                self._custody, self._sources, self._adopt, self.history, newest, self.summing,
                self.whole,
            )  # fmt: skip
            self._claims.stop()
            self.aggregation.begin(newest, now)
            self._carry_on(newest, now)

    def _drop_aggregation(self) -> None:
        if self.aggregation is not None:
            self.aggregation.close()
            self.aggregation = None

    def _tell_if_resigned(self, now: float) -> None:
        if self.aggregation is not None and (reason := self.aggregation.resigned_because(now)):
            self._watchers.answer(mesh.Declined(f"{RESIGNED}: {reason}"[:400]))

    def _collect(self, sender: SiteId, offer: mesh.Offer, now: float) -> mesh.OfferReply:
        if self.aggregation is None or offer.epoch != self.aggregation.epoch:
            return mesh.OfferReply("elsewhere" if self.aggregation is None else "stale")
        return self.aggregation.collect(sender, offer, now)

    def _on_withdrawn(self, sender: SiteId, round_: int, reason: str, now: float) -> None:
        if self.aggregation is not None:
            self.aggregation.withdrawn(sender, round_, reason, now)

    def _on_doubt(self, now: float, doubts: int) -> None:
        if self.whole is not None:
            self.whole.look_again()
        value = self.value
        # One broken connection may be an accident.
        if doubts > 1 or value is None or value.aggregator not in self._surroundings.alive():
            self._claims.consider(value, now)

    def _view_changed(self, now: float) -> None:
        if isinstance(self.participant, Delegate):
            self.participant.tell()  # of new sources
        if self.aggregation is not None:
            self.aggregation.view_changed(now)
            if self.value is not None:
                self.swaps.consider(self.value, now, is_aggregator=True)
        value = self.value
        if value is not None and value.aggregator != self._me and not self._is_passive:
            self._look_for(value, now)

    def _look_for(self, value: JobValue, now: float) -> None:
        """Claim when the aggregator has gone; a site that has just started has seen nobody yet."""
        if value.aggregator in self._surroundings.alive():
            self._seen = value.aggregator
        elif self._seen == value.aggregator:
            self._claims.consider(value, now)

    # --- calls from other sites ------------------------------------------------------------------
    def _called(self, event: Called, now: float) -> None:
        call, sender, message = event.call, event.sender, event.message
        match message:
            case mesh.Prepare() | mesh.Accept() | mesh.Read():
                self._desk.emit(Answer(call, self.register.called(sender, message)))
            case mesh.Notice():
                self._noticed(call, sender, message, now)
            case mesh.Offer():
                self._desk.emit(Answer(call, self._collect(sender, message, now)))
            case mesh.Withdraw():
                self._withdrawing(call, sender, message, now)
            case mesh.Keep() if self.is_over:  # its aggregator has not heard of the end
                self._desk.emit(Answer(call, mesh.Declined(ENDED_HERE)))
            case mesh.Keep():
                self._custody.keep(call, sender, message)
            case mesh.Watch():
                self._watched(call, message, now)
            case mesh.SumRange():
                self.summing.called(call, sender, message, now)
            case _:
                self._desk.emit(Answer(call, mesh.Declined("not a call about a job")))

    def _noticed(self, call: int, sender: SiteId, notice: mesh.Notice, now: float) -> None:
        reason = ENDED_HERE if self.is_over else self._surroundings.refusal(self.job)
        self._desk.emit(Answer(call, mesh.NoticeReply(not reason, reason)))
        if notice.members:
            roster = Roster(notice.generation, notice.members, notice.others)
            self.register.hear(sender, roster, now)
        value, news = self.value, (notice.epoch, notice.round)
        known = (0, 0) if value is None else (value.epoch, value.round)
        if news > known or (news == known and (value is None or value.is_between_rounds)):
            self._refresh(now)

    def _withdrawing(self, call: int, sender: SiteId, message: mesh.Withdraw, now: float) -> None:
        if self.aggregation is None or self.aggregation.epoch != message.epoch:
            self._desk.emit(Answer(call, mesh.Declined(NOT_THE_AGGREGATOR)))
            return
        self.aggregation.withdrawn(sender, message.round, message.reason, now)
        self._desk.emit(Answer(call, mesh.Done()))

    def _watched(self, call: int, watch: mesh.Watch, now: float) -> None:
        resigned = None if self.aggregation is None else self.aggregation.resigned_because(now)
        reply = answer(watch, self.value, resigned, is_over=self.is_over)
        if reply is None:
            self._watchers.hold(call, now)
        else:
            self._desk.emit(Answer(call, reply))

    @property
    def _takers(self) -> list[BlobTaker]:
        more = [self.aggregation] if self.aggregation else []
        return [self._custody, self.history, self.summing, self.swaps, self.participant, *more]

    def _sources(self) -> tuple[SiteId, ...]:
        """Where the job's blobs may be had: the aggregator, the committee, then everyone alive."""
        first = () if self.value is None else (self.value.aggregator,)
        return sources((*first, *self.holders), self._surroundings.alive(), self._me)
