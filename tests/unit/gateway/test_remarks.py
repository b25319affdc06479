"""Lines in the log about requests that failed or took long."""

import logging

import pytest

from agent.gateway.remarks import EVERY_S, LINES_MAX, SLOW_S, Remarks
from agent.serving.trace import Trace

TRACE = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", 1, "secret=canary")


@pytest.fixture(autouse=True)
def listening(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.requests")


def test_a_failed_request_is_told_with_its_id_and_trace(caplog: pytest.LogCaptureFixture) -> None:
    Remarks().answered("r-1", "m:1", TRACE, 504, 0.25, "the deadline\npassed é")
    (line,) = caplog.messages
    assert line == (
        "request r-1 of trace 4bf92f3577b34da6a3ce929d0e0e4736 (span 00f067aa0ba902b7) for m:1: "
        "504 after 250 ms: the deadline\\npassed \\xe9"
    )
    assert "canary" not in caplog.text


def test_a_slow_one_is_told_and_an_ordinary_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    remarks = Remarks()
    remarks.answered("r-1", "m:1", None, 200, SLOW_S, "")
    remarks.answered("r-2", "m:1", None, 200, SLOW_S - 0.001, "")
    remarks.answered("r-3", "m:1", None, 404, 0.1, "no such model")
    assert caplog.messages == ["request r-1 for m:1: 200 after 5000 ms"]


def test_a_flood_is_counted_instead_of_written(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    remarks = Remarks(lambda: now[0])
    for number in range(10_000):
        remarks.answered(f"r-{number}", "m:1", None, 503, 0.1, "x" * 10_000)
    assert len(caplog.messages) == LINES_MAX
    assert max(map(len, caplog.messages)) < 400
    now[0] += EVERY_S
    remarks.answered("r", "m:1", None, 503, 0.1, "y")
    assert caplog.messages[-1].endswith(f"y ({10_000 - LINES_MAX} more were not logged)")
    remarks.answered("r", "m:1", None, 503, 0.1, "z")
    assert caplog.messages[-1].endswith("z")
