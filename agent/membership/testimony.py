"""What is said of members: taken in, weighed, passed on, and judged when its time has come.

A statement is looked at once. A record is believed if its owner signed it and it is newer; an
accusation is counted if it is against the current incarnation; one against ourselves is refuted.
Nobody can announce a death: each site judges for itself, from the accusations it has counted.
"""

from collections.abc import Callable

from agent.foundation.errors import Malformed
from agent.foundation.ids import SiteId
from agent.foundation.notary import Notary
from agent.foundation.randomness import Rng
from agent.membership.contact import Contact
from agent.membership.detector import FailureDetector
from agent.membership.events import IdentityCloned, SwimEffect
from agent.membership.member import Peer
from agent.membership.own_record import SEQUENCE_MAX, OwnRecord, is_quiet
from agent.membership.post import Post
from agent.membership.roster import Roster, Verdict
from agent.membership.rumors import Rumors
from agent.membership.seen import Seen
from agent.membership.settings import Settings
from agent.membership.syncs import SyncPlan
from agent.wire.limits import RUMOR_BYTES_MAX
from agent.wire.records import STATEMENTS, Accusation, Signed, SiteRecord

TELL_AGAIN_S = 1.0
"""Least time between two corrections of one member's outdated belief about us."""
ACCUSATION_BYTES_MAX = 160
"""Twice what one takes today. Evidence goes first into every packet for the accused: an accuser that
pads it must not crowd out what else the packet is for."""
REFRESH_S = 5.0
"""Least time between two repetitions of the evidence against one dead member."""
LOOK_AGAIN_S = 1.0
"""Mean time between two looks at a suspect that cannot be judged yet."""


Read = Callable[[bytes], SiteRecord | Accusation]
"""The statement that a body holds; ``Malformed`` if it holds none."""


def read_statement(body: bytes) -> SiteRecord | Accusation:
    """Decode and check one statement.

    Raises:
        Malformed: it is none, or longer than a rumor may be.
    """
    statement: SiteRecord | Accusation = STATEMENTS.unpack(body, RUMOR_BYTES_MAX)
    return statement


