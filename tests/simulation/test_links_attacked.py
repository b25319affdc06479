"""Two sites whose link to each other is broken for good; all else works, nobody fails."""

from dataclasses import replace

import pytest

from agent.simulation.job_fleet import Parts, Scenario
from agent.simulation.job_outside import Outside
from agent.simulation.job_world import simulate

CALM = Scenario(
    sites=4, fault_every_s=1e9, kills=0, gone=0, loss=0, duplicate=0, fetch_failure=0, attempt_failure=0,
    poison=0, work_failure=0, idle_sites=0.0, late=0.0, sites_min=4, ranges=4, rounds=3,
)  # fmt: skip


class Broken(Outside):
    """Sites 2 and 3 give each other no blobs."""

    def fetch(self, site, digest, sources):  # type: ignore[no-untyped-def]
        other = {2: 3, 3: 2}.get(site.index)
        super().fetch(site, digest, [one for one in sources if self._fleet.index[one] != other])


@pytest.mark.parametrize("ranges", [1, 4])
@pytest.mark.parametrize("seed", [1, 4, 5, 7, 8, 12])
def test_a_job_ends_although_two_sites_cannot_reach_each_other(seed: int, ranges: int) -> None:
    report = simulate(seed, replace(CALM, ranges=ranges), Parts(outside=Broken))
    assert report.violations == []
