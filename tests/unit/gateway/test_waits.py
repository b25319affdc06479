"""Waiting and refusals by application and priority, with bounded labels."""

from agent.gateway.waits import Waits
from agent.serving.fair import APPLICATIONS_MAX, Priority


def lines(waits: Waits) -> list[str]:
    return [line for line in waits.render().splitlines() if not line.startswith("#")]


def test_each_flow_has_its_histogram_and_its_refusals() -> None:
    waits = Waits()
    waits.note("camera", Priority.HIGH, 700)
    waits.note("camera", Priority.HIGH, 3_000_000)
    waits.note("local", Priority.NORMAL, 0)
    waits.refuse("local", Priority.LOW)
    found = lines(waits)
    camera = 'application="camera",priority="high"'
    assert f'atoll_queue_seconds_bucket{{{camera},le="0.001"}} 1' in found
    assert f'atoll_queue_seconds_bucket{{{camera},le="2.5"}} 1' in found
    assert f'atoll_queue_seconds_bucket{{{camera},le="+Inf"}} 2' in found
    assert f"atoll_queue_seconds_sum{{{camera}}} 3.000700" in found
    assert 'atoll_queue_seconds_count{application="local",priority="normal"} 1' in found
    assert 'atoll_refused_total{application="local",priority="low"} 1' in found


def test_names_beyond_the_bound_are_added_up() -> None:
    waits = Waits()
    for number in range(APPLICATIONS_MAX + 9):
        waits.note(f"a{number}", Priority.NORMAL, 1)
        waits.refuse(f"a{number}", Priority.NORMAL)
    found = lines(waits)
    assert 'atoll_queue_seconds_count{application="others",priority="normal"} 9' in found
    assert 'atoll_refused_total{application="others",priority="normal"} 9' in found
    assert sum("_count" in line for line in found) == APPLICATIONS_MAX + 1
