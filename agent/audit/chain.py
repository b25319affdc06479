"""The audit chain: one signed, hash-chained entry for each decision that leaves the site.

Rule: the entry is durable before its effect. Each entry holds the hash of the one before it, so none
can be changed, removed or put in between without breaking every later one; the head (its number and
hash) is known elsewhere by gossip, so the end cannot be cut off unnoticed either.

The chain has a bounded length: an entry older than ``ENTRIES_MAX`` is deleted in the transaction that
appends the newest. What is left still verifies from its first entry on.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Literal

from agent.foundation.errors import Corruption, Malformed
from agent.foundation.ids import SiteId
from agent.foundation.notary import Notary
from agent.foundation.writes import Delete, Put, Scalar, Write
from agent.wire.records import Counter, Identifier, Jurisdictions, Site
from agent.wire.residency import LawDigest
from agent.wire.schema import AtMost, Length, pack, unpack

ENTRIES_MAX: Final = 500_000
"""About 200 MB; at one forwarded request a second, six days. Export it to keep more."""

ENTRY_BYTES_MAX: Final = 8192
"""64 jurisdictions of 64 characters and four texts of 200."""

FINDINGS_MAX: Final = 20
"""A damaged chain is told by its first defects."""

GENESIS: Final = bytes(32)
"""What the first entry of a chain names as its predecessor."""

_Text = Annotated[str, AtMost(200)]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is about to leave the site, and why it may."""

    kind: Literal["forward", "blob", "update", "parameters", "other", "outcome"]
    """``outcome``: how a former one ended, with the same subject, receiver and label."""
    subject: _Text
    """Request id, blob digest or job and round: what a person would look for."""
    receiver: Site
    label: Jurisdictions
    """Jurisdictions in which it may be held; empty = anywhere."""
    bytes: Counter
    """What leaves; of an outcome, what came back."""
    detail: _Text = ""
    """Model name and version; of an outcome, the HTTP status or what else became of it."""
    policy: LawDigest = b""
    """By which jurisdictions and groups it was decided."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One link."""

    sequence: Counter
    """1 for the first entry of a site, then without gaps."""
    previous: Identifier
    at_ms: Counter
    """Unix time, milliseconds, by the site's own clock: evidence, not order."""
    decision: Decision


@dataclass(frozen=True, slots=True)
class Sealed:
    """An entry as it is stored: its exact bytes and the site's signature of its hash."""

    body: Annotated[bytes, AtMost(ENTRY_BYTES_MAX)]
    signature: Annotated[bytes, Length(64)]


@dataclass(frozen=True, slots=True)
class Head:
    """Where a chain ends."""

    sequence: int
    hash: bytes


START: Final = Head(0, GENESIS)
"""The head of an empty chain."""


class AuditChain:
    """The end of this site's chain; entries themselves live in table ``audit``."""

    def __init__(self, *, notary: Notary, head: Head = START) -> None:
        """Continue at ``head`` (see ``head_of``)."""
        self._notary = notary
        self.head = head

    def append(self, decision: Decision, at_ms: int) -> tuple[tuple[Write, ...], Head]:
        """Chain one decision.

        Commit the writes before the decision is carried out, and in the order of the calls. If the
        commit fails, ``rewind`` to the head before it: the decision must not be carried out.

        Returns:
            The row to put (and the row to delete that is now too old), and the new head.
        """
        entry = AuditEntry(self.head.sequence + 1, self.head.hash, at_ms, decision)
        body = pack(entry)
        head = Head(entry.sequence, _hash(body))
        row: dict[str, Scalar] = {
            "sequence": head.sequence,
            "entry": pack(Sealed(body, self._notary.sign(head.hash))),
            "hash": head.hash,
        }
        writes: tuple[Write, ...] = (Put("audit", row),)
        if head.sequence > ENTRIES_MAX:
            writes = (*writes, Delete("audit", (head.sequence - ENTRIES_MAX,)))
        self.head = head
        return writes, head

    def rewind(self, head: Head) -> None:
        """Forget what was appended after ``head`` and is not durable."""
        self.head = head


def head_of(last: Mapping[str, Scalar] | None) -> Head:
    """The head of a stored chain, from the row with the largest sequence (``None``: no rows).

    Raises:
        Corruption: the row does not hold its own hash; ``verify`` says more.
    """
    if last is None:
        return START
    entry, digest, _ = _decoded(last)
    return Head(entry.sequence, digest)


