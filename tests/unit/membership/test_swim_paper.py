"""What the papers say, sentence by sentence, of one machine among scripted members.

SWIM: Das, Gupta, Motivala, DSN 2002. Lifeguard: Dadgar, Phillips, Currey, arXiv 1707.00788 (2018).
Where Atoll departs from a sentence, the test says how: there is no failure by one voice.
"""

from collections import Counter

import pytest
from mesh_of_statements import BOOT, accusation, record, signed, site
from one_site import OneSite

from agent.membership.detector import NACK_SHARE
from agent.membership.events import Heard, Introduced, SendGossip
from agent.membership.rumors import Rumors
from agent.membership.settings import Settings
from agent.wire.gossip import GOSSIP, Ack, Nack, Ping, PingRequest
from agent.wire.records import Signed


def sent(one: OneSite, kind: type) -> list[SendGossip]:
    return [effect for effect in one.made(SendGossip) if isinstance(effect.message, kind)]


def until_sent(one: OneSite, kind: type) -> list[SendGossip]:
    """Let time pass in small steps until one is sent."""
    for _ in range(700):
        if found := sent(one, kind):
            return found
        one.run(0.02)
    raise AssertionError(f"no {kind.__name__}")


def test_swim_3_1_a_random_member_is_selected_and_a_ping_message_sent_to_it() -> None:
    """'During each protocol period [...] a random member is selected from Mi's membership list (say Mj),
    and a ping message sent to it.'"""
    one = OneSite("abcdefgh")
    one.run(30)
    one.effects.clear()
    one.run(60)
    targets = Counter(effect.target for effect in sent(one, Ping))
    assert set(targets) == {site(name) for name in "abcdefgh"}


def test_swim_3_1_k_members_at_random_are_sent_a_ping_req() -> None:
    """'Mi selects k members at random and sends each a ping-req(Mj) message.'"""
    one = OneSite("abcdefgh", silent="a")
    asked = until_sent(one, PingRequest)
    k = Settings.lan().indirect_probes
    assert len(asked) == len({effect.target for effect in asked}) == k
    assert site("a") not in {effect.target for effect in asked}


def test_swim_3_1_each_of_them_pings_mj_and_forwards_the_ack() -> None:
    """'Each of these members in turn (those that are non-faulty), on receiving this message, pings Mj and
    forwards the ack from Mj (if received) back to Mi.'"""
    one = OneSite()
    one.run(3)
    one.effects.clear()
    one.step(Heard(site("b"), PingRequest(42, site("a"))))
    assert [effect.target for effect in sent(one, Ping)] == [site("a")]
    (forwarded,) = sent(one, Ack)
    assert (forwarded.target, forwarded.message) == (site("b"), Ack(42, site("a")))


def test_swim_3_1_an_ack_through_one_of_the_k_counts_as_a_direct_one() -> None:
    """'Mi checks if it has received any acks, directly from Mj or indirectly through one of the k
    members.'"""
    saved, lost = OneSite(silent="a"), OneSite(silent="a")
    for one in (saved, lost):
        (request, *_) = until_sent(one, PingRequest)
        if one is saved:
            assert isinstance(request.message, PingRequest)
            one.step(Heard(request.target, Ack(request.message.number, site("a"))))
        one.run(1.0)
    assert (saved.state("a"), lost.state("a")) == ("alive", "suspect")


def test_swim_3_1_the_time_out_is_based_on_the_round_trip_time() -> None:
    """'The prespecified time-out used to initiate indirect probing is based on an estimate of the
    distribution of round-trip time within the network.'"""
    near, unknown = OneSite(silent=""), OneSite(silent="a")
    near.run(10)  # round trips of 0 s were measured
    near.silent = {"a"}
    waits = []
    for one in (near, unknown):
        one.effects.clear()
        began: float | None = None
        while not sent(one, PingRequest):
            one.run(0.01)
            if began is None and site("a") in {effect.target for effect in sent(one, Ping)}:
                began = one.now
        assert began is not None
        waits.append(one.now - began)
    lan = Settings.lan()
    assert waits == pytest.approx([lan.probe_timeout_min_s, lan.probe_timeout_s], abs=0.03)