class Testimony:
    """Takes statements, makes accusations, gives verdicts."""

    def __init__(
        self,
        *,
        me: SiteId,
        notary: Notary,
        own: OwnRecord,
        roster: Roster,
        rumors: Rumors,
        contact: Contact,
        syncs: SyncPlan,
        post: Post,
        detector: FailureDetector,
        settings: Settings,
        rng: Rng,
        out: list[SwimEffect],
        read: Read,
    ) -> None:
        """All parts of one site's machine; effects are appended to ``out``."""
        self._read = read
        self._me, self._notary, self._own, self._roster = me, notary, own, roster
        self._rumors, self._contact, self._syncs, self._post = rumors, contact, syncs, post
        self._detector, self._settings, self._rng, self._out = detector, settings, rng, out
        self.seen = Seen(settings.seen_max)
        """Bodies of statements that were dealt with."""
        self.malformed = 0
        self.forged = 0

    # --- learning --------------------------------------------------------------------------------
    def take(
        self, signed: Signed, sender: SiteId | None, now: float, *, is_caller: bool = False
    ) -> None:
        """Take one statement; ``sender`` is None if it did not come as a rumor.

        ``is_caller``: its speaker began a sync with this site.
        """
        if signed.body in self.seen:
            return
        try:
            statement = self._read(signed.body)
        except Malformed:
            self.malformed += 1
            return
        match statement:
            case Accusation() if len(signed.body) > ACCUSATION_BYTES_MAX:
                self.malformed += 1
            case SiteRecord(site=self._me):
                self._hear_own(statement, signed, now)
            case SiteRecord():
                self._learn_record(statement, signed, sender, now, is_caller=is_caller)
            case Accusation(accuser=self._me):
                pass
            case Accusation(subject=self._me):
                self._accused(statement, signed, sender, now)
            case Accusation():
                self._learn_accusation(statement, signed, sender, now)

    def _learn_record(
        self,
        record: SiteRecord,
        signed: Signed,
        sender: SiteId | None,
        now: float,
        *,
        is_caller: bool,
    ) -> None:
        peer = self._roster.get(record.site)
        before = None if peer is None else peer.record
        accusers = [] if peer is None or peer.suspicion is None else [*peer.suspicion.accusers]
        verdict = self._roster.take_record(record, signed, now)
        self._weigh(verdict, signed, sender, now)
        if verdict is not Verdict.NEWS:
            return
        peer = self._roster.get(record.site)
        assert peer is not None, "a believed record has a member"
        if peer.suspicion is None:
            self._rumors.drop_about(record.site, accusers)
        if before is not None and is_quiet(before, record):
            return
        # What the first sync tells a newcomer is no news to anybody else.
        is_news = sender is not None or is_caller or self._syncs.has_joined
        if is_news and not self._rumors.put((record.site, record.site), signed):
            self._syncs.bring_forward(now)

    def _learn_accusation(
        self, accusation: Accusation, signed: Signed, sender: SiteId | None, now: float
    ) -> None:
        verdict = self._roster.take_accusation(accusation, signed, now)
        self._weigh(verdict, signed, sender, now)
        peer = self._roster.get(accusation.subject)
        if peer is None or peer.suspicion is None:
            return
        if verdict is Verdict.NEWS:
            self._rumors.put((accusation.subject, accusation.accuser), signed)
            if len(peer.suspicion.accusers) == 1 or accusation.is_refused:
                self._confirm(peer, now)
        elif verdict is Verdict.SETTLED and sender == accusation.accuser:
            self._settle(peer, sender, now)

    def _settle(self, peer: Peer, speaker: SiteId, now: float) -> None:
        """Give whoever still accuses a dead member our evidence: it may lack enough of it.

        Itself, not everybody: in a large cluster no two sites hold the accusations of the same six,
        and news of the one would be answered by news of the other for ever.
        """
        asker = self._roster.get(speaker)
        if asker is None or peer.suspicion is None or now - peer.refreshed_at < REFRESH_S:
            return
        peer.refreshed_at = now
        evidence = list(peer.suspicion.accusers.values())[: self._settings.accusers_needed]
        self._post.tell(asker, tuple(one.signed for one in evidence))

    def _weigh(self, verdict: Verdict, signed: Signed, sender: SiteId | None, now: float) -> None:
        match verdict:
            case Verdict.NEWS | Verdict.STALE:
                self.seen.add(signed.body)
            case Verdict.FORGED:
                self.forged += 1
            case Verdict.UNKNOWN if sender is not None:
                if self._roster.get(sender) is not None:
                    self._syncs.look_up(sender, now)
            case Verdict.AHEAD if sender is not None:
                self._want_sync(sender, "newer record", now)
            case _:
                pass

    def _want_sync(self, site: SiteId, reason: str, now: float) -> None:
        if self._roster.get(site) is not None:
            self._syncs.want(site, reason, now)

    # --- accusations -----------------------------------------------------------------------------
    def accuse(self, peer: Peer, now: float, *, is_refused: bool) -> None:
        """Our probe failed: say so, unless we hear nobody at all."""
        body = STATEMENTS.pack(Accusation(self._me, peer.site, peer.record.incarnation, is_refused))
        signed = Signed(body, self._notary.sign(body))
        accusation = STATEMENTS.unpack(body)
        verdict = self._roster.take_accusation(accusation, signed, now)
        if verdict is Verdict.NEWS and not self._contact.is_silent(now):
            self._rumors.put((peer.site, self._me), signed)

    def _confirm(self, peer: Peer, now: float) -> None:
        """Look for ourselves, with a chance that keeps the number of askers bounded."""
        if peer.suspicion is None or self._me in peer.suspicion.accusers:
            return
        if self._rng.random() * max(1, self._roster.alive) < self._settings.confirmers:
            self._detector.probe(peer, now)

    def judge(self, now: float) -> None:
        """Give a verdict on every suspect whose time is over."""
        needed = self._roster.needed()
        for peer in self._roster.overdue(now):
            suspicion = peer.suspicion
            assert suspicion is not None, "a suspect has a suspicion"
            if peer.heard_at is not None and peer.heard_at > suspicion.started_at:
                suspicion.started_at = peer.heard_at
                self._roster.hold(peer, now + LOOK_AGAIN_S)
            elif len(suspicion.accusers) < needed:
                self._roster.hold(peer, now + LOOK_AGAIN_S * self._rng.uniform(0.5, 1.5))
                if self._me not in suspicion.accusers:
                    self._detector.probe(peer, now)
                elif not self._contact.is_silent(now):
                    # Our finding is made; if it lives after all, it has to hear what it must refute.
                    self._detector.ping_lost(peer, now)
            elif self._contact.is_silent(now) and suspicion.refusals() < min(2, needed):
                self._roster.hold(peer, now + LOOK_AGAIN_S)
            else:
                self._roster.condemn(peer, now)

    def _accused(
        self, accusation: Accusation, signed: Signed, sender: SiteId | None, now: float
    ) -> None:
        """Somebody says that we do not answer: refute, or correct whoever is behind."""
        if accusation.incarnation > self._own.record.incarnation:
            return
        is_first = False
        if accusation.incarnation == self._own.record.incarnation:
            if not self._notary.is_signed_by(accusation.accuser, signed.body, signed.signature):
                if sender is not None:
                    self._want_sync(sender, "unknown member", now)
                return
            self._detector.health.note(1)
            self._own.refute(accusation.incarnation, now)
            self._post.spread_own()
            # Who was not heard may not have heard either (a host that slept, clock and all).
            self._syncs.bring_forward(now)
            is_first = True
        peer = None if sender is None else self._roster.get(sender)
        if peer is not None and (is_first or now - peer.told_at >= TELL_AGAIN_S):
            peer.told_at = now
            self._post.tell(peer, (self._own.signed,))

    def _hear_own(self, record: SiteRecord, signed: Signed, now: float) -> None:
        if record.sequence <= self._own.record.sequence:
            self.seen.add(signed.body)
        elif not self._notary.is_signed_by(self._me, signed.body, signed.signature):
            self.forged += 1
        else:
            self._out.append(IdentityCloned(record.sequence, record))
            if record.sequence < SEQUENCE_MAX - 2**32:
                self._own.refute(record.sequence, now)
                self._post.spread_own()

    def withdraw(self, peer: Peer, now: float) -> None:
        """We hear whom we alone accused: take it back, and let it refute what may have spread."""
        if peer.suspicion is None or not self._roster.is_mine_alone(peer):
            return
        accusation = peer.suspicion.accusers[self._me].signed
        self._roster.withdraw(peer, now)
        self._rumors.drop((peer.site, self._me))
        if not self._contact.is_silent(now):
            # What we held against others while nobody answered is void, and was told to nobody.
            self._post.tell(peer, (accusation,))
