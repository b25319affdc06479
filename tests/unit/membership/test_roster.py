import pytest
from mesh_of_statements import BOOT, Notary, accusation, record, signed, site

from agent.membership import roster as roster_module
from agent.membership.events import MemberChanged, RecordChanged, RememberPeer, SwimEffect
from agent.membership.roster import Roster, Verdict
from agent.membership.settings import Settings
from agent.wire.records import Accusation, Endpoint, Signed, SiteRecord


class Bench:
    """A roster of site 'me' with short calls."""

    def __init__(self, strangers: tuple[str, ...] = ()) -> None:
        self.out: list[SwimEffect] = []
        self.notary = Notary(site("me"), tuple(map(site, strangers)))
        self.roster = Roster(site("me"), self.notary, Settings.lan(), self.out)

    def take(self, statement: SiteRecord | Accusation, now: float = 0.0) -> Verdict:
        if isinstance(statement, SiteRecord):
            return self.roster.take_record(statement, signed(statement), now)
        return self.roster.take_accusation(statement, signed(statement), now)

    def state(self, name: str) -> str:
        return self.roster.views[site(name)].state

    def changes(self) -> list[tuple[str | None, str]]:
        return [(e.before, e.after) for e in self.out if isinstance(e, MemberChanged)]


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    for name in "abcd":
        bench.take(record(name))
    bench.out.clear()
    return bench


def test_a_signed_record_admits_a_member_and_its_peer_book_entry() -> None:
    bench = Bench()
    assert bench.take(record("a")) is Verdict.NEWS
    assert bench.state("a") == "alive"
    assert [type(effect) for effect in bench.out] == [MemberChanged, RecordChanged, RememberPeer]


def test_an_old_record_is_stale_and_costs_no_signature_check(bench: Bench) -> None:
    bench.take(record("a", BOOT + 5))
    checked = bench.notary.checked
    assert bench.take(record("a", BOOT + 4)) is Verdict.STALE
    assert bench.take(record("a", BOOT + 5)) is Verdict.STALE
    assert bench.notary.checked == checked


def test_a_record_with_a_wrong_signature_is_forged_and_changes_nothing(bench: Bench) -> None:
    newer = record("a", BOOT + 1, load=9.0)
    forged = Signed(signed(newer).body, bytes(64))
    assert bench.roster.take_record(newer, forged, 0.0) is Verdict.FORGED
    assert bench.roster.views[site("a")].record.load == 0.0
    assert bench.out == []


def test_a_record_of_a_site_without_a_known_key_is_unknown() -> None:
    bench = Bench(strangers=("x",))
    assert bench.take(record("x")) is Verdict.UNKNOWN
    assert len(bench.roster) == 0


def test_an_incarnation_never_falls_even_with_a_newer_sequence(bench: Bench) -> None:
    bench.take(record("a", BOOT + 5, incarnation=BOOT + 5))
    assert bench.take(record("a", BOOT + 6, incarnation=BOOT)) is Verdict.FORGED


def test_an_incarnation_beyond_its_sequence_is_impossible(bench: Bench) -> None:
    assert bench.take(record("a", BOOT + 1, incarnation=BOOT + 2)) is Verdict.FORGED


def test_a_new_address_is_just_a_newer_record(bench: Bench) -> None:
    moved = record("a", BOOT + 1, endpoint=Endpoint("10.9.9.9", 7411, 7412))
    assert bench.take(moved) is Verdict.NEWS
    assert bench.roster.views[site("a")].record.endpoint.host == "10.9.9.9"
    assert any(isinstance(effect, RememberPeer) for effect in bench.out)


def test_a_change_of_load_is_not_written_to_the_peer_book(bench: Bench) -> None:
    bench.take(record("a", BOOT + 1, load=0.5))
    assert not any(isinstance(effect, RememberPeer) for effect in bench.out)


def test_an_accusation_makes_a_member_suspect(bench: Bench) -> None:
    assert bench.take(accusation("b", "a"), 5.0) is Verdict.NEWS
    assert bench.state("a") == "suspect"
    assert bench.roster.views[site("a")].changed_at == 5.0


def test_a_refuted_suspicion_revives_the_member(bench: Bench) -> None:
    bench.take(accusation("b", "a"))
    bench.take(record("a", BOOT + 1, incarnation=BOOT + 1))
    assert bench.changes() == [("alive", "suspect"), ("suspect", "alive")]


def test_a_newer_record_of_the_same_incarnation_refutes_nothing(bench: Bench) -> None:
    bench.take(accusation("b", "a"))
    bench.take(record("a", BOOT + 1, load=0.7))
    assert bench.state("a") == "suspect"


def test_an_accusation_against_an_older_incarnation_is_stale(bench: Bench) -> None:
    bench.take(record("a", BOOT + 1, incarnation=BOOT + 1))
    assert bench.take(accusation("b", "a", BOOT)) is Verdict.STALE
    assert bench.state("a") == "alive"


