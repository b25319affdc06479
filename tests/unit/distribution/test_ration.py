"""A slow way out is shared equally by those who want something, and never saved up."""

import contextlib
from math import inf
from random import Random

import pytest

from agent.distribution.ration import BURST_S, WAIT_S_MAX, Ration
from agent.foundation.errors import Busy


def sent(ration: Ration[str], until_s: float, now: float = 0.0) -> dict[str, int]:
    """How many each has got by then."""
    found: dict[str, int] = {}
    while now <= until_s:
        for item in ration.ready(now):
            found[item] = found.get(item, 0) + 1
        if ration.wake_at() == inf:
            break
        now = max(now, ration.wake_at())
    return found


def test_an_idle_line_sends_at_once_and_then_at_its_rate() -> None:
    ration: Ration[str] = Ration(1000.0)
    for _ in range(20):
        ration.ask("a", 100, "a")
    assert len(ration.ready(0.0)) == 3, "the burst, and what begins with its end"
    assert ration.ready(0.01) == []
    assert sent(ration, 1.0, 0.01)["a"] == pytest.approx(10, abs=1)
    assert sent(ration, 9.0, 1.0)["a"] == pytest.approx(7, abs=1)
    assert ration.wake_at() == inf


def test_receivers_share_equally_however_much_each_wants() -> None:
    ration: Ration[str] = Ration(1000.0)
    for _ in range(80):
        ration.ask("greedy", 100, "greedy")
    for _ in range(10):
        ration.ask("modest", 100, "modest")
    got = sent(ration, 1.5)
    assert abs(got["greedy"] - got["modest"]) <= 1


def test_who_comes_late_is_not_given_what_it_did_not_ask_for() -> None:
    ration: Ration[str] = Ration(1000.0)
    for _ in range(60):
        ration.ask("first", 100, "first")
    sent(ration, 3.0)
    for _ in range(30):
        ration.ask("late", 100, "late")
    got = sent(ration, 5.0, 3.0)
    assert abs(got["first"] - got["late"]) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_no_second_sends_more_than_its_rate_and_a_burst(seed: int) -> None:
    rng, ration = Random(seed), Ration[int](1000.0)
    at: list[tuple[float, int]] = []
    now = 0.0
    while now < 20:
        if rng.random() < 0.4:
            size = rng.randrange(1, 200)
            with contextlib.suppress(Busy):
                ration.ask(rng.randrange(4), size, size)
        at += [(now, size) for size in ration.ready(now)]
        now += rng.uniform(0, 0.2)
    for begin in range(19):
        total = sum(size for when, size in at if begin <= when < begin + 1)
        assert total <= 1000 * (1 + BURST_S) + 200


def test_who_would_wait_too_long_is_told_to_go_elsewhere() -> None:
    ration: Ration[str] = Ration(1000.0)
    for _ in range(101):
        ration.ask("a", 100, "a")
    with pytest.raises(Busy, match="more is asked for"):
        ration.ask("a", 100, "a")
    assert sum(sent(ration, 99.0).values()) == pytest.approx(WAIT_S_MAX * 10, abs=2)
