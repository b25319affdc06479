"""Hints: bounded, retried for ever with back-off, and a name is known by who answered there."""

from random import Random

from agent.foundation.ids import SiteId
from agent.site.discovery import HINTS_MAX, RETRY_MAX_S, Discovery
from agent.wire.records import Endpoint

SITE = SiteId(b"\1" * 32)


def endpoint(number: int = 1, host: str = "") -> Endpoint:
    return Endpoint(host or f"10.0.{number // 250}.{number % 250}", 7411, 7412)


def discovery() -> Discovery:
    return Discovery(Random(1))


def test_a_failed_greeting_is_repeated_ever_more_slowly_but_for_ever() -> None:
    hints, now, waits = discovery(), 0.0, []
    hints.learn(endpoint(), "seed", None, now)
    for _ in range(20):
        assert [hint.endpoint for hint in hints.due(now, set())] == [endpoint()]
        assert hints.due(now, set()) == [], "one at a time"
        hints.ended(endpoint(), "refused", None, now)
        waits.append(hints.wake_at() - now)
        now = hints.wake_at()
    assert waits[0] < 1.1
    assert waits[-1] <= RETRY_MAX_S
    assert hints.hints[0].outcome == "refused"


def test_a_living_member_is_not_greeted() -> None:
    hints = discovery()
    hints.learn(endpoint(), "book", SITE, 0)
    assert hints.due(0, {(endpoint().host, 7411)}) == []
    assert hints.hints[0].outcome == "a living member"


def test_a_seed_by_name_is_met_when_who_answered_there_is_alive() -> None:
    hints, where = discovery(), endpoint(host="seed.example.org")
    hints.learn(where, "seed", None, 0)
    assert len(hints.due(0, set())) == 1
    hints.ended(where, "", SITE, 0)
    assert hints.due(RETRY_MAX_S + 1, set(), {SITE}) == []
    assert len(hints.due(3 * RETRY_MAX_S, set(), set())) == 1, "dead: greeted again"


def test_a_hint_that_names_another_site_is_tried_at_once() -> None:
    hints = discovery()
    hints.learn(endpoint(), "mdns", SITE, 0)
    hints.due(0, set())
    hints.ended(endpoint(), "refused", None, 0)
    assert hints.wake_at() > 0
    hints.learn(endpoint(), "mdns", SiteId(b"\2" * 32), 0)
    assert len(hints.due(0, set())) == 1


def test_false_announcements_cannot_push_out_what_the_operator_configured() -> None:
    hints = discovery()
    for number in range(HINTS_MAX):
        hints.learn(endpoint(number), "seed" if number < 4 else "mdns", None, 0)
    for hint in hints.due(0, set()):
        hints.ended(hint.endpoint, "refused", None, 0)
    for number in range(1000, 2000):
        hints.learn(endpoint(number), "mdns", None, 0)
    assert len(hints.hints) == HINTS_MAX
    assert sum(hint.mechanism == "seed" for hint in hints.hints) == 4


def test_what_was_never_tried_is_not_replaced_by_another_announcement() -> None:
    hints = discovery()
    for number in range(HINTS_MAX + 5):
        hints.learn(endpoint(number), "mdns", None, 0)
    assert endpoint(HINTS_MAX + 1) not in [hint.endpoint for hint in hints.hints]
    hints.learn(endpoint(5000), "seed", None, 0)
    assert endpoint(5000) in [hint.endpoint for hint in hints.hints]
