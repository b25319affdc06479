"""The membership machine: composes detection, belief, dissemination and repair.

Theory of operation. Every site probes one member per protocol period (``detector``); a silence
becomes a signed accusation, which travels as a rumor (``rumors``). Each site counts accusations for
itself (``roster``, ``suspicion``): nobody can announce a death, only the evidence for one. The
accused refutes with a newer record (``own_record``). State syncs repair what rumors missed
(``syncs``), lost members are tried for ever (``recovery``), and a site that hears nobody blames
itself (``contact``).

Sources: Das, Gupta, Motivala 2002 (SWIM); Dadgar, Phillips, Currey 2018 (Lifeguard).
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import assert_never

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.notary import Notary
from agent.foundation.randomness import Rng
from agent.membership.contact import Contact
from agent.membership.coordinates import Coordinate
from agent.membership.detector import FailureDetector
from agent.membership.events import (
    Doubted,
    Heard,
    Introduced,
    IsolationChanged,
    Leave,
    LocalChanged,
    LoopLagged,
    MemberChanged,
    PortRefused,
    RecordChanged,
    Revoked,
    SendFailed,
    SwimEffect,
    SwimEvent,
    SyncEnded,
    SyncWith,
)
from agent.membership.member import Member, Peer
from agent.membership.own_record import OwnRecord
from agent.membership.post import Post
from agent.membership.recovery import Recovery
from agent.membership.roster import Roster
from agent.membership.rumors import Rumors
from agent.membership.settings import Settings
from agent.membership.syncs import SyncPlan
from agent.membership.testimony import Read, Testimony, read_statement
from agent.membership.whereabouts import Whereabouts
from agent.wire.gossip import Ack, Gossip, GossipMessage, Nack, Ping, PingRequest
from agent.wire.mesh import MemberHead
from agent.wire.records import Signed, SiteRecord

EVIDENCE_SUBJECTS_MAX = 16
"""Dead members whose evidence goes with one state sync (<= 48 statements, 8 KB)."""
EXTRA_ASKED = 3
"""Members asked at once when this site hears nobody."""


class Swim:
    """``Machine[SwimEvent, SwimEffect]``: one site's part in the membership protocol."""

    def __init__(
        self,
        *,
        record: SiteRecord,
        notary: Notary,
        settings: Settings,
        rng: Rng,
        now: float,
        read: Read = read_statement,
    ) -> None:
        """Start knowing nobody; feed the peer book and the seeds' answers with ``Introduced``.

        Args:
            record: this site's first record; sequence = incarnation = boot_epoch << 32.
            notary: signs as this site and checks other sites' statements.
            settings: see ``Settings.lan`` and ``Settings.wan``.
            rng: jitter and choice.
            now: monotonic seconds.
            read: decodes and checks the body of a statement; machines that share a process may
                share what it made of one.
        """
        self._me, self._notary, self._settings, self._rng = record.site, notary, settings, rng
        self._out: list[SwimEffect] = []
        self._settled = 0
        self._own = OwnRecord(record, notary, settings, now)
        self._roster = Roster(self._me, notary, settings, self._out)
        self._rumors = Rumors(settings.accusation_rumors_max, settings.record_rumors_max)
        self._contact = Contact(settings, now)
        self._syncs = SyncPlan(settings, rng, self._ask_sync, now)
        self._post = Post(
            me=self._me,
            own=self._own,
            roster=self._roster,
            rumors=self._rumors,
            settings=settings,
            out=self._out,
            now=now,
        )
        self._where = Whereabouts(
            me=self._me, own=self._own, settings=settings, rng=rng, out=self._out, now=now
        )
        self._detector = FailureDetector(
            me=self._me,
            roster=self._roster,
            post=self._post,
            syncs=self._syncs,
            settings=settings,
            rng=rng,
            now=now,
            accuse=lambda peer, is_refused, at: self._testimony.accuse(
                peer, at, is_refused=is_refused
            ),
            where=self._where,
        )
        self._recovery = Recovery(self._roster, settings, rng, self._try_lost)
        self._testimony = Testimony(
            me=self._me,
            notary=notary,
            own=self._own,
            roster=self._roster,
            rumors=self._rumors,
            contact=self._contact,
            syncs=self._syncs,
            post=self._post,
            detector=self._detector,
            settings=settings,
            rng=rng,
            out=self._out,
            read=read,
        )
        self._members = MappingProxyType(self._roster.views)
        self._gossiped_at = float("-inf")
        self._woke_at = NEVER
        self._stepped_at = now
        self._lag_seen_at = float("-inf")
        self._has_left = False
        self._catalog_seen = self._own_catalog = record.catalog
        self._rumors.put((self._me, self._me), self._own.signed)

    # --- what others may read --------------------------------------------------------------------
    @property
    def record(self) -> SiteRecord:
        """This site's current record."""
        return self._own.record

    @property
    def signed(self) -> Signed:
        """The current record, signed."""
        return self._own.signed

    @property
    def is_isolated(self) -> bool:
        """Whether this site hears nobody although it should."""
        return self._contact.is_isolated

    @property
    def health(self) -> int:
        """Lifeguard's local health score: 0 is healthy."""
        return self._detector.health.score

    @property
    def malformed(self) -> int:
        """Statements that did not decode (counted, dropped)."""
        return self._testimony.malformed

    @property
    def forged(self) -> int:
        """Statements of known speakers with a wrong signature, or impossible ones."""
        return self._testimony.forged

    def members(self) -> Mapping[SiteId, Member]:
        """All known members but this site; a live read-only view."""
        return self._members

    def accusations_of(self, site: SiteId) -> tuple[Signed, ...]:
        """The counted accusations against a suspect or dead member; empty for any other."""
        peer = self._roster.get(site)
        if peer is None or peer.suspicion is None:
            return ()
        return tuple(evidence.signed for evidence in peer.suspicion.accusers.values())

    @property
    def waiting_rumors(self) -> int:
        """Statements that still have to be told to others."""
        return len(self._rumors)

    @property
    def coordinate(self) -> Coordinate:
        """Where this site lies in the network."""
        return self._where.coordinate

    def distance_s(self, site: SiteId) -> float | None:
        """The round trip to a member: measured while fresh, else estimated; None if unknown."""
        peer = self._roster.get(site)
        return None if peer is None else self._where.distance_s(peer, self._stepped_at)

    def estimated_s(self, site: SiteId) -> float | None:
        """The round trip to a member by coordinates alone; None if unknown or too vague."""
        peer = self._roster.get(site)
        return None if peer is None else self._where.estimated_s(peer)

    def heads(self) -> tuple[MemberHead, ...]:
        """How far our knowledge goes, this site included: the first half of a state sync."""
        mine = MemberHead(self._me, self._own.record.sequence)
        return (mine, *(MemberHead(p.site, p.record.sequence) for p in self._roster.peers()))

    def wanted(self, heads: Sequence[MemberHead]) -> tuple[SiteId, ...]:
        """Members of whom the owner of ``heads`` knows more than we do."""
        return tuple(
            head.site
            for head in heads
            if head.site != self._me
            and (
                (peer := self._roster.get(head.site)) is None
                or peer.record.sequence < head.sequence
            )
        )

    def statements_for(
        self, site: SiteId, heads: Sequence[MemberHead]
    ) -> tuple[tuple[SiteId, Signed], ...]:
        """What ``site``, whose knowledge is ``heads``, lacks: (speaker, statement) pairs.

        Newer records; the accusations against ``site`` itself, so that it can refute them; and
        the evidence against some of our dead, so that a newcomer need not find out alone.
        """
        known = {head.site: head.sequence for head in heads}
        pairs = []
        if known.get(self._me, -1) < self._own.record.sequence:
            pairs.append((self._me, self._own.signed))
        pairs += [
            (peer.site, peer.signed)
            for peer in self._roster.peers()
            if known.get(peer.site, -1) < peer.record.sequence and peer.site != site
        ]
        return (*pairs, *self.evidence_for(site))

    def evidence_for(self, site: SiteId) -> tuple[tuple[SiteId, Signed], ...]:
        """Accusations for ``site``: those against itself, and against up to 16 of our dead."""
        dead = [p for p in self._roster.lost() if p.state == "dead" and p.site != site]
        chosen = self._rng.sample(dead, min(EVIDENCE_SUBJECTS_MAX, len(dead)))
        if (peer := self._roster.get(site)) is not None:
            chosen.insert(0, peer)
        return tuple(
            (accuser, evidence.signed)
            for subject in chosen
            if subject.suspicion is not None
            for accuser, evidence in list(subject.suspicion.accusers.items())[
                : self._settings.accusers_needed
            ]
        )

    # --- the machine -----------------------------------------------------------------------------
    def step(self, event: SwimEvent, now: float) -> list[SwimEffect]:
        """Take one event at monotonic time ``now``; effects are carried out in order."""
        if (lag_s := now - self._woke_at) > self._settings.lag_tolerance_s:
            self._lagged(lag_s, now)
        self._stepped_at = now
        self._take(event, now)
        if self._out:
            self._settle(now)
        woke_at = self._next_wake()
        if woke_at <= now or self._detector.period_at <= now:
            # Most packets make nothing due; then there is nothing to look through.
            self._run(now)
            self._settle(now)
            woke_at = self._next_wake()
        effects = self._out.copy()
        self._out.clear()
        self._settled = 0
        self._woke_at = woke_at
        return effects

    def wake_at(self) -> float:
        """When ``Woke`` is wanted; only ``step`` changes it."""
        return self._woke_at

    def _next_wake(self) -> float:
        if self._has_left:
            return self._gossip_at()
        roster = self._roster
        return min(
            self._detector.wake_at(),
            roster.due_at,
            self._gossip_at(),
            self._contact.wake_at,
            self._recovery.wake_at,
            self._syncs.wake_at if roster.members else NEVER,
            self._own.due_at,
        )

    def _take(self, event: SwimEvent, now: float) -> None:  # noqa: C901, PLR0912 - one arm an event
        match event:
            case Woke():
                pass
            case Heard():
                self._hear(event.sender, event.message, now)
            case Introduced():
                for signed in event.signed:
                    self._testimony.take(signed, None, now, is_caller=event.is_caller)
                if event.is_from_book:
                    self._roster.excuse_all(now + self._settings.book_grace_s)
                if event.is_by_sync:
                    self._syncs.met(now)
                else:
                    self._syncs.hasten(now)
            case SendFailed():
                self._detector.send_failed(event.target)
            case PortRefused():
                peer = self._roster.get(event.target)
                if peer is not None and peer.state in ("alive", "suspect"):
                    self._detector.refused(peer, now)
            case Doubted():
                peer = self._roster.get(event.target)
                if peer is not None and peer.state in ("alive", "suspect"):
                    self._detector.probe(peer, now)
            case LoopLagged():
                if now - self._lag_seen_at >= event.lag_s:
                    self._lagged(event.lag_s, now)
            case LocalChanged():
                if not self._has_left:
                    has_moved = event.endpoint not in (None, self._own.record.endpoint)
                    self._own.change(event, now)
                    if has_moved:
                        self._moved(now)
            case SyncEnded():
                self._sync_ended(event.target, succeeded=event.succeeded, now=now)
            case Revoked():
                self._forget(event.sites, now)
            case Leave():
                self._leave(now)
            case _:
                assert_never(event)

    def _run(self, now: float) -> None:
        """Do everything that is due."""
        if self._has_left:
            self._gossip(now)
            return
        if self._own.due_at <= now:
            self._own.publish(now)
            self._post.spread_own()
        self._detector.run(now)
        while self._roster.due_at <= now:
            # A death lowers the number of accusers that others need; each pass holds or condemns.
            self._testimony.judge(now)
        self._watch_contact(now)
        self._recovery.run(now, is_isolated=self._contact.is_isolated)
        if len(self._roster):
            self._syncs.run_periodic(self._roster.reachable(), self._roster.sites, now)
            self._syncs.run_look_up(now)
            self._syncs.run_catalog(self._catalog_candidates, now)
        self._gossip(now)

    def _settle(self, now: float) -> None:
        """React to our own effects: beliefs that changed move the other parts."""
        while self._settled < len(self._out):
            effect = self._out[self._settled]
            self._settled += 1
            if isinstance(effect, MemberChanged):
                self._member_changed(effect, now)
            elif isinstance(effect, RecordChanged):
                self._record_changed(effect, now)

    def _member_changed(self, effect: MemberChanged, now: float) -> None:
        self._contact.expect(now, somebody=self._roster.is_anybody_expected)
        if effect.after == "alive" and effect.before != "suspect":
            self._detector.order.insert(effect.site)
            if effect.before == "dead" and self._recovery.came_back(now):
                # Several return at once: a cut has healed, and gossip alone leaves gaps.
                self._syncs.bring_forward(now)
        elif effect.after in ("dead", "left"):
            self._recovery.lost(now)

    def _record_changed(self, effect: RecordChanged, now: float) -> None:
        if effect.site == self._me:
            if effect.record.catalog != self._own_catalog:
                self._own_catalog = effect.record.catalog
                self._syncs.catalog_changed()
            return
        if effect.record.catalog == self._own.record.catalog:
            return
        self._catalog_seen = effect.record.catalog
        if self._syncs.has_joined:
            self._syncs.catalog_differs(self._roster.sites, now)

    # --- hearing ---------------------------------------------------------------------------------
    def _hear(self, sender: SiteId, message: GossipMessage, now: float) -> None:
        testimony = self._testimony
        for signed in message.rumors:
            if signed.body not in testimony.seen:
                testimony.take(signed, sender, now)
        peer = self._roster.get(sender)
        if peer is None or self._has_left:
            return
        peer.heard_at = now
        if peer.suspicion is not None:
            testimony.withdraw(peer, now)
        match message:
            case Ping():
                place = self._where.answer(is_wanted=message.is_place_wanted)
                ack = partial(Ack, message.number, self._me, coordinate=place)
                self._post.send(peer, ack, now)
            case Ack():
                self._detector.acked(sender, message, now)
                self._made_contact(now)
            case Nack():
                self._detector.nacked(sender, message)
                self._made_contact(now)
            case PingRequest():
                self._detector.asked(sender, message, now)
            case Gossip():
                pass
            case _:
                assert_never(message)

    def _made_contact(self, now: float) -> None:
        was_silent, was_isolated = self._contact.is_silent(now), self._contact.is_isolated
        self._contact.heard(now)
        if was_isolated:
            self._post.is_isolated = False
            self._out.append(IsolationChanged(is_isolated=False))
            self._recovery.came_back(now)
        if was_silent:
            # What we held against others while nobody answered is void.
            self._detector.forget()
            for peer in self._roster.suspects():
                self._roster.withdraw(peer, now)
                self._rumors.drop((peer.site, self._me))

    # --- telling ---------------------------------------------------------------------------------
    def _gossip_at(self) -> float:
        if not self._rumors.waiting or not self._roster.is_anybody_reachable:
            return NEVER
        return self._gossiped_at + self._settings.gossip_interval_s

    def _gossip(self, now: float) -> None:
        """Pass news on to a few members: at once when quiet, then at the gossip interval."""
        if self._gossip_at() > now:
            return
        self._gossiped_at = now
        reachable = self._roster.reachable()
        count = min(self._settings.gossip_fanout, len(reachable))
        for site in self._rng.sample(reachable, count):
            peer = self._roster.get(site)
            if peer is not None and len(self._rumors):
                self._post.send(peer, Gossip, now)

    def _leave(self, now: float) -> None:
        if self._has_left:
            return
        self._own.leave(now)
        self._post.spread_own()
        self._post.burst(self._rng)
        self._has_left = True

    def _forget(self, sites: Sequence[SiteId], now: float) -> None:
        """Their keys were revoked: they are not probed, told of or believed any more."""
        for site in sites:
            if (peer := self._roster.get(site)) is None:
                continue
            speakers = [] if peer.suspicion is None else [*peer.suspicion.accusers]
            self._rumors.drop_about(site, [site, *speakers])
            self._roster.remove(peer)
        for peer in self._roster.peers():
            if peer.suspicion is not None:
                self._rumors.drop_about(peer.site, list(sites))
        self._roster.discount(sites, now)
        self._contact.expect(now, somebody=self._roster.is_anybody_expected)

    # --- repair ----------------------------------------------------------------------------------
    def _sync_ended(self, target: SiteId, *, succeeded: bool, now: float) -> None:
        self._syncs.ended(target, succeeded=succeeded, now=now)
        peer = self._roster.get(target)
        if peer is None or self._has_left:
            return
        self._detector.called(peer, now, succeeded=succeeded)
        if not succeeded:
            return
        self._made_contact(now)
        if self._roster.is_mine_alone(peer):
            peer.is_relayed = True
            self._testimony.withdraw(peer, now)

    def _ask_sync(self, site: SiteId, reason: str) -> None:
        if (peer := self._roster.get(site)) is not None:
            self._out.append(SyncWith(site, peer.record.endpoint, reason))

    def _catalog_candidates(self) -> list[SiteId]:
        """Members whose catalog differs; if there are any, those with the newest digest heard of."""
        mine = self._own.record.catalog
        differing = [
            peer
            for site in self._roster.reachable()
            if (peer := self._roster.get(site)) is not None and peer.record.catalog != mine
        ]
        newest = [peer.site for peer in differing if peer.record.catalog == self._catalog_seen]
        return newest or [peer.site for peer in differing]

    def _try_lost(self, peer: Peer, with_sync: bool, now: float) -> None:  # noqa: FBT001 - callback
        self._detector.ping_lost(peer, now)
        if with_sync:
            self._syncs.try_silent(peer.site, "lost member", now)

    def _watch_contact(self, now: float) -> None:
        """When nobody is heard, ask several at once; then say that we are isolated."""
        if self._contact.must_ask(now):
            sites = self._roster.reachable() or tuple(peer.site for peer in self._roster.peers())
            chosen = self._rng.sample(sites, min(EXTRA_ASKED, len(sites)))
            for site in chosen:
                peer = self._roster.get(site)
                assert peer is not None, "chosen from the roster"
                if peer.state in ("alive", "suspect"):
                    self._detector.probe(peer, now)
                else:
                    self._detector.ping_lost(peer, now)
            self._syncs.try_silent(chosen[0], "nobody heard", now)
        if self._contact.became_isolated(now):
            self._post.is_isolated = True
            self._out.append(IsolationChanged(is_isolated=True))
            for peer in self._roster.suspects():
                if self._roster.is_mine_alone(peer):
                    self._rumors.drop((peer.site, self._me))

    def _moved(self, now: float) -> None:
        """Our address is another: refute what was said of the old one, and look for whoever we lost."""
        self._own.refute(self._own.record.sequence, now)
        self._post.spread_own()
        self._post.burst(self._rng)
        self._recovery.came_back(now)

    def _lagged(self, lag_s: float, now: float) -> None:
        """We stood still for ``lag_s``: void the silence, and refute before anybody asks."""
        self._lag_seen_at = now
        self._detector.health.note(min(self._settings.health_max // 2, math.ceil(lag_s)))
        self._detector.lagged(now)
        self._contact.lagged(lag_s, now)
        self._roster.hold_all(lag_s, now + self._settings.probe_timeout_s)
        accusable_s = self._settings.probe_timeout_s + self._settings.indirect_timeout_s
        if lag_s >= accusable_s and len(self._roster) and not self._has_left:
            self._own.refute(self._own.record.sequence, now)
            self._post.spread_own()
            self._post.burst(self._rng)
            self._syncs.bring_forward(now)  # what was told meanwhile is not told again
