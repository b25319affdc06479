"""W3C Trace Context: what is carried, what is ignored. Section numbers are the Recommendation's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from agent.serving.trace import MEMBERS_MAX, STATE_CHARS_MAX, read_trace

ID, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{ID}-{SPAN}-01"


def read(*headers: tuple[str, str]) -> dict[str, str] | None:
    """What is passed on with a new span, or None."""
    trace = read_trace(CIMultiDict(headers))
    return None if trace is None else trace.passed_on(b"\1" * 8).headers()


def with_state(*states: str) -> str | None:
    found = read(("traceparent", GOOD), *(("tracestate", one) for one in states))
    assert found is not None
    return found.get("tracestate")


def test_the_trace_stays_and_the_span_is_new() -> None:
    assert read(("traceparent", GOOD), ("TraceState", "rojo=1,congo=t61 r")) == {
        "traceparent": f"00-{ID}-{'01' * 8}-01", "tracestate": "rojo=1,congo=t61 r",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        f"ff-{ID}-{SPAN}-01",  # 3.2.2.1: version 255 is invalid
        f"00-{'0' * 32}-{SPAN}-01",  # 3.2.2.3: all zeroes is invalid
        f"00-{ID}-{'0' * 16}-01",  # 3.2.2.4
        f"00-{ID.upper()}-{SPAN}-01",  # 3.2: lower case only
        f"00-{ID[:-1]}-{SPAN}-01",
        f"00-{ID}-{SPAN}-1",
        f"00-{ID}-{SPAN}-01-more",  # 3.2.4: version 00 has four parts
        f"01-{ID}-{SPAN}-01more",  # 3.2.4: what a later version adds begins with a dash
        f"00-{ID}-{SPAN}-0g",
        f"00 {ID} {SPAN} 01",
        f"{GOOD},{GOOD}",
    ],
)
def test_what_is_not_valid_is_ignored_with_its_state(text: str) -> None:
    assert read(("traceparent", text), ("tracestate", "rojo=1")) is None


def test_two_traceparents_are_not_chosen_between() -> None:
    assert read(("traceparent", GOOD), ("traceparent", GOOD)) is None
    assert read(("tracestate", "rojo=1")) is None


def test_a_later_version_is_carried_as_this_one() -> None:
    for later in (f"cc-{ID}-{SPAN}-01", f"cc-{ID}-{SPAN}-01-what-it-adds"):
        assert read(("traceparent", later)) == {"traceparent": f"00-{ID}-{'01' * 8}-01"}


def test_only_the_flags_that_are_known_are_handed_on() -> None:
    for given_flags, expected in (("00", "00"), ("01", "01"), ("03", "03"), ("ff", "03")):
        found = read(("traceparent", f"00-{ID}-{SPAN}-{given_flags}"))
        assert found == {"traceparent": f"00-{ID}-{'01' * 8}-{expected}"}


def test_several_states_are_one_list() -> None:
    assert with_state("rojo=1", "congo=2, a@b=3") == "rojo=1,congo=2,a@b=3"
    assert with_state("rojo=1,,\t") == "rojo=1"
    assert with_state("") is None


@pytest.mark.parametrize(
    "state",
    [
        "rojo",
        "Rojo=1",
        "rojo=1=2",
        "rojo=",
        "rojo=é",
        "rojo=1,rojo=2",  # 3.3.1.3: a key once
        "a@b@c=1",
        "@b=1",
        "rojo=" + "x" * 257,
        ",".join(f"k{number}=1" for number in range(MEMBERS_MAX + 1)),
        ",".join(f"k{number}={'x' * 61}" for number in range(STATE_CHARS_MAX // 60)),
    ],
)
def test_a_state_that_cannot_be_carried_is_dropped_and_the_trace_is_not(state: str) -> None:
    assert with_state(state) is None


def test_as_much_as_every_implementation_carries_is_carried() -> None:
    many = ",".join(f"k{number}=1" for number in range(MEMBERS_MAX))
    long = "a=" + "x" * 200 + ",b=" + "y" * 200 + ",c=" + "z" * (STATE_CHARS_MAX - 408)
    assert with_state(many) == many
    assert len(long) == STATE_CHARS_MAX
    assert with_state(long) == long


@given(st.lists(st.text(max_size=80), max_size=3), st.lists(st.text(max_size=600), max_size=3))
def test_whatever_is_sent_what_is_passed_on_is_valid(parents: list[str], states: list[str]) -> None:
    headers = [("traceparent", one) for one in parents] + [("tracestate", one) for one in states]
    passed = read(*headers)
    if passed is not None:
        again = read(*passed.items())
        assert again == passed
