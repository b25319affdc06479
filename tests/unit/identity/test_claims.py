"""Claims: what an operator may write into a certificate."""

import pytest

from agent.foundation.errors import UsageError
from agent.identity.claims import check_place, is_job_id, is_jurisdiction, is_name


@pytest.mark.parametrize("text", ["a", "edge-1", "0x", "a.b_c-d", "a" * 64])
def test_these_are_names(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text", ["", "A", "-a", ".", "..", "../a", "a/b", "a b", "a\n", "ä", "a" * 65, "a\0"]
)
def test_these_are_not_names(text: str) -> None:
    assert not is_name(text)


def test_a_jurisdiction_may_have_capitals_and_a_job_id_eighty_characters() -> None:
    assert is_jurisdiction("DE")
    assert not is_jurisdiction("D/E")
    assert is_job_id("j" * 71 + "-12345678")
    assert not is_job_id("j" * 81)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("Edge", "north", "edge", "DE", ()), "the name 'Edge'"),
        (("edge", "no/rth", "edge", "DE", ()), "the region"),
        (("edge", "north", "top", "DE", ()), "no tier 'top'.*edge, regional, core"),
        (("edge", "north", "edge", "", ()), "the jurisdiction ''"),
        (("edge", "north", "edge", "DE", ("a b",)), "the role"),
        (("edge", "north", "edge", "DE", ("r",) * 9), "9 roles"),
    ],
)
def test_each_wrong_value_is_named(
    place: tuple[str, str, str, str, tuple[str, ...]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_place(*place)


def test_a_proper_place_gives_its_tier() -> None:
    assert check_place("edge-1", "north", "core", "DE", ("member",)) == "core"
