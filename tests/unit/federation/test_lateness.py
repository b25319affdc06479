"""What a late update counts, and that it counts once."""

from math import sqrt

import pytest
from federated_site import ANNA, BERT, contributions, digest
from hypothesis import given
from hypothesis import strategies as st

from agent.federation.lateness import is_counted, late_by, made_for, weight_of
from agent.federation.value import Contribution

FRESH = Contribution(ANNA, digest("a1"), 5)
LATE = Contribution(BERT, digest("b1"), 5, (), 1, digest("p0"))
ROUNDS = {1: contributions(1, None, FRESH)[2], 2: contributions(2, None, LATE)[2]}


@given(st.integers(1, 2**40), st.integers(0, 64))
def test_the_weight_falls_with_the_root_of_the_rounds(samples: int, late: int) -> None:
    weight = weight_of(samples, late)
    assert weight >= 1
    assert weight == pytest.approx(samples / sqrt(1 + late), abs=1, rel=1e-12)
    assert weight_of(samples, 0) == samples


def test_an_update_counts_for_the_round_that_it_was_made_for() -> None:
    assert (made_for(FRESH, 1), made_for(LATE, 2)) == (1, 1)
    assert is_counted(ANNA, 1, ROUNDS, 1) is True
    assert is_counted(BERT, 1, ROUNDS, 1) is False
    assert is_counted(BERT, 1, ROUNDS, 2) is True
    assert is_counted(BERT, 2, ROUNDS, 2) is False


def test_a_round_that_is_not_known_may_have_counted_it() -> None:
    assert is_counted(BERT, 1, ROUNDS, 3) is True
    assert is_counted(ANNA, 2, ROUNDS, 3) is None
    assert is_counted(ANNA, 2, {}, 1) is False, "no round could have"


@pytest.mark.parametrize(
    ("site", "round_", "base", "open_round", "staleness_max", "late"),
    [
        (BERT, 1, "p0", 2, 1, 1),
        (BERT, 1, "p0", 2, 0, None),
        (BERT, 1, "other", 2, 1, None),
        (ANNA, 1, "p0", 2, 1, None),
        (BERT, 1, "p0", 3, 2, None),
        (ANNA, 2, "p1", 3, 2, 1),
        (ANNA, 2, "p1", 2, 2, None),
        (ANNA, 3, "p2", 2, 2, None),
        (ANNA, 2, "p1", 4, 2, None),
    ],
    ids=[
        "late", "not allowed", "of other parameters", "counted in time", "counted late",
        "of the round after", "in time", "too early", "a round is not known",
    ],
)  # fmt: skip
def test_who_may_still_be_counted(
    site: bytes, round_: int, base: str, open_round: int, staleness_max: int, late: int | None
) -> None:
    found = late_by(site, round_, digest(base), open_round, staleness_max, ROUNDS.get)  # type: ignore[arg-type]
    assert found == late
