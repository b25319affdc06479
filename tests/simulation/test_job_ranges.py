"""Whole simulated jobs whose means are made in ranges on several sites."""

from dataclasses import replace

import pytest

from agent.federation.aggregator import Aggregation
from agent.federation.sharing import Ended, Sharing
from agent.simulation.job_checks import contents
from agent.simulation.job_fleet import Scenario
from agent.simulation.job_world import simulate
from agent.wire.mesh import RangeNotSummed, SumRange

BAD = Scenario(fault_every_s=1.5, kills=6, seconds=40.0, ranges=4)
CALM = Scenario(
    fault_every_s=1e9, kills=0, gone=0, loss=0, duplicate=0, fetch_failure=0, attempt_failure=0,
    poison=0, work_failure=0, ranges=3,
)  # fmt: skip
LATE = replace(BAD, staleness_max=2, outer="momentum", rounds=6, sites_min=3, train_mean_s=4.0)
REGIONS = replace(BAD, sites=13, regions=3, gone=0, staleness_max=2, local_rounds_max=3)


@pytest.mark.parametrize("scenario", [BAD, LATE, REGIONS], ids=["bad", "late", "regions"])
def test_every_rule_holds_under_faults(scenario: Scenario) -> None:
    for seed in range(1, 9):
        report = simulate(seed, scenario)
        assert report.violations == [], f"seed {seed}"
        assert report.rounds == scenario.rounds


def test_a_calm_job_makes_the_same_rounds_as_one_aggregator_and_leaves_nothing_behind() -> None:
    regional = replace(CALM, sites=12, regions=2)
    for seed in range(1, 5):
        for scenario in (CALM, replace(CALM, staleness_max=2, outer="momentum"), regional):
            report = simulate(seed, scenario)
            assert report.violations == []
            assert report.evidence.leftovers == []
            counted = contents(report.evidence).values()
            assert all(len(content.entries) >= 2 for content in counted)


def first_violations(saying: str, scenario: Scenario = BAD) -> list[str]:
    for seed in range(1, 1001):
        found = [one for one in simulate(seed, scenario).violations if saying in one]
        if found:
            return found
    return []


def test_a_range_that_is_made_of_another_list_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked for the same part of the same round gives what it has made before."""
    monkeypatch.setattr(
        SumRange,
        "__eq__",
        lambda one, other: (one.round, one.part) == (other.round, other.part),
    )
    assert first_violations("ranges of several means were joined")


def test_a_list_that_changes_while_it_is_summed_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of the ranges are made again without the update that could not be had, the others stay."""
    original = Sharing._answered

    def answered(self: Sharing, one, site, reply, now):  # type: ignore[no-untyped-def]
        if isinstance(reply, RangeNotSummed) and len(self._counted) > 1:
            bad = {*reply.missing, *reply.spoiled}
            self._counted = tuple(
                each for each in self._counted if each.offer.parts[one.part] not in bad
            ) or self._counted[:1]  # fmt: skip
            self._put_off(one, now)
            return
        original(self, one, site, reply, now)

    monkeypatch.setattr(Sharing, "_answered", answered)
    assert first_violations("of several means")


def test_a_round_that_says_it_counted_what_no_range_had_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Aggregation._shared

    def shared(self: Aggregation, ended: Ended, now: float) -> None:
        if ended.ranges and len(self._counted) > 1:
            self._counted = self._counted[1:]
        original(self, ended, now)

    monkeypatch.setattr(Aggregation, "_shared", shared)
    assert first_violations("are not the mean of what it counts")
