"""What the aggregator of one epoch does: invite, collect, average, secure, commit; then the next round.

Nothing here is durable and nothing needs to be. Until a commit is decided every site keeps its own
update, so a successor collects the same bytes again; after it, the register names the result, which
by then is on the disks of a majority of the committee (``Keep`` before commit).

Two aggregators may run at once (a cut, a pause): both compute, the register takes one commit.

Rule: what is averaged is what is counted. The list is fixed when the averaging starts; whoever arrives,
withdraws or fails after that changes nothing in it.
"""

from collections.abc import Callable, Mapping
from typing import Literal

from agent.election.roster import Roster
from agent.federation.cohort import (
    FETCH_TIMEOUT_S,
    INVITE_TIMEOUT_S,
    RETRY_MAX_S,
    Cohort,
    Entry,
)
from agent.federation.counting import Pairs, contributions, counted, countings, pairs
from agent.federation.custody import Custody
from agent.federation.desk import Desk, Surroundings
from agent.federation.events import (
    Aggregate,
    Export,
    FetchBlob,
    Initialise,
    Join,
    Label,
    Progressed,
    StoreBytes,
)
from agent.federation.history import History
from agent.federation.register import Outcome, Register, Settled
from agent.federation.securing import Securing
from agent.federation.sharing import Ended, Sharing
from agent.federation.summing import Summing
from agent.federation.ties import Plan, Whole
from agent.federation.value import (
    Above,
    Change,
    Contributions,
    JobValue,
    adopt_above,
    blob_digest,
    commit_round,
    fail,
    finish,
    go_on_alone,
    initialise,
    under,
)
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job
from agent.wire.mesh import Notice, NoticeReply, Offer, OfferReply, Reply
from agent.wire.schema import pack

RETRY_S = 0.5
FAILURES_MAX = 3
RESIGNED_S = 60.0
"""So long another site has the chance to do better; then this one tries again, if nobody took over."""
STUCK_S = 30.0
"""A majority that cannot be reached for so long may be in reach of another site."""
BARREN_EPOCHS_MAX = 8
"""So many aggregators in a row without first parameters, and the recipe is to blame."""
Phase = Literal[
    "initialising", "collecting", "averaging", "securing", "committing", "exporting", "resigned",
    "waiting",
]  # fmt: skip
Timer = Literal["close", "base", "work", "commit", "alone"]


