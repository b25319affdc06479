"""This site's relations to the others: who is a member, what they say, and who must go.

Membership, discovery, state sync and the trust log meet here. A hint is greeted, a greeting is a state
sync, a sync brings records, passports, documents and entries of the trust log; whoever the log or a
successor's certificate expels is forgotten everywhere at once.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Protocol, assert_never

from agent.catalog.catalog import Catalog
from agent.catalog.clock import Clocks, HybridClock
from agent.catalog.history import History
from agent.foundation.errors import Malformed
from agent.foundation.ids import SiteId
from agent.foundation.machine import Woke
from agent.foundation.notary import Notary
from agent.foundation.writes import Put, Scalar, Write
from agent.identity.certificates import Identity
from agent.identity.registry import Roll
from agent.identity.trust import TrustLog
from agent.membership import events as swim_events
from agent.membership.member import Member
from agent.membership.settings import Settings as SwimSettings
from agent.membership.swim import Swim
from agent.site.arrivals import Arrivals
from agent.site.causes import Cause
from agent.site.discovery import Discovery
from agent.site.duplicates import COPIED, Duplicates
from agent.site.events import (
    Answer,
    CallEnded,
    GatewayChanged,
    IsolationChanged,
    MeshLeft,
    Noted,
    Persist,
    SiteEffect,
    TrustChanged,
)
from agent.site.exchange import DOCUMENTS_PER_MESSAGE_MAX, Exchange
from agent.site.paths import Paths
from agent.site.stored import COORDINATE_KEY, VOTING_BARRED_KEY
from agent.wire.documents import Document
from agent.wire.limits import RUMOR_BYTES_MAX
from agent.wire.mesh import (
    Call,
    Declined,
    Done,
    Introduction,
    Push,
    SyncReply,
    SyncRequest,
    TrustHeads,
)
from agent.wire.records import STATEMENTS, Endpoint, Passport, SiteRecord
from agent.wire.schema import pack

SYNC_TIMEOUT_S = 10.0
PAGES_MAX = 200
"""Of one state sync: 10,000 members and as many documents are 158. A member that always has more, or
has what this site refuses, is asked again at the next sync and not for ever in this one."""
PAGE_S_MAX = 3.0
"""A page takes a tenth of a second; whoever has not asked for the next by then has given up."""
WITNESSES = 2
"""Members who are shown the record of a copy that leaves, so that they can name the duplicate."""

Then = Callable[[CallEnded, float], None]


class Home(Protocol):
    """The rest of the site, as far as these relations concern it."""

    def emit(self, effect: SiteEffect) -> None:
        """Have an effect carried out, after those before it."""

    def ask(
        self, site: SiteId | None, endpoint: Endpoint, message: Call, timeout_s: float, then: Then
    ) -> None:
        """Call a site (None: whoever is there) and go on with ``then``."""

    def take_documents(
        self, documents: tuple[Document, ...], now: float, *, has_more: bool = False
    ) -> list[str]:
        """Merge documents; why each was refused, empty if it was taken. ``has_more``: others follow at once."""

    def catalog_changed(self, now: float) -> None:
        """Announce catalog and trust log as they are now."""

    def members_moved(self, now: float) -> None:
        """Somebody came, went or fell silent."""

    def shelves_moved(self, now: float) -> None:
        """Another site's record is new."""

    def bar(self, reason: str) -> None:
        """Never vote again with this identity."""

    def wall_s(self, now: float) -> float:
        """Unix time."""


