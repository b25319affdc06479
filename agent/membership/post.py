"""Addressing packets and filling them: what this receiver must hear first, then rumors.

The receiver of any message hears first what is said against it (Lifeguard section 4.3, 'LHA-Buddy':
a suspect learns of its suspicion from whoever talks to it), and our record if it may lack it.
"""

from collections.abc import Callable

from agent.foundation.ids import SiteId
from agent.foundation.randomness import Rng
from agent.membership.events import RecordChanged, SendGossip, SwimEffect
from agent.membership.member import Peer
from agent.membership.own_record import OwnRecord
from agent.membership.roster import Roster
from agent.membership.rumors import BUDGET_BYTES, PER_PACKET_MAX, Rumors, wire_bytes
from agent.membership.settings import Settings
from agent.wire.gossip import Gossip, GossipMessage
from agent.wire.records import Signed

Build = Callable[[tuple[Signed, ...]], GossipMessage]

INTRODUCE_FOR_S = 10.0
"""After a start our record goes with the first message to each member; later rumor has spread it."""


def fitting(statements: list[Signed]) -> list[Signed]:
    """Those that fit one packet together, in their order: whoever made one of them long silences only it."""
    room = BUDGET_BYTES
    chosen: list[Signed] = []
    for signed in statements:
        if (size := wire_bytes(signed)) <= room and len(chosen) < PER_PACKET_MAX:
            room -= size
            chosen.append(signed)
    return chosen


class Post:
    """Makes ``SendGossip`` effects."""

    def __init__(
        self,
        *,
        me: SiteId,
        own: OwnRecord,
        roster: Roster,
        rumors: Rumors,
        settings: Settings,
        out: list[SwimEffect],
        now: float,
    ) -> None:
        """Effects are appended to ``out``."""
        self._me, self._own, self._roster, self._rumors = me, own, roster, rumors
        self._settings, self._out, self._started_at = settings, out, now
        self.is_isolated = False
        self._sites, self._transmissions = 0, 0

    def send(self, peer: Peer, build: Build, now: float, extra: tuple[Signed, ...] = ()) -> None:
        """Send what ``build`` makes of the statements that fit: first ours, ``extra``, then rumors."""
        first = self._first(peer, now)
        if extra or len(first) > 1:
            first = fitting([*first, *(signed for signed in extra if signed not in first)])
        if (sites := self._roster.sites) != self._sites:
            self._sites, self._transmissions = sites, self._settings.transmissions(sites)
        statements = self._rumors.take(first, self._transmissions)
        self._out.append(SendGossip(peer.site, peer.record.endpoint, build(statements)))

    def tell(self, peer: Peer, statements: tuple[Signed, ...]) -> None:
        """Send exactly these statements."""
        self._out.append(SendGossip(peer.site, peer.record.endpoint, Gossip(statements)))

    def spread_own(self) -> None:
        """Our record is new: make it a rumor."""
        self._rumors.put((self._me, self._me), self._own.signed)
        self._out.append(RecordChanged(self._me, self._own.record))

    def burst(self, rng: Rng) -> None:
        """Tell many members our record directly: it cannot wait for gossip."""
        reachable = self._roster.reachable()
        for site in rng.sample(reachable, min(self._settings.burst, len(reachable))):
            if (peer := self._roster.get(site)) is not None:
                self.tell(peer, (self._own.signed,))

    def _first(self, peer: Peer, now: float) -> list[Signed]:
        first = []
        is_new = peer.heard_at is None and now - self._started_at < INTRODUCE_FOR_S
        if is_new or peer.state != "alive" or self.is_isolated:
            first.append(self._own.signed)
        suspicion = peer.suspicion
        # Alone, our own accusations say more about us than about the accused.
        if suspicion is not None and not (self.is_isolated and self._roster.is_mine_alone(peer)):
            evidence = suspicion.accusers.get(self._me) or next(iter(suspicion.accusers.values()))
            first.append(evidence.signed)
        return first
