"""One site: everything it decides, as one pure machine.

Theory of operation. Each arrow of the data flow is one method: a packet goes to membership, a member's
call to the part it is about, a document to the catalog and from there to the shelf (models) or the
workshop (jobs). The parts do not know each other; this file is the only place where they meet.

The driver carries out effects in list order and waits for every ``Persist`` before it goes on.
"""

from collections import deque
from collections.abc import Sequence
from random import Random
from typing import assert_never

from agent.catalog.catalog import Catalog
from agent.catalog.clock import HybridClock
from agent.catalog.history import History
from agent.catalog.rollout import TABLE as ROLLOUTS
from agent.distribution.retention import Retention
from agent.federation import events as job
from agent.federation.events import JobEffect
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import Woke
from agent.foundation.notary import Notary
from agent.foundation.writes import Delete
from agent.identity.certificates import Identity
from agent.identity.registry import Roll
from agent.identity.trust import TrustLog
from agent.membership import events as swim_events
from agent.membership.settings import Settings as SwimSettings
from agent.site.events import (
    Answer,
    Ask,
    BlobFailed,
    BlobLoaded,
    BlobsFull,
    BlobStored,
    CallEnded,
    CallReceived,
    CollectRequested,
    Discovered,
    DrainRequested,
    GatewayChanged,
    JobEnded,
    LeaveRequested,
    LoadMeasured,
    ModelFailed,
    ModelOverridden,
    ModelReady,
    ModelReleased,
    NetworkChanged,
    Noted,
    Persist,
    PowerMeasured,
    Recertified,
    Resolved,
    SiteEffect,
    SiteEvent,
    Submitted,
    TrustFetched,
    TrustSubmitted,
    WallClock,
    WorkerDown,
    WorkerUp,
)
from agent.site.exchange import digest8
from agent.site.holdings import Holdings
from agent.site.keeping import Keeping
from agent.site.overrides import Overrides
from agent.site.relations import Relations, Then, record_of
from agent.site.stored import SiteSettings, Stored
from agent.site.workshop import Surroundings, Workshop
from agent.wire.documents import (
    Body,
    Deployment,
    Document,
    Job,
    ModelVersion,
    Policy,
    Scope,
    Stamp,
    Unknown,
)
from agent.wire.mesh import (
    Call,
    Declined,
    Done,
    Have,
    HaveReply,
    IssuerKeyWanted,
    Push,
    ReceiptWanted,
    SyncRequest,
    Testify,
)
from agent.wire.records import Endpoint, Passport, SiteRecord


