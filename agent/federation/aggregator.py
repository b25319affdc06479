"""What the aggregator of one epoch does: invite, collect, average, secure, commit; then the next round.

Nothing here is durable and nothing needs to be. Until a commit is decided every site keeps its own
update, so a successor collects the same bytes again; after it, the register names the result, which
by then is on the disks of a majority of the committee (``Keep`` before commit).

Two aggregators may run at once (a cut, a pause): both compute, the register takes one commit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Literal

from agent.federation.desk import Desk, Surroundings
from agent.federation.events import (
    Aggregate,
    Export,
    FetchBlob,
    ForgetBlob,
    Initialise,
    Label,
    Progressed,
    StoreBytes,
)
from agent.federation.register import Outcome, Register, Settled
from agent.federation.value import (
    Change,
    Contribution,
    Contributions,
    JobValue,
    blob_digest,
    commit_round,
    fail,
    finish,
    initialise,
)
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job
from agent.wire.mesh import Done, Keep, Notice, NoticeReply, Offer, OfferReply, Reply
from agent.wire.schema import pack

INVITE_TIMEOUT_S = 5.0
KEEP_TIMEOUT_S = 60.0
KEEP_RETRY_S = 0.5
FETCH_RETRY_S = 0.2
FAILURES_MAX = 3
GRACE_FACTOR = 3.0
GRACE_S = 5.0
"""A site is waited for until 3x the median arrival + 5 s: a slow site is counted, a stuck one is not."""

Phase = Literal[
    "initialising", "collecting", "averaging", "securing", "committing", "exporting", "resigned"
]
State = Literal["invited", "training", "offered", "fetched", "withdrawn", "out"]


@dataclass(slots=True)
class Entry:
    """What the aggregator knows of one site in this round."""

    state: State
    offer: Offer | None = None
    reason: str = ""


class Aggregation:
    """One epoch as the aggregator."""

    def __init__(
        self,
        job: Job,
        me: SiteId,
        desk: Desk,
        surroundings: Surroundings,
        register: Register,
        value: JobValue,
        adopt: Callable[[JobValue, float], None],
        record: Callable[[Digest, Contributions, float], None],
        now: float,
    ) -> None:
        """``value`` is what the claim was decided with; ``adopt`` takes every newer one."""
        self._job, self._me, self._desk = job, me, desk
        self._surroundings, self._register = surroundings, register
        self._adopt, self._record = adopt, record
        self.epoch = value.epoch
        self.phase: Phase = "collecting"
        self.entries: dict[SiteId, Entry] = {}
        self.waiting_for = ""
        self._value = value
        self._opened_at = now
        self._arrived_s: list[float] = []
        self._token = -1
        self._failures = 0
        self._secured: set[SiteId] = set()
        self._securing: tuple[Digest, ...] = ()
        self._then: Change | None = None
        self._made: tuple[Digest, Contributions] | None = None
        self._retry_at = NEVER
        self._refetch: dict[SiteId, float] = {}
        self._again: Callable[[float], None] | None = None

    # --- start of a phase ------------------------------------------------------------------------
    def begin(self, value: JobValue, now: float) -> None:
        """Go on from ``value``: initialise, collect the next round, or export."""
        self._value = value
        if value.parameters is None:
            self.phase, self._token = "initialising", self._desk.number()
            self._desk.emit(Initialise(self._token, self._job))
        elif value.state == "exporting":
            self._export(now)
        elif value.state == "running":
            self.phase = "collecting"
            self.entries, self._arrived_s, self._opened_at = {}, [], now
            self._failures, self._retry_at = 0, NEVER
            self._refetch = {}
            self.invite(now)
        self._desk.emit(Progressed())

    def invite(self, now: float) -> None:
        """Tell every living site that may take part and was not asked yet."""
        if self.phase not in ("collecting", "averaging"):
            return
        for site in self._surroundings.alive():
            known = self.entries.get(site)
            if known is not None and known.state != "out":
                continue
            if not self._surroundings.may_hold(self._job, site):
                self.entries[site] = Entry("out", reason="its jurisdiction is not allowed")
            elif site == self._me:
                reason = self._surroundings.refusal(self._job)
                self.entries[site] = Entry("out" if reason else "training", reason=reason)
            elif known is None or now - self._opened_at > INVITE_TIMEOUT_S:
                self.entries[site] = Entry("invited")
                self._notify(site)

    def _notify(self, site: SiteId) -> None:
        value = self._value

        def answered(reply: Reply | None, now: float) -> None:
            entry = self.entries.get(site)
            if entry is None or entry.state != "invited" or value.round != self._value.round:
                return
            if isinstance(reply, NoticeReply) and reply.participates:
                entry.state = "training"
            else:
                entry.state = "out"
                entry.reason = reply.reason if isinstance(reply, NoticeReply) else "no answer"
            self._consider(now)

        notice = Notice(self._job.id, value.epoch, value.round, self._me)
        self._desk.ask(site, notice, INVITE_TIMEOUT_S, answered)

    # --- collecting ------------------------------------------------------------------------------
    def collect(self, sender: SiteId, offer: Offer, now: float) -> OfferReply:
        """Take note of an update and fetch it; nothing is promised by ``collected``."""
        value = self._value
        if offer.round != value.round + 1 or offer.base != value.parameters:
            return OfferReply("stale")
        if self.phase != "collecting":
            return OfferReply("collected" if self._is_listed(sender, offer) else "stale")
        if not self._surroundings.may_hold(self._job, sender):
            return OfferReply("elsewhere")
        entry = self.entries.setdefault(sender, Entry("training"))
        if entry.offer == offer and entry.state in ("offered", "fetched"):
            return OfferReply("collected")
        entry.state, entry.offer = "offered", offer
        if self._surroundings.is_held(offer.update):
            self._fetched(entry, now)
        else:
            self._desk.emit(FetchBlob(offer.update, (sender,)))
        self._consider(now)
        return OfferReply("collected")

    def _is_listed(self, sender: SiteId, offer: Offer) -> bool:
        entry = self.entries.get(sender)
        return entry is not None and entry.offer == offer

    def withdrawn(self, sender: SiteId, round_: int, reason: str, now: float) -> None:
        """The site will have no update for this round."""
        if round_ == self._value.round + 1 and sender in self.entries:
            self.entries[sender] = Entry("withdrawn", reason=reason)
            self._consider(now)

    def blob_arrived(self, digest: Digest, now: float) -> None:
        """An update, or this site's own part of what is being secured, is here."""
        for entry in self.entries.values():
            offer = entry.offer
            if entry.state == "offered" and offer is not None and offer.update == digest:
                self._fetched(entry, now)
        self._consider(now)

    def blob_missing(self, digest: Digest, now: float) -> None:
        """The update cannot be had just now: try again for as long as its site seems alive."""
        for site, entry in self.entries.items():
            offer = entry.offer
            if entry.state == "offered" and offer is not None and offer.update == digest:
                self._refetch[site] = now + FETCH_RETRY_S
        self._consider(now)

    def _fetch_again(self, now: float) -> None:
        for site in [site for site, at in self._refetch.items() if now >= at]:
            del self._refetch[site]
            entry = self.entries.get(site)
            if entry is not None and entry.state == "offered" and entry.offer is not None:
                self._desk.emit(FetchBlob(entry.offer.update, (site,)))

    def _fetched(self, entry: Entry, now: float) -> None:
        entry.state = "fetched"
        self._arrived_s.append(now - self._opened_at)
        self._desk.emit(Progressed())

    def view_changed(self, now: float) -> None:
        """Sites came or went."""
        if self.phase == "collecting":
            self.invite(now)
            self._consider(now)

    def _consider(self, now: float) -> None:
        """Average when every site that is waited for has been fetched, or its time is up."""
        if self.phase != "collecting":
            return
        alive = self._surroundings.alive()
        fetched = [s for s, e in self.entries.items() if e.state == "fetched"]
        open_ = [
            site
            for site, entry in self.entries.items()
            if entry.state in ("invited", "training", "offered") and site in alive
        ]
        self._retry_at = NEVER
        if len(fetched) < self._job.sites_min:
            self.waiting_for = f"{len(fetched)} of at least {self._job.sites_min} updates"
            self._retry_at, self._again = now + INVITE_TIMEOUT_S, self._invite_again
            return
        if open_:
            patience_s = min(
                GRACE_FACTOR * median(self._arrived_s) + GRACE_S, self._job.round_timeout_s
            )
            close_at = self._opened_at + patience_s
            self.waiting_for = f"{len(open_)} more sites"
            if now < close_at:
                self._retry_at, self._again = close_at, self._consider
                return
        self._average(sorted(fetched))

    def _invite_again(self, now: float) -> None:
        self.invite(now)
        self._consider(now)

    # --- averaging and committing ----------------------------------------------------------------
    def _average(self, sites: list[SiteId]) -> None:
        self.phase, self._token, self.waiting_for = "averaging", self._desk.number(), ""
        offers = [offer for site in sites if (offer := self.entries[site].offer) is not None]
        updates = [(offer.update, offer.samples) for offer in offers]
        base = self._value.parameters
        assert base is not None, "a round has parameters to start from"
        self._desk.emit(
            Aggregate(self._token, self._job, self._value.round + 1, base, updates), Progressed()
        )

    def work_done(self, token: int, digest: Digest, size: int, now: float) -> None:
        """A result of this epoch's work: secure it, then commit it."""
        if token != self._token:
            return
        operation = self._desk.operation()
        self._desk.emit(Label(digest, self._job.residency))
        if self.phase == "initialising":
            self._secure((digest,), initialise(digest, self.epoch, operation), now)
        elif self.phase == "exporting":
            self._secure((digest,), finish(digest, size, self.epoch, operation), now)
        elif self.phase == "averaging":
            self._secure_round(digest, operation, now)

    def _secure_round(self, parameters: Digest, operation: bytes, now: float) -> None:
        value, round_ = self._value, self._value.round + 1
        assert value.parameters is not None
        entries = tuple(
            Contribution(site, entry.offer.update, entry.offer.samples, entry.offer.metrics)
            for site, entry in sorted(self.entries.items())
            if entry.state == "fetched" and entry.offer is not None
        )
        content = Contributions(
            self._job.id, round_, self.epoch, self._me, value.parameters, parameters, entries,
            value.contributions,
        )  # fmt: skip
        data = pack(content)
        digest = blob_digest(data)
        self._made = (digest, content)
        self._desk.emit(StoreBytes(digest, data), Label(digest, self._job.residency))
        change = commit_round(
            round_, parameters, digest, self.epoch, operation,
            rounds=self._job.rounds, publishes=bool(self._job.publish),
        )  # fmt: skip
        self._secure((parameters, digest), change, now)

    def work_failed(
        self, token: int, reason: str, culprits: tuple[Digest, ...], now: float
    ) -> None:
        """Drop the updates that made it fail and average again; resign if none is to blame."""
        if token != self._token:
            return
        self._failures += 1
        if self.phase == "averaging" and culprits:
            for entry in self.entries.values():
                if entry.offer is not None and entry.offer.update in culprits:
                    entry.state, entry.reason = "withdrawn", f"update refused: {reason}"[:400]
            self.phase = "collecting"
            self._consider(now)
        elif self._failures < FAILURES_MAX:
            self.begin(self._value, now)
        elif self.phase == "exporting":
            self._commit(fail(f"export: {reason}", self.epoch, self._desk.operation()), now)
        else:
            self.phase, self.waiting_for = "resigned", reason[:400]
            self._desk.emit(Progressed())

    def _secure(self, blobs: tuple[Digest, ...], then: Change, now: float) -> None:
        """Have the blobs on a majority of the committee before the register names them."""
        self.phase, self._securing, self._then = "securing", blobs, then
        self._secured = {self._me}
        for site in self._job.committee:
            if site != self._me:
                self._ask_to_keep(site)
        self._secure_or_commit(now)

    def _ask_to_keep(self, site: SiteId) -> None:
        blobs = self._securing

        def answered(reply: Reply | None, now: float) -> None:
            if self.phase != "securing" or blobs != self._securing:
                return
            if isinstance(reply, Done):
                self._secured.add(site)
                self._secure_or_commit(now)
            else:
                self._retry_at = min(self._retry_at, now + KEEP_RETRY_S)
                self._again = self._keep_again

        self._desk.ask(site, Keep(self._job.id, blobs), KEEP_TIMEOUT_S, answered)

    def _keep_again(self, now: float) -> None:
        if self.phase == "securing":
            for site in self._job.committee:
                if site not in self._secured and site in self._surroundings.alive():
                    self._ask_to_keep(site)
            self._retry_at, self._again = now + KEEP_TIMEOUT_S, self._keep_again

    def _secure_or_commit(self, now: float) -> None:
        holders = self._secured & set(self._job.committee)
        if len(holders) > len(self._job.committee) // 2 and self._then is not None:
            self._retry_at = NEVER
            change, self._then = self._then, None
            self._commit(change, now)

    def _commit(self, change: Change, now: float, *, is_retry: bool = False) -> None:
        self.phase = "committing"

        def settled(outcome: Outcome, at: float) -> None:
            match outcome:
                case Settled(value, is_ours) if value is not None:
                    if is_ours:
                        self._committed(at)
                    self._adopt(value, at)
                case _:
                    self._retry_at = at + KEEP_RETRY_S  # outcome unknown: the same operation again
                    self._again = lambda later: self._commit(change, later, is_retry=True)

        self._register.change(change, now, settled, is_retry=is_retry)

    def _committed(self, now: float) -> None:
        if self._made is not None:
            digest, content = self._made
            self._made = None
            self._record(digest, content, now)
            mine = [e.update for e in content.entries if e.site != self._me]
            self._desk.emit(*(ForgetBlob(update) for update in mine))

    def announce(self, value: JobValue) -> None:
        """Tell everyone who was in the round that the register has moved."""
        for site, entry in self.entries.items():
            if site != self._me and entry.state != "out":
                notice = Notice(self._job.id, value.epoch, value.round, self._me)
                self._desk.ask(site, notice, INVITE_TIMEOUT_S, lambda _reply, _now: None)

    def _export(self, now: float) -> None:
        self.phase, self._token = "exporting", self._desk.number()
        parameters = self._value.parameters
        assert parameters is not None
        if self._surroundings.is_held(parameters):
            self._desk.emit(Export(self._token, self._job, parameters))
        else:  # claimed by a site that has not followed the job: fetch first, then try again
            sources = tuple(s for s in self._surroundings.alive() if s != self._me)
            self._desk.emit(FetchBlob(parameters, sources))
            self._retry_at, self._again = now + KEEP_RETRY_S, self._export

    # --- time ------------------------------------------------------------------------------------
    def woke(self, now: float) -> None:
        """Do what was put off."""
        self._fetch_again(now)
        if now >= self._retry_at and self._again is not None:
            self._retry_at = NEVER
            self._again(now)

    def wake_at(self) -> float:
        """When the next put-off thing is due."""
        return min(self._retry_at, *self._refetch.values(), NEVER)
