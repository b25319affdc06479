import pytest

from agent.membership.round_trip import RoundTrip


def test_an_unmeasured_member_gets_the_longest_timeout() -> None:
    assert RoundTrip().timeout_s(0.2, 0.5) == 0.5


def test_a_timeout_follows_the_measured_round_trip() -> None:
    trip = RoundTrip()
    for _ in range(50):
        trip.add(0.1)
    assert trip.smoothed_s == pytest.approx(0.1)
    assert trip.timeout_s(0.01, 1.0) == pytest.approx(0.1, rel=0.05)


def test_jitter_lengthens_the_timeout() -> None:
    steady, shaky = RoundTrip(), RoundTrip()
    for turn in range(50):
        steady.add(0.1)
        shaky.add(0.05 if turn % 2 else 0.15)
    assert shaky.timeout_s(0.0, 9.0) > 2 * steady.timeout_s(0.0, 9.0)


def test_a_short_round_trip_never_gets_less_than_the_minimum() -> None:
    trip = RoundTrip()
    trip.add(0.0001)
    assert trip.timeout_s(0.2, 0.5) == 0.2
