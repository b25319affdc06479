"""What the operators want, as this site knows it: one newest document for each key.

Rule: of two documents with one key the larger ``(stamp, author, hash)`` wins, whatever the order in
which they arrive, so that all sites that have seen the same documents hold the same catalog (a
last-writer-wins map, Shapiro et al. 2011, section 3.2.1). Nothing is ever deleted: a withdrawal is a
newer document, because an absent one would come back from a site that was away.

The caller verifies signatures and future stamps first; the catalog only decides what is newer.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, TypeAlias, assert_never, overload

from agent.foundation.errors import Busy, Malformed
from agent.foundation.writes import Put
from agent.wire.documents import (
    Body,
    Deployment,
    Document,
    Job,
    Key,
    ModelVersion,
    Policy,
    Scope,
    Stamp,
    Unknown,
    key_of,
)
from agent.wire.limits import DOCUMENTS_MAX, MESH_BODY_BYTES_MAX
from agent.wire.mesh import PRINT_BYTES, DocumentHead
from agent.wire.schema import pack

SYNC_BYTES_MAX: Final = MESH_BODY_BYTES_MAX // 2
"""Documents of one sync reply; the rest follows in the next sync (members share the body)."""

_SUM_LIMIT: Final = 2**256

Order: TypeAlias = tuple[int, int, bytes, bytes]

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""Without ``:``, so that ``model:version`` means one pair only."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One document with its decoded body."""

    document: Document
    body: Body
    head: DocumentHead
    order: Order
    print8: bytes
    """The first bytes of the hash of its head: says in 8 bytes that a site has just this document."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What two sites lack of each other's catalogs."""

    newer_here: tuple[Document, ...]
    """To send; oldest stamps first, at most ``SYNC_BYTES_MAX`` bytes."""
    wanted: tuple[Key, ...] = ()
    """To ask for, by key."""
    wanted_prints: bytes = b""
    """To ask for, where prints were compared."""


class Catalog:
    """All documents, newest for each key; bounded by ``DOCUMENTS_MAX``."""

    def __init__(self, entries: Iterable[tuple[Document, Body]] = ()) -> None:
        """Begin with what the store held; order does not matter."""
        self._entries: dict[tuple[str, str], Entry] = {}
        self._sorted: list[tuple[str, str]] = []
        """Keys; those added since are at the end (``_keys`` sorts)."""
        self._is_sorted = True
        self._bodies: dict[type, list[Any]] = {}
        """What ``of_kind`` has found; emptied by every change."""
        self._signatures: set[bytes] = set()
        self._sum = 0
        for document, body in entries:
            self.merge(document, body)

    def __len__(self) -> int:
        """How many keys are known."""
        return len(self._entries)

    def is_newer(self, document: Document, body: Body) -> bool:
        """Whether ``merge`` would take the document."""
        known = self._entries.get(_pair(key_of(body)))
        return known is None or _order(_head(document, body)) > known.order

    def merge(self, document: Document, body: Body) -> bool:
        """Take the document if it is newer than what is known of its key; say whether it was.

        Args:
            document: verified by the caller.
            body: ``BODIES.unpack(document.body)``.

        Raises:
            Malformed: its name is not one (see ``_NAME``).
            Busy: it is a new key and ``DOCUMENTS_MAX`` are known.
        """
        _require_names(body)
        if not self.is_newer(document, body):
            return False
        pair = _pair(key_of(body))
        former = self._entries.get(pair)
        if former is None and len(self._entries) >= DOCUMENTS_MAX:
            raise Busy(
                "the catalog is full",
                why=f"it has {DOCUMENTS_MAX} documents",
                mend="reuse names: documents are replaced, never deleted",
                retry_after_s=3600.0,
            )
        head = _head(document, body)
        hashed = hashlib.sha256(pack(head)).digest()
        entry = Entry(document, body, head, _order(head), hashed[:PRINT_BYTES])
        if former is None:
            self._is_sorted = not self._sorted or (self._is_sorted and self._sorted[-1] < pair)
            self._sorted.append(pair)
        else:
            self._sum = (self._sum - _weight(former.head)) % _SUM_LIMIT
            self._signatures.discard(former.document.signature)
        self._entries[pair] = entry
        self._bodies.clear()
        self._signatures.add(document.signature)
        self._sum = (self._sum + int.from_bytes(hashed, "big")) % _SUM_LIMIT
        return True

    def may_hold(self, document: Document) -> bool:
        """Whether a document with this signature is held: then there is nothing to learn from it.

        A forger who puts a held signature on something else only has that ignored.
        """
        return document.signature in self._signatures

    def get(self, key: Key) -> Entry | None:
        """The newest document of ``key``."""
        return self._entries.get(_pair(key))

    def model(self, name: str, version: str) -> ModelVersion | None:
        """The model version, if its document is known."""
        entry = self._entries.get(("model", f"{name}:{version}"))
        return entry.body if entry is not None and isinstance(entry.body, ModelVersion) else None

    @overload
    def of_kind(self, kind: type[ModelVersion]) -> list[ModelVersion]: ...
    @overload
    def of_kind(self, kind: type[Deployment]) -> list[Deployment]: ...
    @overload
    def of_kind(self, kind: type[Job]) -> list[Job]: ...
    @overload
    def of_kind(self, kind: type[Policy]) -> list[Policy]: ...
    @overload
    def of_kind(self, kind: type[Scope]) -> list[Scope]: ...
    def of_kind(
        self,
        kind: type[ModelVersion] | type[Deployment] | type[Job] | type[Policy] | type[Scope],
    ) -> list[ModelVersion] | list[Deployment] | list[Job] | list[Policy] | list[Scope]:
        """All bodies of one kind, by key; the same order at every site. Not to be changed."""
        if (found := self._bodies.get(kind)) is None:
            found = [entry.body for entry in self if isinstance(entry.body, kind)]
            self._bodies[kind] = found
        return found

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, by key."""
        return (self._entries[key] for key in self._keys())

    @property
    def latest(self) -> Stamp | None:
        """The largest stamp held: where a restarted clock continues."""
        return max((entry.document.stamp for entry in self._entries.values()), default=None)

    # --- sync ------------------------------------------------------------------------------------
    def heads(self) -> tuple[DocumentHead, ...]:
        """How far this site's knowledge of each document goes, by key."""
        return tuple(entry.head for entry in self)

    def prints(self) -> bytes:
        """The same in ``PRINT_BYTES`` each, joined: for who understands them (``SyncReply``)."""
        return b"".join(entry.print8 for entry in self._entries.values())

    def missing(self, heads: Iterable[DocumentHead]) -> Difference:
        """Compare with another site's heads: what it lacks, and what it should send."""
        newer: list[Entry] = []
        wanted: list[Key] = []
        theirs: set[tuple[str, str]] = set()
        for head in heads:
            pair, order = _pair(head.key), _order(head)
            if pair in theirs:
                continue
            theirs.add(pair)
            mine = self._entries.get(pair)
            if mine is None or mine.order < order:
                wanted.append(head.key)
            elif mine.order > order:
                newer.append(mine)
        newer.extend(entry for key, entry in self._entries.items() if key not in theirs)
        return Difference(_bounded(newer), tuple(sorted(wanted, key=_pair)))

    def missing_prints(self, prints: bytes) -> Difference:
        """As ``missing``, of another site's ``prints``.

        Which of two different documents is newer these do not tell: the other site is sent what is here,
        asked for what it has, and either takes what is newer.
        """
        theirs = _split(prints)
        newer = [entry for entry in self._entries.values() if entry.print8 not in theirs]
        theirs.difference_update(entry.print8 for entry in self._entries.values())
        return Difference(_bounded(newer), wanted_prints=b"".join(sorted(theirs)))

    def of_prints(self, prints: bytes) -> tuple[Document, ...]:
        """As ``of_keys``, of prints."""
        wanted = _split(prints)
        return _bounded([entry for entry in self._entries.values() if entry.print8 in wanted])

    def of_keys(self, keys: Iterable[Key]) -> tuple[Document, ...]:
        """The documents of these keys that are known: what the other side asked for (``Push``)."""
        entries = (self._entries.get(_pair(key)) for key in dict.fromkeys(keys))
        return _bounded([entry for entry in entries if entry is not None])

    @property
    def digest8(self) -> bytes:
        """Eight bytes that differ whenever two catalogs do; travels in every site's record.

        The sum of the hashes of all heads (Bellare and Micciancio 1997, AdHash), so that a change
        costs the same however many documents there are.
        """
        return hashlib.sha256(self._sum.to_bytes(32, "big")).digest()[:8]

    def _keys(self) -> list[tuple[str, str]]:
        if not self._is_sorted:
            self._sorted.sort()
            self._is_sorted = True
        return self._sorted