class Aggregation:
    """One epoch as the aggregator."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        register: Register,
        custody: Custody,
        sources: Callable[[], tuple[SiteId, ...]],
        adopt: Callable[[JobValue, float], None],
        history: History,
        value: JobValue,
        summing: Summing,
        whole: Whole | None = None,
    ) -> None:
        """``value`` is what the claim was decided with; ``adopt`` takes every newer one.

        ``summing``: this site's. ``whole``: this is a region's.
        """
        self._job, self._me, self._desk = job, me, desk
        self._surroundings, self._register, self._custody = surroundings, register, custody
        self._sources, self._adopt, self._history = sources, adopt, history
        self._whole = whole
        self._cohort = Cohort(job, me, desk, surroundings, custody, history.content)
        self._sharing = Sharing(job, me, desk, surroundings, summing, custody.borrow, self._shared)
        self.epoch = value.epoch
        self.phase: Phase = "collecting"
        self.waiting_for = ""
        self._value = value
        self._state = 0
        """Counts what ``begin`` began: an answer to an earlier question changes nothing."""
        self._timers: dict[Timer, tuple[float, Callable[[float], None]]] = {}
        self._token = -1
        self._work: Callable[[], None] | None = None
        self._failures = self._resignations = 0
        self._counted: Pairs = ()
        self._all_counted: Pairs = ()
        self._made: tuple[Digest, Contributions] | None = None
        self._securing = Securing(job, me, desk, register, self._secured)
        self._then: Change | None = None
        self._is_reading = self._is_alone = False
        self._stuck_since = NEVER

    @property
    def entries(self) -> Mapping[SiteId, Entry]:
        """What is known of each site, or region, in this round."""
        return self._cohort.entries

    # --- start of a phase ------------------------------------------------------------------------
    def begin(self, value: JobValue, now: float) -> None:
        """Go on from ``value``: initialise, collect the next round, or export."""
        self._value = value
        self._state += 1
        self._custody.give_back()
        self._timers.clear()
        self._cohort.close()
        self._sharing.stop()
        self._securing.stop()
        self._is_alone = False
        self.waiting_for, self._token, self._work = "", -1, None
        self._failures = self._resignations = 0
        self._stuck_since = NEVER
        self._made, self._then, self._counted = None, None, ()
        plan = "collect" if self._whole is None else self._whole.plan(value, now)
        if plan != "collect":
            self._between_rounds(plan, now)
        elif value.parameters is None:
            self._start("initialising", lambda: Initialise(self._token, self._job))
        elif value.state == "exporting":
            parameters = value.parameters
            self.phase = "exporting"
            if self._has_base(now):
                self._start("exporting", lambda: Export(self._token, self._job, parameters))
        elif value.state == "running":
            self._collect_round(now)
        self._desk.emit(Progressed())

    def _collect_round(self, now: float) -> None:
        self.phase = "collecting"
        self._cohort.open(now)
        self._has_base(now)
        self.invite(now)
        self._consider(now)

    def _between_rounds(self, plan: Plan, now: float) -> None:
        """A region's: take the newest parameters of the whole job, or go on alone, or wait for either."""
        value, whole = self._value, self._whole
        assert whole is not None, "a job of its own has rounds only"
        self.phase = "waiting"
        self._cohort.open(now)
        above = None if whole.news is None else whole.news.value
        if plan == "adopt" and whole.news is not None and above is not None and above.parameters:
            self.waiting_for = "the parameters of the whole job"
            if not self._surroundings.is_held(above.parameters):
                self._desk.emit(FetchBlob(above.parameters, whole.news.sources))
                self._later("base", now + FETCH_TIMEOUT_S, self.whole_moved)
                return
            taken = Above(above.recoveries, above.round, above.parameters, value.round)
            change = adopt_above(taken, self.epoch, self._desk.operation())
            self._custody.promise(above.parameters)
            self._secure((above.parameters,), change, now)
        elif plan == "alone":
            self._commit(go_on_alone(value.round, self.epoch, self._desk.operation()), now)
        else:
            self.waiting_for = "the next round of the whole job"
            if value.parameters is not None:
                self._has_base(now)  # the whole job fetches from here what this region has made
            if (at := whole.alone_at(value)) != NEVER:
                self._later("alone", at, self.whole_moved)

    def whole_moved(self, now: float) -> None:
        """A region's: there is news of the whole job."""
        if self._whole is None or self.phase not in ("waiting", "collecting"):
            return
        is_collecting = self.phase == "collecting"
        plan = self._whole.plan(self._value, now, is_collecting=is_collecting)
        if not is_collecting or plan == "adopt":
            self.begin(self._value, now)

    def holders_changed(self, value: JobValue, now: float) -> None:
        """Others hold the register by now; the round goes on."""
        self._value = value
        self._securing.look_again(now)

    def close(self) -> None:
        """This epoch is over, or the job."""
        self._state += 1
        self._timers.clear()
        self._cohort.close()
        self._sharing.stop()
        self._securing.stop()
        self._custody.give_back()

    def _start(
        self, phase: Phase, effect: Callable[[], Initialise | Aggregate | Join | Export]
    ) -> None:
        """Start a piece of work; ``effect`` is asked again if it has to be repeated."""

        def work() -> None:
            self.phase, self._token = phase, self._desk.number()
            self._desk.emit(effect(), Progressed())

        self._work = work
        work()

    def _has_base(self, now: float) -> bool:
        """Whether all is here that a round starts from; asks for it if not (this site may not train itself)."""
        assert self._value.parameters is not None, "asked only when there are parameters"
        missing = [one for one in self._base() if not self._surroundings.is_held(one)]
        if missing and "base" not in self._timers:
            self._desk.emit(*(FetchBlob(one, self._sources()) for one in missing))
            # Also the deadline of a fetch: ``blob_missing`` brings it forward.
            self._timers["base"] = now + FETCH_TIMEOUT_S, self._has_base_now
        return not missing

    def _base(self) -> tuple[Digest, ...]:
        value, up = self._value, self._value.above
        started = [value.parameters, value.carried]
        if up is not None and value.is_waiting:
            started += [up.parameters, up.told]
        return tuple(one for one in started if one is not None)

    def _has_base_now(self, now: float) -> None:
        if self._has_base(now):
            self._base_arrived(now)

    def _base_arrived(self, now: float) -> None:
        if not all(self._surroundings.is_held(one) for one in self._base()):
            return
        self._timers.pop("base", None)
        if self.phase == "collecting":
            self._consider(now)
        elif self.phase == "exporting" and self._work is None and self._value.parameters:
            parameters = self._value.parameters
            self._start("exporting", lambda: Export(self._token, self._job, parameters))

    # --- collecting ------------------------------------------------------------------------------
    def invite(self, now: float) -> None:
        """Tell every living site that may take part and was not asked yet."""
        if self.phase == "collecting":
            self._cohort.invite(now, self._notify)

    def _notify(self, site: SiteId) -> None:
        state, value = self._state, self._value

        def answered(reply: Reply | None, now: float) -> None:
            entry = self.entries.get(site)
            if entry is None or entry.state != "invited" or state != self._state:
                return
            if isinstance(reply, NoticeReply) and reply.participates:
                entry.state = "training"
            else:
                entry.state = "out"
                entry.reason = reply.reason if isinstance(reply, NoticeReply) else "no answer"
            self._consider(now)

        self._desk.ask(site, self._notice(value), INVITE_TIMEOUT_S, answered)

    def _notice(self, value: JobValue) -> Notice:
        roster = value.roster or Roster(0, (), ())
        return Notice(
            self._job.id, value.epoch, value.round, self._me, roster.generation, roster.members,
            roster.others,
        )  # fmt: skip

    def collect(self, sender: SiteId, offer: Offer, now: float) -> OfferReply:
        """Take note of an update and fetch it; nothing is promised by ``collected``."""
        is_open = self.phase == "collecting"
        reply = self._cohort.collect(sender, offer, self._value, now, is_open=is_open)
        if is_open:
            self._consider(now)
        return reply

    def withdrawn(self, sender: SiteId, round_: int, reason: str, now: float) -> None:
        """The site will have no update for this round."""
        is_counted = any(entry.site == sender for entry, _ in self._counted)
        if round_ == self._value.round + 1 and not is_counted:
            self._cohort.withdrawn(sender, reason)
            self._consider(now)

    def blob_arrived(self, digest: Digest, now: float) -> None:
        """An update is here, or the parameters."""
        self._sharing.blob_arrived(digest, now)
        if self.phase == "waiting":
            self.whole_moved(now)
            return
        self._cohort.blob_arrived(digest, now)
        if digest in self._base():
            self._base_arrived(now)
        else:
            self._consider(now)

    def blob_missing(self, digest: Digest, now: float) -> None:
        """It cannot be had just now: try again, less and less often."""
        self._sharing.blob_missing(digest, now)
        if "base" in self._timers and (digest in self._base() or self.phase == "waiting"):
            self._timers["base"] = now + RETRY_S, self._timers["base"][1]
        self._cohort.blob_missing(digest, now)
        self._consider(now)

    def view_changed(self, now: float) -> None:
        """Sites came or went."""
        self._sharing.view_changed(now)
        if self.phase == "collecting":
            self.invite(now)
            self._consider(now)
        self._securing.look_again(now)

    def _consider(self, now: float) -> None:
        """Average when every site that is waited for has been fetched, or its time is up."""
        if self.phase != "collecting":
            return
        standing = self._cohort.standing()
        self._timers.pop("close", None)
        if len(standing.fetched) < self._job.sites_min:
            self.waiting_for = f"{len(standing.fetched)} of at least {self._job.sites_min} updates"
            self._timers["close"] = now + INVITE_TIMEOUT_S, self._invite_again
            return
        if standing.open:
            self.waiting_for = f"{len(standing.open)} more sites"
            if now < standing.close_at:
                self._timers["close"] = standing.close_at, self._consider
                return
        if not self._has_base(now):
            self.waiting_for = "the parameters of the round"
            return
        if not self._register.lease.is_held(now):
            self.waiting_for = "the register, which was not read for a while"
            self._read_again(now)
            return
        if self._cohort.refuse(self._cohort.cut_otherwise(standing.fetched), "cut otherwise"):
            self._consider(now)
            return
        self._cohort.closed(standing, now)
        self._average(standing.fetched, now)

    def _read_again(self, now: float) -> None:
        """This site was stopped, perhaps: somebody else may have claimed the next epoch."""
        if self._is_reading:
            return
        self._is_reading, state = True, self._state

        def read(outcome: Outcome, at: float) -> None:
            self._is_reading = False
            if isinstance(outcome, Settled) and outcome.value is not None:
                self._adopt(outcome.value, at)
            if state == self._state:
                self._later("close", at + RETRY_S, self._consider)

        self._register.read(now, read)

    def _invite_again(self, now: float) -> None:
        self.invite(now)
        self._consider(now)

    # --- work ------------------------------------------------------------------------------------
    def _average(self, sites: tuple[SiteId, ...], now: float) -> None:
        self.waiting_for = ""
        self._counted = self._all_counted = pairs(self.entries, sites)
        if self._counted[0][1].parts:
            self._share(now)
            return
        base, round_, carried = self._value.parameters, self._value.round + 1, self._value.carried
        assert base is not None, "a round has parameters to start from"
        self._start(
            "averaging",
            lambda: Aggregate(
                self._token, self._job, round_, base, countings(self._counted), carried
            ),
        )

    # --- a mean that several sites make ----------------------------------------------------------
    def _share(self, now: float) -> None:
        """Have others make the parts of the mean; ``_shared`` goes on."""
        self.phase, self._token = "averaging", -1
        assert self._value.parameters is not None, "a round has parameters to start from"
        self._sharing.begin(
            self._value.round + 1, self.epoch, self._value.parameters, counted(self._counted), now,
            is_alone=self._is_alone,
        )  # fmt: skip
        self.waiting_for = self._sharing.waiting_for
        self._desk.emit(Progressed())

    def _shared(self, ended: Ended, now: float) -> None:
        self.waiting_for = ""
        base, round_, carried = self._value.parameters, self._value.round + 1, self._value.carried
        if ended.ranges:
            assert base is not None, "a round has parameters to start from"
            self._start(
                "averaging",
                lambda: Join(self._token, self._job, round_, base, ended.ranges, carried),
            )
        elif not self._is_alone and not ended.is_ours:
            self._is_alone = True  # a helper says so, who may be cut off, or lie
            self._share(now)
        elif ended.missing or ended.spoiled:
            self._cohort.unreachable(ended.missing, now)
            self._cohort.refuse(ended.spoiled, ended.reason)
            self.phase, self._counted = "collecting", ()
            self._later("close", now + RETRY_S, self._consider)
        else:
            self._work = lambda: self._share(now)
            self._failed(ended.reason, now)

    def work_done(
        self, token: int, digest: Digest, size: int, now: float, carried: Digest | None = None
    ) -> bool:
        """A result of this epoch's work: secure it, then commit it. False if it is not wanted."""
        if token != self._token:
            return False
        self._token, self._failures = -1, 0
        operation = self._desk.operation()
        self._custody.made(digest)
        self._desk.emit(Label(digest, self._job.residency, self.phase == "initialising"))
        if self.phase == "initialising":
            self._secure((digest,), initialise(digest, self.epoch, operation), now)
        elif self.phase == "exporting":
            self._secure((digest,), finish(digest, size, self.epoch, operation), now)
        elif self.phase == "averaging":
            self._secure_round(digest, carried, operation, now)
        return True

    def _secure_round(
        self, parameters: Digest, carried: Digest | None, operation: bytes, now: float
    ) -> None:
        value, round_ = self._value, self._value.round + 1
        assert value.parameters is not None
        if carried is not None:
            self._custody.made(carried)
            self._desk.emit(Label(carried, self._job.residency))
        kept = carried if round_ < self._job.rounds else None  # the last round leaves it to nobody
        content = Contributions(
            self._job.id, round_, self.epoch, self._me, value.parameters, parameters,
            contributions(self._counted), value.contributions, kept,
            value.above.round + 1 if value.above is not None and not value.alone else 0,
        )  # fmt: skip
        data = pack(content)
        digest = blob_digest(data)
        self._made = (digest, content)
        self._custody.promise(digest)
        self._desk.emit(StoreBytes(digest, data), Label(digest, self._job.residency))
        change = commit_round(
            round_, parameters, digest, self.epoch, operation,
            rounds=self._job.rounds, publishes=bool(self._job.publish), base=value.parameters,
            carried=kept, samples=sum(offer.samples for _, offer in self._counted),
        )  # fmt: skip
        named = (parameters, digest) if kept is None else (parameters, digest, kept)
        self._secure(named, change, now)

    def work_failed(
        self, token: int, reason: str, culprits: tuple[Digest, ...], now: float
    ) -> None:
        """Drop the updates that made it fail and average again; else try again, then resign."""
        if token != self._token:
            return
        self._token = -1
        bad = {offer.update for _, offer in self._counted if offer.update in culprits}
        if self.phase == "averaging" and self._cohort.refuse(bad, reason):
            self.phase, self._counted = "collecting", ()
            self._consider(now)
            return
        if self.phase == "averaging" and self._counted[0][1].parts and not self._is_alone:
            self._is_alone = True  # somebody made a range that does not fit
            self._share(now)
            return
        self._failed(reason, now)

    def _failed(self, reason: str, now: float) -> None:
        """Try the work again, less and less often; then leave it to another site for a while."""
        self._failures += 1
        if self._failures < FAILURES_MAX:
            self._later("work", now + RETRY_S * 2**self._failures, lambda _: self._work_again())
            return
        is_hopeless = self.phase == "initialising" and (
            self.epoch >= BARREN_EPOCHS_MAX or self._resignations >= FAILURES_MAX
        )
        if self.phase == "exporting" or is_hopeless:
            what = "export" if self.phase == "exporting" else "initialisation"
            self._commit(fail(f"{what}: {reason}", self.epoch, self._desk.operation()), now)
            return
        self.phase, self.waiting_for = "resigned", reason[:400]
        self._resignations += 1
        self._later("work", now + RESIGNED_S, lambda _: self._work_again())
        self._desk.emit(Progressed())

    def _work_again(self) -> None:
        if self._failures >= FAILURES_MAX:
            self._failures, self.waiting_for = 0, ""
            # Nobody is blamed, and yet it fails: one after the other is left out.
            every = self._all_counted
            if self._counted and len(every) > max(1, self._job.sites_min):
                one = (self._resignations - 1) % len(every)
                self._counted = every[:one] + every[one + 1 :]
        if self._work is not None:
            self._work()

    # --- securing and committing -----------------------------------------------------------------
    def _secure(self, blobs: tuple[Digest, ...], then: Change, now: float) -> None:
        """Have the blobs on a majority of the committee before the register names them."""
        self.phase, self._then, self._stuck_since = "securing", then, now
        self._securing.begin(blobs, now)

    def _secured(self, now: float) -> None:
        if self._then is not None:
            change, self._then = self._then, None
            self._commit(change, now, generation=self._register.roster.generation)

    def _commit(
        self, change: Change, now: float, *, is_retry: bool = False, generation: int | None = None
    ) -> None:
        """``generation``: of the committee that keeps what ``change`` names; None: it names nothing."""
        if not is_retry:
            self._stuck_since = now
        self.phase, state, made = "committing", self._state, self._made

        def settled(outcome: Outcome, at: float) -> None:
            if isinstance(outcome, Settled) and outcome.value is not None:
                if outcome.is_ours and made is not None:
                    self._history.record(*made, at)
                self._adopt(outcome.value, at)
                if state == self._state and generation not in (
                    None, self._register.roster.generation,
                ):  # fmt: skip
                    self._secure(self._securing.blobs, change, at)  # for those who hold it by now
                elif state == self._state:
                    # Refused, and yet nothing moved: begin again from what the register holds.
                    value = outcome.value
                    self._later("commit", at + RETRY_MAX_S, lambda later: self.begin(value, later))
            elif state == self._state:  # outcome unknown: the same operation again
                self._later(
                    "commit", at + RETRY_S,
                    lambda later: self._commit(
                        change, later, is_retry=True, generation=generation
                    ),
                )  # fmt: skip

        fenced = change if generation is None else under(change, generation)
        self._register.change(fenced, now, settled, is_retry=is_retry)

    def announce(self, value: JobValue) -> None:
        """Tell everyone who was in the round that training is over; other news goes by ``invite``."""
        if value.state == "running":
            return
        for entry in self.entries.values():
            if entry.site != self._me and entry.state != "out":
                self._desk.ask(
                    entry.site, self._notice(value), INVITE_TIMEOUT_S, lambda _reply, _now: None
                )

    def resigned_because(self, now: float) -> str:
        """Why another site had better take over; empty while all goes well."""
        if self.phase == "resigned":
            return self.waiting_for
        if now - self._stuck_since > STUCK_S and self.phase in ("securing", "committing"):
            return "a majority of the committee has not answered for a while"
        return ""

    # --- time ------------------------------------------------------------------------------------
    def _later(self, timer: Timer, at: float, action: Callable[[float], None]) -> None:
        known = self._timers.get(timer)
        if known is None or at < known[0]:
            self._timers[timer] = at, action

    def woke(self, now: float) -> None:
        """Do what was put off."""
        self._cohort.woke(now, is_open=self.phase == "collecting")
        self._sharing.woke(now)
        self._securing.woke(now)
        for timer, (at, action) in list(self._timers.items()):
            if now >= at and self._timers.get(timer) == (at, action):
                del self._timers[timer]
                action(now)

    def wake_at(self) -> float:
        """When the next put-off thing is due."""
        parts = (self._cohort, self._sharing, self._securing)
        return min(*(p.wake_at() for p in parts), *(at for at, _ in self._timers.values()))
