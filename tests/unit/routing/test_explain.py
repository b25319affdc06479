"""Every site is named: the chosen, the others in order, the removed with the reason."""

import json
from dataclasses import replace

import pytest

from agent.foundation.errors import NotFound, Refused, Unreachable
from agent.foundation.ids import SiteId
from agent.routing.explain import explain, nobody, why_nobody
from agent.routing.policy import ALLOWED, Removal, Verdict
from agent.wire.inside import (
    KnownModel,
    LocalModel,
    PairKnown,
    PeerKnown,
    RemoteSite,
    View,
    model_key,
)
from agent.wire.records import Served

KEY = model_key("m", "1")
MODEL = KnownModel(KEY, "m", "1", True, ("DE", "FR"))
VIEW = View(
    site=SiteId(bytes(32)),
    name="home",
    jurisdiction="DE",
    is_draining=False,
    local=(LocalModel(KEY, "m", "1", True, "", (), "", 1000),),
    known=(MODEL,),
    sites=tuple(
        RemoteSite(
            SiteId(bytes([n]) * 32), name, "r", "edge", place, "h", 1, "alive", False, 5.0, 0.0,
            (Served(KEY, 2000),),
        )
        for n, (name, place) in enumerate([("paris", "FR"), ("boston", "US")], 1)
    ),
    blobs=(),
    revoked=(),
)  # fmt: skip


def test_the_whole_decision_is_told() -> None:
    told = explain(VIEW, "m").as_dict()
    assert told["chosen"] == "home"
    assert [c["name"] for c in told["candidates"]] == ["home", "paris"]
    assert told["candidates"][1]["predicted_ms"] == 7.0
    assert told["removed"] == [
        {
            "site": "02020202",
            "name": "boston",
            "is_local": False,
            "jurisdiction": "US",
            "removed_by": "model may run only in DE, FR, the site is in US",
        }
    ]
    json.dumps(told)


def test_what_was_learned_of_other_sites_is_told() -> None:
    paris = VIEW.sites[0].site
    open_ = PeerKnown(paris, "open", 2.5)
    told = explain(
        VIEW, "m", peers=[open_], pairs=[PairKnown(paris, KEY, 30.0, 1.0, 2.0)]
    ).as_dict()
    assert [one["breaker"] for one in told["candidates"]] == ["closed", "open"]
    assert told["candidates"][1]["held"] == "asked last for 2.5 s"
    assert (told["candidates"][1]["queue_ms"], told["candidates"][1]["predicted_ms"]) == (30, 37)


def test_a_queue_at_home_sends_away_unless_the_other_has_trouble() -> None:
    paris = VIEW.sites[0].site
    assert explain(VIEW, "m", local_wait_ms=10.0).chosen == "home"
    assert explain(VIEW, "m", local_wait_ms=200.0).chosen == "paris"
    for trouble in (PeerKnown(paris, "open", 2.5), PeerKnown(paris, "half-open", 0.0)):
        assert explain(VIEW, "m", local_wait_ms=200.0, peers=[trouble]).chosen == "home"
    late = PairKnown(paris, KEY, 300.0, 1.0, 2.0)
    assert explain(VIEW, "m", local_wait_ms=200.0, pairs=[late]).chosen == "home"


def test_a_request_label_changes_the_choice() -> None:
    assert explain(VIEW, "m", residency=["FR"]).chosen == "paris"
    nowhere = explain(VIEW, "m", residency=["US"])
    assert nowhere.chosen == ""
    assert len(nowhere.removed) == 3
    with pytest.raises(NotFound):
        explain(VIEW, "n")


def verdicts(*removed: Removal) -> list[Verdict]:
    return [
        Verdict(SiteId(bytes([n]) * 32), f"s{n}", n == 0, "DE", item, None, 0)
        for n, item in enumerate(removed)
    ]


LABEL = Removal("policy", "label")
ABSENT = Removal("absent", "does not serve the model")
BUSY = Removal("temporary", "is draining")


def test_a_label_in_the_way_is_a_refusal_and_anything_that_passes_is_not() -> None:
    assert isinstance(nobody(MODEL, verdicts(LABEL, ABSENT)), Refused)
    assert isinstance(nobody(MODEL, verdicts(LABEL, BUSY)), Unreachable)
    assert isinstance(nobody(MODEL, verdicts(ABSENT, ABSENT)), Unreachable)


def test_an_error_names_the_informative_reasons_first_and_not_all() -> None:
    text = why_nobody(verdicts(ABSENT, *[ABSENT] * 8, BUSY))
    assert text.startswith("s9: is draining; s0: does not serve")
    assert text.endswith("and 5 more")
    assert why_nobody(verdicts(ALLOWED)) == ""
    assert why_nobody([replace(verdicts(BUSY)[0], name="x")]) == "x: is draining"