def row_of(entry: Entry) -> Put:
    """The document as a row of table ``documents``."""
    key = key_of(entry.body)
    return Put("documents", {"kind": key.kind, "name": key.name, "document": pack(entry.document)})


def _pair(key: Key) -> tuple[str, str]:
    """As the catalog keeps it: hashed and compared many thousand times in a sync."""
    return key.kind, key.name


def _split(prints: bytes) -> set[bytes]:
    """Each of them; a rest at the end is none."""
    ends = range(PRINT_BYTES, len(prints) + 1, PRINT_BYTES)
    return {prints[end - PRINT_BYTES : end] for end in ends}


def _head(document: Document, body: Body) -> DocumentHead:
    digest = hashlib.sha256(document.body).digest()
    return DocumentHead(key_of(body), document.stamp, document.author, digest[:8])


def _weight(head: DocumentHead) -> int:
    return int.from_bytes(hashlib.sha256(pack(head)).digest(), "big")


def _order(head: DocumentHead) -> Order:
    """What makes a document newer; the hash decides between two by one author with one stamp."""
    return head.stamp.wall_ms, head.stamp.count, head.author, head.body8


def _bounded(entries: list[Entry]) -> tuple[Document, ...]:
    """The oldest documents that fit one reply: what others build on goes first."""
    chosen: list[Document] = []
    room = SYNC_BYTES_MAX
    for entry in sorted(entries, key=attrgetter("order")):
        room -= len(entry.document.body) + 256  # stamp, author, signature and framing
        if room < 0:
            break
        chosen.append(entry.document)
    return tuple(chosen)


def _require_names(body: Body) -> None:
    match body:
        case ModelVersion():
            names = [body.name, body.version]
        case Deployment():
            names = [body.model, body.version]
        case Job():
            names = [body.id, body.recipe, body.dataset, *([body.publish] if body.publish else [])]
        case Policy() | Scope() | Unknown():
            names = [body.kind, body.name]
        case _:
            assert_never(body)
    for name in names:
        if not _NAME.fullmatch(name):
            raise Malformed(f"{name!r} is not a name", why="letters, digits and . _ - only")
