"""This site's audit log and its witnesses: tell others where it ends, remember where theirs do.

Also what an operator asks of it (implements ``agent.api.audit``).
"""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.api.audit import Period
from agent.api.bodies import Json
from agent.audit.chain import START, AuditEntry, Decision, Head, decoded
from agent.audit.witness import (
    RECEIPTS,
    TELL_EVERY_S,
    WITNESSED,
    Witness,
    check_receipt,
    choose,
    sworn,
)
from agent.drivers.audit_log import AuditLog
from agent.drivers.clock import wall_s
from agent.drivers.keystore import SiteKeys
from agent.drivers.mesh import MeshClient
from agent.drivers.sqlite_library import Database
from agent.drivers.store import Store
from agent.foundation.errors import AtollError, Corruption
from agent.foundation.ids import SiteId, short
from agent.foundation.notary import Notary
from agent.foundation.writes import Put, Scalar
from agent.site.site import Site
from agent.wire.audit import Receipt
from agent.wire.mesh import (
    Call,
    Declined,
    ReceiptKnown,
    ReceiptWanted,
    Reply,
    Testify,
    Witnessed,
)
from agent.wire.residency import is_within
from agent.wire.schema import pack, unpack

CALL_TIMEOUT_S = 5.0
ASKED_MAX = 64
"""Members asked where this site's log ended; those who witness it are among the first."""
RESTATED_MAX = 10_000
"""Lines of a report; receivers times labels, not entries."""

ANSWERED = "200"

_log = logging.getLogger("atoll.audit")
Handle = Callable[[SiteId, Call], Awaitable[Reply]]


@dataclass(slots=True)
class _Sum:
    """One line of a report."""

    entries: int = 0
    bytes: int = 0
    answered: int = 0
    """Those of which the log tells that a good answer came."""
    bytes_back: int = 0

    def add(self, decision: Decision) -> None:
        if decision.kind == "outcome":
            self.answered += decision.detail == ANSWERED
            self.bytes_back += decision.bytes
        else:
            self.entries += 1
            self.bytes += decision.bytes


