"""The trust log: it only grows, only trusted keys extend it, and a fork is never overlooked."""

from collections.abc import Iterable
from datetime import timedelta
from random import Random

import pytest
from cluster_of_keys import NOW, Cluster

from agent.foundation.errors import Corruption, Malformed, Refused
from agent.foundation.ids import SiteId
from agent.foundation.writes import Delete, Put, Write
from agent.identity.certificates import key_id, make_issuer, read_issuer
from agent.identity.trust import TrustLog, sign_entry, sign_mend, sign_revocation
from agent.identity.trust_entries import (
    Action,
    AddAdmin,
    AddIssuer,
    Genesis,
    RemoveAdmin,
    RemoveIssuer,
    RevokeSite,
    SetJurisdictions,
    read_entry,
    seal_entry,
)
from agent.wire.schema import pack

SITE_A, SITE_B, SITE_C = (SiteId(bytes([n]) * 32) for n in (1, 2, 3))


class Disk:
    """The table ``trust``: what the writes leave behind."""

    def __init__(self) -> None:
        self.rows: dict[int, bytes] = {}

    def carry_out(self, writes: Iterable[Write]) -> None:
        for write in writes:
            match write:
                case Put(table, row):
                    height, entry = row["height"], row["entry"]
                    assert table == "trust"
                    assert isinstance(height, int)
                    assert isinstance(entry, bytes)
                    self.rows[height] = entry
                case Delete(table, (height,)):
                    assert table == "trust"
                    assert isinstance(height, int)
                    del self.rows[height]
                case _:
                    raise AssertionError(write)


def copy_of(log: TrustLog) -> TrustLog:
    return TrustLog.restore(log.cluster, enumerate(log.entries(), start=1))


def by_root(cluster: Cluster, log: TrustLog, action: Action) -> bytes:
    return sign_entry(log, action, cluster.root.private_key, NOW)


def by_admin(cluster: Cluster, log: TrustLog, site: SiteId, reason: str = "") -> bytes:
    return sign_revocation(log, site, reason, cluster.admin, NOW)


def test_the_genesis_names_root_issuer_admin_and_vocabulary() -> None:
    cluster = Cluster()
    log = cluster.log("DE", "FR")
    issuer = read_issuer(cluster.issuer.certificate, cluster.root.certificate)
    assert log.root == cluster.root.certificate
    assert dict(log.issuers()) == {issuer: cluster.issuer.certificate}
    assert list(log.admins()) == [key_id(cluster.admin.public_key())]
    assert log.jurisdictions == ("DE", "FR")
    assert (log.height, log.fork, log.revoked()) == (1, None, frozenset())


def test_every_action_of_the_root_takes_effect_and_survives_a_restart() -> None:
    cluster = Cluster()
    log, disk = cluster.log(), Disk()
    disk.carry_out([Put("trust", {"height": 1, "entry": log.entries()[0]})])
    second = make_issuer(cluster.root, cluster.entropy, NOW)
    second_id = read_issuer(second.certificate, cluster.root.certificate)
    admin = cluster.key().public_key()
    for action in (
        AddIssuer(second.certificate),
        AddAdmin(admin.public_bytes_raw()),
        RemoveAdmin(key_id(cluster.admin.public_key())),
        SetJurisdictions(("NL",)),
        RevokeSite(SITE_A, "stolen"),
        RemoveIssuer(second_id),
    ):
        disk.carry_out(log.append(by_root(cluster, log, action)))
    for state in (log, TrustLog.restore(cluster.id, disk.rows.items())):
        assert state.height == 7
        assert second_id not in state.issuers()
        assert list(state.admins()) == [key_id(admin)]
        assert state.jurisdictions == ("NL",)
        assert state.revoked() == {SITE_A, second_id}
        assert state.head == log.head


def test_an_admin_revokes_sites_and_may_do_nothing_else() -> None:
    cluster = Cluster()
    log = cluster.log()
    assert log.append(by_admin(cluster, log, SITE_A)) != ()
    assert log.revoked() == {SITE_A}
    with pytest.raises(Refused, match="cannot be signed with this key"):
        sign_entry(log, RemoveIssuer(bytes(32)), cluster.admin, NOW)
    forged = seal_entry(3, log.head, RemoveIssuer(bytes(32)), cluster.admin, NOW)
    with pytest.raises(Refused, match="only the root may sign it"):
        log.append(forged)


def test_a_stranger_and_a_removed_admin_may_sign_nothing() -> None:
    cluster = Cluster()
    log = cluster.log()
    with pytest.raises(Refused, match="cannot be signed"):
        sign_revocation(log, SITE_A, "", cluster.key(), NOW)
    with pytest.raises(Refused, match="not allowed"):
        log.append(seal_entry(2, log.head, RevokeSite(SITE_A), cluster.key(), NOW))
    log.append(by_root(cluster, log, RemoveAdmin(key_id(cluster.admin.public_key()))))
    with pytest.raises(Refused, match="not allowed"):
        log.append(seal_entry(3, log.head, RevokeSite(SITE_A), cluster.admin, NOW))
    assert log.revoked() == frozenset()


