"""Each error has one status, by who can act, and one form."""

import json

import pytest

from agent.foundation.errors import (
    AtollError,
    Busy,
    Corruption,
    Malformed,
    NotFound,
    Refused,
    Unreachable,
    UsageError,
)
from agent.serving.failures import (
    ERROR_CHARS_MAX,
    DeadlineExceeded,
    TooLarge,
    TooSlow,
    error_body,
    status_of,
)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (UsageError, 400),
        (Malformed, 400),
        (Refused, 403),
        (NotFound, 404),
        (TooSlow, 408),
        (TooLarge, 413),
        (Corruption, 500),
        (AtollError, 500),
        (Busy, 503),
        (Unreachable, 503),
        (DeadlineExceeded, 504),
    ],
)
def test_the_status_says_who_can_act(kind: type[AtollError], status: int) -> None:
    assert status_of(kind("what")) == status


def test_an_error_body_is_json_and_bounded() -> None:
    assert json.loads(error_body("no")) == {"error": "no"}
    assert len(json.loads(error_body("x" * 10_000))["error"]) == ERROR_CHARS_MAX
    assert json.loads(error_body("a\udc80b"))["error"] == "a?b"
