"""The predicted completion at one site."""

from dataclasses import replace
from typing import Any

from agent.foundation.ids import SiteId
from agent.routing.policy import ALLOWED, Verdict
from agent.routing.score import predict
from agent.wire.inside import RemoteSite


def verdict(number: int, **changes: Any) -> Verdict:
    site = SiteId(bytes([number]) * 32)
    service_us = changes.pop("service_us", 10_000)
    out = changes.pop("removed", ALLOWED)
    remote = RemoteSite(site, f"s{number}", "r", "edge", "DE", "h", 1, "alive", False, 5.0, 0.0, ())
    return Verdict(site, f"s{number}", False, "DE", out, replace(remote, **changes), service_us)


def test_completion_is_round_trip_queue_and_service() -> None:
    prediction = predict(verdict(1, rtt_ms=20.0, load=0.5), local_wait_ms=99, under_way=1)
    assert (prediction.rtt_ms, prediction.queue_ms, prediction.service_ms) == (20.0, 50.0, 10.0)
    assert prediction.total_ms == 80.0


def test_a_suspect_is_worse_than_any_distance() -> None:
    near, far = verdict(1, status="suspect"), verdict(2, rtt_ms=400.0)
    totals = [predict(one, local_wait_ms=0.0, under_way=0).total_ms for one in (near, far)]
    assert totals[0] > totals[1]