class Relations:
    """Membership, discovery and exchange of one site."""

    def __init__(
        self,
        *,
        home: Home,
        record: SiteRecord,
        identity: Identity,
        passport: Passport,
        notary: Notary,
        settings: SwimSettings,
        roll: Roll,
        trust: TrustLog,
        catalog: Catalog,
        clock: HybridClock,
        history: History,
        rng: Random,
        now: float,
    ) -> None:
        """``record`` is this site's first one of this boot."""
        self.me = me = record.site
        self._home, self._rng, self._roll = home, rng, roll
        self.duplicates = Duplicates(me, record.boot_epoch, record.mark)
        self.swim = Swim(record=record, notary=notary, settings=settings, rng=rng, now=now)
        self.discovery, self.paths = Discovery(rng), Paths()
        self.arrivals: Arrivals[SyncRequest] = Arrivals()
        self.exchange = Exchange(me, passport, roll, self.swim, catalog, clock, trust, history)
        self.exchange.recertified(passport, identity)
        roll.learn_retired(identity)
        self.is_isolated = False
        self.clocks = Clocks()
        self._told_refusals: dict[SiteId, str] = {}
        self._syncing: set[tuple[str, int]] = set()
        self._asking_until: dict[SiteId, float] = {}
        self._asked_until: dict[SiteId, float] = {}
        """Sites that fetch page after page from here, and those from which this one does; of members."""

    def wake_at(self) -> float:
        """The earliest thing put off."""
        return min(self.swim.wake_at(), self.discovery.wake_at(), self.arrivals.due_at)

    def woke(self, now: float) -> None:
        """Do what is due."""
        if now >= self.swim.wake_at():
            self.step(Woke(), now)
        for call, sender, request in self.arrivals.take(now):
            self._answer_sync(call, sender, request, now)
        self.greet(now)

    def _emit(self, effect: SiteEffect) -> None:
        self._home.emit(effect)

    def _emit_all(self, effects: Iterable[SiteEffect]) -> None:
        for effect in effects:
            self._home.emit(effect)

    # --- calls from members ----------------------------------------------------------------------
    def asked(self, call: int, sender: SiteId, request: SyncRequest, now: float) -> None:
        """A member asks for a state sync; the first time it waits a moment for others that come."""
        self.learn_trust((), request.trust, now)
        caller = record_of(request.me)
        if caller is not None and caller.site == sender:
            self.watch_for_double(caller, now, is_live=True)
        is_new = sender not in self.swim.members()
        self.introduce((request.me,), now, is_caller=True)
        if is_new:
            self.arrivals.add(call, sender, request, now)
        else:
            self._answer_sync(call, sender, request, now)

    def pushed(self, push: Push, now: float) -> None:
        """A member brings what this site said it lacks."""
        self.learn_trust(push.trust_entries, None, now)
        self.introduce(push.members, now)
        has_more = len(push.documents) >= DOCUMENTS_PER_MESSAGE_MAX
        self._home.take_documents(push.documents, now, has_more=has_more)

    def _answer_sync(self, call: int, sender: SiteId, request: SyncRequest, now: float) -> None:
        reply = self.exchange.answer(request, sender, self._home.wall_s(now))
        _note(self._asking_until, sender, now, has_more=reply.has_more)
        self._emit(Answer(call, reply))

    def _is_asking(self, site: SiteId | None, now: float) -> bool:
        """Whether a site fetches page after page from here: what it lacks need not be pushed."""
        return site is not None and now < self._asking_until.get(site, now)

    def _is_paging(self, site: SiteId, now: float) -> bool:
        """Whether a second sync would only repeat pages that come or go already."""
        return self._is_asking(site, now) or self._is_fetching(now)

    def _is_fetching(self, now: float, but: SiteId | None = None) -> bool:
        """Whether this site fetches page after page from anybody (``but`` one)."""
        return any(now < until for site, until in self._asked_until.items() if site != but)

    # --- membership ------------------------------------------------------------------------------
    def step(self, event: swim_events.SwimEvent, now: float) -> None:  # noqa: C901, PLR0912 - one case an effect
        """Give membership an event, and do what it asks for."""
        has_moved = has_record = False
        for effect in self.swim.step(event, now):
            match effect:
                case swim_events.SendGossip():
                    self._emit(effect)
                case swim_events.SyncWith(site, endpoint, reason):
                    if reason == swim_events.CATALOG_DIFFERS and self._is_paging(site, now):
                        self.step(swim_events.SyncEnded(site, succeeded=True), now)
                    else:
                        self._sync(site, endpoint)
                case swim_events.RememberPlace(coordinate):
                    row: dict[str, Scalar] = {"key": COORDINATE_KEY, "value": coordinate}
                    self._emit(Persist((Put("meta", row),)))
                case swim_events.RememberPeer(site, signed):
                    self._remember(site, signed.body, signed.signature)
                case swim_events.MemberChanged(site, before, after):
                    has_moved = True
                    name = self._name(site)
                    was = "" if before is None else f" (was {before})"
                    self._emit(Noted(f"{name} is {after}{was}", after == "dead"))
                case swim_events.RecordChanged(site, record):
                    has_record = has_record or site != self.me
                    self.watch_for_double(record, now, is_live=False)
                    self._emit(GatewayChanged())
                case swim_events.IsolationChanged(is_isolated):
                    self.is_isolated = is_isolated
                    self._emit(IsolationChanged(is_isolated))
                    if is_isolated:
                        self.discovery.hasten(now, is_alone=True)
                case swim_events.IdentityCloned(_, record):
                    if record is not None:
                        self._cloned(record, now, is_live=False)
                case _:
                    assert_never(effect)
        if has_moved:
            self._emit(GatewayChanged())
            self._home.members_moved(now)
        if has_record:
            self._home.shelves_moved(now)

    def watch_for_double(self, record: SiteRecord, now: float, *, is_live: bool) -> None:
        """Look whether two processes use one key; ``is_live``: its owner itself shows the record."""
        if record.site == self.me and is_live:
            self._cloned(record, now, is_live=True)
        elif text := self.duplicates.saw(record, now):
            self._emit(Noted(f"{text} ({self._name(record.site)})", is_warning=True))

    def _some_alive(self, most: int) -> list[Member]:
        alive = [one for one in self.swim.members().values() if one.state == "alive"]
        return self._rng.sample(alive, min(most, len(alive)))

    def _cloned(self, record: SiteRecord, now: float, *, is_live: bool) -> None:
        """Another process made a record with this site's key: never vote again; perhaps leave."""
        verdict = self.duplicates.own(record, now, self.swim.record.endpoint, is_live=is_live)
        if verdict is None:
            return
        if verdict.is_news:
            day = datetime.fromtimestamp(self._home.wall_s(now), UTC).date()
            row = {"key": VOTING_BARRED_KEY, "value": f"{self.me.hex()} {day} {COPIED}"}
            self._emit_all([Persist((Put("meta", row),)), Noted(verdict.text, is_warning=True)])
            self._home.bar(verdict.text)
        if verdict.call is not None:
            self._sync(self.me, verdict.call)
        if verdict.must_leave:
            for member in self._some_alive(WITNESSES):
                self._sync(member.site, member.record.endpoint)
            self._emit_all([MeshLeft(verdict.text), GatewayChanged()])

    def _remember(self, site: SiteId, record: bytes, signature: bytes) -> None:
        passport = self._roll.passport(site)
        if passport is not None:
            row: dict[str, Scalar] = {
                "site": site, "record": record, "signature": signature,
                "passport": pack(passport), "seen_at": 0.0,
            }  # fmt: skip
            self._emit(Persist((Put("peers", row),)))

    def introduce(
        self,
        introductions: Sequence[Introduction],
        now: float,
        *,
        is_from_book: bool = False,
        is_caller: bool = False,
    ) -> int:
        """Admit whoever proves itself, and take its record; how many were admitted."""
        admitted = self.exchange.admit(tuple(introductions), self._home.wall_s(now))
        if admitted:
            records = tuple(one.record for one in admitted)
            self.step(
                swim_events.Introduced(records, is_from_book, not is_from_book, is_caller), now
            )
        self._passports_changed(now)
        return len(admitted)

    def _passports_changed(self, now: float) -> None:
        """Write renewed passports into the peer book, and forget those whose place another took."""
        members = self.swim.members()
        for site in self._roll.take_renewed():
            member = members.get(site)
            if member is not None and member.signed is not None:
                self._remember(site, member.signed.body, member.signed.signature)
        if not self._roll.retired().isdisjoint(members):
            gone, effects = self.exchange.expelled(())
            self._emit_all([*effects, GatewayChanged()])
            self.step(swim_events.Revoked(gone), now)
            self._home.members_moved(now)

    def _name(self, site: SiteId) -> str:
        identity = self._roll.get(site)
        return identity.claims.name if identity is not None else site.hex()[:8]

    # --- discovery and state sync ----------------------------------------------------------------
    def greet(self, now: float) -> None:
        """Sync with whoever is at the addresses that hints name."""
        if now < self.discovery.wake_at():
            return  # this runs at every wake-up, and what follows looks at every member
        alive = {site: one for site, one in self.swim.members().items() if one.state == "alive"}
        if self.is_isolated:
            alive = {}  # so they were when they were last heard; a greeting says why no more
        places = [one.record.endpoint for one in alive.values()]
        met = {(one.host, one.mesh_port) for one in (*places, self.swim.record.endpoint)}
        known = set(alive)
        for hint in self.discovery.due(now, met, known | {self.me}):
            self._sync(None, hint.endpoint, hint.timeout_s)

    def _sync(
        self,
        site: SiteId | None,
        endpoint: Endpoint,
        timeout_s: float = SYNC_TIMEOUT_S,
        page: int = 0,
    ) -> None:
        def answered(ended: CallEnded, at: float) -> None:
            who, reply, error = ended.site, ended.reply, ended.error
            if isinstance(reply, SyncReply):
                self._synced(who, endpoint, reply, page, at)
            elif not error:
                error = reply.reason if isinstance(reply, Declined) else "no answer"
            self._syncing.discard(where)
            self.discovery.ended(endpoint, error, who, at, cause=ended.cause, is_me=who == self.me)
            if site is None:
                self.greet(at)  # the next of those that waited for this one
            target = who if who is not None else site
            if target is not None:
                self.paths.called(target, at, ended.cause if error else Cause.ANSWERED, error)
            if target is not None and target != self.me:
                self.step(swim_events.SyncEnded(target, not error), at)

        where = (endpoint.host, endpoint.mesh_port)
        self._syncing.add(where)
        self._home.ask(site, endpoint, self.exchange.request(site), timeout_s, answered)

    def _synced(
        self, who: SiteId | None, endpoint: Endpoint, reply: SyncReply, page: int, now: float
    ) -> None:
        """Apply the answer, push what is lacking there, and go on while either side has more."""
        has_learned = self.learn_trust(reply.trust_entries, reply.trust, now)
        is_fetched = self._is_asking(who, now)
        push, is_all_pushed = (None, True) if is_fetched else self.exchange.push(reply, who)
        admitted = self.introduce(reply.members, now)
        errors = self._home.take_documents(reply.documents, now, has_more=reply.has_more)
        if who is not None:
            self.exchange.replied(who, reply)
            self.clocks.heard(who, reply.wall_ms, now)
            self._tell_refusals(who, errors)
        is_useful = bool(has_learned or admitted or errors.count("") or push is not None)
        has_more = is_useful and page < PAGES_MAX and (reply.has_more or not is_all_pushed)
        if self._is_fetching(now, but=who):
            has_more = False  # another gives the same pages; what is lacking then comes up again
        if who is not None:
            _note(self._asked_until, who, now, has_more=has_more)
        if push is None or who is None:
            if has_more:
                self._sync(who, endpoint, page=page + 1)
            return

        def pushed(ended: CallEnded, _: float) -> None:
            if has_more and isinstance(ended.reply, Done):
                self._sync(who, endpoint, page=page + 1)

        self._home.ask(who, endpoint, push, SYNC_TIMEOUT_S, pushed)

    def _tell_refusals(self, site: SiteId, errors: Sequence[str]) -> None:
        """Say once for each member why its documents are not taken here: nobody else would notice."""
        first = next((error for error in errors if error), "")
        kind = "future" if "in the future" in first else first  # its seconds count down
        if self._told_refusals.get(site, "") == kind:
            return
        if not kind:
            del self._told_refusals[site]  # mended; should it come again, it is news
            return
        self._told_refusals[site] = kind
        count = sum(map(bool, errors))
        text = f"{count} of {self._name(site)}'s documents are not taken: {first}"
        self._emit(Noted(text, is_warning=True))

    def learn_from(self, site: SiteId) -> None:
        """It knows documents that this site lacks; asked once at a time, however often it calls."""
        member = self.swim.members().get(site)
        if member is None:
            return
        endpoint = member.record.endpoint
        if (endpoint.host, endpoint.mesh_port) not in self._syncing:
            self._sync(site, endpoint)

    # --- the trust log ---------------------------------------------------------------------------
    def learn_trust(self, entries: Sequence[bytes], theirs: TrustHeads | None, now: float) -> bool:
        """Take entries from a member whose log is ``theirs``; whether any was new."""
        writes = self.exchange.learn(entries)
        self.trust_changed(writes, now)
        self._emit_all(self.exchange.confirmed(theirs))
        return bool(writes)

    def trust_changed(self, writes: Sequence[Write], now: float) -> None:
        """What the log's growth means here, all at once; durable before anybody hears of it."""
        if not writes:
            return
        gone, effects = self.exchange.expelled(writes)
        self._emit_all(effects)
        if gone:
            self.step(swim_events.Revoked(gone), now)
            self._home.members_moved(now)
        self._home.catalog_changed(now)
        self._emit_all([TrustChanged(), GatewayChanged()])


def _note(until: dict[SiteId, float], site: SiteId, now: float, *, has_more: bool) -> None:
    if has_more:
        until[site] = now + PAGE_S_MAX
    else:
        until.pop(site, None)


def record_of(introduction: Introduction) -> SiteRecord | None:
    """The record in an introduction, unchecked; None if it does not decode."""
    try:
        statement = STATEMENTS.unpack(introduction.record.body, RUMOR_BYTES_MAX)
    except Malformed:
        return None
    return statement if isinstance(statement, SiteRecord) else None