def test_swim_3_1_the_size_of_messages_does_not_depend_on_the_group() -> None:
    """'The size of ping, ping-req, ack messages is bounded by a constant, and is independent of group
    size.'"""
    sizes = []
    for members in ("ab", "abcdefghijklmnopqrstuvwxyz"):
        one = OneSite(members)
        one.run(30)
        one.effects.clear()
        one.run(10)
        sizes.append({len(GOSSIP.pack(effect.message)) for effect in sent(one, Ping)})
    assert sizes[0] == sizes[1]


def test_swim_3_1_strong_completeness() -> None:
    """'A faulty member will eventually be chosen a ping target at each non-faulty member.' Deleted it is
    not, by this site's word alone: it is suspect until others say the same."""
    one = OneSite("abcdef", silent="d")
    one.run(20)
    assert one.state("d") == "suspect"
    one.hear("a", accusation("a", "d"), accusation("b", "d"))
    one.run(6)
    assert one.state("d") == "dead"


def test_swim_3_2_a_process_joins_through_one_contact_member() -> None:
    """'For a process to join the group, it would need to know at least one contact member.'"""
    one = OneSite("a")
    one.step(Introduced(tuple(signed(record(name)) for name in "bcd"), is_by_sync=True))
    assert {one.state(name) for name in "abcd"} == {"alive"}


def test_swim_4_1_each_update_is_piggybacked_a_bounded_number_of_times() -> None:
    """'A buffer of recent membership updates, along with a local count for each buffer element.'"""
    rumors, key = Rumors(16), (site("a"), site("a"))
    rumors.put(key, Signed(bytes(90), bytes(64)))
    assert [len(rumors.take([], transmissions=3)) for _ in range(5)] == [1, 1, 1, 0, 0]


def test_swim_4_2_only_the_member_itself_raises_its_incarnation_to_refute() -> None:
    """Section 4.2: a suspicion is refuted by a higher incarnation, which its owner alone can make."""
    one = OneSite()
    one.hear("b", accusation("b", "a"))
    assert one.state("a") == "suspect"
    one.hear("c", record("a", sequence=BOOT + 1))  # of the incarnation that is accused already
    assert one.state("a") == "suspect"
    one.hear("c", record("a", sequence=BOOT + 2, incarnation=BOOT + 1))
    assert one.state("a") == "alive"


def test_lifeguard_4_a_a_nack_is_sent_before_the_probe_time_out_ends() -> None:
    """'When a member is sent a ping-req message, it will send a nack back at 80% of the probe timeout
    unless it receives an ack by that time. An ack is still forwarded if it is received after the nack
    has been sent.' Here it is at ``NACK_SHARE`` of it, which leaves the nack its way back."""
    one = OneSite(silent="a")
    one.step(Heard(site("b"), PingRequest(42, site("a"))))
    (ping,) = [effect for effect in sent(one, Ping) if effect.target == site("a")]
    at = one.now
    assert isinstance(ping.message, Ping)
    until_sent(one, Nack)
    assert one.now - at == pytest.approx(NACK_SHARE * Settings.lan().indirect_timeout_s, abs=0.03)
    assert NACK_SHARE <= 0.8
    one.step(Heard(site("a"), Ack(ping.message.number, site("a"))))
    assert [effect.message.number for effect in sent(one, Ack)] == [42]  # type: ignore[union-attr]


def test_lifeguard_4_a_a_probe_with_a_missed_nack_counts_against_ourselves() -> None:
    """'Probe with missed nack: +1', for 'a way to check if it is receiving timely responses from the k
    members it enlists'."""
    scores = []
    for answered in (0, 1, 2, 3):
        one = OneSite(silent="a")
        asked = until_sent(one, PingRequest)
        before = one.swim.health
        for request in asked[:answered]:
            assert isinstance(request.message, PingRequest)
            one.step(Heard(request.target, Nack(request.message.number)))
        while one.state("a") == "alive":
            one.run(0.01)
        scores.append(one.swim.health - before)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]


def test_lifeguard_4_c_whoever_pings_a_suspect_tells_it() -> None:
    """'This guarantees that any node that pings a suspected node (either on its own behalf, or for the
    indirect path of another node) will communicate the suspicion as part of the ping.'"""
    one = OneSite()
    one.hear("b", accusation("b", "a"))
    one.run(30)  # as a rumor it is not told any more
    assert one.state("a") == "suspect"
    one.effects.clear()
    one.step(Heard(site("c"), PingRequest(7, site("a"))))
    (ping,) = [effect for effect in sent(one, Ping) if effect.target == site("a")]
    assert accusation("b", "a") in one.told(site("a"))
    assert isinstance(ping.message, Ping)
