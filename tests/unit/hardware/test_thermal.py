from itertools import pairwise

from agent.hardware.profile import ThermalPart
from agent.hardware.thermal import Heat, ThermalLadder

SETTINGS = ThermalPart(
    zones=("gpu-*", "cpu-thermal"), warn_c=80, throttle_c=88, stop_c=95, hysteresis_c=6
)


def test_the_ladder_climbs_at_once_and_comes_down_below_the_hysteresis() -> None:
    ladder = ThermalLadder(SETTINGS)
    steps = [
        (79.9, 0),
        (80, 1),
        (96, 3),
        (90, 3),
        (88.9, 2),
        (82, 2),
        (81.9, 1),
        (74, 1),
        (73.9, 0),
    ]
    assert [ladder.step({"cpu-thermal": celsius}) for celsius, _ in steps] == [
        Heat(level) for _, level in steps
    ]


def test_a_temperature_that_hovers_changes_the_level_once() -> None:
    ladder = ThermalLadder(SETTINGS)
    levels = [ladder.step({"cpu-thermal": 80 + (-1) ** turn}) for turn in range(1, 100)]
    assert sum(before != after for before, after in pairwise(levels)) == 1


def test_it_falls_several_levels_when_it_is_cold_again() -> None:
    ladder = ThermalLadder(SETTINGS)
    ladder.step({"gpu-thermal": 99})
    assert ladder.step({"gpu-thermal": 20}) == Heat.NORMAL


def test_only_zones_of_the_profile_count_and_silence_changes_nothing() -> None:
    ladder = ThermalLadder(SETTINGS)
    assert ladder.step({"battery": 99.0, "gpu-thermal": 90.0}) == Heat.HOT
    assert ladder.step({"battery": 20.0}) == Heat.HOT
    assert ladder.step({}) == Heat.HOT