class Site:
    """Machine[SiteEvent, SiteEffect]."""

    def __init__(
        self,
        *,
        identity: Identity,
        passport: Passport,
        endpoint: Endpoint,
        boot_epoch: int,
        settings: SiteSettings,
        swim_settings: SwimSettings,
        notary: Notary,
        roll: Roll,
        trust: TrustLog,
        stored: Stored,
        rng: Random,
        now: float,
        wall_offset_s: float,
        mark: bytes = b"",
    ) -> None:
        """Continue from ``stored``; ``boot_epoch`` is durable and was never used before.

        ``mark`` is random (``duplicates.MARK_BYTES``).
        """
        self.me = me = identity.site
        self.identity, self.settings, self.roll, self.trust = identity, settings, roll, trust
        self._rng, self._wall_offset_s = rng, wall_offset_s
        self.catalog, self._clock = Catalog(), HybridClock()
        start = boot_epoch << 32
        record = SiteRecord(
            me, start, boot_epoch, start, "alive", endpoint, 0.0, settings.capacity, (),
            digest8(self.catalog, trust), stored.coordinate, mark,
        )  # fmt: skip
        self._outbox: list[SiteEffect] = []
        self._relations = relations = Relations(
            home=self, record=record, identity=identity, passport=passport, notary=notary,
            settings=swim_settings, roll=roll, trust=trust, catalog=self.catalog,
            clock=self._clock, history=History(stored.history), rng=rng, now=now,
        )  # fmt: skip
        self.swim, self.discovery, self.paths = relations.swim, relations.discovery, relations.paths
        self.exchange, self.duplicates = relations.exchange, relations.duplicates
        self.held: set[Digest] = set(stored.blobs)
        self._surroundings = Surroundings(
            identity, self.swim, roll, settings, self.held, self.wall_s
        )
        self.workshop = Workshop(
            me, boot_epoch, self._number, self._surroundings, rng, stored.jobs,
            stored.barred_because, tombstones=stored.tombstones, jobs_kept=settings.jobs_kept,
        )  # fmt: skip
        self.holdings = holdings = Holdings(
            claims=identity.claims, catalog=self.catalog, swim=self.swim, roll=roll,
            workshop=self.workshop, held=self.held, crashes=stored.crashes,
            overrides=Overrides(stored.overrides), rollouts=stored.rollouts,
            abilities=settings.abilities, rng=rng,
            emit=self.emit, tell=self._relations.step,
        )  # fmt: skip
        self.keeping = Keeping(
            holdings=holdings, catalog=self.catalog, workshop=self.workshop, swim=self.swim,
            roll=roll, retention=Retention(unnamed_s=settings.unnamed_s, now=now),
            parts=set(stored.parts), rng=rng, emit=self.emit, ask=self.ask,
        )  # fmt: skip
        self.labels, self.shelf, self.versions = holdings.labels, holdings.shelf, holdings.versions
        self._last_number = 0
        self._waiting: dict[int, Then] = {}
        self._restore(stored, now)

    # --- the machine -----------------------------------------------------------------------------
    def step(self, event: SiteEvent, now: float) -> list[SiteEffect]:  # noqa: C901, PLR0912, PLR0915 - one case an event
        """Take one event; effects in order."""
        match event:
            case (
                swim_events.Heard()
                | swim_events.SendFailed()
                | swim_events.PortRefused()
                | swim_events.LoopLagged()
            ):
                self._relations.step(event, now)
            case CallReceived():
                self._called(event, now)
            case CallEnded():
                self._call_ended(event, now)
            case Discovered(endpoint, mechanism, site, sender, sequence):
                if self.discovery.learn(
                    endpoint, mechanism, site, now, sender=sender, sequence=sequence
                ):
                    self._relations.greet(now)
            case NetworkChanged(endpoint):
                self._relations.step(swim_events.LocalChanged(endpoint=endpoint), now)
                self.discovery.hasten(now)
                self._relations.greet(now)
            case WallClock(offset_s):
                self._wall_offset_s = offset_s
            case Submitted(token, documents):
                errors = self.take_documents(documents, now)
                self._outbox.append(Resolved(token, tuple(errors)))
            case TrustSubmitted(token, entries):
                writes, reasons = self.exchange.submit(entries)
                self._relations.trust_changed(writes, now)
                self._outbox.append(Resolved(token, reasons))
            case TrustFetched(entries):
                self._relations.learn_trust(entries, None, now)
            case BlobStored(digest):
                self.keeping.stored(digest)
                self.holdings.stored(digest, now)
                self._job_effects(self.workshop.blob(job.BlobArrived(digest), now), now)
            case BlobFailed(digest, reason):
                self.keeping.failed(digest)
                self.shelf.fetch_failed(digest, reason, now)
                self._outbox.append(GatewayChanged())
                self._job_effects(self.workshop.blob(job.BlobMissing(digest, reason), now), now)
            case BlobsFull():
                self.keeping.full(now)
            case CollectRequested(token):
                self._outbox.append(Resolved(token, self.keeping.collect(now)))
            case BlobLoaded(digest, data):
                self._job_effects(self.workshop.blob(job.BlobRead(digest, data), now), now)
            case JobEnded(job_id, job_event):
                self._job_effects(self.workshop.step(job_id, job_event, now), now)
            case ModelReady(key, providers, metadata, service_us):
                self._outbox += self.shelf.ready(key, providers, metadata, service_us)
                if self.versions.has_former:
                    self.holdings.wanted_changed(now)
                self.holdings.rollouts_moved(now)
                self.holdings.serving_changed(now)
            case ModelFailed(key, reason, is_crash):
                self._outbox += self.shelf.failed(key, reason, is_crash=is_crash)
                if is_crash:
                    self.holdings.rollouts.crashed(key, reason)
                self.holdings.rollouts_moved(now)
                self._outbox += self.shelf.advance(now)
                self.holdings.serving_changed(now)
            case ModelReleased(key):
                self._outbox += self.shelf.release(key, now)
                self.holdings.serving_changed(now)
            case ModelOverridden():
                self.holdings.override(event, self.wall_s(now), now)
            case WorkerUp():
                self._outbox += self.shelf.worker_up(now)
            case WorkerDown(reason, lost, is_any_up):
                self._outbox += self.shelf.worker_down(reason, lost, now, is_any_up=is_any_up)
                self.holdings.rollouts_moved(now)
                self.holdings.serving_changed(now)
            case LoadMeasured(load, service_us, counts):
                self.holdings.measured(load, service_us, counts, now)
            case PowerMeasured(free_w):
                self.holdings.power_measured(free_w, now)
            case DrainRequested(is_draining):
                self._surroundings.is_draining = is_draining
                self._relations.step(
                    swim_events.LocalChanged(status="draining" if is_draining else "alive"), now
                )
                self.members_moved(now)
                self._outbox.append(GatewayChanged())
            case Recertified(identity, passport):
                self.identity = identity
                self.exchange.recertified(passport, identity)
            case LeaveRequested():
                self._relations.step(swim_events.Leave(), now)
            case job.Persisted(token):
                self._job_effects(self.workshop.persisted(token, now), now)
            case Woke():
                self._woke(now)
            case _:
                assert_never(event)
        effects, self._outbox = self._outbox, []
        return effects

    def wake_at(self) -> float:
        """The earliest thing put off by any part."""
        return min(
            self._relations.wake_at(), self.shelf.wake_at(), self.workshop.wake_at(),
            self.holdings.wake_at(), self.keeping.wake_at(),
        )  # fmt: skip

    @property
    def is_isolated(self) -> bool:
        """Whether this site hears nobody although it should."""
        return self._relations.is_isolated

    @property
    def is_draining(self) -> bool:
        """Whether the operator has asked for no new work from others."""
        return self._surroundings.is_draining

    def wall_s(self, now: float) -> float:
        """Unix time; for display, stamps and certificates only."""
        return now + self._wall_offset_s

    def next_stamp(self, wall_ms: int) -> Stamp:
        """A stamp newer than every document seen here.

        Raises:
            Refused: this site's clock is so far from the others' that the document would be lost.
        """
        self._relations.clocks.require_agreement(self._wall_offset_s)
        return self._clock.tick(wall_ms)

    @property
    def clock_ahead_s(self) -> float:
        """How far this site's clock is ahead of the median member's (negative: behind)."""
        return self._relations.clocks.ahead_ms(self._wall_offset_s) / 1000.0

    @property
    def clocks_heard(self) -> int:
        """How many members it is compared with."""
        return len(self._relations.clocks)

    def _woke(self, now: float) -> None:
        self._relations.woke(now)
        self._outbox += self.shelf.advance(now)
        self.holdings.woke(now)
        self.keeping.woke(now)
        self._job_effects(self.workshop.woke(now), now)

    # --- what its relations need of the site -----------------------------------------------------
    def emit(self, effect: SiteEffect) -> None:
        """See ``Home``."""
        self._outbox.append(effect)

    def ask(
        self, site: SiteId | None, endpoint: Endpoint, message: Call, timeout_s: float, then: Then
    ) -> None:
        """See ``Home``."""
        call = self._number()
        self._waiting[call] = then
        self._outbox.append(Ask(call, site, endpoint, message, timeout_s))

    def members_moved(self, now: float) -> None:
        """See ``Home``."""
        self._job_effects(self.workshop.step_all(job.ViewChanged(), now), now)
        self.holdings.others_moved(now)

    def shelves_moved(self, now: float) -> None:
        """See ``Home``."""
        self.holdings.others_moved(now)

    def bar(self, reason: str) -> None:
        """See ``Home``."""
        self._surroundings.is_double = True
        self.workshop.bar(reason)

    def _number(self) -> int:
        self._last_number += 1
        return self._last_number

    # --- start -----------------------------------------------------------------------------------
    def _restore(self, stored: Stored, now: float) -> None:
        self._relations.introduce(stored.peers, now, is_from_book=True)
        # What the book says is no news, and perhaps not true any more.
        self._outbox = [effect for effect in self._outbox if not isinstance(effect, Noted)]
        if known := len(self.swim.members()):
            self._outbox.append(Noted(f"{known} other sites are known from before"))
        for peer in stored.peers:
            # Also those whose passport does not hold now (expired, or this clock is wrong): a
            # greeting finds out who is there today.
            record = record_of(peer)
            if record is not None and record.site not in {self.me, *self.roll.retired()}:
                self.discovery.learn(record.endpoint, "book", record.site, now)
        for _, body in self.exchange.restore(stored.documents):
            if isinstance(body, Job):
                self.workshop.open(body, now)
        self.catalog_changed(now)
        self._outbox = [e for e in self._outbox if not isinstance(e, Persist) or _is_news(e)]

    # --- calls from members ----------------------------------------------------------------------
    def _called(self, event: CallReceived, now: float) -> None:
        message = event.message
        match message:
            case SyncRequest():
                self._relations.asked(event.call, event.sender, message, now)
            case Push():
                self._relations.pushed(message, now)
                self._outbox.append(Answer(event.call, Done()))
            case Have():
                self.keeping.sought(message.blobs, now)
                held = tuple(digest in self.held for digest in message.blobs)
                self._outbox.append(Answer(event.call, HaveReply(held)))
            case IssuerKeyWanted():  # keys are files: the daemon answers this itself
                self._outbox.append(Answer(event.call, Declined("this site has no issuer keys")))
            case Testify() | ReceiptWanted():  # so it does these: the audit log is its own
                self._outbox.append(Answer(event.call, Declined("this site is no witness")))
            case _:
                if (stone := self.workshop.tombstone(JobId(message.job))) is not None:
                    self._outbox.append(Answer(event.call, stone.told(message.job)))
                    return
                if message.job not in self.workshop.machines:
                    self._outbox.append(Answer(event.call, Declined("this site knows no such job")))
                    self._relations.learn_from(event.sender)
                    return
                called = job.Called(event.call, event.sender, message)
                self._job_effects(self.workshop.step(JobId(message.job), called, now), now)

    def _call_ended(self, ended: CallEnded, now: float) -> None:
        if (then := self._waiting.pop(ended.call, None)) is not None:
            then(ended, now)
        elif (
            effects := self.workshop.replied(job.Replied(ended.call, ended.reply), now)
        ) is not None:
            self._job_effects(effects, now)

    # --- the catalog -----------------------------------------------------------------------------
    def take_documents(
        self, documents: tuple[Document, ...], now: float, *, has_more: bool = False
    ) -> list[str]:
        """See ``Home``."""
        changed, effects, errors = self.exchange.merge(documents, self.wall_s(now))
        self._outbox += effects
        for _, body in changed:
            self._body_changed(body, now)
        if changed:
            self._tell_digest(now)
            if has_more:
                self.holdings.wanted_soon(now)
            else:
                self.holdings.wanted_changed(now)
        return errors

    def _body_changed(self, body: Body, now: float) -> None:
        match body:
            case Job():
                if body.is_cancelled and body.id in self.workshop.machines:
                    self._job_effects(self.workshop.step(body.id, job.Cancelled(), now), now)
                elif not body.is_cancelled:
                    self.workshop.open(body, now)
            case ModelVersion() | Deployment() | Policy() | Scope() | Unknown():
                pass  # the shelf is brought up to date once, for all changes together
            case _:
                assert_never(body)

    def catalog_changed(self, now: float) -> None:
        """See ``Home``."""
        self._tell_digest(now)
        self.holdings.wanted_changed(now)

    def _tell_digest(self, now: float) -> None:
        digest = digest8(self.catalog, self.trust)
        self._relations.step(swim_events.LocalChanged(catalog=digest), now)

    # --- jobs ------------------------------------------------------------------------------------
    def _job_effects(self, effects: Sequence[JobEffect], now: float) -> None:  # noqa: C901, PLR0912 - one case an effect
        """Translate what jobs ask for; what is answered at once goes straight back to the job."""
        queue, doubted = deque(effects), list[SiteId]()
        while queue:
            effect = queue.popleft()
            match effect:
                case job.Persist(writes, token):
                    self._outbox.append(Persist(writes, token))
                case job.Ask(call, site, message, timeout_s):
                    member = self.swim.members().get(site)
                    if member is None:
                        queue.extend(self.workshop.replied(job.Replied(call, None), now) or ())
                        continue
                    endpoint = member.record.endpoint
                    self._outbox.append(Ask(call, site, endpoint, message, timeout_s))
                case job.Answer(call, reply):
                    self._outbox.append(Answer(call, reply))
                case job.FetchBlob(digest, sources):
                    self.holdings.fetch(digest, sources)
                case job.Label():
                    self.holdings.label(effect)
                case job.ForgetBlob(digest):
                    self.holdings.forget(digest)
                case job.Finished():
                    self._outbox.append(Noted(_end_of(effect)))
                    self.holdings.wanted_changed(now)
                case (
                    job.ReadBlob() | job.StoreBytes() | job.Train() | job.Initialise()
                    | job.Aggregate() | job.AggregateRange() | job.Join() | job.Export() | job.ReleaseTrainer() | job.Progressed()
                ):  # fmt: skip
                    self._outbox.append(effect)
                case job.Doubt(site):
                    doubted.append(site)
                case job.Tell():
                    raise AssertionError("the workshop hands on what its machines tell each other")
                case _:
                    assert_never(effect)
        for site in doubted:  # last: membership may have news, which jobs act on
            self._relations.step(swim_events.Doubted(site), now)


def _is_news(effect: Persist) -> bool:
    """Whether it says what the database, which was just read, does not."""
    return any(isinstance(one, Delete) or one.table == ROLLOUTS for one in effect.writes)


def _end_of(finished: job.Finished) -> str:
    made = f", model {finished.exported.hex()[:12]}" if finished.exported is not None else ""
    return f"job {finished.job.id} ended after {finished.round} rounds{made}"
