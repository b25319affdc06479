import pytest
from mesh_of_statements import BOOT, accusation, record, signed, site
from one_site import OneSite

from agent.foundation.machine import NEVER
from agent.membership.events import (
    Doubted,
    Heard,
    IdentityCloned,
    Introduced,
    IsolationChanged,
    Leave,
    LocalChanged,
    LoopLagged,
    MemberChanged,
    RecordChanged,
    RememberPeer,
    SendFailed,
    SendGossip,
    SyncEnded,
    SyncWith,
)
from agent.wire.gossip import Ack, Gossip, Ping
from agent.wire.mesh import MemberHead
from agent.wire.records import Accusation, Signed, SiteRecord


def test_a_site_that_knows_nobody_sleeps() -> None:
    alone = OneSite("")
    assert alone.swim.wake_at() == NEVER
    assert alone.effects == []


def test_introduced_members_are_alive_remembered_and_synced_with_at_once() -> None:
    one = OneSite(joined=False)
    assert [e.after for e in one.made(MemberChanged)] == ["alive"] * 4
    assert len(one.made(RememberPeer)) == 4
    assert [e.reason for e in one.made(SyncWith)] == ["join"]


def test_whoever_calls_is_news_to_others_even_before_this_site_has_joined() -> None:
    for is_caller in (False, True):
        one = OneSite("")
        one.step(Introduced((signed(record("a")),), is_by_sync=True))
        one.step(Introduced((signed(record("b")),), is_by_sync=True, is_caller=is_caller))
        one.run(0.25)
        assert (record("b") in one.told()) == is_caller


def test_members_that_a_sync_brings_are_not_each_called_back() -> None:
    one = OneSite("")
    for name in "abcd":
        one.step(Introduced((signed(record(name)),), is_by_sync=True))
    assert one.made(SyncWith) == []
    one.run(0.6)
    assert [e.reason for e in one.made(SyncWith)] == ["join"]


def test_a_ping_is_answered_with_its_number() -> None:
    one = OneSite()
    effects = one.step(Heard(site("a"), Ping(77)))
    acks = [e.message for e in effects if isinstance(e, SendGossip) and e.target == site("a")]
    assert [(ack.number, ack.subject) for ack in acks if isinstance(ack, Ack)] == [(77, site("me"))]


def test_a_message_from_a_stranger_is_not_answered() -> None:
    one = OneSite()
    one.run(5)
    one.effects.clear()
    one.step(Heard(site("stranger"), Ping(77)))
    assert [e for e in one.made(SendGossip) if e.target == site("stranger")] == []


def test_a_stranger_that_brings_its_record_is_a_member_and_is_answered() -> None:
    one = OneSite()
    effects = one.step(Heard(site("new"), Ping(77, (signed(record("new")),))))
    assert one.state("new") == "alive"
    assert site("new") in [e.target for e in effects if isinstance(e, SendGossip)]


def test_a_refusal_to_answer_ends_in_suspicion_and_a_signed_accusation() -> None:
    one = OneSite()
    one.silent = {"a"}
    one.run(6)
    assert one.state("a") == "suspect"
    claims = [s for s in one.told() if isinstance(s, Accusation)]
    assert claims
    assert {(c.accuser, c.subject, c.incarnation) for c in claims} == {
        (site("me"), site("a"), BOOT)
    }


def test_a_member_that_somebody_waits_for_is_probed_out_of_turn() -> None:
    one = OneSite()
    one.silent = {"c"}
    for name, pings in (("c", 1), ("c", 0), ("nobody", 0)):
        effects = one.step(Doubted(site(name)))
        asked = [e for e in effects if isinstance(e, SendGossip) and isinstance(e.message, Ping)]
        assert [e.target for e in asked] == [site(name)] * pings, "one probe at a time"


def test_one_site_alone_kills_nobody_while_others_live() -> None:
    one = OneSite()
    one.silent = {"a"}
    one.run(120)
    assert one.state("a") == "suspect"


def test_three_accusers_and_the_time_to_refute_make_a_death() -> None:
    one = OneSite()
    one.silent = {"a"}
    one.run(6)
    one.hear("b", accusation("b", "a"), accusation("c", "a"))
    one.run(5)
    assert one.state("a") == "dead"


def test_the_suspect_hears_of_its_suspicion_from_whoever_talks_to_it() -> None:
    one = OneSite()
    one.hear("b", accusation("b", "a"))
    one.effects.clear()
    one.step(Heard(site("a"), Ping(5)))
    assert accusation("b", "a") in one.told(site("a"))


