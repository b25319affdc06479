"""The filter fails closed, at the sender and at the receiver."""

from dataclasses import replace
from typing import Any

import pytest

from agent.foundation.errors import NotFound, Refused, UsageError
from agent.foundation.ids import SiteId
from agent.routing.policy import (
    Question,
    check_received,
    judge,
    parse_residency,
    resolve,
)
from agent.wire.inside import KnownModel, LocalModel, RemoteSite, View, model_key
from agent.wire.records import Served
from agent.wire.residency import Group

KEY = model_key("m", "1")
HOME, PARIS, BOSTON = (SiteId(bytes([n]) * 32) for n in (1, 2, 3))
MODEL = KnownModel(KEY, "m", "1", True, ())
LOCAL = LocalModel(KEY, "m", "1", True, "", (), "", 1000)


def remote(site: SiteId, name: str, jurisdiction: str, **changes: Any) -> RemoteSite:
    start = RemoteSite(
        site,
        name,
        "r",
        "edge",
        jurisdiction,
        "h",
        7412,
        "alive",
        False,
        5.0,
        0.0,
        (Served(KEY, 1),),
    )
    return replace(start, **changes)


VIEW = View(
    site=HOME,
    name="home",
    jurisdiction="DE",
    is_draining=False,
    local=(LOCAL,),
    known=(MODEL,),
    sites=(remote(PARIS, "paris", "FR"), remote(BOSTON, "boston", "US")),
    blobs=(),
    revoked=(),
)


def removed(view: View = VIEW, *, up: bool = True, **question: Any) -> dict[str, str]:
    asked = Question(question.pop("model", MODEL), **question)
    return {v.name: v.removed.reason for v in judge(view, asked, is_worker_up=up)}


def test_without_labels_every_serving_site_may_answer() -> None:
    assert removed() == {"home": "", "paris": "", "boston": ""}


def test_a_request_stays_within_its_label() -> None:
    reasons = removed(residency=("DE", "FR"))
    assert reasons["home"] == reasons["paris"] == ""
    assert reasons["boston"] == "request may be answered only in DE, FR, the site is in US"


def test_a_model_stays_within_its_label_whatever_the_request_says() -> None:
    reasons = removed(model=replace(MODEL, residency=("FR",)), residency=("US", "FR"))
    assert reasons["home"].startswith("model may run only in FR")
    assert reasons["paris"] == ""
    assert reasons["boston"].startswith("model may run only in FR")


@pytest.mark.parametrize("jurisdiction", ["", "fr", "FRA", "F"])
def test_a_place_that_is_not_exactly_named_is_outside(jurisdiction: str) -> None:
    view = replace(VIEW, sites=(remote(PARIS, "paris", jurisdiction),))
    assert removed(view, residency=("FR",))["paris"]
    assert removed(view)["paris"] == ""


def test_labels_come_first_so_that_nothing_else_can_hide_them() -> None:
    view = replace(VIEW, is_draining=True, local=())
    assert "only in FR" in removed(view, residency=("FR",))["home"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_draining": True}, "is draining"),
        ({"local": ()}, "does not serve the model"),
        (
            {"local": (replace(LOCAL, is_ready=False, reason="bad file"),)},
            "model is not ready: bad file",
        ),
        ({"local": (replace(LOCAL, is_ready=False),)}, "model is not ready: it is being loaded"),
    ],
)
def test_this_site_says_why_it_cannot(changes: dict[str, Any], reason: str) -> None:
    assert removed(replace(VIEW, **changes))["home"] == reason


def test_a_worker_that_is_gone_takes_this_site_out() -> None:
    assert removed(up=False)["home"] == "model worker is restarting"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_draining": True}, "is draining"),
        ({"serving": ()}, "does not serve the model"),
        ({"serving": (Served(b"x" * 8, 1),)}, "does not serve the model"),
    ],
)
def test_another_site_is_out_for_what_it_says(changes: dict[str, Any], reason: str) -> None:
    view = replace(VIEW, sites=(remote(PARIS, "paris", "FR", **changes),))
    assert removed(view)["paris"] == reason


