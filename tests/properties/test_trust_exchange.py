"""Whatever happens to their trust logs, sites that have met in the end hold one and the same.

Sites sign, forge branches with an admin's key, exchange pages in any order, restart from their disks,
lose rows, and the root removes an admin and mends forks; then everybody meets everybody.
"""

import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parents[1] / "unit/identity"))

from cluster_of_keys import Cluster

from agent.foundation.errors import AtollError
from agent.foundation.writes import Delete, Put, Write
from agent.identity.certificates import key_id, make_issuer
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import (
    Action,
    AddAdmin,
    AddIssuer,
    MendFork,
    RemoveAdmin,
    RemoveIssuer,
    RevokeSite,
    SetGroup,
    SetJurisdictions,
    hash_of,
    read_entry,
    seal_entry,
)
from agent.identity.trust_signing import sign_mend

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
CLUSTER = Cluster()
ROOT, FIRST = CLUSTER.root.private_key, CLUSTER.admin
SECOND, THIRD = CLUSTER.key(), CLUSTER.key()
ISSUERS = [make_issuer(CLUSTER.root, CLUSTER.entropy, NOW) for _ in range(2)]
SITES = 4
ROUNDS_MAX = 200


class Node:
    """One site's log and its table."""

    def __init__(self) -> None:
        self.log = CLUSTER.log()
        self.rows = {1: self.log.entries()[0]}
        action = AddAdmin(SECOND.public_key().public_bytes_raw())
        self.learn([seal_entry(2, self.log.head, action, ROOT, NOW)])
        self.count = 0

    def learn(self, entries: Iterable[bytes]) -> None:
        for entry in entries:
            try:
                self.carry_out(self.log.append(entry))
            except AtollError:
                continue

    def carry_out(self, writes: Iterable[Write]) -> None:
        for write in writes:
            match write:
                case Put(_, row):
                    self.rows[row["height"]] = row["entry"]  # type: ignore[index,assignment]
                case Delete(_, key):
                    self.rows.pop(key[0], None)  # type: ignore[arg-type]

    def restart(self) -> None:
        self.log = TrustLog.salvaged(CLUSTER.id, self.rows.items(), CLUSTER.log().entries())
        self.carry_out(self.log.unwritten())

    def conclusion(self) -> object:
        log = self.log
        return (
            log.height, log.head, log.digest8, log.revoked(), dict(log.reasons()), set(log.admins()),
            dict(log.issuers()), log.jurisdictions, log.fork,
        )  # fmt: skip


def meet(one: Node, other: Node, page: int = 128) -> bool:
    """One state sync; whether either learned anything."""
    before = one.log.digest8, other.log.digest8
    asked = one.log.heads()
    heads, (entries, _) = other.log.heads(), other.log.lacking(asked, page, 1 << 20)
    one.learn(entries)
    other.learn(one.log.lacking(heads, page, 1 << 20)[0])
    return before != (one.log.digest8, other.log.digest8)


def settle(nodes: list[Node], page: int = 128) -> None:
    for _ in range(ROUNDS_MAX):
        pairs = [(one, other) for one in nodes for other in nodes if one is not other]
        if sum(meet(one, other, page) for one, other in pairs) == 0:
            return
    raise AssertionError("they never stop telling each other news")


ACTIONS: list[tuple[Action, Ed25519PrivateKey]] = [
    (AddAdmin(THIRD.public_key().public_bytes_raw()), ROOT),
    (AddIssuer(ISSUERS[0].certificate, bytes([7]) * 32), ROOT),
    (AddIssuer(ISSUERS[1].certificate), ROOT),
    (SetJurisdictions(("DE",)), ROOT),
    (SetGroup("EU", ("DE", "FR")), ROOT),
    (RemoveIssuer(key_id(ISSUERS[0].private_key.public_key())), ROOT),
    (RemoveAdmin(key_id(SECOND.public_key())), ROOT),
]
KEYS = (FIRST, SECOND, THIRD)
KINDS = {"revoke": 6, "root": 4, "branch": 3, "meet": 6, "restart": 1, "lose": 1, "mend": 2}


def steps(seed: int, without: frozenset[str] = frozenset()) -> list[tuple[str, int, int]]:
    """Thirty things that happen. Drawn from a seed: lists that hypothesis draws are mostly short."""
    rng = Random(seed)
    kinds = {kind: weight for kind, weight in KINDS.items() if kind not in without}
    chosen = rng.choices(list(kinds), list(kinds.values()), k=30)
    return [
        (
            kind,
            rng.randrange(SITES),
            rng.randrange(SITES if kind == "meet" else len(ACTIONS) if kind == "root" else 200),
        )
        for kind in chosen
    ]


seeds = st.integers(0, 2**32)


