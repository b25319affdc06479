from mesh_of_statements import BOOT, accusation, record, signed, site
from one_site import OneSite, opened

from agent.membership.events import Heard, Introduced, PortRefused, SendGossip
from agent.wire.gossip import Ack, Nack, Ping, PingRequest
from agent.wire.records import Accusation


def pings_to(one: OneSite, name: str) -> list[int]:
    return [
        e.message.number
        for e in one.made(SendGossip)
        if e.target == site(name) and isinstance(e.message, Ping)
    ]


def until_indirect(one: OneSite, target: str) -> list[SendGossip]:
    """Run until others are asked to probe ``target``; the requests.

    Two shuffled rounds of four, each probe two periods apart, may lie between two probes of one.
    """
    for _ in range(700):
        asked = [
            e
            for e in one.made(SendGossip)
            if isinstance(e.message, PingRequest) and e.message.subject == site(target)
        ]
        if asked:
            return asked
        one.run(0.02)
    raise AssertionError("no indirect probe")


def test_a_member_is_probed_once_a_period() -> None:
    one = OneSite()
    one.run(3)
    one.effects.clear()
    one.run(15)
    pings = [e for e in one.made(SendGossip) if isinstance(e.message, Ping)]
    assert 18 <= len(pings) <= 22


def test_three_others_are_asked_before_anybody_is_accused() -> None:
    one = OneSite("abcdef")
    one.silent = {"a"}
    asked = until_indirect(one, "a")
    assert len({e.target for e in asked}) == 3
    assert site("a") not in {e.target for e in asked}
    assert one.state("a") == "alive"


def test_an_ack_through_a_relay_saves_the_member_and_marks_it_relayed() -> None:
    one = OneSite()
    one.silent = {"a"}
    asked = until_indirect(one, "a")
    relay = asked[0]
    one.step(Heard(relay.target, Ack(relay.message.number, site("a"))))  # type: ignore[union-attr]
    one.run(0.6)
    assert one.state("a") == "alive"
    assert one.swim.members()[site("a")].is_relayed


def test_an_ack_from_somebody_who_was_not_asked_saves_nobody() -> None:
    one = OneSite()
    one.silent = {"a"}
    asked = until_indirect(one, "a")
    number = asked[0].message.number  # type: ignore[union-attr]
    outsider = next(n for n in "bcd" if site(n) not in {e.target for e in asked} or n == "d")
    if site(outsider) in {e.target for e in asked}:
        one.step(Heard(site(outsider), Ack(number, site("b"))))
    else:
        one.step(Heard(site(outsider), Ack(number, site("a"))))
    one.run(0.6)
    assert one.state("a") == "suspect"


def test_missing_nacks_hurt_our_health_and_nacks_do_not() -> None:
    deaf, fine = OneSite(), OneSite()
    for one, answers in ((deaf, False), (fine, True)):
        one.silent = {"a"}
        asked = until_indirect(one, "a")
        before = one.swim.health
        if answers:
            for request in asked:
                one.step(Heard(request.target, Nack(request.message.number)))  # type: ignore[union-attr]
        while one.state("a") == "alive":
            one.run(0.02)
        one.effects.clear()
        assert (one.swim.health > before) is not answers


def test_a_relay_passes_the_ack_on() -> None:
    one = OneSite()
    one.run(3)
    one.effects.clear()
    one.step(Heard(site("b"), PingRequest(42, site("a"))))
    acks = [e for e in one.made(SendGossip) if isinstance(e.message, Ack)]
    assert [(e.target, e.message.number, e.message.subject) for e in acks] == [  # type: ignore[union-attr]
        (site("b"), 42, site("a"))
    ]


def test_a_relay_without_an_answer_sends_a_nack_with_what_it_knows() -> None:
    one = OneSite()
    one.hear("c", accusation("c", "a"))
    one.silent = {"a"}
    one.effects.clear()
    one.step(Heard(site("b"), PingRequest(42, site("a"))))
    one.run(0.4)
    nacks = [e.message for e in one.made(SendGossip) if isinstance(e.message, Nack)]
    assert [nack.number for nack in nacks] == [42]
    assert accusation("c", "a") in opened(nacks[0].rumors)