def test_an_accusation_against_us_is_refuted_at_once() -> None:
    one = OneSite()
    one.run(3)
    one.hear("b", accusation("b", "me"))
    assert one.swim.record.incarnation == BOOT + 1
    assert one.swim.health > 0
    answers = [s for s in one.told(site("b")) if isinstance(s, SiteRecord)]
    assert answers[-1].incarnation == BOOT + 1


def test_an_outdated_accusation_against_us_is_answered_without_a_new_incarnation() -> None:
    one = OneSite()
    one.hear("b", accusation("b", "me"))
    one.run(20)
    one.effects.clear()
    one.hear("c", accusation("c", "me", BOOT))
    assert one.swim.record.incarnation == BOOT + 1
    assert one.told(site("c")) == [one.swim.record]


def test_an_invented_incarnation_cannot_push_ours() -> None:
    one = OneSite()
    one.hear("b", accusation("b", "me", 2**62))
    assert one.swim.record.incarnation == BOOT


def test_a_copy_of_our_key_raises_an_alarm() -> None:
    one = OneSite()
    one.hear("b", record("me", BOOT + 50, incarnation=BOOT + 50))
    assert one.made(IdentityCloned) == [IdentityCloned(BOOT + 50)]
    assert one.swim.record.sequence == BOOT + 51


def test_a_forged_record_of_ours_is_ignored() -> None:
    one = OneSite()
    body = signed(record("me", BOOT + 50, incarnation=BOOT + 50)).body
    one.step(Heard(site("b"), Gossip((Signed(body, bytes(64)),))))
    assert one.made(IdentityCloned) == []
    assert one.swim.forged == 1


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x92\x01\x90", b"\x92\x09\x90", bytes(800)])
def test_statements_that_do_not_decode_are_counted_and_dropped(body: bytes) -> None:
    one = OneSite()
    one.step(Heard(site("b"), Gossip((Signed(body, bytes(64)),))))
    assert one.swim.malformed == 1


def test_a_known_statement_is_checked_once() -> None:
    one = OneSite()
    moved = record("a", BOOT + 1, load=0.5)
    one.hear("b", moved)
    checked = one.notary.checked
    for sender in "bcd":
        one.hear(sender, moved)
    assert one.notary.checked == checked


def test_an_unknown_member_is_asked_for_at_whoever_spoke_of_it() -> None:
    one = OneSite(strangers="x")
    one.run(6)
    one.effects.clear()
    one.hear("b", record("x"))
    one.run(0.15)
    assert [(e.site, e.reason) for e in one.made(SyncWith)] == [(site("b"), "unknown member")]
    one.hear("b", record("x"))
    assert len(one.made(SyncWith)) == 1


def test_news_is_passed_on_at_once_and_then_dies_down() -> None:
    one = OneSite("abcdefgh")
    one.run(10)
    one.effects.clear()
    one.hear("a", record("a", BOOT + 9, load=0.5))
    sent = [e for e in one.made(SendGossip) if isinstance(e.message, Gossip)]
    assert len(sent) == 5
    one.run(10)
    told = [s for s in one.told() if isinstance(s, SiteRecord) and s.sequence == BOOT + 9]
    assert len(told) <= 10
    one.effects.clear()
    one.run(20)
    assert [e for e in one.made(SendGossip) if e.message.rumors] == []


def test_a_local_change_becomes_a_newer_record_and_a_rumor() -> None:
    one = OneSite()
    one.run(10)
    one.effects.clear()
    one.step(LocalChanged(capacity=5.0))
    assert one.swim.record.capacity == 5.0
    assert [e.record.sequence for e in one.made(RecordChanged)] == [BOOT + 1]
    assert one.swim.record in one.told()


def test_a_site_that_nobody_answers_says_isolated_within_five_seconds() -> None:
    one = OneSite()
    one.run(3)
    one.silent = set("abcd")
    began = one.now
    while not one.made(IsolationChanged) and one.now < began + 20:
        one.run(0.1)
    assert one.made(IsolationChanged) == [IsolationChanged(is_isolated=True)]
    assert one.now - began <= 5.0
    assert one.swim.is_isolated


def test_an_isolated_site_condemns_nobody_and_forgives_all_when_it_is_back() -> None:
    one = OneSite()
    one.run(3)
    one.silent = set("abcd")
    one.run(60)
    assert {one.state(name) for name in "abcd"} == {"suspect"}
    one.silent = set()
    one.effects.clear()
    one.run(2)
    assert {one.state(name) for name in "abcd"} == {"alive"}
    assert one.made(IsolationChanged) == [IsolationChanged(is_isolated=False)]
    assert [s for s in one.told() if isinstance(s, Accusation)] == []


