from dataclasses import replace
from typing import Any

import pytest

from agent.catalog.catalog import Catalog
from agent.catalog.placement import Abilities, Member, Place, placements, unable
from agent.foundation.ids import Digest, SiteId
from agent.wire.documents import BODIES, Body, Deployment, Document, ModelVersion, Stamp
from agent.wire.inside import model_key
from agent.wire.residency import Group

HERE = Place(name="berlin-1", region="eu-central", tier="edge", jurisdiction="DE")
ME = Member(SiteId(b"m" * 32), HERE, 1.0, is_taking=True)
KEY = model_key("m", "1")


def member(number: int, jurisdiction: str = "DE", **known: Any) -> Member:
    place = Place(f"site-{number}", "eu-central", "edge", jurisdiction)
    return Member(SiteId(bytes([number]) * 32), place, 1.0, **{"is_taking": True, **known})


def wanted(known: Catalog, me: Member = ME, *others: Member, **can: int) -> list[ModelVersion]:
    found = placements(known, me, others, Abilities(**can))
    return [one.model for one in found if one.model is not None]


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
        ({"jurisdictions": ("DE", "FR")}, True),
        ({"jurisdictions": ("FR",)}, False),
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


def test_a_group_in_a_label_or_a_deployment_means_its_members() -> None:
    groups = (Group("EU", ("DE", "FR")),)
    labelled = catalog(model("m", ("EU",)), Deployment("m", "1", ()))
    meant = catalog(model("m"), Deployment("m", "1", (), jurisdictions=("EU",)))
    for known in (labelled, meant):
        (inside,) = placements(known, ME, (), Abilities(), groups)
        assert inside.model is not None
        (unknown,) = placements(known, ME)
        assert unknown.model is None


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


def three(**options: Any) -> Catalog:
    return catalog(model("m"), Deployment("m", "1", (), replicas=3, **options))


def test_each_site_finds_itself_among_the_replicas_or_not_and_all_agree() -> None:
    sites = [member(number) for number in range(1, 11)]
    found = [placements(three(), me, [one for one in sites if one is not me])[0] for me in sites]
    assert len({one.holders for one in found}) == 1
    assert sum(one.model is not None for one in found) == 3
    outside = next(one for one in found if one.model is None)
    assert "its 3 replicas are at site-" in outside.reason


def test_who_is_draining_or_refuses_or_may_not_hold_it_is_passed_over() -> None:
    sites = [member(number) for number in range(1, 8)]
    chosen = placements(three(), sites[0], sites[1:])[0].holders
    known = catalog(model("m", ("DE",)), Deployment("m", "1", (), replicas=3))
    for change in ({"is_taking": False}, {"refuses": frozenset({KEY})}, {"jurisdiction": "FR"}):
        others = [
            member(number, **change) if one.site == chosen[0] else one
            for number, one in enumerate(sites, 1)
        ]
        me = next(one for one in others if one.site != chosen[0])
        after = placements(known, me, [one for one in others if one is not me])[0].holders
        assert chosen[0] not in after
        assert set(chosen[1:]) < set(after)
        assert len(after) == 3


def test_what_this_site_itself_refuses_it_stays_chosen_for_so_that_it_goes_on_saying_so() -> None:
    me = replace(member(1), refuses=frozenset({KEY}))
    assert wanted(three(), me)


def test_without_a_gpu_or_the_memory_a_chosen_site_says_that_it_is_unable() -> None:
    known = three(accelerator="gpu")
    (placed,) = placements(known, ME)
    assert unable([placed]) == {KEY: "it asks for a gpu, and this site has none"}
    assert unable(placements(known, ME, (), Abilities(accelerators=1))) == {}
    known = three(memory_bytes_min=8 << 30)
    (placed,) = placements(known, ME, (), Abilities(memory_bytes=4 << 30))
    assert "8192 MiB of memory, and this site has 4096" in placed.unable


def test_without_replicas_a_site_that_is_unable_is_simply_not_meant() -> None:
    known = catalog(model("m"), Deployment("m", "1", (), accelerator="gpu"))
    (placed,) = placements(known, ME)
    assert (placed.model, placed.unable) == (None, "")
    assert "asks for a gpu" in placed.reason
    assert wanted(known, ME, accelerators=1)