class Verifier:
    """Checks a chain row by row, so that a long one can be read in pages."""

    def __init__(self, *, site: SiteId, notary: Notary, heads: Iterable[Head] = ()) -> None:
        """Begin before the first row.

        Args:
            site: whose chain it is.
            notary: knows the site's key.
            heads: where the chain is known to have ended at some time, from witnesses or a former check.
        """
        self._site = site
        self._notary = notary
        self._heads: dict[int, set[bytes]] = {}
        for head in heads:
            if head != START:
                self._heads.setdefault(head.sequence, set()).add(head.hash)
        self._last: Head | None = None
        self._first = 0
        self._findings: list[str] = []

    def add(self, row: Mapping[str, Scalar]) -> None:
        """Take the next row of table ``audit``, in ascending sequence."""
        try:
            entry, digest, signature = _decoded(row)
        except Corruption as error:
            self._findings.append(str(error))
            self._last = None
            return
        number = entry.sequence
        self._findings.extend(_defects(entry, self._last))
        if not self._notary.is_signed_by(self._site, digest, signature):
            self._findings.append(f"audit entry {number} is not signed by this site")
        self._last = Head(number, digest)
        if any(digest != known for known in self._heads.pop(number, ())):
            self._findings.append(f"audit entry {number} is not the one known elsewhere")
        self._first = self._first or number

    def findings(self) -> list[str]:
        """After the last row: what is wrong, for a person; empty if the chain is sound."""
        found = list(self._findings)
        # One before the first entry that is kept was let go by age.
        lacking = [number for number in self._heads if number >= self._first]
        if lacking:
            found.append(f"the audit chain lacks its entry {max(lacking)}")
        return found[:FINDINGS_MAX]

    @property
    def entries(self) -> tuple[int, int]:
        """Numbers of the first and the last entry; zeros before there is one."""
        return self._first, self._last.sequence if self._last is not None else 0

    @property
    def is_hopeless(self) -> bool:
        """Whether enough is wrong that reading on tells nothing new."""
        return len(self._findings) >= FINDINGS_MAX


def verify(
    rows: Iterable[Mapping[str, Scalar]],
    *,
    site: SiteId,
    notary: Notary,
    heads: Iterable[Head] = (),
) -> list[str]:
    """Check a whole chain; an empty list means that nothing was changed, removed or added.

    Args:
        rows: table ``audit`` in ascending sequence.
        site: whose chain it is.
        notary: knows the site's key.
        heads: where the chain is known to have ended at some time.

    Returns:
        What is wrong, for a person, at most ``FINDINGS_MAX`` sentences.
    """
    verifier = Verifier(site=site, notary=notary, heads=heads)
    for row in rows:
        if verifier.is_hopeless:
            break
        verifier.add(row)
    return verifier.findings()


def _defects(entry: AuditEntry, last: Head | None) -> list[str]:
    if last is None:
        # The oldest entry kept, or the one after a damaged one: nothing to compare with.
        if entry.sequence == 1 and entry.previous != GENESIS:
            return ["audit entry 1 names a predecessor"]
        return []
    if entry.sequence != last.sequence + 1:
        return [f"audit entries {last.sequence + 1} to {entry.sequence - 1} are missing"]
    if entry.previous != last.hash:
        return [f"audit entry {entry.sequence} does not follow entry {last.sequence}"]
    return []


def decoded(row: Mapping[str, Scalar]) -> AuditEntry:
    """The entry of a row of table ``audit``.

    Raises:
        Corruption: it does not decode, or does not hold its own hash.
    """
    return _decoded(row)[0]


def _decoded(row: Mapping[str, Scalar]) -> tuple[AuditEntry, bytes, bytes]:
    """The entry, its hash and the signature."""
    number = row.get("sequence")
    try:
        sealed = unpack(Sealed, _bytes(row, "entry"), ENTRY_BYTES_MAX * 2)
        entry = unpack(AuditEntry, sealed.body, ENTRY_BYTES_MAX)
    except Malformed as error:
        raise Corruption(f"audit entry {number!r} does not decode", why=str(error)) from None
    digest = _hash(sealed.body)
    if entry.sequence != number or digest != row.get("hash"):
        raise Corruption(f"audit entry {number!r} was changed", why="its hash or number is another")
    return entry, digest, sealed.signature


def _bytes(row: Mapping[str, Scalar], column: str) -> bytes:
    value = row.get(column)
    return value if isinstance(value, bytes) else b""


def _hash(body: bytes) -> bytes:
    return hashlib.sha256(b"atoll-audit" + body).digest()