def test_an_accusation_against_an_unseen_incarnation_counts_for_nothing(bench: Bench) -> None:
    assert bench.take(accusation("b", "a", BOOT + 7)) is Verdict.AHEAD
    assert bench.state("a") == "alive"


def test_nobody_can_accuse_in_anothers_name(bench: Bench) -> None:
    claimed = accusation("b", "a")
    forged = Signed(signed(claimed).body, signed(accusation("c", "a")).signature)
    assert bench.roster.take_accusation(claimed, forged, 0.0) is Verdict.FORGED
    assert bench.state("a") == "alive"


def test_nobody_accuses_itself(bench: Bench) -> None:
    assert bench.take(accusation("a", "a")) is Verdict.FORGED


def test_a_large_cluster_needs_three_accusers_and_a_small_one_fewer(bench: Bench) -> None:
    assert bench.roster.needed() == 3
    pair = Bench()
    pair.take(record("a"))
    assert pair.roster.needed() == 2
    pair.take(accusation("me", "a"))
    assert pair.roster.needed() == 1


def test_three_accusers_and_the_time_make_a_death(bench: Bench) -> None:
    for accuser in ("me", "b"):
        bench.take(accusation(accuser, "a"), 10.0)
    peer = bench.roster.get(site("a"))
    assert peer is not None
    assert peer not in bench.roster.overdue(10.0 + 1.9)
    bench.take(accusation("c", "a"), 11.0)
    floor_s = Settings.lan().suspicion_floor_s(5)
    assert bench.roster.due_at == pytest.approx(10.0 + 2.0)
    assert bench.roster.overdue(10.0 + floor_s - 0.01) == []
    assert bench.roster.overdue(10.0 + floor_s + 0.01) == [peer]
    bench.roster.condemn(peer, 14.0)
    assert bench.state("a") == "dead"


def test_a_dead_member_is_revived_only_by_itself(bench: Bench) -> None:
    for accuser in ("me", "b", "c"):
        bench.take(accusation(accuser, "a"))
    peer = bench.roster.get(site("a"))
    assert peer is not None
    bench.roster.condemn(peer, 5.0)
    assert bench.take(record("a", BOOT + 1)) is Verdict.NEWS
    assert bench.state("a") == "dead"
    assert bench.take(accusation("d", "a")) is Verdict.SETTLED
    bench.take(record("a", BOOT + 2, incarnation=BOOT + 2))
    assert bench.state("a") == "alive"


def test_our_lone_accusation_can_be_withdrawn_and_a_shared_one_cannot(bench: Bench) -> None:
    peer = bench.roster.get(site("a"))
    assert peer is not None
    bench.take(accusation("me", "a"))
    assert bench.roster.withdraw(peer, 1.0)
    assert bench.state("a") == "alive"
    bench.take(accusation("me", "a"))
    bench.take(accusation("b", "a"))
    assert not bench.roster.withdraw(peer, 2.0)
    assert bench.state("a") == "suspect"


def test_goodbye_ends_a_suspicion_and_a_newer_record_ends_the_goodbye(bench: Bench) -> None:
    bench.take(accusation("b", "a"))
    bench.take(record("a", BOOT + 1, incarnation=BOOT + 1, status="left"))
    assert bench.state("a") == "left"
    assert bench.take(accusation("c", "a", BOOT + 1)) is Verdict.STALE
    bench.take(record("a", 2 * BOOT, boot_epoch=2, incarnation=2 * BOOT))
    assert bench.state("a") == "alive"
    assert bench.changes() == [("alive", "suspect"), ("suspect", "left"), ("left", "alive")]


def test_a_stall_gives_every_suspect_its_time_back(bench: Bench) -> None:
    for accuser in ("me", "b", "c"):
        bench.take(accusation(accuser, "a"), 10.0)
    bench.roster.hold_all(4.0, 14.5)
    floor_s = Settings.lan().suspicion_floor_s(5)
    assert bench.roster.overdue(10.0 + floor_s + 3.9) == []
    assert len(bench.roster.overdue(10.0 + floor_s + 4.1)) == 1


def test_the_number_of_members_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "MEMBERS_MAX", 2)
    bench = Bench()
    verdicts = [bench.take(record(name)) for name in "abc"]
    assert verdicts == [Verdict.NEWS, Verdict.NEWS, Verdict.STALE]
    assert len(bench.roster) == 2


def test_the_cluster_size_counts_suspects_and_this_site_but_not_the_dead(bench: Bench) -> None:
    assert (bench.roster.sites, len(bench.roster.reachable())) == (5, 4)
    for accuser in ("me", "b", "c"):
        bench.take(accusation(accuser, "a"))
    assert bench.roster.sites == 5
    peer = bench.roster.get(site("a"))
    assert peer is not None
    bench.roster.condemn(peer, 5.0)
    assert (bench.roster.sites, len(bench.roster.reachable())) == (4, 3)
    assert bench.roster.is_anybody_expected
