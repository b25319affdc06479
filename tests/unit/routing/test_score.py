"""Among the allowed sites the earliest predicted completion wins."""

from dataclasses import replace
from typing import Any

from agent.foundation.ids import SiteId
from agent.routing.policy import ALLOWED, Removal, Verdict
from agent.routing.score import predict, rank
from agent.wire.inside import RemoteSite


def verdict(number: int, **changes: Any) -> Verdict:
    site = SiteId(bytes([number]) * 32)
    service_us = changes.pop("service_us", 10_000)
    out = changes.pop("removed", ALLOWED)
    remote = RemoteSite(site, f"s{number}", "r", "edge", "DE", "h", 1, "alive", False, 5.0, 0.0, ())
    return Verdict(site, f"s{number}", False, "DE", out, replace(remote, **changes), service_us)


def order(*verdicts: Verdict, **more: Any) -> list[str]:
    return [v.name for v, _ in rank(verdicts, **more)]


def test_completion_is_round_trip_queue_and_service() -> None:
    prediction = predict(verdict(1, rtt_ms=20.0, load=0.5), local_wait_ms=99, under_way=1)
    assert (prediction.rtt_ms, prediction.queue_ms, prediction.service_ms) == (20.0, 50.0, 10.0)
    assert prediction.total_ms == 80.0


def test_a_far_fast_site_beats_a_near_slow_one() -> None:
    near_slow = verdict(1, rtt_ms=1.0, service_us=500_000)
    far_fast = verdict(2, rtt_ms=100.0, service_us=5_000)
    assert order(near_slow, far_fast) == ["s2", "s1"]


def test_load_and_requests_under_way_count_as_queue() -> None:
    first, second = verdict(1), verdict(2)
    assert order(first, second) == ["s1", "s2"]
    assert order(replace_load(first, 0.9), second) == ["s2", "s1"]
    assert order(first, second, under_way={first.site: 3}) == ["s2", "s1"]


def replace_load(old: Verdict, load: float) -> Verdict:
    assert old.remote is not None
    return replace(old, remote=replace(old.remote, load=load))


def test_a_suspect_comes_last() -> None:
    assert order(verdict(1, status="suspect"), verdict(2, rtt_ms=400.0)) == ["s2", "s1"]


def test_this_site_comes_first_and_the_removed_not_at_all() -> None:
    local = Verdict(SiteId(bytes(32)), "home", True, "DE", ALLOWED, None, 10_000)
    out = verdict(1, removed=Removal("policy", "no"))
    assert order(verdict(2), out, local, local_wait_ms=900.0) == ["home", "s2"]


def test_equal_scores_are_broken_alike_everywhere() -> None:
    assert order(verdict(3), verdict(1), verdict(2)) == ["s1", "s2", "s3"]
