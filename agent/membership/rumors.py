"""What is worth telling, each thing a bounded number of times (SWIM section 4.1).

Rumors are kept in tiers by how often they were sent; the least sent go first, oldest first within
a tier, so fresh news overtakes what is nearly spread and nothing starves. Every operation costs
what it returns, not the length of the queue.
"""

from dataclasses import dataclass
from itertools import chain

from agent.foundation.ids import SiteId
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Signed

ENVELOPE_BYTES = 37
"""Version, sender, boot epoch, counter and the authentication tag."""
MESSAGE_BYTES = 60
"""The largest message without its rumors: an Ack with tag, number and subject."""
BUDGET_BYTES = PACKET_BYTES_MAX - ENVELOPE_BYTES - MESSAGE_BYTES
PER_PACKET_MAX = 16
"""The wire's bound on rumors in one message."""

STATEMENT_BYTES_MIN = 140
"""No statement is shorter; with less room left the packet is full."""
MISFITS_MAX = 8
"""Statements that did not fit before the packet counts as full: bounds the search."""

Key = tuple[SiteId, SiteId]
"""(subject, speaker): the newest statement of a speaker about a subject replaces the former."""


def wire_bytes(signed: Signed) -> int:
    """Size of one statement inside a message: body, signature, array and length bytes."""
    return len(signed.body) + len(signed.signature) + 6


@dataclass(slots=True)
class _Rumor:
    signed: Signed
    sent: int


class Rumors:
    """The queue of statements that still have to spread."""

    def __init__(self, most: int) -> None:
        """At most ``most`` rumors wait; beyond, the most often sent is dropped."""
        self._most = most
        self._by_key: dict[Key, _Rumor] = {}
        self._tiers: list[dict[Key, _Rumor]] = [{}]

    def __len__(self) -> int:
        """Rumors that wait."""
        return len(self._by_key)

    def put(self, key: Key, signed: Signed) -> None:
        """Spread ``signed``, in place of any former statement under ``key``."""
        self.drop(key)
        if len(self._by_key) >= self._most:
            self._drop_most_sent()
        rumor = _Rumor(signed, 0)
        self._by_key[key] = rumor
        self._tiers[0][key] = rumor

    def drop(self, key: Key) -> None:
        """Stop spreading what stands under ``key``."""
        if (rumor := self._by_key.pop(key, None)) is not None:
            del self._tiers[rumor.sent][key]

    def drop_about(self, subject: SiteId, speakers: list[SiteId]) -> None:
        """Stop spreading what ``speakers`` said about ``subject``."""
        for speaker in speakers:
            self.drop((subject, speaker))

    def take(self, first: list[Signed], transmissions: int) -> tuple[Signed, ...]:
        """Fill one packet: ``first`` (always), then the least sent rumors that fit.

        Args:
            first: statements this receiver needs in any case.
            transmissions: a rumor sent this often is dropped from the queue.
        """
        chosen = list(first)
        bodies = {signed.body for signed in first}
        room = BUDGET_BYTES - sum(wire_bytes(signed) for signed in first)
        sent: list[tuple[Key, _Rumor]] = []
        misfits = 0
        for key, rumor in chain.from_iterable(tier.items() for tier in self._tiers):
            if (
                len(chosen) >= PER_PACKET_MAX
                or room < STATEMENT_BYTES_MIN
                or misfits >= MISFITS_MAX
            ):
                break
            size = wire_bytes(rumor.signed)
            if size > room or rumor.signed.body in bodies:
                misfits += 1
                continue
            room -= size
            chosen.append(rumor.signed)
            sent.append((key, rumor))
        for key, rumor in sent:
            self._count(key, rumor, transmissions)
        return tuple(chosen)

    def _count(self, key: Key, rumor: _Rumor, transmissions: int) -> None:
        del self._tiers[rumor.sent][key]
        rumor.sent += 1
        if rumor.sent >= transmissions:
            del self._by_key[key]
            return
        while len(self._tiers) <= rumor.sent:
            self._tiers.append({})
        self._tiers[rumor.sent][key] = rumor

    def _drop_most_sent(self) -> None:
        for tier in reversed(self._tiers):
            if tier:
                self.drop(next(iter(tier)))
                return
