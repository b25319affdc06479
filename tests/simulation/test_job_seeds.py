"""Five hundred whole jobs, each with troubles of its own, judged by what they left behind.

A broken rule is told with its seed: ``python -m agent.simulation chaos --seed N --runs 1`` replays it.
"""

from argparse import ArgumentParser

import pytest
from membership_pool import pool

from agent.simulation.job_chaos import Ending, add_arguments, live, live_all, run, scenario_of, told

SEEDS = 500
SEEDS_EACH = 20


@pytest.fixture(scope="module")
def lives() -> list[Ending]:
    with pool() as executor:
        parts = [range(first, first + SEEDS_EACH) for first in range(1, SEEDS + 1, SEEDS_EACH)]
        return [ending for part in executor.map(live_all, parts) for ending in part]


@pytest.mark.timeout(600)
def test_five_hundred_jobs_keep_every_rule_and_end(lives: list[Ending]) -> None:
    assert {ending.seed: ending.broken for ending in lives if ending.broken} == {}
    assert len({ending.trace for ending in lives}) == SEEDS, "no two seeds are alike"


def test_there_was_trouble_of_every_kind(lives: list[Ending]) -> None:
    totals = told(lives)
    assert totals["epochs"] > totals["jobs"] * 2, "aggregators died"
    assert totals["members replaced"] > SEEDS / 10
    assert 0 < totals["cancelled"] < SEEDS / 5
    scenarios = [scenario_of(seed) for seed in range(1, SEEDS + 1)]
    assert {scenario.committee for scenario in scenarios} == {1, 3, 5}
    assert any(scenario.gone for scenario in scenarios)
    assert sum(scenario.recover for scenario in scenarios) > SEEDS / 50
    assert sum(scenario.correction == "scaffold" for scenario in scenarios) > SEEDS / 50
    assert sum(scenario.ranges > 1 for scenario in scenarios) > SEEDS / 10
    for ending, scenario in zip(lives, scenarios, strict=True):
        assert ending.is_cancelled or ending.rounds == ending.counted == scenario.rounds


def test_a_seed_gives_the_same_job_in_any_process(lives: list[Ending]) -> None:
    assert [live(seed) for seed in (1, 2, 3)] == lives[:3]


def test_the_command_replays_a_seed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--seed", "3", "--runs", "2"])) == 0
    assert "2 of 2 seeds are good" in capsys.readouterr().out
