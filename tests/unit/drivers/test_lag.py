"""A loop that stands still is seen by whoever looks at the metrics."""

import asyncio

import pytest

from agent.drivers import lag
from agent.drivers.lag import LoopLag


def counts(text: str) -> dict[str, float]:
    return {
        key: float(value)
        for line in text.splitlines()
        if not line.startswith("#")
        for key, value in (line.rsplit(" ", 1),)
    }


def test_delays_are_counted_in_buckets_that_add_up() -> None:
    probe = LoopLag("atoll_loop_lag_seconds", "Delay")
    for delay_s in (-0.001, 0.0005, 0.02, 0.05, 7.0):
        probe.note(delay_s)
    found = counts(probe.render())
    assert found['atoll_loop_lag_seconds_bucket{le="0.001"}'] == 2
    assert found['atoll_loop_lag_seconds_bucket{le="0.025"}'] == 3
    assert found['atoll_loop_lag_seconds_bucket{le="0.05"}'] == 4
    assert found['atoll_loop_lag_seconds_bucket{le="1.0"}'] == 4
    assert found['atoll_loop_lag_seconds_bucket{le="+Inf"}'] == 5
    assert found["atoll_loop_lag_seconds_count"] == 5
    assert found["atoll_loop_lag_seconds_sum"] == pytest.approx(7.0705)


async def test_a_stall_counts_once_for_each_moment_it_lasted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lag, "EVERY_S", 0.01)
    probe = LoopLag("atoll_loop_lag_seconds", "Delay")
    probe._tick(asyncio.get_running_loop().time() - 0.3)
    probe.stop()
    found = counts(probe.render())
    late = (
        found["atoll_loop_lag_seconds_count"] - (found['atoll_loop_lag_seconds_bucket{le="0.1"}'])
    )
    assert late == pytest.approx(20, abs=2), (
        "of 30 moments a third were less than 0.1 s from its end"
    )
    probe.stop()


def test_the_summary_tells_stalls_from_noise() -> None:
    probe = LoopLag("x", "Delay")
    assert probe.summary() == {"samples": 0, "over_50_ms": 0, "longest_ms": 0.0}
    for delay_s in (-0.001, 0.05, 0.0501, 3.0):
        probe.note(delay_s)
    assert probe.summary() == {"samples": 4, "over_50_ms": 2, "longest_ms": 3000.0}
