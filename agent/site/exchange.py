"""State sync: two sites tell each other what the other lacks (anti-entropy), in one or two calls.

The asker sends heads; the answer holds what the asker lacks and names what the answerer lacks; a
``Push`` brings that. Everything received is checked (passport against the root, record and document
against their signatures) before it changes anything, so a lying member can only waste time.

The trust log goes first: it says whose passports and documents count.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from agent.catalog.catalog import Catalog, row_of
from agent.catalog.clock import HybridClock
from agent.catalog.history import History
from agent.foundation.errors import AtollError
from agent.foundation.ids import SiteId, short
from agent.foundation.writes import Delete, Write
from agent.identity.admin import check_document
from agent.identity.certificates import Identity
from agent.identity.registry import Roll
from agent.identity.trust import TrustLog
from agent.membership.swim import Swim
from agent.site.events import Noted, Persist, SiteEffect
from agent.wire.documents import Body, Document, key_of
from agent.wire.mesh import (
    PRINT_BYTES,
    Introduction,
    MemberHead,
    Push,
    SyncReply,
    SyncRequest,
    TrustHeads,
)
from agent.wire.records import Passport

DOCUMENTS_PER_MESSAGE_MAX = 128
MEMBERS_PER_MESSAGE_MAX = 128
"""Checking the signatures of one message takes this process about 50 ms; the rest follows at once in
the next one, and gossip gets its turn in between."""
TRUST_PER_MESSAGE_MAX = 128
TRUST_BYTES_MAX = 512 << 10
"""As above; an entry is 250 bytes as a rule, and members and documents share the message."""
TRUST_DOUBTED = "trust_doubted"
"""The ``meta`` row that says why this site's trust log may lack what it once held."""


def digest8(catalog: Catalog, trust: TrustLog) -> bytes:
    """Of catalog and trust log together: whose record says another is worth a sync."""
    pairs = zip(catalog.digest8, trust.digest8, strict=True)
    return bytes(one ^ other for one, other in pairs)


def _issued_at(identity: Identity | None) -> int:
    return 0 if identity is None else max(0, int(identity.not_before.timestamp()))


def _is_ahead(head: MemberHead, other: MemberHead | None) -> bool:
    """Whether the owner of ``head`` knows a newer record or passport than that of ``other``."""
    if other is None or head.sequence > other.sequence:
        return True
    return 0 < other.issued_at < head.issued_at