def test_nobody_is_relayed_to_us_or_to_the_asker() -> None:
    one = OneSite()
    one.run(3)
    one.effects.clear()
    for subject in ("me", "b", "stranger"):
        one.step(Heard(site("b"), PingRequest(42, site(subject))))
    assert [e for e in one.made(SendGossip) if isinstance(e.message, Ping)] == []


def test_a_refused_port_counts_when_it_repeats() -> None:
    one = OneSite()
    one.run(3)
    one.silent = {"a"}
    one.effects.clear()
    one.step(PortRefused(site("a")))
    one.step(PortRefused(site("a")))
    assert one.state("a") == "alive"
    one.run(0.16)
    assert len(pings_to(one, "a")) >= 2
    one.step(PortRefused(site("a")))
    assert one.state("a") == "suspect"
    claims = [s for s in one.told() if isinstance(s, Accusation)]
    assert all(claim.is_refused for claim in claims)
    assert claims


def test_one_refusal_is_enough_where_another_member_saw_it_too() -> None:
    one = OneSite()
    one.run(3)
    one.silent = {"a"}
    one.hear("b", accusation("b", "a", is_refused=True))
    one.step(PortRefused(site("a")))
    one.hear("c", accusation("c", "a", is_refused=True))
    one.run(1.1)
    assert one.state("a") == "dead"


def test_refusals_cause_no_storm_of_pings() -> None:
    one = OneSite()
    one.run(3)
    one.silent = {"a"}
    one.effects.clear()
    for _ in range(200):
        one.step(PortRefused(site("a")))
        one.run(0.005)
    assert len(pings_to(one, "a")) <= 6


def test_a_refused_process_that_restarted_is_alive_at_once() -> None:
    one = OneSite()
    one.run(3)
    one.silent = {"a"}
    one.hear("b", accusation("b", "a", is_refused=True))
    one.hear("a", record("a", 2 * BOOT, boot_epoch=2, incarnation=2 * BOOT))
    assert one.state("a") == "alive"


def test_a_member_heard_during_the_probe_is_not_accused() -> None:
    one = OneSite()
    one.run(3)
    one.silent = {"a"}
    asked = until_indirect(one, "a")
    assert asked
    one.step(Heard(site("a"), Ping(9)))
    one.run(1)
    assert one.state("a") == "alive"


def test_members_known_from_the_book_only_are_not_accused_while_everybody_starts() -> None:
    one = OneSite("")
    one.names = {site(name): name for name in "abcd"}
    one.silent = {"a"}
    book = tuple(signed(record(name)) for name in "abcd")
    one.step(Introduced(book, is_from_book=True))
    for _ in range(8):
        one.step(PortRefused(site("a")))
        one.run(1)
    assert one.state("a") == "alive"
    one.run(10)
    assert one.state("a") == "suspect", "and not for ever"


def test_a_member_from_the_book_that_was_heard_has_no_excuse() -> None:
    one = OneSite("")
    one.names = {site(name): name for name in "abcd"}
    book = tuple(signed(record(name)) for name in "abcd")
    one.step(Introduced(book, is_from_book=True))
    one.hear("a")
    one.silent = {"a"}
    one.run(9)
    assert one.state("a") == "suspect"


def over_tcp_only() -> OneSite:
    """The datagrams of 'a' do not come back; it has answered a call instead."""
    one = OneSite()
    one.run(5)
    one.mute = {"a"}
    one.run(15)
    assert one.swim.members()[site("a")].is_relayed
    one.hear("b", record("a", BOOT + 99, incarnation=BOOT + 99))
    assert one.state("a") == "alive"
    one.effects.clear()
    return one


def test_a_member_that_answers_over_tcp_only_is_relayed_and_not_accused_again() -> None:
    one = over_tcp_only()
    one.run(60)
    assert one.state("a") == "alive"
    assert one.swim.members()[site("a")].is_relayed
    assert not any(isinstance(told, Accusation) for told in one.told())


def test_a_member_that_answers_no_call_either_is_accused() -> None:
    one = over_tcp_only()
    one.silent = {"a"}
    one.run(15)
    assert one.state("a") == "suspect"
