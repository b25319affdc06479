"""Every known entry of the trust log, as a tree, and the one log that follows from it.

Rule: two sites that know the same entries hold the same log, in whatever order they learned them.
What an entry is worth follows from its ancestors (``trust_state``) and from the set; nothing here
remembers what came first.

- The log runs through the mend (``MendFork``) of the greatest height; of two the smaller hash wins.
- Two children of one entry of the log, after its last mend, are a *fork*. Until the root has mended
  it, the branch that the root signed more often goes on being shown, then the longer one: a stolen
  admin key can open branches, and cannot undo what the root decided by doing so.
- The root's removal of an admin is final: what that admin signed on a path that leads to no such
  removal is *void*, together with everything after it. Removals count even on void paths.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from agent.identity.trust_entries import Action, MendFork, RemoveAdmin
from agent.identity.trust_state import State


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One entry in its place."""

    data: bytes
    """As packed by its author."""
    digest: bytes
    height: int
    author: bytes
    is_by_root: bool
    action: Action = field(repr=False)
    parent: "Node | None" = field(repr=False)
    after: State = field(repr=False)


@dataclass(frozen=True, slots=True)
class Branch:
    """One way in which a forked log goes on."""

    first: bytes
    """Hash of its entry at the height of the fork."""
    tip: bytes
    """Hash of its last entry: what a mend that keeps this branch names."""
    tip_height: int
    entries: tuple[bytes, ...] = field(repr=False)
    """Packed, from ``first`` to ``tip``."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Proof that two trusted keys, or one twice, continued the log in different ways."""

    height: int
    branches: tuple[Branch, ...]
    """Two or more; the one that is shown meanwhile is the first."""


@dataclass(frozen=True, slots=True)
class Log:
    """What follows from all entries."""

    trunk: tuple[Node, ...]
    """The log, from its genesis; while it is forked, through the branch that is shown."""
    fork: Fork | None


class Tree:
    """All known entries; the caller has proven each before it is added."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self.nodes: dict[bytes, Node] = {}
        self._children: dict[bytes, list[Node]] = {}
        self._void: set[bytes] = set()
        self._removals: dict[bytes, set[bytes]] = {}  # admin -> hashes on the paths to its removal
        self._log: Log | None = None
        self._told: list[Node] | None = None

    def is_void(self, author: bytes, parent: Node | None) -> bool:
        """Whether a new entry by ``author`` after ``parent`` would count for nothing."""
        return author in self._removals or (parent is not None and parent.digest in self._void)

    def add(self, node: Node) -> None:
        """Take a proven entry whose parent is here."""
        self._log = self._told = None
        self.nodes[node.digest] = node
        if self.is_void(node.author, node.parent):
            self._void.add(node.digest)
        above = b"" if node.parent is None else node.parent.digest
        self._children.setdefault(above, []).append(node)
        if isinstance(node.action, RemoveAdmin):
            path = {one.digest for one in _path(node)}
            self._removals.setdefault(node.action.admin, set()).update(path)
            self._judge()

    def _judge(self) -> None:
        """Say anew of every entry whether it is void."""
        self._void = set()
        for node in sorted(self.nodes.values(), key=lambda one: one.height):
            paths = self._removals.get(node.author)
            is_beside = paths is not None and node.digest not in paths
            if is_beside or (node.parent is not None and node.parent.digest in self._void):
                self._void.add(node.digest)

    def counting(self) -> Iterator[Node]:
        """Every entry that is not void."""
        return (node for node in self.nodes.values() if node.digest not in self._void)

    def worth_telling(self) -> list[Node]:
        """What other sites must know to come to the same conclusion, in an order to append."""
        if self._told is None:
            told = frozenset[bytes]().union(*self._removals.values())
            nodes = self.nodes.values()
            found = (one for one in nodes if one.digest not in self._void or one.digest in told)
            self._told = sorted(found, key=lambda node: (node.height, node.digest))
        return self._told

    def removed_admins(self) -> frozenset[bytes]:
        """Whom the root has removed, on whatever branch."""
        return frozenset(self._removals)

    def log(self) -> Log:
        """The log and its fork, if it has one."""
        if self._log is None:
            self._log = self._look()
        return self._log

    def ancestors(self, digests: Iterable[bytes]) -> set[bytes]:
        """Hashes of those of ``digests`` that are known, and of everything before them."""
        found: set[bytes] = set()
        for digest in digests:
            node = self.nodes.get(digest)
            while node is not None and node.digest not in found:
                found.add(node.digest)
                node = node.parent
        return found

    def path(self, digest: bytes) -> tuple[Node, ...]:
        """The entries from the genesis to this one."""
        return _path(self.nodes[digest])

    # --- the one log -----------------------------------------------------------------------------
    def _look(self) -> Log:
        mends = [node for node in self.counting() if isinstance(node.action, MendFork)]
        trunk: list[Node] = []
        if mends:
            trunk = list(_path(min(mends, key=lambda node: (-node.height, node.digest))))
        following = self._preferred()
        fork: Fork | None = None
        while True:
            last = trunk[-1] if trunk else None
            children = sorted(self._after(last), key=following.__getitem__)
            if not children:
                return Log(tuple(trunk), fork)
            if len(children) > 1 and fork is None:
                branches = (self._branch(child, following) for child in children)
                fork = Fork(children[0].height, tuple(branches))
            trunk.append(children[0])

    def _preferred(self) -> dict[Node, tuple[int, int, bytes]]:
        """For each entry what ranks the best path that begins with it; smaller is better."""
        found: dict[Node, tuple[int, int, bytes]] = {}
        for node in sorted(self.counting(), key=lambda one: -one.height):
            best = min((found[child][:2] for child in self._after(node)), default=(0, -node.height))
            found[node] = (best[0] - node.is_by_root, best[1], node.digest)
        return found

    def _branch(self, first: Node, following: dict[Node, tuple[int, int, bytes]]) -> Branch:
        path = [first]
        while children := self._after(path[-1]):
            path.append(min(children, key=following.__getitem__))
        tip = path[-1]
        return Branch(first.digest, tip.digest, tip.height, tuple(node.data for node in path))

    def _after(self, node: Node | None) -> list[Node]:
        found = self._children.get(b"" if node is None else node.digest, [])
        return [child for child in found if child.digest not in self._void]


def _path(node: Node) -> tuple[Node, ...]:
    found = []
    one: Node | None = node
    while one is not None:
        found.append(one)
        one = one.parent
    return tuple(reversed(found))
