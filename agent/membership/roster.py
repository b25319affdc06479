"""What is believed of every other member, and the only place where a belief changes.

Transitions (SWIM section 4.2; ``i`` is the incarnation):

    unknown  -- record --------------------------------------> alive | left
    alive    -- accusation of the current i -----------------> suspect
    suspect  -- newer i by its owner (refutation) -----------> alive
    suspect  -- our accusation was the only one, withdrawn --> alive
    suspect  -- enough accusers and the time is over --------> dead
    dead     -- newer i by its owner ------------------------> alive
    any      -- owner's record says left --------------------> left
    left     -- owner's newer record says otherwise ---------> alive

Rule: sequence and incarnation of a member never fall, and only its own signature moves them.
"""

import enum
from collections.abc import Iterator, Sequence

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.foundation.notary import Notary
from agent.membership.events import MemberChanged, RecordChanged, RememberPeer, SwimEffect
from agent.membership.member import Member, Peer, State
from agent.membership.settings import Settings
from agent.membership.suspicion import Suspicion
from agent.wire.limits import MEMBERS_MAX
from agent.wire.records import Accusation, Signed, SiteRecord

REACHABLE: frozenset[State] = frozenset(("alive", "suspect"))
LOST: frozenset[State] = frozenset(("dead", "left"))


class Verdict(enum.Enum):
    """What became of a statement."""

    NEWS = enum.auto()
    """It changed a belief: pass it on."""
    STALE = enum.auto()
    """We know as much or more."""
    AHEAD = enum.auto()
    """It speaks of an incarnation that we have not seen."""
    SETTLED = enum.auto()
    """It accuses a member that is dead here: its speaker may lack the evidence."""
    UNKNOWN = enum.auto()
    """We know no key for its speaker or no record of its subject."""
    FORGED = enum.auto()
    """We know its speaker, and the signature is not the speaker's; or it contradicts itself."""