def test_an_author_cannot_be_borrowed() -> None:
    cluster = Cluster()
    log = cluster.log()
    entry, _ = read_entry(by_admin(cluster, log, SITE_A))
    other, _ = read_entry(seal_entry(2, log.head, RevokeSite(SITE_B), cluster.admin, NOW))
    from dataclasses import replace  # noqa: PLC0415

    with pytest.raises(Refused, match="not signed by its author"):
        log.append(pack(replace(entry, signature=other.signature)))


def test_known_entries_change_nothing_and_a_gap_is_refused() -> None:
    cluster = Cluster()
    log = cluster.log()
    behind = copy_of(log)
    first = by_admin(cluster, log, SITE_A)
    log.append(first)
    second = by_admin(cluster, log, SITE_B)
    log.append(second)
    assert log.append(first) == ()
    assert log.append(log.entries()[0]) == ()
    with pytest.raises(Refused, match="fetch the entries between"):
        behind.append(second)
    for entry in log.entries(after=behind.height):
        behind.append(entry)
    assert behind.head == log.head


def test_a_relay_cannot_make_a_second_form_of_an_entry() -> None:
    cluster = Cluster()
    log = cluster.log()
    entry = by_admin(cluster, log, SITE_A)
    longer = b"\x93" + entry[1:] + b"\x00"  # one more element, as a newer version might send
    log.append(entry)
    with pytest.raises(Malformed, match="one packed form"):
        log.append(longer)
    assert log.fork is None


def test_the_log_of_another_cluster_is_refused_and_there_is_one_genesis() -> None:
    cluster, other = Cluster(), Cluster(2)
    log = cluster.log()
    with pytest.raises(Refused, match="another cluster"):
        TrustLog(cluster.id).append(other.log().entries()[0])
    genesis, action = read_entry(log.entries()[0])
    assert isinstance(action, Genesis)
    with pytest.raises(Refused, match="genesis"):
        log.append(seal_entry(2, log.head, action, cluster.root.private_key, NOW))
    assert genesis.content.previous == cluster.id


def test_a_removed_issuer_never_comes_back_and_a_foreign_one_never_comes() -> None:
    cluster = Cluster()
    log = cluster.log()
    (issuer,) = log.issuers()
    log.append(by_root(cluster, log, RemoveIssuer(issuer)))
    with pytest.raises(Refused, match="was removed"):
        log.append(by_root(cluster, log, AddIssuer(cluster.issuer.certificate)))
    with pytest.raises(Refused):
        log.append(by_root(cluster, log, AddIssuer(Cluster(2).issuer.certificate)))
    assert (log.height, dict(log.issuers())) == (2, {})


def forked(cluster: Cluster) -> tuple[TrustLog, TrustLog, Disk]:
    """Two sites that took different entries of height 2, A and B; the first has one more, C."""
    ours, disk = cluster.log(), Disk()
    theirs = copy_of(ours)
    disk.carry_out([Put("trust", {"height": 1, "entry": ours.entries()[0]})])
    disk.carry_out(ours.append(by_admin(cluster, ours, SITE_A)))
    theirs.append(by_admin(cluster, theirs, SITE_B))
    disk.carry_out(ours.append(by_admin(cluster, ours, SITE_C)))
    return ours, theirs, disk


def exchange(*logs: TrustLog) -> None:
    """Everybody shows everybody everything, as often as it takes."""
    for _ in range(3):
        for giver in logs:
            for taker in logs:
                for entry in giver.entries():
                    try:
                        taker.append(entry)
                    except Refused:
                        continue


def test_a_fork_freezes_the_log_and_the_revocations_of_both_branches_hold() -> None:
    cluster = Cluster()
    ours, theirs, disk = forked(cluster)
    for entry in theirs.entries():
        disk.carry_out(ours.append(entry))
    for log in (ours, TrustLog.restore(cluster.id, disk.rows.items())):
        assert log.fork is not None
        assert log.fork.height == 2
        assert log.revoked() == {SITE_A, SITE_B, SITE_C}
        with pytest.raises(Refused, match="frozen"):
            sign_revocation(log, SITE_A, "", cluster.admin, NOW)
        with pytest.raises(Refused, match="frozen"):
            log.append(seal_entry(4, log.head, RevokeSite(SITE_A), cluster.admin, NOW))


def test_both_sides_of_a_fork_find_it() -> None:
    ours, theirs, _ = forked(Cluster())
    exchange(ours, theirs)
    assert ours.fork is not None
    assert theirs.fork is not None
    assert ours.fork.ours == theirs.fork.theirs


