from typing import Any

import pytest

from agent.catalog.catalog import Catalog
from agent.catalog.placement import Place, may_hold, placements, wanted
from agent.foundation.ids import Digest
from agent.wire.documents import BODIES, Body, Deployment, Document, ModelVersion, Stamp

ME = Place(name="berlin-1", region="eu-central", tier="edge", jurisdiction="DE")


def catalog(*bodies: Body) -> Catalog:
    return Catalog(
        (Document(Stamp(n, 0), bytes(32), BODIES.pack(body), bytes(64)), body)
        for n, body in enumerate(bodies)
    )


def model(name: str, residency: tuple[str, ...] = (), version: str = "1") -> ModelVersion:
    return ModelVersion(name, version, Digest(bytes(32)), 1, "onnx", residency)


@pytest.mark.parametrize(
    ("options", "is_wanted"),
    [
        ({}, True),
        ({"sites": ("berlin-1",)}, True),
        ({"sites": ("paris-1", "berlin-1"), "tiers": ("edge",), "regions": ("eu-central",)}, True),
        ({"sites": ("paris-1",)}, False),
        ({"tiers": ("core", "regional")}, False),
        ({"regions": ("us-east",)}, False),
        ({"sites": ("berlin-1",), "tiers": ("core",)}, False),
        ({"is_active": False}, False),
    ],
)
def test_a_deployment_means_a_site_if_every_list_contains_it(
    options: dict[str, Any], *, is_wanted: bool
) -> None:
    deployment = Deployment(**{"model": "m", "version": "1", "sites": (), **options})
    assert bool(wanted(catalog(model("m"), deployment), ME)) is is_wanted


@pytest.mark.parametrize(
    ("residency", "is_wanted"),
    [((), True), (("DE",), True), (("FR", "DE"), True), (("FR",), False)],
)
def test_residency_beats_every_deployment(residency: tuple[str, ...], *, is_wanted: bool) -> None:
    known = catalog(model("m", residency), Deployment("m", "1", ("berlin-1",)))
    assert bool(wanted(known, ME)) is is_wanted


def test_an_unknown_jurisdiction_holds_nothing_that_has_a_label() -> None:
    assert not may_hold(("DE",), "")
    assert may_hold((), "")


def test_each_verdict_says_why() -> None:
    known = catalog(
        model("a"),
        model("b", ("FR",)),
        Deployment("a", "1", ()),
        Deployment("b", "1", ()),
        Deployment("c", "1", ()),
        Deployment("d", "1", ("paris-1",)),
    )
    reasons = [one.reason for one in placements(known, ME)]
    assert reasons[0] == ""
    assert "residency is FR" in reasons[1]
    assert "not in the catalog" in reasons[2]
    assert "berlin-1 is not among its sites" in reasons[3]
    assert [one.name for one in wanted(known, ME)] == ["a"]


def test_only_the_deployed_version_is_wanted() -> None:
    known = catalog(model("m", version="1"), model("m", version="2"), Deployment("m", "2", ()))
    assert [(one.name, one.version) for one in wanted(known, ME)] == [("m", "2")]
