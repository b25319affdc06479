"""Cases are answered by the filter itself, from both ends."""

from dataclasses import replace

import pytest

from agent.foundation.errors import ConfigError, Refused
from agent.routing import policy_cases
from agent.routing.policy_cases import Case, outcome, read
from agent.wire.documents import Policy
from agent.wire.residency import Group


def test_a_case_is_denied_by_the_label_that_forbids_it_and_the_rule_is_named() -> None:
    denied = outcome("a", Case(site="US", expect="allow", request=("DE", "FR")), ())
    assert (denied.answer, denied.is_as_expected) == ("deny", False)
    assert denied.rule == "request may be answered only in DE, FR, the site is in US"
    by_model = outcome("b", Case(site="DE", expect="deny", request=("DE",), model=("FR",)), ())
    assert by_model.is_as_expected
    assert by_model.rule == "model may run only in FR, the site is in DE"


def test_a_case_is_allowed_where_both_labels_allow_it() -> None:
    assert outcome("a", Case("DE", "allow", ("DE",), ("FR", "DE")), ()).is_as_expected
    assert outcome("b", Case("DE", "allow"), ()).rule == ""


def test_an_unknown_name_is_denied() -> None:
    for label in ("EU", "de"):
        assert outcome("a", Case("DE", "deny", (label,)), ()).is_as_expected


def test_what_the_receiver_alone_denies_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise Refused("no", why="the receiver's rule")

    monkeypatch.setattr(policy_cases, "check_received", refuse)
    assert outcome("a", Case("DE", "deny"), ()).rule == "the receiver's rule"


def test_policies_hold_too_at_both_ends() -> None:
    scans = Policy("policy", "scans", ("EU",), ("scan-*",))
    labelled = Policy("policy", "labelled", (), (), ("US",), ("camera",), needs_label=True)
    groups = (Group("EU", ("DE", "FR")),)

    def asked(case: Case) -> str:
        found = outcome("x", case, groups, [scans, labelled])
        assert found.is_as_expected, found
        return found.rule

    assert asked(Case("DE", "allow", name="scan-hip")) == ""
    told = "policy scans lets it be answered only in EU, the site is in US"
    assert asked(Case("US", "deny", name="scan-hip")) == told
    assert asked(Case("US", "allow", name="other")) == ""
    camera = Case("DE", "deny", origin="US", application="camera")
    assert asked(camera) == "policy labelled wants one"
    asked(replace(camera, expect="allow", request=("DE",)))
    asked(replace(camera, expect="allow", origin="FR"))
    asked(replace(camera, expect="allow", application="local"))


def test_a_file_is_read_strictly() -> None:
    text = '[case."to france"]\nsite = "FR"\nexpect = "deny"\nrequest = ["DE"]\n'
    assert read(text, "c.toml").case == {"to france": Case("FR", "deny", ("DE",))}
    assert read(text, "c.toml").groups == ()
    for wrong in ("deny", "DE"), ("request", "reqest"), ('["DE"]', '[""]'):
        with pytest.raises(ConfigError):
            read(text.replace(*wrong), "c.toml")


def test_a_file_may_say_what_groups_mean() -> None:
    text = (
        '[group.EU]\nmembers = ["DE", "FR"]\n'
        '[case.a]\nsite = "FR"\nexpect = "allow"\nrequest = ["EU"]\n'
        '[case.b]\nsite = "US"\nexpect = "deny"\nmodel = ["EU"]\n'
    )
    file = read(text, "c.toml")
    assert file.groups == (Group("EU", ("DE", "FR")),)
    assert all(outcome(name, case, file.groups).is_as_expected for name, case in file.case.items())
    assert not outcome("a", file.case["a"], ()).is_as_expected
