"""Hints: bounded, fair, retried for ever with back-off, and a name is known by who answered there."""

from random import Random

import pytest

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.site.causes import Cause
from agent.site.discovery import (
    AGAIN_MIN_S,
    AGE_MAX_S,
    CONFIGURED_MAX,
    GREETINGS_MAX,
    LOOSE_MAX,
    PER_SENDER_MAX,
    PROVEN_MAX,
    RETRY_MAX_S,
    Discovery,
)
from agent.wire.records import Endpoint

SITE, OTHER = SiteId(b"\1" * 32), SiteId(b"\2" * 32)


def endpoint(number: int = 1, host: str = "") -> Endpoint:
    return Endpoint(
        host or f"10.{number // 62500}.{number // 250 % 250}.{number % 250}", 7411, 7412
    )


def site(number: int) -> SiteId:
    return SiteId(number.to_bytes(32, "big"))


def discovery() -> Discovery:
    return Discovery(Random(1))


def announce(hints: Discovery, number: int, now: float = 0.0, sender: str = "") -> None:
    """An advert of the host that has the address, unless another ``sender`` says so."""
    where = endpoint(number)
    hints.learn(where, "mdns", site(number), now, sender=sender or where.host, sequence=1)


def test_a_failed_greeting_is_repeated_ever_more_slowly_but_for_ever() -> None:
    hints, now, waits = discovery(), 0.0, []
    hints.learn(endpoint(), "seed", None, now)
    for _ in range(20):
        assert [hint.endpoint for hint in hints.due(now, set())] == [endpoint()]
        assert hints.due(now, set()) == [], "one at a time"
        hints.ended(endpoint(), "Connection refused", None, now, cause=Cause.REFUSED)
        waits.append(hints.wake_at() - now)
        now = hints.wake_at()
    assert waits[0] < 1.1
    assert waits[-1] <= RETRY_MAX_S
    (hint,) = hints.hints
    assert (hint.cause, hint.detail, hint.attempts) == (Cause.REFUSED, "Connection refused", 20)
    assert hints.outcomes == {("seed", Cause.REFUSED): 20}


def test_a_changed_network_makes_every_failed_hint_due_at_once() -> None:
    hints, now = discovery(), 0.0
    hints.learn(endpoint(), "seed", None, now)
    for _ in range(8):
        now = hints.wake_at()
        hints.due(now, set())
        hints.ended(endpoint(), "no route", None, now, cause=Cause.NO_ROUTE)
    assert hints.wake_at() > now + 10
    hints.hasten(now)
    assert hints.wake_at() == now


def test_whoever_hears_nobody_greets_those_it_had_met_at_once() -> None:
    hints = discovery()
    hints.learn(endpoint(), "mdns", SITE, 0)
    hints.due(0, {(endpoint().host, 7411)})
    hints.hasten(1)
    assert hints.due(1, set()) == []
    hints.hasten(1, is_alone=True)
    assert len(hints.due(1, set())) == 1


def test_a_living_member_is_not_greeted() -> None:
    hints = discovery()
    hints.learn(endpoint(), "book", SITE, 0)
    assert hints.due(0, {(endpoint().host, 7411)}) == []
    assert hints.hints[0].cause is Cause.MET


def test_a_seed_by_name_is_met_when_who_answered_there_is_alive() -> None:
    hints, where = discovery(), endpoint(host="seed.example.org")
    hints.learn(where, "seed", None, 0)
    assert len(hints.due(0, set())) == 1
    hints.ended(where, "", SITE, 0)
    assert hints.due(RETRY_MAX_S + 1, set(), {SITE}) == []
    assert len(hints.due(3 * RETRY_MAX_S, set(), set())) == 1, "dead: greeted again"


def test_a_seed_that_is_this_site_says_so_and_is_left_alone() -> None:
    hints, where = discovery(), endpoint(host="me.example.org")
    hints.learn(where, "seed", None, 0)
    hints.due(0, set())
    hints.ended(where, "", SITE, 0, is_me=True)
    assert hints.due(RETRY_MAX_S + 1, set(), {SITE}) == []
    assert hints.hints[0].cause is Cause.MYSELF


def test_one_address_by_several_mechanisms_is_one_hint_with_all_their_names() -> None:
    hints = discovery()
    announce(hints, 1)
    assert hints.hints[0].is_loose
    hints.learn(endpoint(), "seed", None, 1)
    assert hints.hints[0].mechanisms == {"mdns", "seed"}
    assert not hints.hints[0].is_loose


@pytest.mark.parametrize(("who", "sequence"), [(OTHER, 1), (SITE, 9)])
def test_an_announcement_with_news_is_followed_soon_but_not_faster_than_it_should(
    who: SiteId, sequence: int
) -> None:
    hints = discovery()
    hints.learn(endpoint(), "mdns", SITE, 0, sender="s", sequence=1)
    for now in (0.0, 1.0, 3.0, 7.0):
        hints.due(now, set())
        hints.ended(endpoint(), "refused", None, now)
    assert hints.wake_at() > 10
    hints.learn(endpoint(), "mdns", SITE, 7.1, sender="s", sequence=1)
    assert hints.wake_at() > 10, "nothing new"
    hints.learn(endpoint(), "mdns", who, 7.1, sender="s", sequence=sequence)
    assert hints.wake_at() == 7.0 + AGAIN_MIN_S


