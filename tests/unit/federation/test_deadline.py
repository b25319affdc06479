"""How long a round waits, for sites of one kind and of several."""

import pytest

from agent.federation.deadline import SLACK_S, Paces, patience_s
from agent.foundation.ids import SiteId

BOARD = SiteId(b"b" * 32)


def test_sites_that_come_together_are_followed_by_a_short_wait() -> None:
    assert patience_s([10.0, 10.0, 10.0]) == pytest.approx(20.0 + SLACK_S)


def test_sites_that_differ_are_waited_for_by_as_much_as_they_differ() -> None:
    assert patience_s([10.0, 14.0, 18.0, 22.0, 26.0]) == pytest.approx(18.0 + 24.0 + SLACK_S)


def test_one_straggler_does_not_stretch_the_wait_for_the_next() -> None:
    assert patience_s([10.0, 10.0, 10.0, 10.0, 500.0]) == patience_s([10.0] * 5)


def test_a_site_that_is_known_to_be_slow_is_waited_for_by_its_own_measure() -> None:
    assert patience_s([1.0, 1.0, 1.0], own_s=[30.0]) == pytest.approx(45.0 + SLACK_S)
    assert patience_s([30.0], own_s=[1.0]) == patience_s([30.0])


def test_a_round_of_no_time_still_has_its_slack() -> None:
    assert patience_s([0.0]) == SLACK_S


def test_a_site_that_was_late_once_is_given_one_longer_chance() -> None:
    paces = Paces()
    assert paces.of([BOARD]) == []
    paces.closed([BOARD], 12.0)
    assert paces.of([BOARD]) == [12.0]
    paces.closed([BOARD], 20.0)
    assert paces.of([BOARD]) == [], "it is stuck"


def test_a_site_that_comes_in_time_is_known_by_what_it_took() -> None:
    paces = Paces()
    paces.closed([BOARD], 12.0)
    paces.arrived(BOARD, 17.0)
    assert paces.of([BOARD]) == [17.0]
    paces.closed([BOARD], 9.0)
    assert paces.of([BOARD]) == [17.0], "it was late, not faster"