class Roster:
    """All members but this site."""

    def __init__(
        self, me: SiteId, notary: Notary, settings: Settings, out: list[SwimEffect]
    ) -> None:
        """Effects of every transition are appended to ``out``, a list that the owner empties."""
        self._me, self._notary, self._settings, self._out = me, notary, settings, out
        self._peers: dict[SiteId, Peer] = {}
        self.views: dict[SiteId, Member] = {}
        self._reachable: tuple[SiteId, ...] | None = ()
        self._counts: dict[State, int] = {"alive": 0, "suspect": 0, "dead": 0, "left": 0}
        self.members = 0
        """Members known, in any state."""
        self.alive = 0
        """Members believed alive, this site not included."""
        self.is_anybody_reachable = False
        self.sites = 1
        """Size of the cluster: reachable members and this site."""
        self._suspects: dict[SiteId, tuple[Peer, Suspicion]] = {}
        self._lost: list[Peer] | None = []
        """Dead and departed members; None if they have to be looked for."""
        self._due: float | None = NEVER
        """A lower bound of the earliest deadline; None if it has to be looked for."""

    def __len__(self) -> int:
        """Members known, in any state."""
        return len(self._peers)

    def get(self, site: SiteId) -> Peer | None:
        """One member's working state."""
        return self._peers.get(site)

    def peers(self) -> Iterator[Peer]:
        """All members, in the order in which they became known."""
        return iter(self._peers.values())

    def reachable(self) -> tuple[SiteId, ...]:
        """Alive and suspect members: probed, gossiped to, counted in the cluster size."""
        if self._reachable is None:
            self._reachable = tuple(
                peer.site for peer in self._peers.values() if peer.state in REACHABLE
            )
        return self._reachable

    @property
    def is_anybody_expected(self) -> bool:
        """Whether any member has not said goodbye."""
        return len(self._peers) > self._counts["left"]

    def suspects(self) -> list[Peer]:
        """Members under suspicion."""
        return [self._peers[site] for site in self._suspects]

    def lost(self) -> list[Peer]:
        """Dead and departed members, in the order in which they became known."""
        if self._lost is None:
            self._lost = [peer for peer in self._peers.values() if peer.state in LOST]
        return self._lost

    def needed(self) -> int:
        """Distinct accusers that make a suspect dead: this site and the alive members can speak."""
        return max(1, min(self._settings.accusers_needed, self.alive + 1))

    # --- statements ------------------------------------------------------------------------------
    def take_record(self, record: SiteRecord, signed: Signed, now: float) -> Verdict:
        """Believe a member's newer record."""
        peer = self._peers.get(record.site)
        if peer is not None and record.sequence <= peer.record.sequence:
            return Verdict.STALE
        if record.incarnation > record.sequence:
            return Verdict.FORGED
        if not self._notary.is_signed_by(record.site, signed.body, signed.signature):
            return Verdict.UNKNOWN if peer is None else Verdict.FORGED
        if peer is None:
            return self._admit(record, signed, now)
        before = peer.record
        if record.incarnation < before.incarnation:
            return Verdict.FORGED
        peer.record, peer.signed = record, signed
        peer.coordinate = record.coordinate or peer.coordinate
        self._out.append(RecordChanged(peer.site, record))
        if (
            before.endpoint != record.endpoint
            or before.boot_epoch != record.boot_epoch
            or (before.status == "left") != (record.status == "left")
        ):
            self._out.append(RememberPeer(peer.site, signed))
        self._follow(peer, now)
        self.refresh(peer)
        return Verdict.NEWS

    def _admit(self, record: SiteRecord, signed: Signed, now: float) -> Verdict:
        if len(self._peers) >= MEMBERS_MAX:
            return Verdict.STALE
        state: State = "left" if record.status == "left" else "alive"
        peer = Peer(record.site, record, signed, state, now)
        peer.coordinate = record.coordinate
        self._peers[record.site] = peer
        self._count(state, 1)
        if state in LOST:
            self._lost = None
        elif self._reachable is not None:
            self._reachable = (*self._reachable, peer.site)
        self.refresh(peer)
        self._out.append(MemberChanged(peer.site, None, state))
        self._out.append(RecordChanged(peer.site, record))
        self._out.append(RememberPeer(peer.site, signed))
        return Verdict.NEWS

    def _follow(self, peer: Peer, now: float) -> None:
        """Let the owner's newest record decide what it can."""
        record, suspicion = peer.record, peer.suspicion
        if record.status == "left":
            self._move(peer, "left", now)
        elif peer.state == "left" or (
            suspicion is not None and record.incarnation > suspicion.incarnation
        ):
            self._move(peer, "alive", now)

    def take_accusation(  # noqa: C901, PLR0911 - one return for each reason not to believe
        self, accusation: Accusation, signed: Signed, now: float
    ) -> Verdict:
        """Count an accusation against a member's current incarnation."""
        peer = self._peers.get(accusation.subject)
        if peer is None:
            return Verdict.UNKNOWN
        if accusation.incarnation < peer.record.incarnation or peer.state == "left":
            return Verdict.STALE
        if accusation.incarnation > peer.record.incarnation:
            return Verdict.AHEAD
        if accusation.accuser == accusation.subject:
            return Verdict.FORGED
        suspicion = peer.suspicion
        if suspicion is not None and accusation.accuser in suspicion.accusers:
            return Verdict.STALE
        if peer.state == "dead":
            return Verdict.SETTLED
        if accusation.accuser != self._me and not self._notary.is_signed_by(
            accusation.accuser, signed.body, signed.signature
        ):
            known = accusation.accuser in self._peers
            return Verdict.FORGED if known else Verdict.UNKNOWN
        if suspicion is None:
            suspicion = peer.suspicion = Suspicion(accusation.incarnation, now)
        if not suspicion.add(accusation, signed):
            return Verdict.STALE
        self._move(peer, "suspect", now)
        if self._due is not None:
            self._due = min(self._due, self._deadline(suspicion))
        relayed = len(suspicion.accusers) <= self._settings.accusers_needed
        return Verdict.NEWS if relayed or accusation.accuser == self._me else Verdict.STALE

    def withdraw(self, peer: Peer, now: float) -> bool:
        """Take back our own accusation if nobody else made one; True if that revived the member."""
        if not self.is_mine_alone(peer):
            return False
        self._move(peer, "alive", now)
        return True

    def is_mine_alone(self, peer: Peer) -> bool:
        """Whether the member is suspect on no evidence but ours."""
        suspicion = peer.suspicion
        return (
            peer.state == "suspect"
            and suspicion is not None
            and len(suspicion.accusers) == 1
            and self._me in suspicion.accusers
        )

    def remove(self, peer: Peer) -> None:
        """Its key was revoked: nothing of it counts any more, not even that it was here."""
        self._count(peer.state, -1)
        self._suspects.pop(peer.site, None)
        del self._peers[peer.site], self.views[peer.site]
        self._reachable = self._due = self._lost = None

    def discount(self, accusers: Sequence[SiteId], now: float) -> None:
        """Void what revoked keys said of others; whom nobody else accuses is alive.

        The accused believes no revoked key either, so it would never refute such an accusation.
        """
        for peer in list(self._peers.values()):
            if peer.suspicion is None:
                continue
            peer.suspicion.discount(accusers)
            if not peer.suspicion.accusers:
                self._move(peer, "alive", now)
        self._due = None

    # --- verdicts --------------------------------------------------------------------------------
    @property
    def due_at(self) -> float:
        """The earliest deadline of a suspicion."""
        if self._due is None:
            needed, floor_s = self.needed(), self._floor_s()
            self._due = min(
                [
                    one.deadline(self._settings, needed, floor_s)
                    for _, one in self._suspects.values()
                ],
                default=NEVER,
            )
        return self._due

    def overdue(self, now: float) -> list[Peer]:
        """Suspects whose time is over."""
        if self.due_at > now:
            return []
        needed, floor_s = self.needed(), self._floor_s()
        over: list[Peer] = []
        self._due = NEVER
        for peer, suspicion in self._suspects.values():
            at = suspicion.deadline(self._settings, needed, floor_s)
            if at <= now:
                over.append(peer)
            elif at < self._due:
                self._due = at
        return over

    def hold(self, peer: Peer, until: float) -> None:
        """Give a suspect whose time was over no verdict before ``until``."""
        assert peer.suspicion is not None, "only a suspect can be held"
        peer.suspicion.held_until = max(peer.suspicion.held_until, until)
        if self._due is not None:
            self._due = min(self._due, self._deadline(peer.suspicion))

    def hold_all(self, lag_s: float, until: float) -> None:
        """We stood still: every suspect gets the lost time back."""
        for _, suspicion in self._suspects.values():
            suspicion.started_at += lag_s
            suspicion.held_until = max(suspicion.held_until, until)
        self._due = None

    def excuse_all(self, until: float) -> None:
        """Nobody's silence is evidence before ``until``, as long as it was never heard."""
        for peer in self._peers.values():
            peer.excused_until = until

    def condemn(self, peer: Peer, now: float) -> None:
        """The time is over and enough accusers have spoken."""
        peer.retry_delay_s = self._settings.recovery_interval_s
        peer.retry_at = now + peer.retry_delay_s
        self._move(peer, "dead", now)
        self._due = None

    # --- bookkeeping -----------------------------------------------------------------------------
    def refresh(self, peer: Peer) -> None:
        """Renew the frozen view of a member."""
        self.views[peer.site] = peer.view()

    def _deadline(self, suspicion: Suspicion) -> float:
        return suspicion.deadline(self._settings, self.needed(), self._floor_s())

    def _floor_s(self) -> float:
        return self._settings.suspicion_floor_s(self.sites)

    def _move(self, peer: Peer, after: State, now: float) -> None:
        before = peer.state
        if after in ("alive", "left"):
            peer.suspicion = None
        if before == after:
            return
        self._count(before, -1)
        self._count(after, 1)
        if after not in REACHABLE and before in REACHABLE and self._reachable is not None:
            at = self._reachable.index(peer.site)
            self._reachable = (*self._reachable[:at], *self._reachable[at + 1 :])
        elif (before in REACHABLE) != (after in REACHABLE):
            self._reachable = None
        if before in LOST or after in LOST:
            self._lost = None
        if before == "suspect":
            del self._suspects[peer.site]
        elif after == "suspect":
            assert peer.suspicion is not None, "a suspect has a suspicion"
            self._suspects[peer.site] = peer, peer.suspicion
        peer.state, peer.changed_at = after, now
        if after == "left":
            peer.retry_delay_s = self._settings.retry_cap_max_s
            peer.retry_at = now + peer.retry_delay_s
        self.refresh(peer)
        self._out.append(MemberChanged(peer.site, before, after))

    def _count(self, state: State, by: int) -> None:
        needed = self.needed()
        counts = self._counts
        counts[state] += by
        self.members += by
        self.alive = counts["alive"]
        self.sites = self.alive + counts["suspect"] + 1
        self.is_anybody_reachable = self.sites > 1
        if self.needed() != needed:
            self._due = None
