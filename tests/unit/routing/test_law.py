"""Policies of the catalog: which are about a request, and what they leave of its label."""

import pytest

from agent.foundation.errors import Refused
from agent.routing.law import Bound, Entry, applying, bounds_of, narrowed, require_label
from agent.wire.documents import Policy
from agent.wire.residency import Group

EU = Group("EU", ("DE", "FR"))
EEA = Group("EEA", ("DE", "FR", "NO"))
GROUPS = (EEA, EU)
HERE = Entry("DE", "local")


def policy(name: str = "p", *answer_in: str, **more: object) -> Policy:
    return Policy("policy", name, answer_in, **more)  # type: ignore[arg-type]


def is_about(one: Policy, model: str = "m", entry: Entry = HERE) -> bool:
    return bool(applying([one], GROUPS, model, entry))


def test_a_policy_without_conditions_is_about_every_request() -> None:
    assert is_about(policy())
    assert is_about(policy(), "other", Entry("", None))
    assert not is_about(policy(is_active=False))


@pytest.mark.parametrize(
    ("patterns", "model", "expected"),
    [
        (("scan-*",), "scan-hip", True),
        (("scan-*",), "scan-", True),
        (("scan-*",), "rescan-hip", False),
        (("*",), "m", True),
        (("m",), "m", True),
        (("m",), "mm", False),
        (("a.c",), "abc", False),
        (("x", "*-eu"), "m-eu", True),
    ],
)
def test_models_are_named_by_patterns(
    patterns: tuple[str, ...], model: str, *, expected: bool
) -> None:
    assert is_about(policy(models=patterns), model) is expected


def test_origins_are_where_the_application_asks() -> None:
    one = policy(origins=("EU",))
    assert is_about(one, entry=Entry("FR", "local"))
    assert not is_about(one, entry=Entry("NO", "local"))
    assert not is_about(one, entry=Entry("", None)), "not known: told by the label it comes with"


def test_applications_are_named_by_their_tokens() -> None:
    one = policy(applications=("camera*",))
    assert is_about(one, entry=Entry("DE", "camera-3"))
    assert not is_about(one, entry=Entry("DE", "local"))
    assert not is_about(one, entry=Entry("DE", None))


def test_only_policies_that_name_places_bind() -> None:
    assert bounds_of([policy("a", "DE"), policy("b", needs_label=True)]) == (Bound("a", ("DE",)),)


def test_a_wanted_label_must_be_there() -> None:
    policies = [policy("a"), policy("b", needs_label=True)]
    require_label(policies, ("DE",))
    with pytest.raises(Refused, match="policy b wants one; say where"):
        require_label(policies, ())


@pytest.mark.parametrize(
    ("label", "bounds", "left"),
    [
        (("DE", "US"), (), ("DE", "US")),
        ((), (("EU",),), ("EU",)),
        (("DE", "US"), (("EU",),), ("DE",)),
        (("EEA",), (("EU",),), ("DE", "FR")),
        (("EU",), (("EU",), ("EU", "US")), ("EU",)),
        ((), (("EU",), ("FR", "NO")), ("FR",)),
        (("zone",), (("zone", "DE"),), ("zone",)),
    ],
)
def test_what_is_passed_on_is_what_label_and_policies_have_in_common(
    label: tuple[str, ...], bounds: tuple[tuple[str, ...], ...], left: tuple[str, ...]
) -> None:
    assert narrowed(label, [Bound("p", one) for one in bounds], GROUPS) == left


def test_nothing_in_common_is_refused_and_never_anywhere() -> None:
    with pytest.raises(Refused, match="none in common: p, q"):
        narrowed((), [Bound("p", ("DE",)), Bound("q", ("US",))], GROUPS)


def test_groups_that_name_each_other_leave_a_label() -> None:
    odd = (Group("A", ("B", "DE")), Group("B", ("A",)))
    assert set(narrowed(("A", "B"), [Bound("p", ("A", "B"))], odd)) == {"A", "B"}
