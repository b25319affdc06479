import pytest

from agent.membership.round_trip import RoundTrip


def test_an_unmeasured_member_gets_the_longest_timeout() -> None:
    assert RoundTrip().timeout_s(0.2, 0.5) == 0.5


def test_a_timeout_follows_the_measured_round_trip() -> None:
    trip = RoundTrip()
    for _ in range(50):
        trip.add(0.1, 1.0)
    assert trip.smoothed_s == pytest.approx(0.1)
    assert trip.timeout_s(0.01, 1.0) == pytest.approx(0.1, rel=0.05)


def test_jitter_lengthens_the_timeout() -> None:
    steady, shaky = RoundTrip(), RoundTrip()
    for turn in range(50):
        steady.add(0.1, 1.0)
        shaky.add(0.05 if turn % 2 else 0.15, 1.0)
    assert shaky.timeout_s(0.0, 9.0) > 2 * steady.timeout_s(0.0, 9.0)


def test_a_short_round_trip_never_gets_less_than_the_minimum() -> None:
    trip = RoundTrip()
    trip.add(0.0001, 1.0)
    assert trip.timeout_s(0.2, 0.5) == 0.2


def test_the_filtered_round_trip_ignores_what_busy_moments_added() -> None:
    assert RoundTrip().filtered_s is None
    trip = RoundTrip()
    for sample_s in (0.090, 0.031, 0.900, 0.030, 0.200):
        trip.add(sample_s, 7.0)
    assert trip.filtered_s == 0.031
    assert trip.measured_at == 7.0
    for _ in range(4):
        trip.add(0.050, 9.0)
    assert trip.filtered_s == 0.050
    assert len(trip.recent) == 5


def test_late_answers_double_the_timeout_until_one_comes_in_time() -> None:
    trip = RoundTrip()
    for _ in range(50):
        trip.add(0.05, 1.0)
    before_s = trip.timeout_s(0.2, 9.0)
    trip.late()
    trip.late()
    assert trip.timeout_s(0.2, 9.0) == 4 * before_s
    assert trip.timeout_s(0.2, 0.5) == 0.5
    for _ in range(100):
        trip.late()
    assert trip.timeout_s(0.2, 99.0) <= 8 * before_s
    trip.add(0.05, 2.0)
    assert trip.timeout_s(0.2, 9.0) == before_s
