"""The trust log: who may issue, who may administer, and which keys are revoked.

Rule: the log only grows. Every entry names the hash of the one before and is signed by a key that
the log itself already trusts; the first (genesis) by the root, whose hash is the cluster's id.

=====================  ===============  ============================================================
action                 signed by        afterwards
=====================  ===============  ============================================================
Genesis                root             the first issuer, the first admin, the vocabulary
AddIssuer              root             one more issuer may admit and renew
RemoveIssuer           root             what it signed is revoked, for ever
AddAdmin, RemoveAdmin  root             who may sign catalog documents and revocations
SetJurisdictions       root             the labels an issuer may use; empty = any
SetGroup               root             jurisdictions that labels may name together
RevokeSite             root or admin    that key is refused, for ever
MendFork               root             the branch it names is the log, what conflicts is settled
=====================  ===============  ============================================================

Fork: two different entries of one height. Both are kept and passed on as evidence, because all sites
must come to the same conclusion (``trust_tree``). Then the log is frozen: nothing is signed and no
operator's entry is taken but the root's MendFork. The revocations of *every* branch hold for good,
because a key that anybody trusted has revoked must not come back; only what an admin signed beside
its own removal counts for nothing, so a removed admin can neither freeze the log nor revoke.

The idea is that of a key authority log (Tailscale's tailnet lock), reduced to one root.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from agent.foundation.errors import AtollError, Corruption, Refused, RemoteFault, UsageError
from agent.foundation.ids import short
from agent.foundation.writes import Delete, Put, Write
from agent.identity.certificates import read_root
from agent.identity.trust_entries import (
    HEIGHT_MAX,
    Action,
    Entry,
    Genesis,
    MendFork,
    RemoveAdmin,
    RevokeSite,
    hash_of,
    is_signed,
    read_entry,
    revocation_of,
)
from agent.identity.trust_state import Issuer, State, applied
from agent.identity.trust_tree import Fork, Node, Tree
from agent.wire.mesh import TrustHeads
from agent.wire.residency import Group

TIPS_TOLD_MAX = 4
"""Branches named by their ends; a log with more of them names every entry instead."""
MARK_EVERY = 16
"""Of each branch every 16th entry is named too. So at most 15 entries of each of 5 branches are sent
although they are known: fewer than a page holds, and every page brings something new."""
DIGEST_BYTES = 8
ASIDE_MAX = 512
"""Entries of removed admins that wait for a word of the root, in memory only."""
_SUM_LIMIT = 2**256


class _Voided(Refused):
    """Signed by a removed admin beside its removal."""


@dataclass(frozen=True, slots=True)
class _Orphan:
    """A row of a damaged table whose predecessors are lost."""

    number: int
    entry: Entry
    action: Action
    data: bytes


@dataclass(frozen=True, slots=True)
class _Conclusion:
    """What follows from all entries; found anew after each change."""

    trunk: tuple[Node, ...]
    fork: Fork | None
    state: State
    revoked: frozenset[bytes]
    reasons: Mapping[bytes, str]
    digest8: bytes


class TrustLog:
    """One site's copy of the trust log."""

    def __init__(self, cluster: bytes) -> None:
        """An empty log that accepts only the genesis of ``cluster``."""
        self._cluster = cluster
        self._tree = Tree()
        self._rows: set[int] = set()
        self._stored: set[bytes] = set()
        self._orphans: list[_Orphan] = []
        self._garbage: list[int] = []
        self._aside: dict[bytes, tuple[bytes, bytes]] = {}  # hash -> hash before it, packed entry
        self._held: frozenset[bytes] = frozenset()
        self._known: _Conclusion | None = None
        self.trouble = ""
        """Why entries that this site once held may be missing here; empty if none can be. Ends when
        a member has shown that it holds no more than this site (``confirm``)."""

    @classmethod
    def restore(cls, cluster: bytes, rows: Iterable[tuple[int, bytes]]) -> "TrustLog":
        """The log from the rows (number, entry) of table ``trust``, in any order.

        Raises:
            Corruption: a row is damaged or missing.
        """
        log = cls.salvaged(cluster, rows)
        if log.trouble:
            raise Corruption("the trust log is damaged", why=log.trouble)
        return log

    @classmethod
    def salvaged(
        cls, cluster: bytes, rows: Iterable[tuple[int, bytes]], founding: Iterable[bytes] = ()
    ) -> "TrustLog":
        """As ``restore``, and whatever damage there is, all that still proves itself is kept.

        A revocation whose predecessors are lost holds as before; after ``confirm`` only if the root or
        an admin who is known signed it. ``trouble`` then says what is missing.

        Args:
            cluster: the cluster's id.
            rows: of table ``trust``.
            founding: the entries of founding or joining, from the identity folder.
        """
        log, wrong = cls(cluster), []
        entries: list[tuple[int, int, bytes]] = []
        for number, data in rows:
            try:
                entries.append((read_entry(data)[0].content.height, number, data))
            except AtollError as error:
                wrong.append(f"row {number}: {error}")
                log._garbage.append(number)
        for data in founding:
            log._found(data)
        for height, number, data in sorted(entries):
            try:
                log._take(data, is_stored=True)
            except (RemoteFault, UsageError) as error:
                wrong.append(f"entry {height}: {error}")
                log._orphans.append(_Orphan(number, *read_entry(data), data))
            log._rows.add(number)
            log._stored.add(hash_of(read_entry(data)[0].content))
        log._hold_orphans()
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            log.trouble = wrong[0] + more
        return log

    # --- what it says ----------------------------------------------------------------------------
    @property
    def cluster(self) -> bytes:
        """The cluster this log is of."""
        return self._cluster

    @property
    def height(self) -> int:
        """Entries of the log; 0 before the genesis."""
        return len(self._now.trunk)

    @property
    def head(self) -> bytes:
        """Hash of the last entry; the cluster id before the genesis."""
        return self._now.trunk[-1].digest if self._now.trunk else self._cluster

    @property
    def root(self) -> bytes:
        """The root certificate (DER); empty before the genesis."""
        return self._now.state.root

    @property
    def fork(self) -> Fork | None:
        """Why the log is frozen, or None."""
        return self._now.fork

    @property
    def jurisdictions(self) -> tuple[str, ...]:
        """The labels issuers may use; empty = any."""
        return self._now.state.jurisdictions

    @property
    def groups(self) -> tuple[Group, ...]:
        """What labels may name beside jurisdictions; none while it is in doubt what the log says."""
        return () if self.trouble or self.fork is not None else self._now.state.groups

    @property
    def digest8(self) -> bytes:
        """Eight bytes that differ whenever two logs of one cluster do.

        Zeros while there is only the genesis: a cluster that never changed its trust has the same
        records as under versions that do not exchange the log.
        """
        return self._now.digest8

    def issuers(self) -> Mapping[bytes, bytes]:
        """Certificate (DER) by id of the issuers that may admit and renew."""
        return MappingProxyType({key: one.certificate for key, one in self.holders().items()})

    def holders(self) -> Mapping[bytes, Issuer]:
        """As ``issuers``, with the sites that keep their keys."""
        now = self._now
        found = {key: one for key, one in now.state.issuers.items() if key not in now.revoked}
        return MappingProxyType(found)

    def admins(self) -> Mapping[bytes, Ed25519PublicKey]:
        """Public key by id of those who may sign documents and revocations."""
        removed = self._tree.removed_admins()
        admins = self._now.state.admins
        if not removed:
            return admins
        return MappingProxyType({key: one for key, one in admins.items() if key not in removed})

    def revoked(self) -> frozenset[bytes]:
        """Ids (SHA-256 of SPKI) of revoked sites and removed issuers."""
        return self._now.revoked

    def reasons(self) -> Mapping[bytes, str]:
        """As ``revoked``, with what was given as the reason of each; may be empty text."""
        return self._now.reasons

    def entries(self, after: int = 0) -> tuple[bytes, ...]:
        """All packed entries above height ``after``, every branch included, in an order to append."""
        return tuple(one.data for one in self._tree.worth_telling() if one.height > after)

    def shown(self) -> tuple[tuple[Entry, Action], ...]:
        """The entries of the log itself, oldest first."""
        return tuple(read_entry(node.data) for node in self._now.trunk)

    # --- growing ---------------------------------------------------------------------------------
    def append(self, data: bytes) -> tuple[Write, ...]:
        """Learn one packed entry; the writes that make it durable, none if it is known already.

        An entry that contradicts another is not an error: both are kept, and see ``fork``.

        Raises:
            Malformed: not an entry, or it says something impossible.
            Refused: not signed by a key that may, does not link to what is known here (ask for the
                entries between), or the log is full.
        """
        return tuple(self._row(node) for node in self._admit(data))

    def learn(self, entries: Iterable[bytes]) -> tuple[Write, ...]:
        """As ``append``, for a whole log as another site tells it (``entries``), in its order.

        Raises:
            Malformed, Refused: it does not hold together; what came before the fault is learned.
        """
        writes: list[Write] = []
        for data in entries:
            try:
                writes += self.append(data)
            except _Voided:
                continue  # on the way to a removal that follows, or nothing
        return tuple(writes)

    def _admit(self, data: bytes) -> list[Node]:
        entry, action = read_entry(data)
        digest, previous = hash_of(entry.content), entry.content.previous
        if previous in self._aside and previous not in self._tree.nodes:
            self._put_aside(digest, previous, data)
            if isinstance(action, RemoveAdmin):
                return self._recall(entry, digest)
            raise _Voided("this entry builds on one of a removed admin")
        try:
            node = self._take(data)
        except _Voided:
            self._put_aside(digest, previous, data)
            raise
        if node is None:
            return []
        return [node, *self._follow()] if isinstance(action, RemoveAdmin) else [node]

    # A removed admin's entries are not kept, or its key could fill every disk; unless it turns out
    # that the root itself has built on them: then all sites must know the same.
    def _put_aside(self, digest: bytes, previous: bytes, data: bytes) -> None:
        if len(self._aside) >= ASIDE_MAX:
            self._aside.clear()
        self._aside[digest] = (previous, data)

    def _recall(self, removal: Entry, digest: bytes) -> list[Node]:
        """Take the path to a removal that the root has signed."""
        key = self._now.state.root_key
        if key is None or removal.content.author != self._cluster or not is_signed(removal, key):
            raise Refused("the removal of an admin is not signed by the root")
        path: list[bytes] = []
        while digest in self._aside:
            digest, data = self._aside.pop(digest)
            path.append(data)
        taken: list[Node] = []
        for data in reversed(path):
            try:
                node = self._take(data, is_stored=True)
            except AtollError:
                break  # somebody has put a false entry between: what is proven is kept
            if node is not None:
                taken.append(node)
        return taken + self._follow()

    def _follow(self) -> list[Node]:
        """Of the entries aside, take those that count now that others are known."""
        taken: list[Node] = []
        has_moved = True
        while has_moved:
            has_moved = False
            for digest, (previous, data) in list(self._aside.items()):
                if previous not in self._tree.nodes:
                    continue
                try:
                    node = self._take(data)
                except AtollError:
                    continue
                del self._aside[digest]
                has_moved = True
                if node is not None:
                    taken.append(node)
        return taken

    def unwritten(self) -> tuple[Write, ...]:
        """The writes of entries that came from the identity folder and have no row yet."""
        nodes = sorted(self._tree.nodes.values(), key=_in_order)
        return tuple(self._row(node) for node in nodes if node.digest not in self._stored)

    def submit(self, data: bytes) -> tuple[Write, ...]:
        """As ``append``, for an operator's new entry: it must be the next one of the log.

        Raises:
            Refused: also if the log is frozen, or has moved since the entry was signed.
        """
        entry, action = read_entry(data)
        content = entry.content
        if isinstance(action, MendFork) or hash_of(content) in self._tree.nodes:
            return self.append(data)
        if self.fork is not None:
            raise Refused(
                "the trust log is frozen",
                why=f"two entries of height {self.fork.height} exist",
                mend="decide with the root key which one holds: atoll trust mend",
            )
        if content.previous != self.head or content.height != self.height + 1:
            raise Refused(
                "the trust log has moved since this entry was signed",
                why=f"it is for height {content.height}, the log has {self.height} entries",
                mend="sign it again",
            )
        return self.append(data)

    def confirm(self) -> tuple[Write, ...]:
        """A member holds no more than this site: nothing can be missing, and useless rows may go."""
        self.trouble = ""
        lost = [one for one in self._orphans if not self._proof(one)]
        self._orphans = [one for one in self._orphans if one not in lost]
        self._hold_orphans()
        self._rows.difference_update(one.number for one in lost)
        gone = [*self._garbage, *(one.number for one in lost)]
        self._garbage = []
        return tuple(Delete("trust", (number,)) for number in gone if number not in self._rows)

    def _found(self, data: bytes) -> None:
        """An entry of the identity folder; a damaged one is worth nothing and harms nothing."""
        try:
            self._admit(data)
        except AtollError:
            return

    def _take(self, data: bytes, *, is_stored: bool = False) -> Node | None:
        """``is_stored``: it was taken before, when its admin had not been removed yet."""
        entry, action = read_entry(data)
        digest = hash_of(entry.content)
        if digest in self._tree.nodes:
            return None
        node = self._judged(entry, action, data, digest)
        is_removal = node.is_by_root and isinstance(action, RemoveAdmin)
        if self._tree.is_void(node.author, node.parent) and not is_stored and not is_removal:
            raise _Voided(
                f"{type(action).__name__} by {short(node.author)} is not allowed",
                why="the root has removed this admin",
            )
        self._tree.add(node)
        self._known = None
        if self._orphans:
            self._adopt(digest)
        return node

    def _judged(self, entry: Entry, action: Action, data: bytes, digest: bytes) -> Node:
        content = entry.content
        if isinstance(action, Genesis):
            state, parent, is_by_root = State(), None, True
            allowed: Ed25519PublicKey | None = self._root_of(content.previous, action)
        else:
            parent = self._tree.nodes.get(content.previous)
            if parent is None:
                raise Refused(
                    f"trust log entry {content.height} does not fit",
                    why=f"the last one known here is {self.height}",
                    mend="fetch the entries between",
                )
            state = parent.after
            is_by_root = content.author == self._cluster
            may = state.admins.get(content.author) if isinstance(action, RevokeSite) else None
            allowed = state.root_key if is_by_root else may
        if allowed is None:
            raise Refused(
                f"{type(action).__name__} by {short(content.author)} is not allowed",
                why="only the root may sign it, and an admin only revocations",
            )
        if not is_signed(entry, allowed):
            raise Refused(f"trust log entry {content.height} is not signed by its author")
        if content.height != (1 if parent is None else parent.height + 1):
            raise Refused(f"trust log entry {content.height} does not follow the one it names")
        if len(self._tree.nodes) >= HEIGHT_MAX:
            raise Refused(
                "the trust log is full", why=f"it holds {HEIGHT_MAX}", mend="found a new cluster"
            )
        after = applied(state, action)
        return Node(data, digest, content.height, content.author, is_by_root, action, parent, after)

    def _root_of(self, previous: bytes, action: Genesis) -> Ed25519PublicKey:
        cluster, key = read_root(action.root)
        if not cluster == self._cluster == previous:
            raise Refused("this is the genesis of another cluster's trust log")
        return key

    def _row(self, node: Node) -> Put:
        """The first entry of a height has its number; those that contradict it have negative ones."""
        number = node.height if node.height not in self._rows else min((*self._rows, 0)) - 1
        self._rows.add(number)
        self._stored.add(node.digest)
        return Put("trust", {"height": number, "entry": node.data})

    # --- what a damaged table has left -----------------------------------------------------------
    def _adopt(self, parent: bytes) -> None:
        """Entries that waited for ``parent`` find their place; their rows are on disk already."""
        for orphan in list(self._orphans):
            if orphan.entry.content.previous == parent and orphan in self._orphans:
                self._orphans.remove(orphan)
                try:
                    self._take(orphan.data, is_stored=True)
                except AtollError:
                    self._garbage.append(orphan.number)
        self._hold_orphans()

    def _hold_orphans(self) -> None:
        """Whatever this site had on disk was proven once: in doubt it is refused."""
        held = (revocation_of(one.action) for one in self._orphans if self._proof(one) is not False)
        self._held, self._known = frozenset().union(*held), None

    def _proof(self, orphan: _Orphan) -> bool | None:
        """Whether the root, or an admin that any known entry names, signed it; None: none names it."""
        author = orphan.entry.content.author
        for node in self._tree.nodes.values():
            state = node.after
            key = state.root_key if author == self._cluster else state.admins.get(author)
            if key is not None:
                return is_signed(orphan.entry, key)
        return None

    # --- comparing -------------------------------------------------------------------------------
    def heads(self) -> TrustHeads:
        """How far this site's knowledge goes, for ``lacking`` at another site."""
        nodes = self._tree.worth_telling()
        parents = {one.parent.digest for one in nodes if one.parent is not None}
        tips = [one for one in nodes if one.digest not in parents]
        if len(tips) <= TIPS_TOLD_MAX:
            nodes = [*tips, *(one for one in nodes if one.height % MARK_EVERY == 0)]
        known = {node.digest for node in nodes}
        is_full = len(self._tree.nodes) >= HEIGHT_MAX
        return TrustHeads(self.height, self.head, tuple(sorted(known)), is_full)

    def lacking(
        self, theirs: TrustHeads, most: int, bytes_max: int
    ) -> tuple[tuple[bytes, ...], bool]:
        """What the owner of ``theirs`` does not have, in an order to append, and whether it is all."""
        if theirs.is_full:
            return (), True
        known = self._tree.ancestors((theirs.head, *theirs.known))
        found: list[bytes] = []
        room = bytes_max
        for node in self._tree.worth_telling():
            if node.digest in known:
                continue
            room -= len(node.data)
            if len(found) >= most or room < 0:
                return tuple(found), False
            found.append(node.data)
        return tuple(found), True

    def covers(self, theirs: TrustHeads) -> bool:
        """Whether the owner of ``theirs`` has nothing that is not here."""
        return all(one in self._tree.nodes for one in (*theirs.known, theirs.head))

    # --- the conclusion --------------------------------------------------------------------------
    @property
    def _now(self) -> _Conclusion:
        if self._known is None:
            self._known = self._conclude()
        return self._known

    def _conclude(self) -> _Conclusion:
        log = self._tree.log()
        first = log.trunk[0] if log.trunk else None
        revoked: set[bytes] = set(self._held)
        reasons: dict[bytes, str] = dict.fromkeys(self._held, "")
        total = 0
        for node in sorted(self._tree.counting(), key=_in_order):
            gone = revocation_of(node.action)
            revoked |= gone
            for key in gone:
                reason = node.action.reason if isinstance(node.action, RevokeSite) else ""
                reasons[key] = reasons.get(key, "") or reason
        for node in self._tree.worth_telling():
            if node is not first:
                total += int.from_bytes(node.digest, "big")
        # The sum of the hashes (Bellare and Micciancio 1997, AdHash), as of the catalog.
        packed = (total % _SUM_LIMIT).to_bytes(32, "big")
        digest8 = hashlib.sha256(packed).digest()[:DIGEST_BYTES] if total else bytes(DIGEST_BYTES)
        state = log.trunk[-1].after if log.trunk else State()
        return _Conclusion(
            log.trunk, log.fork, state, frozenset(revoked), MappingProxyType(reasons), digest8
        )

    def revoked_by(self, digest: bytes) -> frozenset[bytes]:
        """What the entries from the genesis to this one revoke."""
        return frozenset().union(*(revocation_of(one.action) for one in self._tree.path(digest)))


def _in_order(node: Node) -> tuple[int, bytes]:
    return node.height, node.digest
