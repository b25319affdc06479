import pytest

from agent.catalog.clock import AHEAD_MS_MAX, CLOCKS_MAX, Clocks, HybridClock
from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import SiteId
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


def site(number: int) -> SiteId:
    return SiteId(number.to_bytes(32, "big"))


def test_whoever_has_heard_nobody_agrees_with_everybody() -> None:
    clocks = Clocks()
    clocks.heard(site(1), 0, 5.0)  # an older version, which does not tell
    assert (len(clocks), clocks.ahead_ms(1e9)) == (0, 0)
    clocks.require_agreement(1e9)


def test_a_clock_is_judged_by_the_median_so_that_few_liars_do_not_count() -> None:
    clocks = Clocks()
    for number, wall_ms in enumerate((1_000_000, 1_000_200, 1_000_100, 1, 10**15)):
        clocks.heard(site(number), wall_ms, 0.0)
    assert clocks.ahead_ms(1_000.1) == 0
    assert clocks.ahead_ms(1_070.1) == 70_000
    clocks.heard(site(0), 1_010_000, 10.0)  # ten seconds later, and no other clock than before
    assert clocks.ahead_ms(1_000.1) == 0


@pytest.mark.parametrize(("sign", "word"), [(1, "301 s ahead of"), (-1, "301 s behind")])
def test_nothing_is_stamped_with_a_clock_that_the_others_would_not_believe(
    sign: int, word: str
) -> None:
    clocks = Clocks()
    for number in range(3):
        clocks.heard(site(number), 10_000_000, 0.0)
    clocks.require_agreement(10_000 + sign * AHEAD_MS_MAX / 1000)
    with pytest.raises(Refused, match=word) as told:
        clocks.require_agreement(10_000 + sign * (AHEAD_MS_MAX / 1000 + 1))
    assert "those of 3 members" in str(told.value)
    assert "timedatectl" in told.value.mend
    clocks.require_agreement(10_000.0)  # set right: at once


def test_only_the_clocks_heard_last_are_remembered() -> None:
    clocks = Clocks()
    for number in range(100):
        clocks.heard(site(number), 1_000 if number < 85 else 9_000, 0.0)
    assert len(clocks) == CLOCKS_MAX
    assert clocks.ahead_ms(9.0) == 0