def _refusal(identity: Identity | None, site: SiteId, trust: TrustLog) -> str:
    name = short(site) if identity is None else f"{identity.claims.name} ({short(site)})"
    issuer = b"" if identity is None else identity.issuer
    if site not in trust.revoked() and issuer in trust.revoked():
        return f"{name} is refused: its issuer {short(issuer)} was removed"
    if site not in trust.revoked():
        return f"{name} is retired: a new site joined under its name"
    reason = trust.reasons().get(site, "")
    return f"{name} is revoked{f': {reason}' if reason else ''}"


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
        trust: TrustLog,
        history: History,
    ) -> None:
        """``trust`` says who is revoked and whose documents count; it grows by what is learned.

        ``history`` keeps what is replaced.
        """
        self._history = history
        self._me, self._passport, self._roll = me, passport, roll
        self._swim, self._catalog, self._clock, self._trust = swim, catalog, clock, trust
        self._issued_at = 0
        self._print_readers: set[SiteId] = set()
        """Members that understand prints of documents."""

    def recertified(self, passport: Passport, identity: Identity) -> None:
        """Introduce this site by its renewed passport from now on."""
        self._passport, self._issued_at = passport, _issued_at(identity)

    def _heads(self) -> tuple[MemberHead, ...]:
        """How far records and passports known here go."""
        heads = []
        for head in self._swim.heads():
            identity = self._roll.get(head.site)
            issued_at = self._issued_at if head.site == self._me else _issued_at(identity)
            heads.append(MemberHead(head.site, head.sequence, issued_at))
        return tuple(heads)

    def request(self, to: SiteId | None = None) -> SyncRequest:
        """Everything this site knows, as heads or, if ``to`` understands them, prints."""
        by_print = to in self._print_readers
        return SyncRequest(
            Introduction(self._passport, self._swim.signed),
            self._heads(),
            () if by_print else self._catalog.heads(),
            self._trust.heads(),
            self._catalog.prints() if by_print else b"",
        )

    def replied(self, site: SiteId, reply: SyncReply) -> None:
        """What the reply says of who sent it."""
        if reply.knows_prints and site in self._swim.members():
            self._print_readers.add(site)
        else:
            self._print_readers.discard(site)

    def answer(
        self, request: SyncRequest, asker: SiteId | None = None, wall_s: float = 0.0
    ) -> SyncReply:
        """What the asker lacks (evidence against it included), and what it should push."""
        theirs = {head.site: head for head in request.members}
        mine = {head.site: head for head in self._heads()}
        newer = [site for site, head in mine.items() if _is_ahead(head, theirs.get(site))]
        newer.sort(key=lambda site: (site != self._me, site))
        members, is_all = self._introductions(newer)
        refused = self._trust.revoked() | self._roll.retired()
        wanted = tuple(
            site
            for site, head in sorted(theirs.items())
            if _is_ahead(head, mine.get(site)) and site not in refused
        )
        if request.prints:
            difference = self._catalog.missing_prints(request.prints)
        else:
            difference = self._catalog.missing(request.documents)
        documents = difference.newer_here[:DOCUMENTS_PER_MESSAGE_MAX]
        is_all = is_all and len(documents) == len(difference.newer_here)
        entries, is_all_trust = self._trust_lacking(request.trust)
        return SyncReply(
            (*members, *self._evidence(asker)), documents, wanted, difference.wanted,
            has_more=not (is_all and is_all_trust), trust=self._trust.heads(),
            trust_entries=entries, wall_ms=max(0, int(wall_s * 1000)),
            wanted_prints=difference.wanted_prints, knows_prints=True,
        )  # fmt: skip

    def push(self, reply: SyncReply, to: SiteId | None = None) -> tuple[Push | None, bool]:
        """What the other side said it lacks (None: nothing), and whether that is all of it."""
        members, is_all = self._introductions(reply.wanted_members)
        members = (*members, *self._evidence(to))
        if reply.wanted_prints:
            count = len(reply.wanted_prints) // PRINT_BYTES
            documents = self._catalog.of_prints(reply.wanted_prints)
        else:
            count = len(reply.wanted_documents)
            documents = self._catalog.of_keys(reply.wanted_documents)
        documents = documents[:DOCUMENTS_PER_MESSAGE_MAX]
        entries, is_all_trust = self._trust_lacking(reply.trust)
        is_all = is_all and len(documents) == count and is_all_trust
        something = members or documents or entries
        return (Push(members, documents, entries) if something else None), is_all

    def _trust_lacking(self, theirs: TrustHeads | None) -> tuple[tuple[bytes, ...], bool]:
        if theirs is None:
            return (), True
        return self._trust.lacking(theirs, TRUST_PER_MESSAGE_MAX, TRUST_BYTES_MAX)

    def learn(self, entries: Sequence[bytes]) -> list[Write]:
        """Take entries of the trust log; the writes that make the new ones durable.

        One that proves nothing is dropped, and so is what builds on it; and what exceeds a page,
        because a false signature costs as much to check as a true one.
        """
        writes: list[Write] = []
        for entry in entries[:TRUST_PER_MESSAGE_MAX]:
            try:
                writes += self._trust.append(entry)
            except AtollError:
                continue
        return writes

    def submit(self, entries: Sequence[bytes]) -> tuple[list[Write], tuple[str, ...]]:
        """Take an operator's entries: the writes, and for each why it was not taken (empty if it was)."""
        writes: list[Write] = []
        reasons: list[str] = []
        for entry in entries:
            try:
                writes += self._trust.submit(entry)
            except AtollError as error:
                reasons.append(str(error))
            else:
                reasons.append("")
        return writes, tuple(reasons)

    def expelled(self, writes: Sequence[Write]) -> tuple[tuple[SiteId, ...], list[SiteEffect]]:
        """After the trust log has grown by ``writes``: who is a member no more, made durable and told."""
        gone = [site for site in self._swim.members() if self._roll.get(site) is None]
        forgotten = (Delete("peers", (site,)) for site in gone)
        effects: list[SiteEffect] = [Persist((*writes, *forgotten))]
        for site in gone:
            text = _refusal(self._roll.known(site), site, self._trust)
            effects.append(Noted(text, is_warning=True))
        if self._me in self._trust.revoked():
            text = f"this site is {_refusal(None, self._me, self._trust).partition(' is ')[2]}"
            effects.append(Noted(text, is_warning=True))
        if (fork := self._trust.fork) is not None:
            text = f"the trust log is forked at height {fork.height} and frozen; see atoll doctor"
            effects.append(Noted(text, is_warning=True))
        return tuple(gone), effects

    def confirmed(self, theirs: TrustHeads | None) -> list[SiteEffect]:
        """Effects, if this site's trust log was in doubt and a member turns out to know no more of it."""
        if theirs is None or not self._trust.trouble or not self._trust.covers(theirs):
            return []
        text = "a member has confirmed this site's trust log: nothing is missing"
        writes = (*self._trust.confirm(), Delete("meta", (TRUST_DOUBTED,)))
        return [Persist(writes), Noted(text)]

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
                body = check_document(document, self._trust.admins())
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
            Those that changed the catalog, the effect that makes them durable together, and for each
            document given an error text (empty if it was taken or is already known).
        """
        changed: list[tuple[Document, Body]] = []
        writes: list[Write] = []
        errors: list[str] = []
        for document in documents:
            if self._catalog.may_hold(document):
                errors.append("")  # several members may bring the same: checking it costs 0.1 ms
                continue
            try:
                body = check_document(document, self._trust.admins())
                self._clock.observe(document.stamp, int(wall_s * 1000))
                former = self._catalog.get(key_of(body))
                is_new = self._catalog.merge(document, body)
            except AtollError as error:
                errors.append(str(error))
                continue
            errors.append("")
            if is_new:
                changed.append((document, body))
                entry = self._catalog.get(key_of(body))
                assert entry is not None, "merged just now"
                if former is not None:
                    writes.append(self._history.note(former))
                writes.append(row_of(entry))
        # One commit for the message: each waits for the disk.
        return changed, [Persist(tuple(writes))] if writes else [], errors