def test_revoked_tried_and_far_travelled_are_out() -> None:
    assert removed(replace(VIEW, revoked=(PARIS,)))["paris"] == "is revoked"
    assert removed(excluded=frozenset({PARIS, HOME})) == {
        "home": "was tried and could not answer",
        "paris": "was tried and could not answer",
        "boston": "",
    }
    reasons = removed(hops=2)
    assert reasons["home"] == ""
    assert reasons["paris"] == "request was passed on 2 times already"


def test_the_receiver_refuses_what_it_must_not_answer() -> None:
    check_received(VIEW, Question(MODEL, ("DE",), hops=1), PARIS)
    with pytest.raises(Refused, match="only in FR"):
        check_received(VIEW, Question(MODEL, ("FR",), hops=1), PARIS)
    with pytest.raises(Refused, match="only in FR"):
        check_received(VIEW, Question(replace(MODEL, residency=("FR",)), hops=1), PARIS)
    with pytest.raises(Refused, match="passed on 3 times"):
        check_received(VIEW, Question(MODEL, hops=3), PARIS)
    with pytest.raises(Refused, match="revoked"):
        check_received(replace(VIEW, revoked=(PARIS,)), Question(MODEL, hops=1), PARIS)


def test_the_deployed_version_answers_unless_one_is_named() -> None:
    old = KnownModel(model_key("m", "0"), "m", "0", False, ())
    view = replace(VIEW, known=(old, MODEL))
    assert resolve(view, "m", None) is MODEL
    assert resolve(view, "m", "0") is old
    assert resolve(replace(VIEW, known=(old,)), "m", None) is old
    with pytest.raises(NotFound, match="known are 0, 1"):
        resolve(view, "m", "2")
    with pytest.raises(NotFound, match="unknown model 'n'"):
        resolve(view, "n", None)
    with pytest.raises(NotFound, match="no deployed version"):
        resolve(replace(VIEW, known=(old, replace(MODEL, is_default=False))), "m", None)


@pytest.mark.parametrize(
    ("text", "names"),
    [(None, ()), ("DE", ("DE",)), ("DE, FR,DE", ("DE", "FR")), ("eu-west", ("eu-west",))],
)
def test_a_label_is_read(text: str | None, names: tuple[str, ...]) -> None:
    assert parse_residency(text) == names


@pytest.mark.parametrize(
    "text", ["", ",", "DE,", "D E", "DE;FR", "*", "x" * 65, ",".join(f"j{n}" for n in range(65))]
)
def test_a_label_that_is_not_understood_is_not_ignored(text: str) -> None:
    with pytest.raises(UsageError, match="Atoll-Residency"):
        parse_residency(text)


def test_a_group_in_a_label_is_understood_at_both_ends() -> None:
    view = replace(VIEW, groups=(Group("EU", ("DE", "FR")),))
    question = Question(MODEL, residency=("EU",))
    candidates = [
        one.jurisdiction for one in judge(view, question, is_worker_up=True) if not one.removed
    ]
    assert candidates == ["DE", "FR"]
    check_received(replace(view, jurisdiction="DE"), question, SiteId(b"c" * 32))
    for receiver in (replace(view, jurisdiction="US"), replace(view, jurisdiction="DE", groups=())):
        with pytest.raises(Refused, match="only in EU"):
            check_received(receiver, question, SiteId(b"c" * 32))


def test_a_name_that_the_cluster_does_not_know_is_told() -> None:
    groups = (Group("EU", ("DE", "FR")),)
    view = replace(VIEW, groups=groups, vocabulary=("DE", "FR", "US"))
    question = Question(MODEL, residency=("XX", "EU"))
    with pytest.raises(
        Refused, match=r"XX: no jurisdiction or group of this cluster, see atoll trust"
    ):
        check_received(replace(view, jurisdiction="US"), question, SiteId(b"c" * 32))
