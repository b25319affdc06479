import pytest

from agent.catalog.clock import AHEAD_MS_MAX, HybridClock
from agent.foundation.errors import Malformed
from agent.wire.documents import Stamp


def test_stamps_follow_the_wall_clock() -> None:
    clock = HybridClock()
    assert [clock.tick(1000), clock.tick(1001)] == [Stamp(1000, 0), Stamp(1001, 0)]


def test_stamps_rise_while_the_clock_stands_or_goes_back() -> None:
    clock = HybridClock(Stamp(5000, 7))
    made = [clock.tick(wall) for wall in (5000, 4000, 0, 5001, 10)]
    assert made == sorted(set(made))
    assert made[0] == Stamp(5000, 8)


def test_a_change_made_after_a_seen_one_is_larger() -> None:
    clock = HybridClock()
    clock.observe(Stamp(2000, 3), 1000)
    assert clock.tick(1000) == Stamp(2000, 4)
    clock.observe(Stamp(1500, 0), 1000)
    assert clock.last == Stamp(2000, 4)


def test_a_stamp_far_in_the_future_is_refused_and_forgotten() -> None:
    clock = HybridClock()
    clock.observe(Stamp(1000 + AHEAD_MS_MAX, 0), 1000)
    with pytest.raises(Malformed, match="future"):
        clock.observe(Stamp(1001 + AHEAD_MS_MAX, 0), 1000)
    assert clock.tick(1000) == Stamp(1000 + AHEAD_MS_MAX, 1)


def test_the_counter_spills_into_the_milliseconds() -> None:
    clock = HybridClock(Stamp(9, 2**31 - 1))
    assert clock.tick(1) == Stamp(10, 0)
