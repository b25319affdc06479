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
from typing import Final, assert_never, overload

from agent.foundation.errors import Busy, Malformed
from agent.foundation.writes import Put
from agent.wire.documents import (
    Body,
    Deployment,
    Document,
    Job,
    Key,
    ModelVersion,
    Stamp,
    Unknown,
    key_of,
)
from agent.wire.limits import DOCUMENTS_MAX, MESH_BODY_BYTES_MAX
from agent.wire.mesh import DocumentHead
from agent.wire.schema import pack

SYNC_BYTES_MAX: Final = MESH_BODY_BYTES_MAX // 2
"""Documents of one sync reply; the rest follows in the next sync (members share the body)."""

_SUM_LIMIT: Final = 2**256

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
"""Without ``:``, so that ``model:version`` means one pair only."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One document with its decoded body."""

    document: Document
    body: Body
    head: DocumentHead


@dataclass(frozen=True, slots=True)
class Difference:
    """What two sites lack of each other's catalogs."""

    newer_here: tuple[Document, ...]
    """To send; oldest stamps first, at most ``SYNC_BYTES_MAX`` bytes."""
    wanted: tuple[Key, ...]
    """To ask for, by key."""


class Catalog:
    """All documents, newest for each key; bounded by ``DOCUMENTS_MAX``."""

    def __init__(self, entries: Iterable[tuple[Document, Body]] = ()) -> None:
        """Begin with what the store held; order does not matter."""
        self._entries: dict[Key, Entry] = {}
        self._signatures: set[bytes] = set()
        self._sum = 0
        for document, body in entries:
            self.merge(document, body)

    def __len__(self) -> int:
        """How many keys are known."""
        return len(self._entries)

    def is_newer(self, document: Document, body: Body) -> bool:
        """Whether ``merge`` would take the document."""
        known = self._entries.get(key_of(body))
        return known is None or _order(_head(document, body)) > _order(known.head)

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
        key = key_of(body)
        if key not in self._entries and len(self._entries) >= DOCUMENTS_MAX:
            raise Busy(
                "the catalog is full",
                why=f"it has {DOCUMENTS_MAX} documents",
                mend="reuse names: documents are replaced, never deleted",
                retry_after_s=3600.0,
            )
        if (former := self._entries.get(key)) is not None:
            self._sum = (self._sum - _weight(former.head)) % _SUM_LIMIT
            self._signatures.discard(former.document.signature)
        entry = Entry(document, body, _head(document, body))
        self._entries[key] = entry
        self._signatures.add(document.signature)
        self._sum = (self._sum + _weight(entry.head)) % _SUM_LIMIT
        return True

    def may_hold(self, document: Document) -> bool:
        """Whether a document with this signature is held: then there is nothing to learn from it.

        A forger who puts a held signature on something else only has that ignored.
        """
        return document.signature in self._signatures

    def get(self, key: Key) -> Entry | None:
        """The newest document of ``key``."""
        return self._entries.get(key)

    def model(self, name: str, version: str) -> ModelVersion | None:
        """The model version, if its document is known."""
        entry = self._entries.get(Key("model", f"{name}:{version}"))
        return entry.body if entry is not None and isinstance(entry.body, ModelVersion) else None

    @overload
    def of_kind(self, kind: type[ModelVersion]) -> list[ModelVersion]: ...
    @overload
    def of_kind(self, kind: type[Deployment]) -> list[Deployment]: ...
    @overload
    def of_kind(self, kind: type[Job]) -> list[Job]: ...
    def of_kind(
        self, kind: type[ModelVersion] | type[Deployment] | type[Job]
    ) -> list[ModelVersion] | list[Deployment] | list[Job]:
        """All bodies of one kind, by key; the same order at every site."""
        found = [self._entries[key].body for key in self._sorted()]
        return [body for body in found if isinstance(body, kind)]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[Entry]:
        """Every entry, by key."""
        return (self._entries[key] for key in self._sorted())

    @property
    def latest(self) -> Stamp | None:
        """The largest stamp held: where a restarted clock continues."""
        return max((entry.document.stamp for entry in self._entries.values()), default=None)

    # --- sync ------------------------------------------------------------------------------------
    def heads(self) -> tuple[DocumentHead, ...]:
        """How far this site's knowledge of each document goes, by key."""
        return tuple(self._entries[key].head for key in self._sorted())

    def missing(self, heads: Iterable[DocumentHead]) -> Difference:
        """Compare with another site's heads: what it lacks, and what it should send."""
        theirs = {head.key: _order(head) for head in heads}
        newer: list[Entry] = []
        wanted: list[Key] = []
        for key, order in theirs.items():
            mine = self._entries.get(key)
            if mine is None or _order(mine.head) < order:
                wanted.append(key)
            elif _order(mine.head) > order:
                newer.append(mine)
        newer.extend(entry for key, entry in self._entries.items() if key not in theirs)
        return Difference(_bounded(newer), tuple(sorted(wanted, key=_by_name)))

    def of_keys(self, keys: Iterable[Key]) -> tuple[Document, ...]:
        """The documents of these keys that are known: what the other side asked for (``Push``)."""
        entries = (self._entries.get(key) for key in dict.fromkeys(keys))
        return _bounded([entry for entry in entries if entry is not None])

    @property
    def digest8(self) -> bytes:
        """Eight bytes that differ whenever two catalogs do; travels in every site's record.

        The sum of the hashes of all heads (Bellare and Micciancio 1997, AdHash), so that a change
        costs the same however many documents there are.
        """
        return hashlib.sha256(self._sum.to_bytes(32, "big")).digest()[:8]

    def _sorted(self) -> list[Key]:
        return sorted(self._entries, key=_by_name)


def row_of(entry: Entry) -> Put:
    """The document as a row of table ``documents``."""
    key = key_of(entry.body)
    return Put("documents", {"kind": key.kind, "name": key.name, "document": pack(entry.document)})


def _by_name(key: Key) -> tuple[str, str]:
    return key.kind, key.name


def _head(document: Document, body: Body) -> DocumentHead:
    digest = hashlib.sha256(document.body).digest()
    return DocumentHead(key_of(body), document.stamp, document.author, digest[:8])


def _weight(head: DocumentHead) -> int:
    return int.from_bytes(hashlib.sha256(pack(head)).digest(), "big")


def _order(head: DocumentHead) -> tuple[int, int, bytes, bytes]:
    """What makes a document newer; the hash decides between two by one author with one stamp."""
    return head.stamp.wall_ms, head.stamp.count, head.author, head.body8


def _bounded(entries: list[Entry]) -> tuple[Document, ...]:
    """The oldest documents that fit one reply: what others build on goes first."""
    chosen: list[Document] = []
    room = SYNC_BYTES_MAX
    for entry in sorted(entries, key=lambda one: _order(one.head)):
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
        case Unknown():
            names = [body.kind, body.name]
        case _:
            assert_never(body)
    for name in names:
        if not _NAME.fullmatch(name):
            raise Malformed(f"{name!r} is not a name", why="letters, digits and . _ - only")
