"""The only reader of clocks."""

from datetime import UTC

from agent.drivers.clock import monotonic_s, wall, wall_s


def test_monotonic_time_never_runs_backwards() -> None:
    readings = [monotonic_s() for _ in range(100)]
    assert readings == sorted(readings)


def test_both_wall_clocks_agree() -> None:
    assert abs(wall().timestamp() - wall_s()) < 1
    assert wall().tzinfo is UTC
