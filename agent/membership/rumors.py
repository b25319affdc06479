"""What is worth telling, each thing a bounded number of times (SWIM section 4.1).

Rumors are kept in tiers by how often they were sent; the least sent go first, oldest first within
a tier, so fresh news overtakes what is nearly spread and nothing starves. Every operation costs
what it returns, not the length of the queue.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from agent.foundation.ids import SiteId
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Signed

ENVELOPE_BYTES = 37
"""Version, sender, boot epoch, counter and the authentication tag."""
MESSAGE_BYTES = 70
"""The largest message without its rumors: an Ack with tag, number, subject and coordinate."""
BUDGET_BYTES = PACKET_BYTES_MAX - ENVELOPE_BYTES - MESSAGE_BYTES
PER_PACKET_MAX = 16
"""The wire's bound on rumors in one message."""

STATEMENT_BYTES_MIN = 140
"""No statement is shorter; with less room left the packet is full."""
MISFITS_MAX = 8
"""Statements that did not fit before the packet counts as full: bounds the search."""

ACCUSATION_SENT_MAX = 10
"""An accusation is told no more often than in a cluster of twenty: in one of a thousand e^-9 of the
members miss it, and whoever lacks one looks for itself. A third of the packets while many fail."""

Key = tuple[SiteId, SiteId]
"""(subject, speaker): the newest statement of a speaker about a subject replaces the former."""


def wire_bytes(signed: Signed) -> int:
    """Size of one statement inside a message: body, signature, array and length bytes."""
    return len(signed.body) + len(signed.signature) + 6


@dataclass(slots=True)
class _Rumor:
    signed: Signed
    size: int
    sent: int = 0


class _Tier:
    """What was sent equally often, oldest first: records and accusations apart."""

    __slots__ = ("accusations", "records")

    def __init__(self) -> None:
        self.records: dict[Key, _Rumor] = {}
        self.accusations: dict[Key, _Rumor] = {}

    def of(self, key: Key) -> dict[Key, _Rumor]:
        return self.records if key[0] == key[1] else self.accusations


class Rumors:
    """The queue of statements that still have to spread."""

    def __init__(self, accusations_max: int, records_max: int = 64) -> None:
        """At most so many wait; beyond, the most often sent of the kind is dropped."""
        self._accusations_max, self._records_max = accusations_max, records_max
        self._records = 0
        self.waiting = 0
        """How many rumors wait."""
        self._by_key: dict[Key, _Rumor] = {}
        self._tiers: list[_Tier] = [_Tier()]

    def __len__(self) -> int:
        """Rumors that wait."""
        return self.waiting

    def put(self, key: Key, signed: Signed) -> bool:
        """Spread ``signed``, in place of any former statement under ``key``.

        Returns:
            False if something else had to give way and will not be told as often as it should be.
        """
        self.drop(key)
        if key[0] == key[1]:
            is_room = self._records < self._records_max
        else:
            is_room = self.waiting - self._records < self._accusations_max
        if not is_room:
            self._give_way(key)
        rumor = _Rumor(signed, wire_bytes(signed))
        self._by_key[key] = self._tiers[0].of(key)[key] = rumor
        self._counted(key, 1)
        return is_room

    def drop(self, key: Key) -> None:
        """Stop spreading what stands under ``key``."""
        if (rumor := self._by_key.pop(key, None)) is not None:
            del self._tiers[rumor.sent].of(key)[key]
            self._counted(key, -1)

    def drop_about(self, subject: SiteId, speakers: Iterable[SiteId]) -> None:
        """Stop spreading what ``speakers`` said about ``subject``."""
        for speaker in speakers:
            self.drop((subject, speaker))

    def take(self, first: list[Signed], transmissions: int) -> tuple[Signed, ...]:
        """Fill one packet: ``first`` (always), then the least sent rumors that fit.

        Args:
            first: statements this receiver needs in any case.
            transmissions: a rumor sent this often is dropped from the queue.
        """
        if not self.waiting:
            return tuple(first)
        chosen = list(first)
        room = BUDGET_BYTES - sum([wire_bytes(signed) for signed in first])
        sent = self._choose(chosen, room)
        for key, rumor in sent:
            self._count(key, rumor, transmissions)
        return tuple(chosen)

    def _choose(self, chosen: list[Signed], room: int) -> list[tuple[Key, _Rumor]]:
        """Append to ``chosen`` what fits into ``room`` bytes beside it, and say what that was."""
        bodies = {signed.body for signed in chosen} if chosen else ()
        sent: list[tuple[Key, _Rumor]] = []
        misfits, left = 0, PER_PACKET_MAX - len(chosen)
        for tier in self._tiers:
            for rumors in (tier.accusations, tier.records):
                for key, rumor in rumors.items():
                    if left <= 0 or room < STATEMENT_BYTES_MIN or misfits >= MISFITS_MAX:
                        return sent
                    size = rumor.size
                    if size > room or (bodies and rumor.signed.body in bodies):
                        misfits += 1
                        continue
                    room -= size
                    left -= 1
                    chosen.append(rumor.signed)
                    sent.append((key, rumor))
        return sent

    def _count(self, key: Key, rumor: _Rumor, transmissions: int) -> None:
        del self._tiers[rumor.sent].of(key)[key]
        rumor.sent += 1
        is_record = key[0] == key[1]
        if rumor.sent >= (transmissions if is_record else min(transmissions, ACCUSATION_SENT_MAX)):
            del self._by_key[key]
            self._counted(key, -1)
            return
        while len(self._tiers) <= rumor.sent:
            self._tiers.append(_Tier())
        self._tiers[rumor.sent].of(key)[key] = rumor

    def _counted(self, key: Key, by: int) -> None:
        self.waiting += by
        if key[0] == key[1]:
            self._records += by

    def _give_way(self, key: Key) -> None:
        """Drop one of the kind of ``key``: the most often sent, or the youngest if none was sent."""
        for tier in reversed(self._tiers):
            rumors = tier.of(key)
            if rumors:
                self.drop(
                    next(iter(rumors)) if tier is not self._tiers[0] else next(reversed(rumors))
                )
                return
