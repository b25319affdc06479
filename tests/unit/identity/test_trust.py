"""The trust log: it only grows, only trusted keys extend it, and a fork is never overlooked."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest
from cluster_of_keys import NOW, Cluster

from agent.foundation.errors import Corruption, Malformed, Refused
from agent.foundation.ids import SiteId
from agent.foundation.writes import Delete, Put, Write
from agent.identity.certificates import key_id, make_issuer, read_issuer
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import (
    Action,
    AddAdmin,
    AddIssuer,
    Genesis,
    MendFork,
    RemoveAdmin,
    RemoveIssuer,
    RevokeSite,
    SetGroup,
    SetJurisdictions,
    read_entry,
    seal_entry,
)
from agent.identity.trust_signing import sign_entry, sign_mend, sign_revocation
from agent.wire.residency import GROUPS_MAX, Group
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
        SetGroup("EEA", ("NO", "DE", "NO")),
        SetGroup("EU", ("DE",)),
        SetGroup("EU", ("FR", "DE")),
        SetGroup("ASIA", ("JP",)),
        SetGroup("ASIA", ()),
        RevokeSite(SITE_A, "stolen"),
        RemoveIssuer(second_id),
    ):
        disk.carry_out(log.append(by_root(cluster, log, action)))
    for state in (log, TrustLog.restore(cluster.id, disk.rows.items())):
        assert state.height == 12
        assert second_id not in state.issuers()
        assert list(state.admins()) == [key_id(admin)]
        assert state.jurisdictions == ("NL",)
        assert state.groups == (Group("EEA", ("DE", "NO")), Group("EU", ("DE", "FR")))
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


def is_whole(log: TrustLog) -> bool:
    return log.fork is None


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
        assert [branch.tip_height for branch in log.fork.branches] == [3, 2]
        assert log.revoked() == {SITE_A, SITE_B, SITE_C}
        with pytest.raises(Refused, match="no more entries"):
            sign_revocation(log, SITE_A, "", cluster.admin, NOW)
        with pytest.raises(Refused, match="frozen"):
            log.submit(seal_entry(4, log.head, RevokeSite(SITE_A), cluster.admin, NOW))


def test_both_sides_of_a_fork_find_it() -> None:
    ours, theirs, _ = forked(Cluster())
    exchange(ours, theirs)
    assert ours.fork is not None
    assert ours.fork == theirs.fork
    assert (ours.head, ours.height, ours.digest8) == (theirs.head, theirs.height, theirs.digest8)


def test_a_removed_admin_cannot_freeze_the_log() -> None:
    cluster = Cluster()
    log = cluster.log()
    stale = copy_of(log)
    log.append(by_root(cluster, log, RemoveAdmin(key_id(cluster.admin.public_key()))))
    with pytest.raises(Refused, match="not allowed"):
        log.append(by_admin(cluster, stale, SITE_A))
    assert log.fork is None


@pytest.mark.parametrize("kept", [0, 1])
def test_the_root_mends_a_fork_and_every_site_ends_on_one_branch(kept: int) -> None:
    cluster = Cluster()
    ours, theirs, disk = forked(cluster)
    disk.carry_out(w for entry in theirs.entries() for w in ours.append(entry))
    root = cluster.root.private_key
    assert ours.fork is not None
    branch = ours.fork.branches[kept]
    disk.carry_out(ours.submit(sign_mend(ours, keep=branch.first, root=root, now=NOW)))
    later = NOW + timedelta(days=1)
    removal = RemoveAdmin(key_id(cluster.admin.public_key()))
    disk.carry_out(ours.submit(sign_entry(ours, removal, root, later)))
    fresh = copy_of(ours)
    exchange(ours, theirs, fresh)
    restarted = TrustLog.restore(cluster.id, disk.rows.items())
    for log in (ours, theirs, fresh, restarted):
        assert log.fork is None
        assert (log.height, log.head) == (branch.tip_height + 2, ours.head)
        assert log.digest8 == ours.digest8
        assert log.revoked() == {SITE_A, SITE_B, SITE_C}, "although who signed them is removed"
        assert dict(log.admins()) == {}


def test_a_site_that_was_away_cannot_reopen_a_mended_fork() -> None:
    cluster = Cluster()
    ours, theirs, _ = forked(cluster)
    away = copy_of(theirs)
    exchange(ours, theirs)
    assert ours.fork is not None
    keep = ours.fork.branches[0].tip
    ours.append(sign_mend(ours, keep=keep, root=cluster.root.private_key, now=NOW))
    ours.append(by_admin(cluster, ours, SITE_C))
    height = ours.height
    away.append(by_admin(cluster, away, SiteId(bytes([9]) * 32)))
    exchange(ours, away)
    assert is_whole(ours)
    assert ours.height == height
    assert bytes([9]) * 32 in ours.revoked(), "what the lost branch revokes holds all the same"
    assert is_whole(away)
    assert (away.head, away.revoked()) == (ours.head, ours.revoked())


def test_a_second_fork_after_a_mend_is_mended_by_a_second_mend() -> None:
    cluster = Cluster()
    ours, theirs, _ = forked(cluster)
    exchange(ours, theirs)
    root = cluster.root.private_key
    for _ in range(2):
        assert ours.fork is not None
        tip = ours.fork.branches[-1].tip
        ours.submit(sign_mend(ours, keep=tip, root=root, now=NOW))
        exchange(ours, theirs)
        assert is_whole(ours)
        assert is_whole(theirs)
        assert ours.head == theirs.head
        one, other = by_admin(cluster, ours, SITE_A), by_admin(cluster, ours, SITE_B)
        ours.append(one)
        theirs.append(other)
        exchange(ours, theirs)
    assert ours.fork is not None
    assert ours.fork.height > 3


def test_only_the_root_mends_and_only_a_branch_that_is_there() -> None:
    cluster = Cluster()
    ours, theirs, _ = forked(cluster)
    root = cluster.root.private_key
    with pytest.raises(Refused, match="nothing to mend"):
        sign_mend(ours, keep=ours.head, root=root, now=NOW)
    unaware = copy_of(ours)
    for entry in theirs.entries():
        ours.append(entry)
    with pytest.raises(Refused, match="only the root key"):
        sign_mend(ours, keep=ours.head, root=cluster.admin, now=NOW)
    with pytest.raises(Refused, match="such a branch"):
        sign_mend(ours, keep=bytes(32), root=root, now=NOW)
    mend = sign_mend(ours, keep=theirs.head, root=root, now=NOW)
    before = (unaware.height, unaware.head)
    with pytest.raises(Refused, match="fetch the entries between"):
        unaware.append(mend)
    assert (unaware.height, unaware.head) == before
    forged = seal_entry(4, ours.head, MendFork(()), cluster.admin, NOW)
    with pytest.raises(Refused, match="only the root may sign it"):
        ours.append(forged)


def test_a_stolen_admin_key_cannot_undo_what_the_root_decided_by_opening_a_branch() -> None:
    cluster = Cluster()
    log = cluster.log()
    stale = copy_of(log)
    second = cluster.key()
    log.append(by_root(cluster, log, AddAdmin(second.public_key().public_bytes_raw())))
    before = set(log.admins())
    for _ in range(5):  # the longer branch
        stale.append(by_admin(cluster, stale, SITE_A))
    exchange(log, stale)
    for one in (log, stale):
        assert one.fork is not None
        assert set(one.admins()) == before


def test_a_flood_of_false_revocations_is_undone_by_removing_who_signed_them() -> None:
    cluster = Cluster()
    log = cluster.log()
    bad = cluster.key()
    log.append(by_root(cluster, log, AddAdmin(bad.public_key().public_bytes_raw())))
    thief = copy_of(log)
    log.append(by_admin(cluster, log, SITE_A))
    for number in range(230):
        site = SiteId(number.to_bytes(32, "big"))
        thief.append(sign_revocation(thief, site, "", bad, NOW))
    for entry in thief.entries():
        log.append(entry)
    assert len(log.revoked()) == 231
    root = cluster.root.private_key
    assert log.fork is not None
    kept = next(one for one in log.fork.branches if one.tip_height == 3)
    log.submit(sign_mend(log, keep=kept.tip, root=root, now=NOW))
    log.submit(by_root(cluster, log, RemoveAdmin(key_id(bad.public_key()))))
    assert len(log.revoked()) == 201, "a mend holds some, so look before you mend"
    assert SITE_A in log.revoked()
    exchange(thief, log)
    assert thief.revoked() == log.revoked()
    assert thief.digest8 == log.digest8


def test_an_admin_removed_on_both_branches_of_a_fork_is_removed_on_both() -> None:
    cluster = Cluster()
    one = cluster.log()
    other = copy_of(one)
    gone = RemoveAdmin(key_id(cluster.admin.public_key()))
    one.append(by_admin(cluster, one, SITE_A))
    one.append(by_root(cluster, one, gone))
    other.append(by_admin(cluster, other, SITE_B))
    other.append(by_admin(cluster, other, SITE_C))
    stale = copy_of(other)
    other.append(by_root(cluster, other, gone))
    stale.append(by_admin(cluster, stale, SiteId(bytes([9]) * 32)))
    for giver, taker in ((one, other), (other, one), (stale, one), (stale, other)):
        for entry in giver.entries():
            try:
                taker.append(entry)
            except Refused:
                continue
    joiner = TrustLog(cluster.id)
    joiner.learn(one.entries())
    for log in (one, other, joiner):
        assert log.revoked() == {SITE_A, SITE_B, SITE_C}, "on the way to a removal they count"
        assert (log.digest8, log.fork) == (one.digest8, one.fork)
        assert dict(log.admins()) == {}


def test_a_false_removal_recalls_nothing() -> None:
    cluster = Cluster()
    log = cluster.log()
    stale = copy_of(log)
    log.append(by_root(cluster, log, RemoveAdmin(key_id(cluster.admin.public_key()))))
    stale.append(by_admin(cluster, stale, SITE_A))
    gone = RemoveAdmin(key_id(cluster.admin.public_key()))
    forged = seal_entry(stale.height + 1, stale.head, gone, cluster.admin, NOW)
    for entry in (*stale.entries()[1:], forged):
        with pytest.raises(Refused):
            log.append(entry)
    assert log.revoked() == frozenset()
    assert log.height == 2


def test_an_operators_entry_must_be_the_next_one() -> None:
    cluster = Cluster()
    log = cluster.log()
    one, other = by_admin(cluster, log, SITE_A), by_admin(cluster, log, SITE_B)
    assert log.submit(one) != ()
    assert log.submit(one) == ()
    with pytest.raises(Refused, match="has moved"):
        log.submit(other)
    assert log.fork is None


def test_logs_tell_each_other_only_what_is_lacking() -> None:
    cluster = Cluster()
    log = cluster.log()
    old = copy_of(log)
    for number in range(100):
        log.append(by_admin(cluster, log, SiteId(number.to_bytes(32, "big"))))
    assert len(log.heads().known) < 12
    page, is_all = log.lacking(old.heads(), 40, 1 << 20)
    assert (len(page), is_all) == (40, False)
    for entry in page:
        old.append(entry)
    page, is_all = log.lacking(old.heads(), 100, 1 << 20)
    assert (len(page), is_all) == (60, True)
    assert len(old.lacking(log.heads(), 100, 1 << 20)[0]) < 16, "past the last mark they share"
    assert log.covers(old.heads())
    assert not old.covers(log.heads())
    assert log.lacking(old.heads(), 100, 300)[1] is False, "bounded in bytes too"


def test_a_log_that_was_never_changed_leaves_the_records_as_they_were() -> None:
    cluster = Cluster()
    log = cluster.log()
    assert log.digest8 == bytes(8)
    log.append(by_admin(cluster, log, SITE_A))
    assert log.digest8 != bytes(8)


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


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_after_damage_every_revocation_that_proves_itself_holds(lost: int) -> None:
    cluster = Cluster()
    log = cluster.log()
    founding = log.entries()
    for site in (SITE_A, SITE_B, SITE_C):
        log.append(by_admin(cluster, log, site))
    rows = dict(enumerate(log.entries(), start=1))
    rows[lost] = b"noise"
    damaged = TrustLog.salvaged(cluster.id, rows.items(), founding)
    assert damaged.trouble
    gone = {1: set(), 2: {SITE_A}, 3: {SITE_B}}[lost]
    assert damaged.revoked() == {SITE_A, SITE_B, SITE_C} - gone
    entries, _ = log.lacking(damaged.heads(), 100, 1 << 20)
    disk = Disk()
    disk.rows = dict(rows)
    disk.carry_out(damaged.unwritten())
    for entry in entries:
        disk.carry_out(damaged.append(entry))
    assert damaged.covers(log.heads())
    assert (damaged.head, damaged.revoked()) == (log.head, log.revoked())
    disk.carry_out(damaged.confirm())
    assert damaged.trouble == ""
    again = TrustLog.salvaged(cluster.id, disk.rows.items(), founding)
    assert (again.trouble, again.head) == ("", log.head)


def test_a_row_that_nobody_known_signed_holds_until_a_member_confirms() -> None:
    cluster = Cluster()
    log, disk = cluster.log(), Disk()
    disk.rows[1] = log.entries()[0]
    disk.rows[2] = seal_entry(2, log.head, RevokeSite(SITE_A), cluster.key(), NOW)
    whole, _ = read_entry(by_admin(cluster, log, SITE_B))
    disk.rows[3] = pack(replace(whole, signature=bytes(64)))
    found = TrustLog.salvaged(cluster.id, disk.rows.items())
    assert found.trouble
    assert found.revoked() == {SITE_A}, "its admin may be named by a row that is lost"
    disk.carry_out(found.confirm())
    assert list(disk.rows) == [1]
    assert found.revoked() == frozenset()


def test_groups_are_bounded() -> None:
    cluster = Cluster()
    log = cluster.log()
    for number in range(GROUPS_MAX):
        log.append(by_root(cluster, log, SetGroup(f"g{number}", ("DE",))))
    with pytest.raises(Refused, match="too many groups"):
        log.append(by_root(cluster, log, SetGroup("more", ("DE",))))
    log.append(by_root(cluster, log, SetGroup("g0", ())))
    log.append(by_root(cluster, log, SetGroup("more", ("DE",))))
    assert len(log.groups) == GROUPS_MAX


def test_while_the_log_is_in_doubt_or_forked_there_are_no_groups() -> None:
    cluster = Cluster()
    log, disk = cluster.log(), Disk()
    disk.rows[1] = log.entries()[0]
    disk.carry_out(log.append(by_root(cluster, log, SetGroup("EU", ("DE",)))))
    assert log.groups
    whole = disk.rows[2]
    disk.rows[2] = pack(replace(read_entry(whole)[0], signature=bytes(64)))
    doubted = TrustLog.salvaged(cluster.id, disk.rows.items())
    assert doubted.trouble
    assert doubted.groups == ()
    other = cluster.log()
    log.append(by_root(cluster, other, SetGroup("EU", ("DE", "US"))))
    assert log.fork is not None
    assert log.groups == ()


def test_an_impossible_jurisdiction_or_key_is_malformed_although_the_root_signed_it() -> None:
    cluster = Cluster()
    log = cluster.log()
    with pytest.raises(Malformed, match="impossible jurisdiction"):
        log.append(by_root(cluster, log, SetJurisdictions(("../x",))))
    for impossible in (SetGroup("a b", ("DE",)), SetGroup("EU", ("../x",))):
        with pytest.raises(Malformed, match="impossible jurisdiction"):
            log.append(by_root(cluster, log, impossible))
    with pytest.raises(Malformed):
        log.append(seal_entry(2, log.head, AddIssuer(b"no"), cluster.root.private_key, NOW))
    assert log.height == 1