class Witnessing:
    """One site's part in it."""

    def __init__(
        self,
        site: Site,
        audit: AuditLog,
        store: Store,
        mesh: MeshClient,
        notary: Notary,
        keys: Callable[[], SiteKeys],
        witness: Witness,
        receipts: Sequence[Receipt],
    ) -> None:
        """Use ``open``."""
        self._site, self._audit, self._store, self._mesh = site, audit, store, mesh
        self._notary, self._keys, self._witness = notary, keys, witness
        self._receipts = {one.witness: one for one in receipts}
        self.troubles: dict[SiteId, str] = {}
        """What witnesses object to, by witness."""

    @classmethod
    async def open(
        cls, site: Site, audit: AuditLog, store: Store, mesh: MeshClient, notary: Notary,
        keys: Callable[[], SiteKeys],
    ) -> "Witnessing":  # fmt: skip
        """With what the database holds; ``keys`` are this site's now."""

        def read(database: Database) -> tuple[list[tuple[bytes, bytes]], list[bytes]]:
            known = [(row["receipt"], row["contradiction"]) for row in database[WITNESSED].rows]
            return known, [row["receipt"] for row in database[RECEIPTS].rows]

        known, own = await store.read(read)
        receipts = [unpack(Receipt, one) for one in own]
        witness = Witness(site.me, notary, known)
        return cls(site, audit, store, mesh, notary, keys, witness, receipts)

    # --- witnessing ------------------------------------------------------------------------------
    def handling(self, others: Handle) -> Handle:
        """Answer members about audit logs; all else is for ``others``."""

        async def handle(sender: SiteId, message: Call) -> Reply:
            if isinstance(message, ReceiptWanted):
                return ReceiptKnown(self._witness.of(message.site))
            if not isinstance(message, Testify):
                return await others(sender, message)
            seen_ms = int(wall_s() * 1000)
            try:
                receipt, writes = self._witness.take(sender, message.testimony, seen_ms)
                await self._store.commit(writes)
            except AtollError as error:
                if alarm := self._witness.contradiction(sender):
                    _log.error("audit log of %s: %s", short(sender), error)
                    await self._store.commit(alarm)
                return Declined(str(error)[:400])
            return Witnessed(receipt)

        return handle

    async def tell(self) -> None:
        """Tell witnesses where this site's log ends, for as long as it runs."""
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            await self.tell_now()

    async def tell_now(self) -> None:
        """Once; what a witness knows already it is not told again."""
        head = self._audit.head
        if head == START:
            return
        testimony = sworn(
            self._site.me, head.sequence, head.hash, int(wall_s() * 1000), self._notary
        )
        await asyncio.gather(
            *(
                self._tell(witness, Testify(testimony))
                for witness in self._chosen()
                if (known := self._receipts.get(witness)) is None
                or known.testimony.head.sequence != head.sequence
            )
        )

    def _chosen(self) -> list[SiteId]:
        members = self._site.swim.members()
        return choose(self._site.me, (s for s, one in members.items() if one.state == "alive"))

    async def _tell(self, witness: SiteId, message: Testify) -> None:
        try:
            reply = await self._call(witness, message)
            if isinstance(reply, Declined):
                self.troubles[witness] = reply.reason
                _log.error("witness %s: %s", short(witness), reply.reason)
            if isinstance(reply, Witnessed) and reply.receipt.testimony == message.testimony:
                check_receipt(reply.receipt, self._notary)
                self.troubles.pop(witness, None)
                await self._keep(reply.receipt)
        except AtollError as error:
            _log.info("no receipt of witness %s: %s", short(witness), error)

    async def _keep(self, receipt: Receipt) -> None:
        row: dict[str, Scalar] = {"witness": receipt.witness, "receipt": pack(receipt)}
        await self._store.commit([Put(RECEIPTS, row)])
        self._receipts[receipt.witness] = receipt

    async def _call(self, site: SiteId, message: Call) -> Reply:
        endpoint = self._site.swim.members()[site].record.endpoint
        return (await self._mesh.call(site, endpoint, message, CALL_TIMEOUT_S))[1]

    # --- the operator ------------------------------------------------------------------------------
    def reasons(self) -> list[str]:
        """What an operator should know, each a sentence."""
        found = [
            f"audit log of {self._name(site)}: {alarm.text}"
            for site, alarm in self._witness.alarms.items()
        ]
        return found + [
            f"witness {self._name(site)} objects to this site's audit log: {text}"
            for site, text in self.troubles.items()
        ]

    async def verify(self) -> Json:
        """See ``AuditOperations.verify``."""
        await self.tell_now()
        receipts = await self._gathered()
        heads = [
            Head(one.testimony.head.sequence, one.testimony.head.hash) for one in receipts.values()
        ]
        verified = await self._audit.verified(heads)
        first, last = verified.entries
        return {
            "site": self._site.me.hex(), "findings": verified.findings(), "first": first,
            "last": last, "alarms": self.reasons(),
            "witnesses": [self._told(one) for one in receipts.values()],
        }  # fmt: skip

    async def report(self, period: Period, jurisdiction: str) -> list[Json]:
        """See ``AuditOperations.report``."""
        sums: dict[tuple[str, tuple[str, ...], SiteId], _Sum] = {}
        async for entry in self._entries():
            decision = entry.decision
            is_meant = not jurisdiction or jurisdiction in decision.label
            if is_meant and period.has(entry.at_ms / 1000):
                is_outcome = decision.kind == "outcome"
                kind = "forward" if is_outcome else str(decision.kind)
                key = (kind, decision.label, decision.receiver)
                if key in sums or len(sums) < RESTATED_MAX:
                    sums.setdefault(key, _Sum()).add(decision)
        rows = []
        for key, total in sorted(sums.items()):
            kind, label, receiver = key
            identity = self._site.roll.get(receiver)
            place = identity.claims.jurisdiction if identity is not None else ""
            rows.append(
                {"kind": kind, "label": list(label), "receiver": receiver.hex(),
                 "name": self._name(receiver), "jurisdiction": place, "entries": total.entries,
                 "bytes": total.bytes, "answered": total.answered, "bytes_back": total.bytes_back,
                 "is_within": is_within(place, label, self._site.roll.groups)}
            )  # fmt: skip
        return rows

    async def entries(self, after: int) -> Json:
        """See ``AuditOperations.entries``."""
        async for rows in self._audit.pages(after):
            return {"rows": [
                {"sequence": row["sequence"], "entry": _text(row["entry"]), "hash": _text(row["hash"])}
                for row in rows
            ]}  # fmt: skip
        return {"rows": []}

    async def proof(self) -> Json:
        """See ``AuditOperations.proof``."""
        await self.tell_now()
        receipts = await self._gathered()
        passports = {site: self._site.roll.passport(site) for site in receipts}
        return {
            "site": self._site.me.hex(),
            "root": _text(self._keys().root),
            "passport": _text(pack(self._keys().passport)),
            "receipts": [
                {"receipt": _text(pack(receipt)), "passport": _text(pack(passports[site]))}
                for site, receipt in receipts.items()
                if passports[site] is not None
            ],
        }  # fmt: skip

    async def witnessed(self, site: SiteId) -> Json:
        """See ``AuditOperations.witnessed``."""
        receipt = self._witness.of(site)
        alarm = self._witness.alarms.get(site)
        return {
            "receipt": None if receipt is None else self._told(receipt),
            "alarm": "" if alarm is None else alarm.text,
        }

    async def _entries(self) -> AsyncIterator[AuditEntry]:
        async for rows in self._audit.pages():
            for row in rows:
                try:
                    yield decoded(row)
                except Corruption as error:
                    _log.error("left out of the report: %s", error)

    async def _gathered(self) -> dict[SiteId, Receipt]:
        """The furthest receipt of each witness: those kept here and those that members give now."""
        members = self._site.swim.members()
        alive = [site for site, one in members.items() if one.state == "alive"]
        asked = choose(self._site.me, alive, ASKED_MAX)
        replies = await asyncio.gather(
            *(self._call(site, ReceiptWanted(self._site.me)) for site in asked),
            return_exceptions=True,
        )
        found = dict(self._receipts)
        for site, reply in zip(asked, replies, strict=True):
            if isinstance(reply, ReceiptKnown) and reply.receipt is not None:
                receipt = reply.receipt
                try:
                    check_receipt(receipt, self._notary)
                except AtollError as error:
                    _log.warning("%s gives a receipt that proves nothing: %s", short(site), error)
                    continue
                if receipt.witness == site and receipt.testimony.head.site == self._site.me:
                    found[site] = receipt
        return found

    def _told(self, receipt: Receipt) -> dict[str, Any]:
        head = receipt.testimony.head
        return {
            "witness": receipt.witness.hex(), "name": self._name(receipt.witness),
            "sequence": head.sequence, "hash": head.hash.hex(), "seen_at": receipt.seen_ms / 1000,
        }  # fmt: skip

    def _name(self, site: SiteId) -> str:
        if site == self._site.me:
            return self._site.identity.claims.name
        identity = self._site.roll.get(site)
        return short(site) if identity is None else identity.claims.name


def _text(data: object) -> str:
    assert isinstance(data, bytes)
    return base64.b64encode(data).decode()
