"""Witnesses of audit logs: what keeps a site from cutting off or rewriting the end of its own.

Rule: a site tells some others where its log ends, signed; they remember the furthest end for good and
give a signed receipt. An end that lies before one that was witnessed, or is another entry of the same
number, is refused, noted as an alarm and kept as evidence: the two testimonies together prove it to
anybody who has the cluster's root, because only the site itself can have signed both.

A log is safe as far as it was witnessed: what was appended since the last receipt can still be cut off
unnoticed by a site that lies, which is ``TELL_EVERY_S`` at most while a witness can be reached.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import SiteId, short
from agent.foundation.notary import Notary
from agent.foundation.writes import Put
from agent.wire.audit import AuditHead, Receipt, Testimony
from agent.wire.limits import MEMBERS_MAX
from agent.wire.schema import pack, unpack

TELL_EVERY_S: Final = 30.0
WITNESSES: Final = 3
"""As many must lie, or be lost, as a site's log can have beside it."""
WITNESSED = "witnessed"
"""Table: the furthest end of each other site's log."""
RECEIPTS = "receipts"
"""Table: the last receipt of each witness for this site's log."""


def signed_part(head: AuditHead) -> bytes:
    """What a testimony's signature covers."""
    return b"atoll-audit-head" + pack(head)


def seen_part(testimony: Testimony, witness: SiteId, seen_ms: int) -> bytes:
    """What a receipt's signature covers."""
    return b"atoll-audit-seen" + witness + seen_ms.to_bytes(8, "big") + pack(testimony)


def sworn(me: SiteId, sequence: int, digest: bytes, at_ms: int, notary: Notary) -> Testimony:
    """This site's word for where its log ends."""
    head = AuditHead(me, sequence, digest, at_ms)
    return Testimony(head, notary.sign(signed_part(head)))


def check_receipt(receipt: Receipt, notary: Notary) -> None:
    """Whether both signatures hold.

    Raises:
        Malformed: one does not.
    """
    testimony = receipt.testimony
    part = signed_part(testimony.head)
    if not notary.is_signed_by(testimony.head.site, part, testimony.signature):
        raise Malformed(f"a testimony is not signed by {short(testimony.head.site)}")
    part = seen_part(testimony, receipt.witness, receipt.seen_ms)
    if not notary.is_signed_by(receipt.witness, part, receipt.signature):
        raise Malformed(f"a receipt is not signed by {short(receipt.witness)}")


def choose(me: SiteId, others: Iterable[SiteId], count: int = WITNESSES) -> list[SiteId]:
    """The witnesses of a site: the same ones for as long as they are there (rendezvous hashing)."""
    return sorted(others, key=lambda one: hashlib.sha256(b"witness" + me + one).digest())[:count]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Two testimonies of one site that cannot both be true."""

    text: str
    former: Testimony
    latter: Testimony


class Witness:
    """The furthest known ends of others' logs; at most ``MEMBERS_MAX``."""

    def __init__(self, me: SiteId, notary: Notary, stored: Sequence[tuple[bytes, bytes]]) -> None:
        """``stored``: of each row of ``WITNESSED`` the receipt, and the contradiction or nothing."""
        self._me, self._notary = me, notary
        self._known: dict[SiteId, Receipt] = {}
        self.alarms: dict[SiteId, Alarm] = {}
        for receipt, contradiction in stored:
            known = unpack(Receipt, receipt)
            site = known.testimony.head.site
            self._known[site] = known
            if contradiction:
                latter = unpack(Testimony, contradiction)
                self.alarms[site] = Alarm(_told(known.testimony, latter), known.testimony, latter)

    def of(self, site: SiteId) -> Receipt | None:
        """What is known of a site's log here."""
        return self._known.get(site)

    def take(self, sender: SiteId, testimony: Testimony, seen_ms: int) -> tuple[Receipt, list[Put]]:
        """Witness a testimony; commit the rows before the receipt is given.

        Raises:
            Refused: it is not the sender's own; or it contradicts a former one, which is an alarm now
                (``contradiction`` gives the row that keeps it).
        """
        head = testimony.head
        part = signed_part(head)
        if head.site != sender or not self._notary.is_signed_by(sender, part, testimony.signature):
            raise Refused("a site testifies for its own log only")
        former = self._known.get(sender)
        if former is not None and _contradict(former.testimony, testimony):
            text = _told(former.testimony, testimony)
            self.alarms.setdefault(sender, Alarm(text, former.testimony, testimony))
            raise Refused("the testimony contradicts a former one", why=text)
        if former is not None and former.testimony.head.sequence == head.sequence:
            return former, []
        if former is None and len(self._known) >= MEMBERS_MAX:
            raise Refused("no more logs can be witnessed here", why=f"there are {MEMBERS_MAX}")
        signature = self._notary.sign(seen_part(testimony, self._me, seen_ms))
        receipt = Receipt(testimony, self._me, seen_ms, signature)
        self._known[sender] = receipt
        return receipt, [self._row(sender)]

    def contradiction(self, site: SiteId) -> list[Put]:
        """The row that keeps the alarm about a site; nothing if there is none."""
        return [self._row(site)] if site in self.alarms else []

    def _row(self, site: SiteId) -> Put:
        alarm = self.alarms.get(site)
        return Put(
            WITNESSED,
            {
                "site": site, "receipt": pack(self._known[site]),
                "contradiction": b"" if alarm is None else pack(alarm.latter),
            },
        )  # fmt: skip


def _contradict(former: Testimony, latter: Testimony) -> bool:
    before, after = former.head, latter.head
    if after.sequence == before.sequence:
        return after.hash != before.hash
    # Calls may overtake each other: an older word that comes late contradicts nothing.
    return after.sequence < before.sequence and after.at_ms > before.at_ms


def _told(former: Testimony, latter: Testimony) -> str:
    before, after = former.head, latter.head
    if after.sequence == before.sequence:
        return f"entry {after.sequence} of its audit log was one entry before and is another now"
    return f"its audit log ended at entry {before.sequence} before and ends at {after.sequence} now"
