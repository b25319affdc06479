"""What a site says to jobs: its data, its jurisdiction, its abilities."""

from dataclasses import replace

import pytest
from sites_of_one_cluster import World, a_job

from agent.foundation.ids import SiteId
from agent.site.events import DrainRequested
from agent.site.workshop import JOBS_MAX


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"dataset": "other"}, "no data set 'other' here"),
        ({"residency": ("FR",)}, "restricted to FR"),
    ],
)
def test_a_site_says_why_it_does_not_train(changes: dict[str, object], said: str) -> None:
    one = World().add()
    job = replace(a_job("j-1", one.site.me), **changes)  # type: ignore[arg-type]
    refusal = one.site.workshop.refusal(job)
    assert said in refusal
    assert bool(said) == bool(refusal)


def test_a_draining_site_takes_no_part() -> None:
    world = World()
    one = world.add()
    world.feed(one, DrainRequested(is_draining=True))
    assert one.site.is_draining
    assert "draining" in one.site.workshop.refusal(a_job("j-1", one.site.me))


def test_an_open_job_wants_time_and_is_opened_once() -> None:
    world = World()
    one = world.add()
    world.submit(one, a_job("j-1", one.site.me))
    machine = one.site.workshop.machines[a_job("j-1").id]
    one.site.workshop.open(a_job("j-1", one.site.me, SiteId(bytes(32))), world.now)
    assert one.site.workshop.machines[a_job("j-1").id] is machine
    world.run(2)
    assert machine.value is not None
    assert machine.value.aggregator == one.site.me
    assert JOBS_MAX >= 10_000
