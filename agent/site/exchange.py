"""State sync: two sites tell each other what the other lacks (anti-entropy), in one or two calls.

The asker sends heads; the answer holds what the asker lacks and names what the answerer lacks; a
``Push`` brings that. Everything received is checked (passport against the root, record and document
against their signatures) before it changes anything, so a lying member can only waste time.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.catalog.catalog import Catalog, row_of
from agent.catalog.clock import HybridClock
from agent.foundation.errors import AtollError
from agent.foundation.ids import SiteId
from agent.identity.admin import check_document
from agent.identity.registry import Roll
from agent.membership.swim import Swim
from agent.site.events import Persist, SiteEffect
from agent.wire.documents import Body, Document, key_of
from agent.wire.mesh import Introduction, Push, SyncReply, SyncRequest
from agent.wire.records import Passport

Admins = Callable[[], Mapping[bytes, Ed25519PublicKey]]
"""Whose documents count now, by id (``TrustLog.admins``)."""


DOCUMENTS_PER_MESSAGE_MAX = 128
MEMBERS_PER_MESSAGE_MAX = 128
"""Checking the signatures of one message takes this process about 50 ms; the rest follows at once in
the next one, and gossip gets its turn in between."""


class Exchange:
    """Builds and applies sync messages."""

    def __init__(
        self,
        me: SiteId,
        passport: Passport,
        roll: Roll,
        swim: Swim,
        catalog: Catalog,
        clock: HybridClock,
        admins: Admins,
    ) -> None:
        """``admins``: whose documents count now (from the trust log)."""
        self._me, self._passport, self._roll = me, passport, roll
        self._swim, self._catalog, self._clock, self._admins = swim, catalog, clock, admins

    def request(self) -> SyncRequest:
        """Everything this site knows, as heads."""
        return SyncRequest(
            Introduction(self._passport, self._swim.signed),
            self._swim.heads(),
            self._catalog.heads(),
        )

    def answer(self, request: SyncRequest, asker: SiteId | None = None) -> SyncReply:
        """What the asker lacks (evidence against it included), and what it should push."""
        theirs = {head.site: head.sequence for head in request.members}
        mine = {head.site: head.sequence for head in self._swim.heads()}
        newer = [site for site, sequence in mine.items() if sequence > theirs.get(site, -1)]
        newer.sort(key=lambda site: (site != self._me, site))
        members, is_all = self._introductions(newer)
        wanted = tuple(
            site for site, sequence in sorted(theirs.items()) if sequence > mine.get(site, -1)
        )
        difference = self._catalog.missing(request.documents)
        documents = difference.newer_here[:DOCUMENTS_PER_MESSAGE_MAX]
        is_all = is_all and len(documents) == len(difference.newer_here)
        return SyncReply(
            (*members, *self._evidence(asker)), documents, wanted, difference.wanted,
            has_more=not is_all,
        )  # fmt: skip

    def push(self, reply: SyncReply, to: SiteId | None = None) -> tuple[Push | None, bool]:
        """What the other side said it lacks (None: nothing), and whether that is all of it."""
        members, is_all = self._introductions(reply.wanted_members)
        members = (*members, *self._evidence(to))
        asked = reply.wanted_documents
        documents = self._catalog.of_keys(asked)[:DOCUMENTS_PER_MESSAGE_MAX]
        is_all = is_all and len(documents) == len(asked)
        return (Push(members, documents) if members or documents else None), is_all

    def _evidence(self, site: SiteId | None) -> tuple[Introduction, ...]:
        """Accusations that ``site`` should know, each with the passport of who made it.

        Without them a site that is reachable over TCP only would never learn why it is dead.
        """
        if site is None:
            return ()
        found = []
        for speaker, signed in self._swim.evidence_for(site):
            passport = self._passport if speaker == self._me else self._roll.passport(speaker)
            if passport is not None:
                found.append(Introduction(passport, signed))
        return tuple(found)

    def _introductions(self, sites: Sequence[SiteId]) -> tuple[tuple[Introduction, ...], bool]:
        """Those of ``sites`` that can be proven, a page of them, and whether these are all."""
        found: list[Introduction] = []
        for site in sites:
            if len(found) >= MEMBERS_PER_MESSAGE_MAX:
                return tuple(found), False
            if (introduction := self.introduction(site)) is not None:
                found.append(introduction)
        return tuple(found), True

    def introduction(self, site: SiteId) -> Introduction | None:
        """A member with its proof."""
        if site == self._me:
            return Introduction(self._passport, self._swim.signed)
        member = self._swim.members().get(site)
        passport = self._roll.passport(site)
        if member is None or passport is None or member.signed is None:
            return None
        return Introduction(passport, member.signed)

    def admit(self, introductions: tuple[Introduction, ...], wall_s: float) -> list[Introduction]:
        """Those whose passport holds; the others are dropped (a member may pass on junk)."""
        admitted = []
        now = datetime.fromtimestamp(wall_s, UTC)
        for introduction in introductions:
            try:
                self._roll.admit(introduction.passport, now)
            except AtollError:
                continue
            admitted.append(introduction)
        return admitted

    def restore(self, documents: tuple[Document, ...]) -> list[tuple[Document, Body]]:
        """Take back what the database holds.

        Its stamps were judged when the documents came; a clock that is behind today (a board
        without a battery before it has met a time server) must not lose them.
        """
        taken: list[tuple[Document, Body]] = []
        for document in documents:
            try:
                body = check_document(document, self._admins())
                if self._catalog.merge(document, body):
                    taken.append((document, body))
            except AtollError:
                continue  # its author is no admin any more
        if (latest := self._catalog.latest) is not None:
            self._clock.observe(latest, latest.wall_ms)
        return taken

    def merge(
        self, documents: tuple[Document, ...], wall_s: float
    ) -> tuple[list[tuple[Document, Body]], list[SiteEffect], list[str]]:
        """Take documents that are signed by an admin and newer than what is here.

        Returns:
            Those that changed the catalog, the effects that make them durable, and for each
            document given an error text (empty if it was taken or is already known).
        """
        changed: list[tuple[Document, Body]] = []
        effects: list[SiteEffect] = []
        errors: list[str] = []
        for document in documents:
            try:
                body = check_document(document, self._admins())
                self._clock.observe(document.stamp, int(wall_s * 1000))
                is_new = self._catalog.merge(document, body)
            except AtollError as error:
                errors.append(str(error))
                continue
            errors.append("")
            if is_new:
                changed.append((document, body))
                entry = self._catalog.get(key_of(body))
                assert entry is not None, "merged just now"
                effects.append(Persist((row_of(entry),)))
        return changed, effects, errors