def carry_out(nodes: list[Node], step: tuple[str, int, int]) -> None:
    kind, at, value = step
    node = nodes[at]
    log = node.log
    match kind:
        case "root":
            action, key = ACTIONS[value]
            node.learn([seal_entry(log.height + 1, log.head, action, key, NOW)])
        case "revoke":
            action = RevokeSite(bytes([value % 9 + 1]) * 32, f"{value}")  # type: ignore[arg-type]
            node.learn([seal_entry(log.height + 1, log.head, action, KEYS[value % 3], NOW)])
        case "branch":  # with an admin's key, after any entry that is known here
            entries = log.entries()
            parent = read_entry(entries[value % len(entries)])[0].content
            action = RevokeSite(bytes([value % 50 + 20]) * 32)  # type: ignore[arg-type]
            key = KEYS[value % 3]
            node.learn([seal_entry(parent.height + 1, hash_of(parent), action, key, NOW)])
        case "meet":
            meet(node, nodes[value], 2)
        case "restart":
            node.restart()
        case "lose":
            numbers = sorted(node.rows)
            del node.rows[numbers[value % len(numbers)]]
            node.restart()
        case "mend" if log.fork is not None:
            branch = log.fork.branches[value % len(log.fork.branches)]
            node.learn([sign_mend(log, keep=branch.tip, root=ROOT, now=NOW)])


LOSING = frozenset({"lose"})


@settings(deadline=None, max_examples=60)
@given(seeds, st.integers(80, 128))
def test_sites_that_have_met_hold_one_log(seed: int, page: int) -> None:
    nodes = [Node() for _ in range(SITES)]
    for step in steps(seed, LOSING):
        carry_out(nodes, step)
    settle(nodes, page)
    expected = nodes[0].conclusion()
    for node in nodes:
        assert node.conclusion() == expected
        node.restart()
        assert node.conclusion() == expected, "what is on disk is what was known"
        assert not node.log.trouble
    fresh = TrustLog(CLUSTER.id)
    fresh.learn(nodes[0].log.entries())
    assert fresh.digest8 == nodes[0].log.digest8, "a joiner is told all of it"
    assert fresh.revoked() == nodes[0].log.revoked()


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_the_root_mends_whatever_has_forked_and_nothing_revoked_comes_back(seed: int) -> None:
    nodes = [Node() for _ in range(SITES)]
    for step in steps(seed, LOSING):
        carry_out(nodes, step)
    settle(nodes)
    before = nodes[0].log.revoked()
    for _ in range(50):
        fork = nodes[0].log.fork
        if fork is None:
            break
        nodes[0].learn([sign_mend(nodes[0].log, keep=fork.branches[0].tip, root=ROOT, now=NOW)])
    settle(nodes)
    for node in nodes:
        assert node.log.fork is None
        assert node.log.revoked() == before
        assert node.conclusion() == nodes[0].conclusion()


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_a_revocation_never_ends_while_its_admin_stands(seed: int) -> None:
    nodes = [Node() for _ in range(SITES)]
    seen: list[frozenset[bytes]] = [frozenset() for _ in nodes]
    for step in steps(seed, LOSING):
        if step[0] == "root" and isinstance(ACTIONS[step[2]][0], RemoveAdmin):
            continue
        carry_out(nodes, step)
        for number, node in enumerate(nodes):
            assert node.log.revoked() >= seen[number]
            seen[number] = node.log.revoked()


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_lost_rows_are_fetched_again_and_what_proves_itself_is_refused_meanwhile(seed: int) -> None:
    nodes = [Node() for _ in range(SITES)]
    for step in steps(seed):
        if step[0] == "root" and isinstance(ACTIONS[step[2]][0], RemoveAdmin):
            continue
        revoked = nodes[step[1]].log.revoked()
        carry_out(nodes, step)
        gone = revoked - nodes[step[1]].log.revoked()
        assert len(gone) <= 1, "the lost row's own"
    settle(nodes)
    everywhere = frozenset.intersection(*(node.log.revoked() for node in nodes))
    for node in nodes:
        log, other = node.log, nodes[0].log
        assert (log.head, log.digest8, log.fork) == (other.head, other.digest8, other.fork)
        assert log.covers(other.heads())
        # An entry that nobody else ever had and whose predecessor is lost holds where it is.
        assert log.revoked() - everywhere <= log._held


def test_these_histories_hold_what_they_are_to_test() -> None:
    found = dict.fromkeys(("forked", "mended", "voided", "doubted", "held"), 0)
    for seed in range(30):
        nodes = [Node() for _ in range(SITES)]
        for step in steps(seed):
            carry_out(nodes, step)
            log = nodes[step[1]].log
            found["forked"] += log.fork is not None
            found["mended"] += any(isinstance(action, MendFork) for _, action in log.shown())
            found["doubted"] += bool(log.trouble)
            found["held"] += bool(log._held)
        settle(nodes)
        found["voided"] += any(node.log._tree._void for node in nodes)
    assert min(found.values()) > 3, found
