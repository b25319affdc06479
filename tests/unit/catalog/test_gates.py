"""The gates of a rollout: what fails, how early, and what a counter that began anew changes."""

from bisect import bisect_left
from dataclasses import replace

import pytest

from agent.catalog.gates import BOUNDS_S, ERRORS_OF_MIN, Counts, Meter, judge, told
from agent.wire.documents import Rollout
from agent.wire.records import Gate

NOTHING = Counts()


def counts(requests: int, errors: int = 0, **milliseconds: int) -> Counts:
    """Requests and errors; ``ms20=5``: five took 20 ms."""
    times = [0] * (len(BOUNDS_S) + 1)
    for name, number in milliseconds.items():
        times[bisect_left(BOUNDS_S, int(name[2:]) / 1000)] += number
    return Counts(requests, errors, tuple(times))


def gate(terms: Rollout, tried: Counts, former: Counts = NOTHING) -> Gate:
    return judge(terms, tried, former)[0]


def test_a_quiet_site_passes_every_gate() -> None:
    terms = Rollout("1", error_rate_max=0.0, p99_ms_max=1.0, p99_ratio_max=1.0)
    assert gate(terms, NOTHING) is Gate.NONE


def test_errors_beyond_the_rate_fail_and_those_within_it_do_not() -> None:
    terms = Rollout("1", error_rate_max=0.1)
    assert gate(terms, counts(200, 20)) is Gate.NONE
    assert gate(terms, counts(200, 21)) is Gate.ERRORS


def test_one_early_error_is_not_taken_for_a_rate_of_one() -> None:
    terms = Rollout("1", error_rate_max=0.1)
    assert gate(terms, counts(1, 1)) is Gate.NONE
    assert gate(terms, counts(3, 3)) is Gate.ERRORS, "3 of the first 20 are more than a tenth"
    assert ERRORS_OF_MIN == 20


def test_the_reason_of_errors_tells_the_numbers() -> None:
    _, reason = judge(Rollout("1"), counts(50, 5), NOTHING)
    assert reason == "5 of 50 requests failed; 1.00% may"


def test_latency_is_read_between_the_bounds_of_the_histogram() -> None:
    assert counts(200, 0, ms20=200).p99_ms == pytest.approx(20, rel=0.13)
    assert counts(200, 0, ms20=197, ms400=3).p99_ms == pytest.approx(400, rel=0.13)
    assert counts(99, 0, ms20=99).p99_ms == 0.0, "too few to have a hundredth part"
    assert counts(100, 0, ms100000=100).p99_ms == pytest.approx(2000 * BOUNDS_S[-1])
    assert BOUNDS_S[-1] > 50


def test_a_slow_version_fails_the_absolute_gate() -> None:
    terms = Rollout("1", p99_ms_max=50.0)
    assert gate(terms, counts(200, 0, ms20=200)) is Gate.NONE
    assert gate(terms, counts(200, 0, ms20=190, ms80=10)) is Gate.LATENCY


def test_a_version_slower_than_the_previous_one_fails_the_relative_gate() -> None:
    terms = Rollout("1", p99_ratio_max=2.0)
    fast, slow = counts(500, 0, ms20=500), counts(500, 0, ms80=500)
    assert gate(terms, slow, fast) is Gate.LATENCY
    assert gate(terms, slow, slow) is Gate.NONE
    assert gate(terms, slow, NOTHING) is Gate.NONE, "there is nothing to compare with"


def test_requests_that_do_not_fit_count_only_beyond_those_of_the_previous_version() -> None:
    def some(requests: int, invalid: int) -> Counts:
        return replace(counts(requests), invalid=invalid)

    terms = Rollout("1")
    assert gate(terms, some(0, 5), some(100, 0)) is Gate.INVALID
    assert gate(terms, some(0, 4), some(100, 0)) is Gate.NONE, "a caller may be wrong"
    assert gate(terms, some(80, 20), some(100, 0)) is Gate.NONE
    assert gate(terms, some(79, 21), some(100, 0)) is Gate.INVALID
    assert gate(terms, some(79, 21), some(90, 10)) is Gate.NONE
    assert gate(terms, some(0, 100), some(19, 0)) is Gate.NONE, "there is nothing to compare with"
    _, reason = judge(terms, some(0, 9), some(90, 10))
    assert reason == (
        "9 of 9 requests do not fit it (status 400); of the previous version 10.00% did not"
    )


def test_a_meter_goes_on_when_its_counters_begin_anew() -> None:
    meter = Meter()
    meter.note(counts(10, 1))
    meter.note(counts(15, 1))
    assert meter.total == counts(15, 1)
    meter.note(counts(4, 2))
    assert meter.total == counts(19, 3)


def test_what_is_told_changes_with_every_doubling_only() -> None:
    assert [told(number) for number in (0, 0.7, 1, 2, 3, 4, 7, 1000)] == [0, 0, 1, 2, 2, 4, 4, 512]
    assert told(2**40) == 2**31
