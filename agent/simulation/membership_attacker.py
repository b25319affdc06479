"""An attacker with two powers: the wire (old and damaged packets), and the key of one member.

The wire: it sees every packet and sends any bytes to anybody from any address; it has no key. The
traitor: a member like any other that also says what its machine never would, with its own key.
"""

import hashlib
from collections import deque
from dataclasses import replace

from agent.foundation.ids import SiteId, short
from agent.simulation.membership_sealed import SealedWorld
from agent.wire.gossip import Ack, Gossip
from agent.wire.records import STATEMENTS, Accusation, Signed, SiteRecord

STATEMENTS_KEPT = 256
FLOOD = 12
"""Statements of one flood: they fill a packet."""


class Attacker:
    """Draws from the world's randomness, so that a seed gives one trace."""

    def __init__(self, world: SealedWorld) -> None:
        """No traitor yet."""
        self._world, self._rng = world, world.rng
        self.traitor: SiteId | None = None
        self._old: deque[tuple[SiteId, Signed]] = deque(maxlen=STATEMENTS_KEPT)
        self._newest: dict[SiteId, Signed] = {}

    def turn(self, site: SiteId) -> None:
        """This member is a traitor from now on."""
        self.traitor = site
        self._world.checks.turned(site)

    # --- the wire --------------------------------------------------------------------------------
    def replay(self, packets: int) -> int:
        """Send captured packets again, to whom they were for, from anywhere; how many."""
        captured = self._world.captured
        count = min(packets, len(captured))
        for _, target, datagram in self._rng.sample(captured, count):
            self._world.post_raw(self._anybody(), target, datagram.packet)
        return count

    def mutate(self, packets: int) -> int:
        """Send captured packets with one byte changed, cut short, or to somebody else."""
        captured = self._world.captured
        count = min(packets, len(captured))
        for source, target, datagram in self._rng.sample(captured, count):
            packet = bytearray(datagram.packet)
            match self._rng.randrange(3):
                case 0:
                    packet[self._rng.randrange(len(packet))] ^= 1 << self._rng.randrange(8)
                case 1:
                    del packet[self._rng.randrange(len(packet)) :]
                case _:
                    target = self._anybody()  # noqa: PLW2901 - the same packet, elsewhere
                    if target == source:
                        continue
            self._world.post_raw(self._anybody(), target, bytes(packet))
        return count

    def _anybody(self) -> SiteId:
        return self._rng.choice(list(self._world.sites))

    # --- the traitor -----------------------------------------------------------------------------
    def listen(self) -> None:
        """Let the traitor keep what it hears of others, to repeat it later."""
        if self.traitor is None or (swim := self._world.sites[self.traitor].swim) is None:
            return
        for member in swim.members().values():
            if self._newest.get(member.site) is not member.signed:
                self._newest[member.site] = member.signed
                self._old.append((member.site, member.signed))

    def lie(self) -> str:
        """Let the traitor lie to a few members; what it did, empty if there is no free traitor."""
        me, world = self.traitor, self._world
        if me is None or world.sites[me].swim is None or world.network.paused_until(me):
            return ""
        others = list(world.swim(me).members())
        if len(others) < 2:  # noqa: PLR2004 - somebody to lie to, somebody to lie about
            return ""
        subject = self._rng.choice(others)
        record = world.swim(me).members()[subject].record
        told, statements = self._statements(me, subject, record)
        if statements:
            for target in self._rng.sample(others, min(len(others), 6)):
                world.post_as(me, target, Gossip(statements))
        else:
            for target in others:
                for number in range(1, 60):
                    world.post_as(me, target, Ack(number, subject)) if number % 20 == 0 else None
        return f"{told} {short(subject)}"

    def _statements(  # noqa: PLR0911 - one return for each kind of lie
        self, me: SiteId, subject: SiteId, record: SiteRecord
    ) -> tuple[str, tuple[Signed, ...]]:
        rng = self._rng
        departed = self._departed(me)
        if departed and rng.random() < 1 / 2:
            return "says that some who left are back, and speaks of", departed
        other = rng.choice(list(self._world.sites))
        match rng.randrange(8):
            case 0 | 1:
                return "accuses", (self._sign(me, Accusation(me, subject, record.incarnation)),)
            case 2:
                claim = Accusation(other, subject, record.incarnation, is_refused=True)
                return "accuses, in another's name,", (self._sign(me, claim),)
            case 3:
                higher = record.sequence + 9
                forged = replace(record, sequence=higher, incarnation=higher, load=0.77)
                return "forges a record of", (self._sign(me, forged),)
            case 4:
                forged = replace(record, sequence=record.sequence + 1, status="left")
                return "forges the goodbye of", (self._sign(me, forged),)
            case 5:
                old = rng.sample(self._old, min(4, len(self._old)))
                return "repeats old statements, and speaks of", tuple(signed for _, signed in old)
            case 6:
                claims = [
                    Accusation(me, subject, max(0, record.incarnation + rng.randint(-5, 5)))
                    for _ in range(5)
                ]
                return "floods accusations of", tuple(self._sign(me, claim) for claim in claims)
            case _:
                return "acknowledges probes of", ()

    def _departed(self, me: SiteId) -> tuple[Signed, ...]:
        """Old records of members that have left since."""
        members = self._world.swim(me).members()
        old = {
            site: signed
            for site, signed in self._old
            if (member := members.get(site)) is not None
            and member.state == "left"
            and signed != member.signed
        }
        return tuple(old.values())[:4]

    def _sign(self, me: SiteId, statement: SiteRecord | Accusation) -> Signed:
        """What the traitor's key makes of it; the ledger keeps true statements as they were."""
        body = STATEMENTS.pack(statement)
        self._world.made.setdefault(body, me)
        return Signed(body, hashlib.blake2b(body, key=me, digest_size=64).digest())
