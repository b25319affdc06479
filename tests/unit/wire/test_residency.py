"""A label, a place, and the groups between them; what is not known counts as no."""

import pytest

from agent.wire.residency import Group, is_within, law_digest

EU = Group("EU", ("DE", "FR"))
EEA = Group("EEA", ("DE", "NO", "EU"))


def test_an_empty_label_allows_any_place_and_an_empty_place_nothing() -> None:
    assert is_within("DE", (), ())
    assert is_within("", (), ())
    assert not is_within("", ("DE",), ())
    assert not is_within("", ("",), (Group("", ("",)),))
    assert not is_within("", ("EU",), (Group("EU", ("",)),))


@pytest.mark.parametrize(
    ("place", "label", "is_allowed"),
    [
        ("DE", ("DE",), True),
        ("DE", ("EU",), True),
        ("US", ("EU",), False),
        ("US", ("EU", "US"), True),
        ("NO", ("EU",), False),
        ("NO", ("EEA",), True),
        ("FR", ("EEA",), False),  # a member that is a group is only its name
        ("EU", ("EU",), True),  # a certificate may say so
        ("EU", ("EEA",), True),
        ("DE", ("eu",), False),
        ("DE", ("ASIA",), False),
    ],
)
def test_a_group_allows_its_members(
    place: str, label: tuple[str, ...], *, is_allowed: bool
) -> None:
    assert is_within(place, label, (EEA, EU)) is is_allowed
    if "DE" not in label and place != "EU" and "US" not in label:
        assert not is_within(place, label, ()), "without the log's groups it allows nothing"


def test_whatever_changes_what_labels_mean_has_another_digest() -> None:
    digests = {
        law_digest(vocabulary, groups)
        for vocabulary in ((), ("DE",), ("DE", "FR"))
        for groups in ((), (EU,), (EEA, EU), (Group("EU", ("DE",)),))
    }
    assert len(digests) == 12
    assert {len(digest) for digest in digests} == {8}