def test_a_false_claim_does_not_hide_who_has_answered_there() -> None:
    hints = discovery()
    announce(hints, 1)
    hints.due(0, set())
    hints.ended(endpoint(1), "", site(1), 0)
    hints.learn(endpoint(1), "mdns", OTHER, 1, sender="liar", sequence=99)
    assert hints.hints[0].site == site(1)
    assert hints.due(2 * RETRY_MAX_S, set(), {site(1)}) == []


def flood(hints: Discovery, count: int, now: float, senders: int, start: int = 10_000) -> None:
    for number in range(start, start + count):
        announce(hints, number, now, sender=f"sender-{number % senders}")


def loose(hints: Discovery) -> int:
    return sum(hint.is_loose for hint in hints.hints)


def fail_all(hints: Discovery, now: float) -> None:
    for hint in hints.due(now, set()):
        hints.ended(hint.endpoint, "no answer", None, now, cause=Cause.TIMED_OUT)


def test_ten_thousand_lies_of_one_host_leave_room_for_everybody_else() -> None:
    hints = discovery()
    flood(hints, 10_000, 0.0, senders=1)
    assert loose(hints) == PER_SENDER_MAX
    announce(hints, 1)
    assert endpoint(1) in [hint.endpoint for hint in hints.due(0, set())], "greeted at once"
    assert hints.turned_away == 10_000 - PER_SENDER_MAX


def test_ten_thousand_lies_of_many_hosts_are_few_kept_and_honest_ones_still_get_in() -> None:
    hints = discovery()
    flood(hints, 10_000, 0.0, senders=100)
    assert loose(hints) == LOOSE_MAX
    fail_all(hints, 1.0)
    announce(hints, 1, 1.0)
    assert endpoint(1) in [hint.endpoint for hint in hints.due(1.0, set())]
    assert loose(hints) <= LOOSE_MAX


def test_the_host_with_most_hints_gives_way_even_before_any_has_failed() -> None:
    hints = discovery()
    flood(hints, 10_000, 0.0, senders=8)
    announce(hints, 1)
    assert endpoint(1) in [hint.endpoint for hint in hints.hints]


def test_what_a_host_says_of_its_own_address_is_tried_first() -> None:
    hints = discovery()
    flood(hints, 40, 0.0, senders=40)
    announce(hints, 1)
    assert hints.due(0, set())[0].endpoint == endpoint(1)


def test_lies_displace_neither_what_is_configured_nor_who_has_answered() -> None:
    hints = discovery()
    for number in range(4):
        hints.learn(endpoint(number), "seed", None, 0)
    for number in range(4, 8):
        announce(hints, number)
    for hint in hints.due(0, set()):
        hints.ended(hint.endpoint, "", site(1), 0)
    for number in range(20):
        flood(hints, 500, float(number), senders=100, start=10_000 + 500 * number)
        fail_all(hints, float(number))
    kept = {hint.endpoint for hint in hints.hints}
    assert {endpoint(number) for number in range(8)} <= kept
    assert len(hints.hints) <= 8 + LOOSE_MAX


def test_few_loose_hints_are_greeted_at_once_and_a_full_table_does_not_spin() -> None:
    hints = discovery()
    flood(hints, 100, 0.0, senders=100)
    assert len(hints.due(0, set())) == GREETINGS_MAX
    assert hints.due(0, set()) == []
    assert hints.wake_at() == NEVER, "the end of a greeting is what wakes it"
    hints.learn(endpoint(1), "seed", None, 0)
    assert len(hints.due(0, set())) == 1, "configured ones wait for nobody"


def test_the_members_of_a_large_lan_do_not_pile_up() -> None:
    hints = discovery()
    for number in range(200):
        announce(hints, number, float(number))
        for hint in hints.due(float(number), set()):
            hints.ended(hint.endpoint, "", site(number), float(number))
    assert len(hints.hints) == PROVEN_MAX
    assert PROVEN_MAX + LOOSE_MAX == 64


def test_a_loose_hint_is_forgotten_when_its_announcement_has_expired() -> None:
    hints = discovery()
    announce(hints, 1)
    announce(hints, 2, AGE_MAX_S + 1)
    assert [hint.endpoint for hint in hints.hints] == [endpoint(2)]


def test_the_configured_ones_are_bounded_too() -> None:
    hints = discovery()
    for number in range(1000):
        hints.learn(endpoint(number), "book", site(number), 0)
    assert len(hints.hints) == CONFIGURED_MAX


def test_the_end_of_a_greeting_that_nobody_hinted_at_is_nothing() -> None:
    hints = discovery()
    hints.ended(endpoint(), "", SITE, 0)
    assert hints.hints == []
