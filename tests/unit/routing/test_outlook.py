"""A sender learns from its own requests which sites answer, and when."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from agent.foundation.ids import SiteId
from agent.routing import outlook as module
from agent.routing.outlook import (
    FAILURES_MAX,
    LATE_IN_A_ROW,
    OPEN_S,
    OPEN_S_MAX,
    RETRY_AFTER_S_MAX,
    Expected,
    Outlook,
    expected,
)
from agent.routing.policy import ALLOWED, Removal, Verdict
from agent.wire.inside import PairKnown, PeerKnown, RemoteSite
from agent.wire.schema import pack, unpack

KEY = bytes(32)


def verdict(number: int, rtt_ms: float = 5.0, **changes: Any) -> Verdict:
    site = SiteId(bytes([number]) * 32)
    remote = RemoteSite(
        site, f"s{number}", "r", "edge", "DE", "h", 1, "alive", False, rtt_ms, 0.0, ()
    )
    return replace(Verdict(site, f"s{number}", False, "DE", ALLOWED, remote, 10_000), **changes)


ONE, TWO = verdict(1), verdict(2, rtt_ms=50.0)


@pytest.fixture
def outlook() -> Outlook:
    return Outlook(Random(1))


def order(outlook: Outlook, now_s: float, *verdicts: Verdict) -> list[str]:
    return [one.name for one, _ in outlook.order(KEY, verdicts or (ONE, TWO), {}, now_s)]


def sent(idle_ms: float, service_ms: float = 10.0) -> Expected:
    return Expected(idle_ms, service_ms)


def late(outlook: Outlook, took_ms: float) -> None:
    """So many late answers of the first site that it is no chance."""
    for _ in range(LATE_IN_A_ROW):
        outlook.answered(ONE.site, KEY, sent(15.0), took_ms, 0)


def test_late_answers_in_a_row_count_at_once_and_fade(outlook: Outlook) -> None:
    assert order(outlook, 0) == ["s1", "s2"]
    late(outlook, 500.0)
    assert order(outlook, 0) == ["s2", "s1"]
    assert order(outlook, 60) == ["s1", "s2"]


def test_a_late_answer_or_two_among_timely_ones_are_chance_and_more_are_not(
    outlook: Outlook,
) -> None:
    outlook.answered(ONE.site, KEY, sent(15.0), 15.0, 0)
    for took_ms in (500.0, 400.0):
        outlook.answered(ONE.site, KEY, sent(15.0), took_ms, 0)
        assert order(outlook, 0) == ["s1", "s2"]
    outlook.given_up(ONE.site, KEY, sent(15.0), 600.0, 0)
    assert order(outlook, 0) == ["s2", "s1"]
    assert outlook.predict(KEY, ONE, 0, 0).queue_ms == 385.0, "the least of them"


def test_the_first_answer_of_a_site_may_be_late_by_chance_too(outlook: Outlook) -> None:
    outlook.answered(ONE.site, KEY, sent(15.0), 500.0, 0)
    assert order(outlook, 0) == ["s1", "s2"]


def test_one_timely_answer_does_not_wipe_out_a_late_one(outlook: Outlook) -> None:
    late(outlook, 1015.0)
    outlook.answered(ONE.site, KEY, sent(15.0), 15.0, 0)
    assert 800 < outlook.predict(KEY, ONE, 0, 0).queue_ms < 1000


def test_a_removed_site_is_never_asked_however_good(outlook: Outlook) -> None:
    out = verdict(1, removed=Removal("policy", "no"))
    assert order(outlook, 0, out, TWO) == ["s2"]


def test_a_breaker_opens_at_one_failure_to_connect_and_lets_one_request_try(
    outlook: Outlook,
) -> None:
    assert outlook.failed(ONE.site, 0, is_connected=False)
    assert outlook.breaker(ONE.site, OPEN_S - 0.1) == "open"
    assert order(outlook, OPEN_S - 0.1) == ["s2", "s1"]
    assert outlook.breaker(ONE.site, OPEN_S) == "half-open"
    assert order(outlook, OPEN_S) == ["s1", "s2"]
    outlook.sent(ONE.site, OPEN_S)
    assert order(outlook, OPEN_S) == ["s2", "s1"], "one is under way"
    outlook.reached(ONE.site)
    assert outlook.breaker(ONE.site, OPEN_S) == "closed"


def test_a_failed_try_opens_it_for_twice_as_long_up_to_a_bound(outlook: Outlook) -> None:
    now_s, lasted_s = 0.0, OPEN_S
    outlook.failed(ONE.site, now_s, is_connected=False)
    for _ in range(10):
        assert outlook.breaker(ONE.site, now_s + lasted_s - 0.01) == "open"
        now_s += lasted_s
        assert outlook.breaker(ONE.site, now_s) == "half-open"
        assert outlook.failed(ONE.site, now_s, is_connected=True)
        lasted_s = min(lasted_s * 2, OPEN_S_MAX)


def test_a_try_that_was_given_up_leaves_room_for_the_next(outlook: Outlook) -> None:
    outlook.failed(ONE.site, 0, is_connected=False)
    outlook.sent(ONE.site, OPEN_S)
    outlook.given_up(ONE.site, KEY, sent(15.0), 1.0, OPEN_S)
    assert order(outlook, OPEN_S) == ["s1", "s2"]


def test_broken_answers_open_a_breaker_only_in_a_row(outlook: Outlook) -> None:
    for _ in range(3):
        for _ in range(FAILURES_MAX - 1):
            assert not outlook.failed(ONE.site, 0, is_connected=True)
        outlook.reached(ONE.site)
    for _ in range(FAILURES_MAX - 1):
        outlook.failed(ONE.site, 0, is_connected=True)
    assert outlook.failed(ONE.site, 0, is_connected=True)


def test_a_site_that_names_a_time_is_left_alone_until_then(outlook: Outlook) -> None:
    outlook.rests(ONE.site, 2.0, 0)
    assert order(outlook, 1.9) == ["s2", "s1"]
    assert not outlook.is_trusted(ONE.site, 1.9)
    assert order(outlook, 2.0) == ["s1", "s2"]
    outlook.rests(ONE.site, 1e9, 0)
    assert outlook.is_trusted(ONE.site, RETRY_AFTER_S_MAX)


def test_home_is_left_only_for_a_clear_gain_and_not_returned_to_in_haste(outlook: Outlook) -> None:
    assert not outlook.is_better_away(KEY, 100.0, 95.0)
    assert not outlook.is_better_away(KEY, 100.0, None)
    assert outlook.is_better_away(KEY, 100.0, 50.0)
    assert outlook.is_better_away(KEY, 100.0, 95.0), "no flapping"
    assert not outlook.is_better_away(KEY, 90.0, 95.0)
    assert not outlook.is_better_away(KEY, 100.0, 95.0)


def test_lateness_stands_in_the_place_of_the_gossiped_queue_and_fades_into_it(
    outlook: Outlook,
) -> None:
    assert ONE.remote is not None
    loaded = replace(ONE, remote=replace(ONE.remote, load=0.5))
    assert outlook.predict(KEY, loaded, 1, 0).queue_ms == 50.0
    late(outlook, 215.0)
    assert outlook.predict(KEY, loaded, 1, 0).queue_ms == 210.0
    assert 50.0 < outlook.predict(KEY, loaded, 1, 30).queue_ms < 60.0


def test_a_site_that_answers_sooner_than_its_distance_is_nearer(outlook: Outlook) -> None:
    outlook.answered(TWO.site, KEY, sent(60.0), 20.0, 0)
    prediction = outlook.predict(KEY, TWO, 0, 0)
    assert (prediction.rtt_ms, prediction.queue_ms) == (10.0, 0.0)


def test_near_equals_share_the_requests_and_the_worst_of_them_gets_none(outlook: Outlook) -> None:
    sites = [verdict(number, rtt_ms=5.0 + number / 10) for number in range(1, 5)]
    firsts = {order(outlook, 0, *sites, TWO)[0] for _ in range(200)}
    assert firsts == {"s1", "s2", "s3"}


def test_memory_is_bounded(outlook: Outlook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LATENESS_MAX", 8)
    monkeypatch.setattr(module, "BREAKERS_MAX", 4)
    rng = Random(7)
    for step in range(2000):
        site, key = SiteId(rng.randbytes(32)), rng.randbytes(32)
        outlook.answered(site, key, sent(1.0), 2.0, step)
        outlook.failed(site, step, is_connected=rng.random() < 0.5)
        outlook.rests(site, 1.0, step)
        outlook.is_better_away(key, 100.0, 1.0)
    sizes = [len(outlook._lateness), len(outlook._troubles), len(outlook._away)]
    assert sizes == [8, 4, 8]


def test_a_sender_that_waited_in_vain_turns_to_another(outlook: Outlook) -> None:
    for _ in range(LATE_IN_A_ROW):
        outlook.given_up(ONE.site, KEY, sent(15.0), 400.0, 0)
    assert order(outlook, 0) == ["s2", "s1"]


def test_patience_is_what_nineteen_of_twenty_answers_need(outlook: Outlook) -> None:
    assert outlook.patience_ms(KEY, ONE, 0) == 15.0 + module.PATIENCE_UNKNOWN_MS
    rng = Random(3)
    for step in range(5000):
        outlook.answered(ONE.site, KEY, sent(15.0), 15.0 + rng.uniform(0, 100), step / 10)
    assert 100 < outlook.patience_ms(KEY, ONE, 0) < 120


def test_patience_is_no_longer_for_a_run_time_that_its_answers_have_shown(outlook: Outlook) -> None:
    for _ in range(400):
        outlook.answered(ONE.site, KEY, sent(15.0), 115.0, 0)
    before_ms = outlook.patience_ms(KEY, ONE, 0)
    slower = replace(ONE, service_us=90_000)
    assert outlook.patience_ms(KEY, slower, 0) == pytest.approx(before_ms)
    outlook.answered(ONE.site, KEY, expected(slower, 0), 115.0, 0)
    assert outlook.patience_ms(KEY, slower, 0) == pytest.approx(before_ms, rel=0.1)


def test_patience_is_longer_for_a_run_time_that_no_answer_has_shown(outlook: Outlook) -> None:
    for _ in range(400):
        outlook.answered(ONE.site, KEY, sent(15.0), 15.0, 0)
    assert outlook.patience_ms(KEY, replace(ONE, service_us=90_000), 0) >= 95.0


def test_what_was_learned_can_be_told_and_is_worth_telling_only_for_a_while(
    outlook: Outlook,
) -> None:
    late(outlook, 515.0)
    outlook.failed(TWO.site, 0, is_connected=False)
    assert outlook.known(1.0) == (
        (PeerKnown(TWO.site, "open", OPEN_S - 1.0),),
        (PairKnown(ONE.site, KEY, 500.0, 0.9, 10.0, 1.0),),
    )
    outlook.reached(TWO.site)
    assert outlook.known(100.0) == ((), ())


def test_what_the_senders_own_requests_take_before_one_is_not_lateness(outlook: Outlook) -> None:
    for before in range(12):
        took_ms = 15.0 + 10.0 * before
        outlook.answered(ONE.site, KEY, expected(ONE, before), took_ms, 0)
    assert outlook.predict(KEY, ONE, 0, 0).queue_ms == 0.0
    assert order(outlook, 0) == ["s1", "s2"]


def test_a_site_that_runs_several_at_once_is_not_nearer_for_it(outlook: Outlook) -> None:
    for before in range(12):
        outlook.answered(ONE.site, KEY, expected(ONE, before), 15.0, 0)
    assert outlook.predict(KEY, ONE, 0, 0).rtt_ms == 5.0


def test_what_was_measured_against_another_run_time_says_nothing(outlook: Outlook) -> None:
    by_warm_up = replace(ONE, service_us=8)
    for before in range(12):
        sent_ = expected(by_warm_up, before)
        outlook.answered(ONE.site, KEY, sent_, 5.0 + 10.0 * (before + 1), 0)
    assert outlook.predict(KEY, by_warm_up, 0, 0).queue_ms > 90.0
    assert order(outlook, 0, by_warm_up, TWO) == ["s2", "s1"]
    assert order(outlook, 0, ONE, TWO) == ["s1", "s2"]
    assert outlook.predict(KEY, ONE, 0, 0).queue_ms == 0.0


def test_a_site_that_is_late_stays_so_whatever_run_time_it_tells(outlook: Outlook) -> None:
    """A queue makes runs slower as well: the run time that is told goes up and down with it."""
    slower = replace(ONE, service_us=21_000)
    for step in range(20):
        told = slower if step % 2 else ONE
        outlook.answered(ONE.site, KEY, expected(told, 0), 515.0, step)
        if step >= LATE_IN_A_ROW:
            for now in (ONE, slower):
                assert 450 < outlook.predict(KEY, now, 0, step).queue_ms <= 500
                assert order(outlook, step, now, TWO) == ["s2", "s1"]


def test_what_a_member_claims_of_itself_can_be_told(outlook: Outlook) -> None:
    boastful = replace(ONE, service_us=2**62)
    for _ in range(LATE_IN_A_ROW):
        outlook.answered(ONE.site, bytes(8), expected(boastful, 3), 1.0, 0)
    (pair,) = outlook.known(0)[1]
    assert unpack(PairKnown, pack(pair)) == pair
