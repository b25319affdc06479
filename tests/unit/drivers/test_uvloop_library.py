"""What the loop complains of: a TLS connection that was closed under uvloop is no fault, all else is."""

import asyncio
import logging
from typing import Any

import pytest

from agent.drivers.uvloop_library import heed

CLOSED = (
    "unable to perform operation on <TCPTransport closed=True reading=False>; the handler is closed"
)


@pytest.mark.parametrize(
    ("message", "error", "is_told"),
    [
        ("Fatal error on SSL protocol", RuntimeError(CLOSED), False),
        ("Fatal error on SSL protocol", RuntimeError("another"), True),
        ("Fatal error on SSL protocol", OSError(CLOSED), True),
        ("Exception in callback", RuntimeError(CLOSED), True),
        ("Task was destroyed but it is pending!", None, True),
    ],
)
async def test_only_a_connection_that_was_closed_under_uvloop_is_passed_over(
    message: str,
    error: Exception | None,
    is_told: bool,  # noqa: FBT001 - a table
    caplog: pytest.LogCaptureFixture,
) -> None:
    context: dict[str, Any] = {"message": message}
    if error is not None:
        context["exception"] = error
    with caplog.at_level(logging.INFO):
        heed(asyncio.get_running_loop(), context)
    assert (message in caplog.text) == is_told
