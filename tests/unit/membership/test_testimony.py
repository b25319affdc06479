from mesh_of_statements import BOOT, accusation, record, site
from one_site import OneSite

from agent.membership.events import Heard, MemberChanged, SendGossip
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
