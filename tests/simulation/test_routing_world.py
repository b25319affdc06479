"""Forty sites under a skewed load: requests find room, with nobody who knows all."""

from unittest.mock import patch

import pytest

from agent.routing.outlook import Outlook
from agent.simulation.routing_world import Plan, p99_s, run_world


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_skewed_load_spreads_to_sites_with_room(seed: int) -> None:
    plan = Plan(seed, sites=40, requests=4000)
    oracle_s = p99_s(run_world(plan, is_oracle=True))
    ours_s = p99_s(run_world(plan, is_oracle=False))
    with patch.object(Outlook, "is_better_away", return_value=False):
        at_home_s = p99_s(run_world(plan, is_oracle=False))
    assert oracle_s <= ours_s <= 2.5 * oracle_s
    assert ours_s < at_home_s / 2
