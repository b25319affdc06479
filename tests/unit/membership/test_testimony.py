from mesh_of_statements import BOOT, accusation, record, signed, site
from one_site import OneSite

from agent.membership.events import Heard, MemberChanged, Revoked, SendGossip, SyncWith
from agent.wire.gossip import Ping
from agent.wire.records import Accusation


def dead_a(members: str = "abcd") -> OneSite:
    one = OneSite(members)
    one.silent = {"a"}
    one.run(6)
    one.hear("b", accusation("b", "a"), accusation("c", "a"))
    one.run(5)
    assert one.state("a") == "dead"
    return one


def test_a_first_accusation_makes_us_look_for_ourselves() -> None:
    one = OneSite()
    one.run(3)
    one.effects.clear()
    one.hear("b", accusation("b", "a"))
    pings = [e.target for e in one.made(SendGossip) if isinstance(e.message, Ping)]
    assert site("a") in pings


def test_an_accusation_is_passed_on_with_its_accusers_signature() -> None:
    one = OneSite()
    one.run(10)
    one.effects.clear()
    one.hear("b", accusation("b", "a"))
    one.run(1)
    assert accusation("b", "a") in one.told()


def test_accusations_stop_spreading_once_they_are_refuted() -> None:
    one = OneSite()
    one.run(10)
    one.hear("b", accusation("b", "a"))
    one.hear("a", record("a", BOOT + 1, incarnation=BOOT + 1))
    one.effects.clear()
    one.run(5)
    assert [s for s in one.told() if isinstance(s, Accusation)] == []


def test_hearing_whom_we_alone_accused_takes_it_back_and_lets_it_refute() -> None:
    one = OneSite()
    one.run(3)
    one.silent = {"a"}
    while one.state("a") == "alive":
        one.run(0.05)
    one.effects.clear()
    one.step(Heard(site("a"), Ping(1)))
    assert one.state("a") == "alive"
    assert accusation("me", "a") in one.told(site("a"))


def test_a_suspect_that_we_hear_is_not_condemned_by_others() -> None:
    one = OneSite()
    one.run(3)
    one.hear("b", accusation("b", "a"), accusation("c", "a"), accusation("d", "a"))
    one.silent = {"a"}
    for _ in range(20):
        one.run(0.5)
        one.step(Heard(site("a"), Ping(1)))
    assert one.state("a") == "suspect"
    one.run(6)
    assert one.state("a") == "dead"


def test_whoever_still_accuses_the_dead_gets_our_evidence_again() -> None:
    one = dead_a("abcde")
    one.run(30)
    one.effects.clear()
    one.hear("e", accusation("e", "a"))
    one.run(2)
    assert {s.accuser for s in one.told() if isinstance(s, Accusation)} >= {
        site("me"),
        site("b"),
        site("c"),
    }


def test_a_dead_member_that_pings_learns_why_and_comes_back_by_itself() -> None:
    one = dead_a()
    one.effects.clear()
    one.step(Heard(site("a"), Ping(1)))
    assert one.state("a") == "dead"
    assert any(isinstance(s, Accusation) and s.subject == site("a") for s in one.told(site("a")))
    one.hear("a", record("a", BOOT + 1, incarnation=BOOT + 1))
    assert one.state("a") == "alive"
    changes = [e for e in one.made(MemberChanged) if e.site == site("a")]
    assert [(e.before, e.after) for e in changes] == [("dead", "alive")]


def test_a_dead_member_is_pinged_again_with_the_evidence() -> None:
    one = dead_a()
    one.effects.clear()
    one.run(30)
    pings = [
        e for e in one.made(SendGossip) if e.target == site("a") and isinstance(e.message, Ping)
    ]
    assert len(pings) >= 2
    assert all(ping.message.rumors for ping in pings)


def test_our_own_accusation_coming_back_changes_nothing() -> None:
    one = OneSite()
    one.hear("b", accusation("me", "a"))
    assert one.state("a") == "alive"


def test_a_suspect_that_we_accuse_too_is_told_of_it_until_there_are_enough_of_us() -> None:
    one = OneSite("abcdefghijklmnopqrstuvwxyz")
    one.run(3)
    one.silent = {"a"}
    while one.state("a") == "alive":
        one.run(0.05)
    one.hear("b", accusation("b", "a"))
    one.run(3)
    one.effects.clear()
    one.run(5)
    pings = [
        e for e in one.made(SendGossip) if e.target == site("a") and isinstance(e.message, Ping)
    ]
    assert len(pings) >= 3
    assert all(ping.message.rumors for ping in pings)


def test_what_a_revoked_key_said_of_a_suspect_is_void() -> None:
    one = OneSite()
    one.run(3)
    one.hear("b", accusation("b", "a"))
    assert one.state("a") == "suspect"
    one.step(Revoked((site("b"),)))
    # Nobody can refute it any more: the accused takes no word of a revoked key.
    assert one.state("a") == "alive"


def test_a_death_that_others_saw_too_outlives_a_revoked_accuser() -> None:
    one = dead_a()
    one.step(Revoked((site("b"),)))
    assert one.state("a") == "dead", "others saw it too"
    for accuser in one.swim.accusations_of(site("a")):
        assert accuser.body != signed(accusation("b", "a")).body


def test_news_of_more_members_than_gossip_can_carry_brings_a_sync_forward() -> None:
    for members, is_soon in ((4, False), (OneSite.settings.record_rumors_max + 1, True)):
        names = [f"m{number}" for number in range(members)]
        one = OneSite()
        one.run(6)
        one.effects.clear()
        for name in names:
            one.hear("a", record(name))
        one.run(4)
        asked = [effect for effect in one.made(SyncWith) if effect.reason == "periodic"]
        assert bool(asked) == is_soon


def test_the_evidence_against_the_dead_goes_to_its_accuser_and_is_no_rumor() -> None:
    one = dead_a("abcdef")
    one.run(30)
    one.effects.clear()
    one.hear("f", accusation("e", "a"))
    one.run(2)
    assert [s for s in one.told(site("b")) if isinstance(s, Accusation)] == []
    assert one.swim.waiting_rumors == 0
    one.hear("e", accusation("e", "a"))
    assert len([s for s in one.told(site("e")) if isinstance(s, Accusation)]) == 3
    assert one.swim.waiting_rumors == 0
