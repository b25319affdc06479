"""For whom a request is and how urgent, by headers and small JSON."""

import json

import pytest

from agent.foundation.errors import UsageError
from agent.gateway.precedence import LOOKED_AT_BYTES_MAX, application_of, priority_of
from agent.serving.access import LOCAL
from agent.serving.fair import Priority


def body(priority: object, padding: int = 0) -> bytes:
    parameters = {"priority": priority, "padding": "x" * padding}
    return json.dumps({"parameters": parameters, "inputs": []}).encode()


def test_without_a_word_a_request_is_as_usual() -> None:
    assert priority_of({}, None, b'{"inputs": []}') is Priority.NORMAL
    assert priority_of({}, "0", b"raw tensor") is Priority.NORMAL


def test_the_header_goes_before_the_parameter() -> None:
    assert priority_of({"Atoll-Priority": "low"}, None, body(1)) is Priority.LOW
    assert priority_of({"Atoll-Priority": "0"}, None, body(1)) is Priority.NORMAL
    with pytest.raises(UsageError, match="priority 'soon' is unknown"):
        priority_of({"Atoll-Priority": "soon"}, None, body(1))


def test_the_parameter_is_read_in_small_json_and_before_binary_tensors() -> None:
    assert priority_of({}, None, body(1)) is Priority.HIGH
    head = body(3)
    assert priority_of({}, str(len(head)), head + bytes(100_000)) is Priority.LOW
    assert priority_of({}, "2", b"{}" + body(1)) is Priority.NORMAL, "that is a tensor"
    with pytest.raises(UsageError, match="priority 7 is unknown"):
        priority_of({}, None, body(7))


def test_large_json_is_not_read_here() -> None:
    assert priority_of({}, None, body(1, LOOKED_AT_BYTES_MAX)) is Priority.NORMAL


@pytest.mark.parametrize(
    "content",
    [b'"priority"', b'{"priority": 1', b'{"a": "priority"}', b'{"parameters": "priority", "priority": 1}',
     b'{"parameters": ["priority"]}', b'{"parameters": {"x": "priority"}}', b'[{"priority": 1}]'],
)  # fmt: skip
def test_what_is_no_request_is_left_to_the_worker(content: bytes) -> None:
    assert priority_of({}, None, content) is Priority.NORMAL


def test_a_length_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="longer than the body"):
        priority_of({}, "99", b"{}")


def test_who_needs_no_token_may_say_a_name() -> None:
    assert application_of(LOCAL, {}) == LOCAL
    assert application_of(LOCAL, {"Atoll-Application": "line-2"}) == "line-2"
    assert application_of("by-token", {"Atoll-Application": "line-2"}) == "by-token"
    for wrong in ("", "site paris", "x" * 65, 'a"b'):
        with pytest.raises(UsageError, match="Atoll-Application is not a name"):
            application_of(LOCAL, {"Atoll-Application": wrong})