def test_send_errors_blame_this_site_and_nobody_else() -> None:
    one = OneSite()
    one.run(3)
    one.silent = set("abcd")
    one.effects.clear()
    until = one.now + 4
    while one.now < until:
        for effect in one.made(SendGossip):
            one.step(SendFailed(effect.target))
        one.effects.clear()
        one.run(0.1)
    assert {one.state(name) for name in "abcd"} == {"alive"}
    assert one.swim.health > 0


def test_a_stalled_site_accuses_nobody_and_refutes_before_it_is_asked() -> None:
    one = OneSite()
    one.run(3)
    one.silent = set("abcd")
    one.run(0.8)
    one.effects.clear()
    one.now += 5.0
    one.silent = set()
    one.step(Heard(site("a"), Gossip()))
    assert {one.state(name) for name in "abcd"} == {"alive"}
    assert one.swim.record.incarnation > BOOT
    assert {e.target for e in one.made(SendGossip)} >= {site(name) for name in "abcd"}


def test_a_reported_loop_lag_is_not_counted_twice() -> None:
    one = OneSite()
    one.run(3)
    one.now += 5.0
    one.step(Heard(site("a"), Gossip()))
    incarnation = one.swim.record.incarnation
    one.step(LoopLagged(5.0))
    assert one.swim.record.incarnation == incarnation


def test_goodbye_reaches_everybody_directly_and_then_the_site_is_quiet() -> None:
    one = OneSite()
    one.run(10)
    one.effects.clear()
    one.step(Leave())
    told = {e.target for e in one.made(SendGossip)}
    assert told == {site(name) for name in "abcd"}
    assert one.swim.record.status == "left"
    one.run(10)
    assert one.swim.wake_at() == NEVER
    one.effects.clear()
    one.step(Heard(site("a"), Ping(1)))
    one.hear("b", accusation("b", "me", one.swim.record.incarnation))
    one.step(LocalChanged(load=9.0))
    assert one.made(SendGossip) == [] or one.swim.record.status == "left"


def test_a_differing_catalog_asks_for_a_sync() -> None:
    one = OneSite()
    one.run(3)
    one.effects.clear()
    one.hear("a", record("a", BOOT + 1, catalog=b"8 bytes!"))
    one.run(1.2)
    reasons = [(e.site, e.reason) for e in one.made(SyncWith)]
    assert (site("a"), "catalog differs") in reasons


def test_a_member_that_answers_only_over_tcp_is_relayed_not_dead() -> None:
    one = OneSite()
    one.run(3)
    one.silent = {"a"}
    while not any(e.reason == "no answer over UDP" for e in one.made(SyncWith)):
        one.run(0.05)
    one.step(SyncEnded(site("a"), succeeded=True))
    assert one.state("a") == "alive"
    assert one.swim.members()[site("a")].is_relayed


def test_round_trips_are_measured() -> None:
    one = OneSite()
    one.run(10)
    assert one.swim.members()[site("a")].rtt_s == 0.0


def test_heads_name_everybody_and_what_is_wanted_is_what_they_know_better() -> None:
    one = OneSite("ab")
    heads = {head.site: head.sequence for head in one.swim.heads()}
    assert heads == {site("me"): BOOT, site("a"): BOOT, site("b"): BOOT}
    theirs = (
        MemberHead(site("a"), BOOT + 1),
        MemberHead(site("b"), BOOT),
        MemberHead(site("c"), 1),
    )
    assert one.swim.wanted(theirs) == (site("a"), site("c"))


def test_a_newcomer_gets_records_and_the_evidence_against_itself_and_the_dead() -> None:
    one = OneSite()
    one.silent = {"a"}
    one.run(6)
    one.hear("b", accusation("b", "a"), accusation("c", "a"))
    one.run(5)
    assert one.state("a") == "dead"
    one.hear("b", accusation("b", "d"))
    pairs = one.swim.statements_for(site("d"), (MemberHead(site("b"), BOOT),))
    assert {speaker for speaker, _ in pairs} == {site(name) for name in ("me", "a", "b", "c")}
    bodies = [statement.body for _, statement in pairs]
    assert signed(accusation("b", "d")).body in bodies
    assert signed(accusation("c", "a")).body in bodies
    assert signed(record("b")).body not in bodies


def test_a_newcomer_does_not_gossip_what_its_first_sync_taught_it() -> None:
    one = OneSite("a", joined=False, silent="a")
    one.effects.clear()
    one.step(Introduced(tuple(signed(record(f"s{number}")) for number in range(10))))
    one.run(3)
    assert {s.site for s in one.told() if isinstance(s, SiteRecord)} <= {site("me")}