def test_a_removed_admin_cannot_freeze_the_log() -> None:
    cluster = Cluster()
    log = cluster.log()
    stale = copy_of(log)
    log.append(by_root(cluster, log, RemoveAdmin(key_id(cluster.admin.public_key()))))
    with pytest.raises(Refused, match="not allowed"):
        log.append(by_admin(cluster, stale, SITE_A))
    assert log.fork is None


@pytest.mark.parametrize("keep_ours", [True, False])
def test_the_root_mends_a_fork_and_every_site_ends_on_one_branch(keep_ours: bool) -> None:  # noqa: FBT001
    cluster = Cluster()
    ours, theirs, disk = forked(cluster)
    disk.carry_out(w for entry in theirs.entries() for w in ours.append(entry))
    root = cluster.root.private_key
    disk.carry_out(ours.append(sign_mend(ours, keep_ours=keep_ours, root=root, now=NOW)))
    later = NOW + timedelta(days=1)
    removal = RemoveAdmin(key_id(cluster.admin.public_key()))
    disk.carry_out(ours.append(sign_entry(ours, removal, root, later)))
    fresh = copy_of(ours)
    exchange(ours, theirs, fresh)
    restarted = TrustLog.restore(cluster.id, disk.rows.items())
    for log in (ours, theirs, fresh, restarted):
        assert log.fork is None
        assert (log.height, log.head) == (4, ours.head)
        assert log.revoked() == {SITE_A, SITE_B, SITE_C}
        assert dict(log.admins()) == {}
    assert sorted(disk.rows) == [1, 2, 3, 4]


def test_a_site_that_was_away_cannot_reopen_a_mended_fork() -> None:
    cluster = Cluster()
    ours, theirs, _ = forked(cluster)
    away = theirs.entries()
    exchange(ours, theirs)
    ours.append(sign_mend(ours, keep_ours=True, root=cluster.root.private_key, now=NOW))
    assert ours.append(away[1]) == ()
    assert ours.fork is None
    ours.append(by_admin(cluster, ours, SITE_C))
    assert ours.height == 4


def test_a_mend_that_cannot_be_applied_changes_nothing() -> None:
    cluster = Cluster()
    log, root = cluster.log(), cluster.root.private_key
    nonsense = seal_entry(2, log.head, SetJurisdictions(("../x",)), root, NOW)
    log.append(by_admin(cluster, log, SITE_A))
    log.append(nonsense)
    assert log.fork is not None
    before = (log.height, log.head, log.fork)
    with pytest.raises(Malformed, match="impossible jurisdiction"):
        log.append(sign_mend(log, keep_ours=False, root=root, now=NOW))
    assert (log.height, log.head, log.fork) == before
    log.append(sign_mend(log, keep_ours=True, root=root, now=NOW))
    assert (log.height, log.entries()) == (3, log.entries()[:3])


def test_only_the_root_mends_and_only_what_is_known() -> None:
    cluster = Cluster()
    ours, theirs, _ = forked(cluster)
    with pytest.raises(Refused, match="nothing to mend"):
        sign_mend(ours, keep_ours=True, root=cluster.root.private_key, now=NOW)
    unaware = copy_of(ours)
    for entry in theirs.entries():
        ours.append(entry)
    with pytest.raises(Refused, match="only the root key"):
        sign_mend(ours, keep_ours=True, root=cluster.admin, now=NOW)
    mend = sign_mend(ours, keep_ours=False, root=cluster.root.private_key, now=NOW)
    before = (unaware.height, unaware.head)
    with pytest.raises(Refused, match="not known here"):
        unaware.append(mend)
    assert (unaware.height, unaware.head) == before


def test_a_damaged_or_missing_row_is_found_at_restart() -> None:
    cluster = Cluster()
    log = cluster.log()
    for site in (SITE_A, SITE_B, SITE_C):
        log.append(by_admin(cluster, log, site))
    rows = dict(enumerate(log.entries(), start=1))
    random = Random(3)
    for _ in range(200):
        height = random.choice(list(rows))
        entry = bytearray(rows[height])
        entry[random.randrange(len(entry))] ^= random.randrange(1, 256)
        with pytest.raises(Corruption, match="is damaged"):
            TrustLog.restore(cluster.id, (rows | {height: bytes(entry)}).items())
    del rows[2]
    with pytest.raises(Corruption):
        TrustLog.restore(cluster.id, rows.items())


def test_an_impossible_jurisdiction_or_key_is_malformed_although_the_root_signed_it() -> None:
    cluster = Cluster()
    log = cluster.log()
    with pytest.raises(Malformed, match="impossible jurisdiction"):
        log.append(by_root(cluster, log, SetJurisdictions(("../x",))))
    with pytest.raises(Malformed):
        log.append(seal_entry(2, log.head, AddIssuer(b"no"), cluster.root.private_key, NOW))
    assert log.height == 1
