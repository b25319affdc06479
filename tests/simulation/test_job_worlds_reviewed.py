"""Whole jobs that never ended, as fresh eyes found."""

from dataclasses import replace

import pytest

from agent.simulation.job_fleet import Scenario
from agent.simulation.job_world import simulate

BAD = Scenario(fault_every_s=1.5, kills=6, seconds=40.0)
BOTH = replace(
    BAD, sites=8, regions=2, has_loners=False, sites_min=2, rounds=5, idle_sites=0.0, poison=0.0,
    gone=0, staleness_max=2, local_rounds_max=3,
)  # fmt: skip
FAST = replace(
    BOTH, train_mean_s=0.3, seconds=120.0, kills=2, fault_every_s=3.0, local_rounds_max=6,
    staleness_max=4,
)  # fmt: skip
LOST = replace(
    BAD, sites=10, gone=0, recover=True, seconds=60.0, staleness_max=2, sites_min=2, rounds=10,
    loss=0.0, fetch_failure=0.4,
)  # fmt: skip


@pytest.mark.parametrize("seed", [5, 7, 26])
def test_two_regions_that_are_cut_off_now_and_then_end_their_job(seed: int) -> None:
    """17 of seeds 1..199 never end (2 of 199 of ``BOTH``: 50 and 175)."""
    assert simulate(seed, FAST).violations == []


def test_with_one_local_round_the_same_seeds_end() -> None:
    """The control: it needs a second local round."""
    for seed in (5, 7, 26):
        assert simulate(seed, replace(FAST, local_rounds_max=1)).violations == []


def test_a_majority_that_is_lost_with_the_newest_parameters_is_recovered_from() -> None:
    assert simulate(70, LOST).violations == []


@pytest.mark.parametrize("seed", [15, 30])
def test_who_was_away_during_a_recovery_learns_the_end_from_tombstones(seed: int) -> None:
    """2 of the first 47 seeds."""
    lost = replace(
        BAD, sites=10, gone=0, recover=True, seconds=60.0, staleness_max=2, rounds=3, jobs_kept=0
    )
    assert simulate(seed, lost).violations == []
