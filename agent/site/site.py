"""One site: everything it decides, as one pure machine.

Theory of operation. Each arrow of the data flow is one method: a packet goes to membership, a member's
call to the part it is about, a document to the catalog and from there to the shelf (models) or the
workshop (jobs). The parts do not know each other; this file is the only place where they meet.

The driver carries out effects in list order and waits for every ``Persist`` before it goes on.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import assert_never

from agent.catalog.catalog import Catalog
from agent.catalog.clock import HybridClock
from agent.federation import events as job
from agent.federation.events import JobEffect
from agent.foundation.errors import Malformed
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.machine import Woke
from agent.foundation.notary import Notary
from agent.foundation.writes import Put, Scalar
from agent.identity.certificates import Identity
from agent.identity.registry import Roll
from agent.membership import events as swim_events
from agent.membership.settings import Settings as SwimSettings
from agent.membership.swim import Swim
from agent.routing.policy import is_within
from agent.site.discovery import Discovery
from agent.site.events import (
    Answer,
    Ask,
    BlobFailed,
    BlobLoaded,
    BlobStored,
    CallEnded,
    CallReceived,
    Discovered,
    DrainRequested,
    FetchBlob,
    GatewayChanged,
    IsolationChanged,
    JobEnded,
    LeaveRequested,
    LoadMeasured,
    ModelFailed,
    ModelReady,
    Noted,
    Persist,
    Resolved,
    SiteEffect,
    SiteEvent,
    Submitted,
    WallClock,
    WorkerDown,
    WorkerUp,
)
from agent.site.exchange import Admins, Exchange
from agent.site.shelf import Shelf
from agent.site.stored import SiteSettings, Stored
from agent.site.versions import Versions
from agent.site.workshop import Surroundings, Workshop
from agent.wire.documents import Body, Deployment, Document, Job, ModelVersion, Stamp
from agent.wire.inside import model_key
from agent.wire.limits import RUMOR_BYTES_MAX, SERVING_PER_RECORD_MAX
from agent.wire.mesh import (
    Declined,
    Done,
    Have,
    HaveReply,
    Introduction,
    Push,
    Reply,
    SyncReply,
    SyncRequest,
)
from agent.wire.records import STATEMENTS, Endpoint, Passport, Served, SiteRecord
from agent.wire.schema import pack

SYNC_TIMEOUT_S = 10.0
SOURCES_MAX = 16
"""Sites asked for one blob; rarely are more than a few needed, and all are tried in the end."""

Then = Callable[[SiteId | None, Reply | None, str, float], None]


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
        admins: Admins,
        stored: Stored,
        rng: Random,
        now: float,
        wall_offset_s: float,
    ) -> None:
        """Continue from ``stored``; ``boot_epoch`` is durable and was never used before."""
        self.me = me = identity.site
        self.identity, self.settings, self.roll = identity, settings, roll
        self._rng, self._wall_offset_s = rng, wall_offset_s
        self.catalog, self._clock = Catalog(), HybridClock()
        start = boot_epoch << 32
        record = SiteRecord(
            me, start, boot_epoch, start, "alive", endpoint, 0.0, settings.capacity, (),
            self.catalog.digest8,
        )  # fmt: skip
        self.swim = Swim(record=record, notary=notary, settings=swim_settings, rng=rng, now=now)
        self.discovery = Discovery(rng)
        self.exchange = Exchange(me, passport, roll, self.swim, self.catalog, self._clock, admins)
        self.held: set[Digest] = set(stored.blobs)
        self.labels: dict[Digest, tuple[str, ...]] = {}
        self._surroundings = Surroundings(
            identity, self.swim, roll, settings, self.held, self.wall_s
        )
        self.workshop = Workshop(
            me, boot_epoch, self._number, self._surroundings, rng, stored.jobs,
            stored.barred_because,
        )  # fmt: skip
        self.shelf = Shelf(self._surroundings.is_held, self._fetch_model, dict(stored.crashes))
        self.versions = Versions(
            identity.claims, self.catalog, self.workshop, self.shelf, self.swim
        )
        self.is_isolated = False
        self._last_number = 0
        self._outbox: list[SiteEffect] = []
        self._waiting: dict[int, Then] = {}
        self._syncing: set[tuple[str, int]] = set()
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
                self._swim(event, now)
            case CallReceived():
                self._called(event, now)
            case CallEnded(call, site, reply, error):
                self._call_ended(call, site, reply, error, now)
            case Discovered(endpoint, mechanism, site):
                self.discovery.learn(endpoint, mechanism, site, now)
                self._greet(now)
            case WallClock(offset_s):
                self._wall_offset_s = offset_s
            case Submitted(token, documents):
                errors = self._take_documents(documents, now)
                self._outbox.append(Resolved(token, tuple(errors)))
            case BlobStored(digest):
                self._blob_stored(digest, now)
            case BlobFailed(digest, reason):
                self.shelf.fetch_failed(digest, reason, now)
                self._job_effects(self.workshop.blob(job.BlobMissing(digest, reason), now), now)
            case BlobLoaded(digest, data):
                self._job_effects(self.workshop.blob(job.BlobRead(digest, data), now), now)
            case JobEnded(job_id, job_event):
                self._job_effects(self.workshop.step(job_id, job_event, now), now)
            case ModelReady(key, providers, metadata, service_us):
                self._outbox += self.shelf.ready(key, providers, metadata, service_us)
                if self.versions.has_former:
                    self._shelf_changed(now)
                self._serving_changed(now)
            case ModelFailed(key, reason, is_crash):
                self._outbox += self.shelf.failed(key, reason, is_crash=is_crash)
                self._outbox += self.shelf.advance(now)
                self._serving_changed(now)
            case WorkerUp():
                self._outbox += self.shelf.worker_up(now)
            case WorkerDown(reason):
                self.shelf.worker_down(reason)
                self._serving_changed(now)
            case LoadMeasured(load, service_us):
                self._load_measured(load, service_us, now)
            case DrainRequested(is_draining):
                self._surroundings.is_draining = is_draining
                self._swim(
                    swim_events.LocalChanged(status="draining" if is_draining else "alive"), now
                )
                self._job_effects(self.workshop.step_all(job.ViewChanged(), now), now)
                self._outbox.append(GatewayChanged())
            case LeaveRequested():
                self._swim(swim_events.Leave(), now)
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
            self.swim.wake_at(), self.discovery.wake_at(), self.shelf.wake_at(),
            self.workshop.wake_at(),
        )  # fmt: skip

    @property
    def is_draining(self) -> bool:
        """Whether the operator has asked for no new work from others."""
        return self._surroundings.is_draining

    def wall_s(self, now: float) -> float:
        """Unix time; for display, stamps and certificates only."""
        return now + self._wall_offset_s

    def next_stamp(self, wall_ms: int) -> Stamp:
        """A stamp newer than every document seen here."""
        return self._clock.tick(wall_ms)

    def _woke(self, now: float) -> None:
        if now >= self.swim.wake_at():
            self._swim(Woke(), now)
        self._greet(now)
        self._outbox += self.shelf.advance(now)
        self._job_effects(self.workshop.woke(now), now)

    def _number(self) -> int:
        self._last_number += 1
        return self._last_number

    # --- start -----------------------------------------------------------------------------------
    def _restore(self, stored: Stored, now: float) -> None:
        self._introduce(stored.peers, now)
        for peer in stored.peers:
            # Also those whose passport does not hold now (expired, or this clock is wrong): a
            # greeting finds out who is there today.
            record = _record(peer)
            if record is not None and record.site != self.me:
                self.discovery.learn(record.endpoint, "book", record.site, now)
        for _, body in self.exchange.restore(stored.documents):
            if isinstance(body, Job):
                self.workshop.open(body, now)
        self._catalog_changed(now)
        self._outbox = [e for e in self._outbox if not isinstance(e, Persist)]

    # --- membership ------------------------------------------------------------------------------
    def _swim(self, event: swim_events.SwimEvent, now: float) -> None:  # noqa: C901 - one case an effect
        has_moved = has_record = False
        for effect in self.swim.step(event, now):
            match effect:
                case swim_events.SendGossip():
                    self._outbox.append(effect)
                case swim_events.SyncWith(site, endpoint, _):
                    self._sync(site, endpoint)
                case swim_events.RememberPeer(site, signed):
                    self._remember(site, signed.body, signed.signature)
                case swim_events.MemberChanged(site, before, after):
                    has_moved = True
                    name = self._name(site)
                    was = "" if before is None else f" (was {before})"
                    self._outbox.append(Noted(f"{name} is {after}{was}", after == "dead"))
                case swim_events.RecordChanged(site):
                    has_record = has_record or site != self.me
                    self._outbox.append(GatewayChanged())
                case swim_events.IsolationChanged(is_isolated):
                    self.is_isolated = is_isolated
                    self._outbox.append(IsolationChanged(is_isolated))
                case swim_events.IdentityCloned(sequence):
                    text = (
                        f"duplicate identity: a newer record ({sequence}) is signed by this site's "
                        "key; a copy of its state folder runs elsewhere"
                    )
                    self._outbox.append(Noted(text, is_warning=True))
                case _:
                    assert_never(effect)
        if has_moved:
            self._outbox.append(GatewayChanged())
            self._job_effects(self.workshop.step_all(job.ViewChanged(), now), now)
        if has_record and self.versions.has_former:
            self._shelf_changed(now)

    def _remember(self, site: SiteId, record: bytes, signature: bytes) -> None:
        passport = self.roll.passport(site)
        if passport is not None:
            row: dict[str, Scalar] = {
                "site": site, "record": record, "signature": signature,
                "passport": pack(passport), "seen_at": 0.0,
            }  # fmt: skip
            self._outbox.append(Persist((Put("peers", row),)))

    def _introduce(self, introductions: Sequence[Introduction], now: float) -> None:
        admitted = self.exchange.admit(tuple(introductions), self.wall_s(now))
        if admitted:
            self._swim(swim_events.Introduced(tuple(one.record for one in admitted)), now)

    def _name(self, site: SiteId) -> str:
        identity = self.roll.get(site)
        return identity.claims.name if identity is not None else site.hex()[:8]

    # --- discovery and state sync ----------------------------------------------------------------
    def _greet(self, now: float) -> None:
        """Sync with whoever is at the addresses that hints name."""
        met = {
            (member.record.endpoint.host, member.record.endpoint.mesh_port)
            for member in self.swim.members().values()
            if member.state == "alive"
        }
        mine = self.swim.record.endpoint
        met.add((mine.host, mine.mesh_port))
        known = {site for site, member in self.swim.members().items() if member.state == "alive"}
        for hint in self.discovery.due(now, met, known | {self.me}):
            self._sync(None, hint.endpoint)

    def _sync(self, site: SiteId | None, endpoint: Endpoint) -> None:
        def answered(who: SiteId | None, reply: Reply | None, error: str, at: float) -> None:
            if isinstance(reply, SyncReply):
                self._synced(who, endpoint, reply, at)
            elif not error:
                error = reply.reason if isinstance(reply, Declined) else "no answer"
            self._syncing.discard(where)
            self.discovery.ended(endpoint, error, who, at)
            target = who if who is not None else site
            if target is not None and target != self.me:
                self._swim(swim_events.SyncEnded(target, not error), at)

        where = (endpoint.host, endpoint.mesh_port)
        self._syncing.add(where)
        call = self._number()
        self._waiting[call] = answered
        self._outbox.append(Ask(call, site, endpoint, self.exchange.request(), SYNC_TIMEOUT_S))

    def _synced(self, who: SiteId | None, endpoint: Endpoint, reply: SyncReply, now: float) -> None:
        """Apply the answer, push what is lacking there, and go on while either side has more."""
        push, is_all_pushed = self.exchange.push(reply, who)
        self._introduce(reply.members, now)
        errors = self._take_documents(reply.documents, now)
        is_useful = bool(reply.members or errors.count("") or push is not None)
        has_more = is_useful and (reply.has_more or not is_all_pushed)
        if push is None or who is None:
            if has_more:
                self._sync(who, endpoint)
            return

        def pushed(_site: SiteId | None, reply: Reply | None, _error: str, _at: float) -> None:
            if has_more and isinstance(reply, Done):
                self._sync(who, endpoint)

        call = self._number()
        self._waiting[call] = pushed
        self._outbox.append(Ask(call, who, endpoint, push, SYNC_TIMEOUT_S))

    # --- calls from members ----------------------------------------------------------------------
    def _called(self, event: CallReceived, now: float) -> None:
        message = event.message
        match message:
            case SyncRequest():
                self._introduce((message.me,), now)
                self._outbox.append(Answer(event.call, self.exchange.answer(message, event.sender)))
            case Push():
                self._introduce(message.members, now)
                self._take_documents(message.documents, now)
                self._outbox.append(Answer(event.call, Done()))
            case Have():
                held = tuple(digest in self.held for digest in message.blobs)
                self._outbox.append(Answer(event.call, HaveReply(held)))
            case _:
                if message.job not in self.workshop.machines:
                    self._outbox.append(Answer(event.call, Declined("this site knows no such job")))
                    self._learn_from(event.sender)
                    return
                called = job.Called(event.call, event.sender, message)
                self._job_effects(self.workshop.step(JobId(message.job), called, now), now)

    def _learn_from(self, site: SiteId) -> None:
        """It knows documents that this site lacks; asked once at a time, however often it calls."""
        member = self.swim.members().get(site)
        if member is None:
            return
        endpoint = member.record.endpoint
        if (endpoint.host, endpoint.mesh_port) not in self._syncing:
            self._sync(site, endpoint)

    def _call_ended(
        self, call: int, site: SiteId | None, reply: Reply | None, error: str, now: float
    ) -> None:
        if (then := self._waiting.pop(call, None)) is not None:
            then(site, reply, error, now)
        elif (effects := self.workshop.replied(job.Replied(call, reply), now)) is not None:
            self._job_effects(effects, now)

    # --- the catalog -----------------------------------------------------------------------------
    def _take_documents(self, documents: tuple[Document, ...], now: float) -> list[str]:
        changed, effects, errors = self.exchange.merge(documents, self.wall_s(now))
        self._outbox += effects
        for _, body in changed:
            self._body_changed(body, now)
        if changed:
            self._catalog_changed(now)
        return errors

    def _body_changed(self, body: Body, now: float) -> None:
        match body:
            case Job():
                if body.is_cancelled and body.id in self.workshop.machines:
                    self._job_effects(self.workshop.step(body.id, job.Cancelled(), now), now)
                elif not body.is_cancelled:
                    self.workshop.open(body, now)
            case ModelVersion() | Deployment():
                pass  # the shelf is brought up to date once, for all changes together
            case _:
                assert_never(body)

    def _catalog_changed(self, now: float) -> None:
        self._swim(swim_events.LocalChanged(catalog=self.catalog.digest8), now)
        self._shelf_changed(now)

    def _shelf_changed(self, now: float) -> None:
        versions = self.versions.wanted()
        for version in versions:
            self.labels[version.manifest] = version.residency
        for body in self.catalog.of_kind(ModelVersion):
            if body.manifest in self.held:
                self.labels[body.manifest] = body.residency
        self._outbox += self.shelf.want(versions, now)
        self._serving_changed(now)

    # --- blobs and models ------------------------------------------------------------------------
    def _fetch_model(self, version: ModelVersion) -> None:
        """Ask those who serve it first, then everyone the label allows, in random order."""
        key = model_key(version.name, version.version)
        members = [m for m in self.swim.members().values() if m.state == "alive"]
        self._rng.shuffle(members)
        members.sort(key=lambda m: all(served.key != key for served in m.record.serving))
        sites = [m.site for m in members if self._is_allowed(version.residency, m.site)]
        self._fetch(version.manifest, tuple(sites))

    def _fetch(self, digest: Digest, sites: tuple[SiteId, ...]) -> None:
        members = self.swim.members()
        sources = tuple((site, members[site].record.endpoint) for site in sites if site in members)
        self._outbox.append(FetchBlob(digest, sources[:SOURCES_MAX]))

    def _is_allowed(self, residency: tuple[str, ...], site: SiteId) -> bool:
        identity = self.roll.get(site)
        return identity is not None and is_within(identity.claims.jurisdiction, residency)

    def _blob_stored(self, digest: Digest, now: float) -> None:
        self.held.add(digest)
        for version in self.catalog.of_kind(ModelVersion):
            if version.manifest == digest:
                self.labels[digest] = version.residency
        if (residency := self.labels.get(digest)) is not None:
            self._outbox.append(job.Label(digest, residency))
        self._outbox += self.shelf.advance(now)
        self._outbox.append(GatewayChanged())
        self._job_effects(self.workshop.blob(job.BlobArrived(digest), now), now)

    def _serving_changed(self, now: float) -> None:
        items = sorted(self.shelf.items.items())
        serving = [Served(key, item.service_us) for key, item in items if item.stage == "ready"]
        serving += [Served(key, 0, True) for key, item in items if item.stage == "refused"]
        change = swim_events.LocalChanged(serving=tuple(serving[:SERVING_PER_RECORD_MAX]))
        self._swim(change, now)
        self._outbox.append(GatewayChanged())

    def _load_measured(self, load: float, service_us: Mapping[bytes, int], now: float) -> None:
        for key, item in self.shelf.items.items():
            item.service_us = service_us.get(key, item.service_us)
        self._swim(swim_events.LocalChanged(load=load), now)

    # --- jobs ------------------------------------------------------------------------------------
    def _job_effects(self, effects: Sequence[JobEffect], now: float) -> None:  # noqa: C901 - one case an effect
        """Translate what jobs ask for; what is answered at once goes straight back to the job."""
        queue = deque(effects)
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
                    self._fetch(digest, sources)
                case job.Label(digest, residency):
                    self.labels[digest] = residency
                    if digest in self.held:  # told at once: an offer of it may follow in this list
                        self._outbox.append(effect)
                case job.ForgetBlob(digest):
                    self._forget(digest)
                case job.Finished():
                    self._outbox.append(Noted(_end_of(effect)))
                    self._shelf_changed(now)
                case (
                    job.ReadBlob() | job.StoreBytes() | job.Train() | job.Initialise()
                    | job.Aggregate() | job.Export() | job.ReleaseTrainer() | job.Progressed()
                ):  # fmt: skip
                    self._outbox.append(effect)
                case _:
                    assert_never(effect)

    def _forget(self, digest: Digest) -> None:
        """Remove a job's blob, unless a model or another job needs the same bytes."""
        if any(machine.needs(digest) for machine in self.workshop.machines.values()):
            return
        wanted_ = {item.version.manifest for item in self.shelf.items.values()}
        if digest not in wanted_ and all(
            v.manifest != digest for v in self.catalog.of_kind(ModelVersion)
        ):
            self.held.discard(digest)
            self.labels.pop(digest, None)
            self._outbox.append(job.ForgetBlob(digest))


def _record(introduction: Introduction) -> SiteRecord | None:
    try:
        statement = STATEMENTS.unpack(introduction.record.body, RUMOR_BYTES_MAX)
    except Malformed:
        return None
    return statement if isinstance(statement, SiteRecord) else None


def _end_of(finished: job.Finished) -> str:
    made = f", model {finished.exported.hex()[:12]}" if finished.exported is not None else ""
    return f"job {finished.job.id} ended after {finished.round} rounds{made}"
