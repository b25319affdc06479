"""Loads and unloads at one site against the catalog: what counts, what is durable, what never changes."""

from dataclasses import replace
from random import Random

import pytest
from sites_of_one_cluster import NOW, Node, World, deployment, model

from agent.foundation.errors import Busy, NotFound, Refused
from agent.foundation.writes import Put, Scalar, Write
from agent.routing.explain import nobody
from agent.routing.policy import Question, judge, resolve
from agent.site.events import BlobStored, ModelFailed, ModelOverridden, UnloadModel
from agent.site.overrides import ALL, OVERRIDES_MAX, Override, Overrides
from agent.site.view import view_of
from agent.wire.documents import ModelVersion
from agent.wire.inside import model_key
from agent.wire.residency import Group

AT_S = 1_790_000_000.0


def unloading(version: str = ALL, name: str = "m") -> Override:
    return Override(name, version, False, "me", AT_S)


def decide(world: World, node: Node, version: str, *, is_served: bool) -> None:
    """As the daemon does: checked, then told to the machine."""
    if is_served:
        node.site.holdings.check_loadable("m", version)
    else:
        node.site.holdings.check_unloadable("m", version)
    world.feed(node, ModelOverridden(7, "m", version, is_served, "the operator"))
    assert node.resolved.pop(7) == ("",)


def serving(*residency: str, versions: tuple[str, ...] = ("1",)) -> tuple[World, Node]:
    world = World()
    node = world.add()
    for version in versions:
        world.feed(node, BlobStored(model(version).manifest))
        world.submit(node, model(version, residency=residency), deployment(version))
    return world, node


# --- what counts ---------------------------------------------------------------------------------
def test_a_decision_about_a_version_counts_before_one_about_all() -> None:
    overrides = Overrides(())
    overrides.unload(unloading())
    assert overrides.is_unloaded("m", "1")
    assert not overrides.is_unloaded("other", "1")
    overrides.load("m", "2", ["2"], set(), "me", AT_S)
    assert not overrides.is_unloaded("m", "2")
    assert overrides.is_unloaded("m", "3")
    overrides.unload(unloading())
    assert overrides.is_unloaded("m", "2"), "unloading all forgets what was loaded besides"


def test_loading_what_is_planned_leaves_no_decision_behind() -> None:
    overrides = Overrides((unloading(), unloading("1")))
    overrides.load("m", ALL, ["1"], {("m", "1")}, "me", AT_S)
    assert overrides.of("m", "1") is None


def test_what_is_loaded_besides_is_served_only_where_its_label_lets_it() -> None:
    overrides = Overrides((Override("m", "1", True, "me", AT_S),))
    here, elsewhere = model(residency=("DE",)), model(residency=("FR",))
    assert overrides.apply([], {("m", "1"): here}, "DE", ()) == [here]
    assert overrides.apply([], {("m", "1"): elsewhere}, "DE", ()) == []
    assert overrides.apply([], {("m", "1"): elsewhere}, "DE", (Group("FR", ("DE",)),)) == [
        elsewhere
    ]
    assert overrides.apply([], {}, "DE", ()) == [], "the catalog has it no more"
    assert overrides.apply([here], {("m", "1"): here}, "DE", ()) == [here], "not twice"


def test_the_rows_that_are_written_are_the_decisions_that_count() -> None:
    """Replayed from nothing, the writes of any history give the decisions in memory."""
    rng = Random(4)
    for _ in range(200):
        overrides, table = Overrides(()), dict[tuple[Scalar, ...], Override]()
        for _ in range(rng.randrange(1, 12)):
            name, version = rng.choice("ab"), rng.choice(("", "1", "2"))
            planned = {(name, one) for one in ("1", "2") if rng.random() < 0.5}
            if rng.random() < 0.5:
                writes = overrides.unload(unloading(version, name))
            else:
                targets = [version] if version else rng.sample(["1", "2"], 1)
                writes = overrides.load(name, version, targets, planned, "me", AT_S)
                assert not any(overrides.is_unloaded(name, one) for one in targets)
            replay(table, writes)
        again = Overrides(table.values())
        for name in "ab":
            for version in ("1", "2", "3"):
                assert again.of(name, version) == overrides.of(name, version)


def replay(table: dict[tuple[Scalar, ...], Override], writes: list[Write]) -> None:
    for write in writes:
        assert write.table == "overrides"
        if isinstance(write, Put):
            row = write.row
            table[row["name"], row["version"]] = Override(
                str(row["name"]), str(row["version"]), bool(row["is_served"]), str(row["who"]),
                float(row["at_s"] or 0),
            )  # fmt: skip
        else:
            del table[write.key]


def test_a_decision_says_who_and_when() -> None:
    assert str(unloading("1")) == "unloaded by me at 2026-09-21 14:13:20 UTC"
    assert unloading("1").spelled == "m:1"
    assert unloading().spelled == "m"


def test_there_is_room_for_so_many_and_what_is_decided_anew_needs_none() -> None:
    full = Overrides(unloading(str(number)) for number in range(OVERRIDES_MAX))
    for name, version in (("m", "new"), ("other", ALL)):
        with pytest.raises(Busy, match="atoll model load"):
            full.require_room(name, version)
    full.require_room("m", "5")
    full.require_room("m", ALL)
    full.load("m", ALL, ["1"], {("m", "1")}, "me", AT_S)
    full.require_room("other", ALL)


# --- at a site -----------------------------------------------------------------------------------
def test_an_unloaded_model_is_gone_here_and_comes_back_when_it_is_loaded() -> None:
    world, node = serving()
    assert node.stage() == "ready"
    decide(world, node, ALL, is_served=False)
    assert node.stage() == ""
    assert UnloadModel(model_key("m", "1")) in node.others
    assert node.site.swim.record.serving == ()
    view = view_of(node.site)
    known = resolve(view, "m", None)
    assert known.unloaded == f"unloaded by the operator at {NOW:%Y-%m-%d %H:%M:%S} UTC"
    error = nobody(known, judge(view, Question(known), is_worker_up=True))
    assert isinstance(error, NotFound)
    assert "unloaded by the operator at" in str(error)
    decide(world, node, ALL, is_served=True)
    assert node.stage() == "ready"
    assert resolve(view_of(node.site), "m", None).unloaded == ""


def test_a_new_version_of_an_unloaded_model_is_not_served_either() -> None:
    world, node = serving()
    decide(world, node, ALL, is_served=False)
    world.feed(node, BlobStored(model("2").manifest))
    world.submit(node, model("2"), deployment("2"))
    assert (node.stage("1"), node.stage("2")) == ("", "")


def test_a_decision_outlives_a_restart() -> None:
    from sites_of_one_cluster import remembered  # noqa: PLC0415

    world, node = serving()
    decide(world, node, ALL, is_served=False)
    rows = [put.row for put in node.persisted if put.table == "overrides"]
    assert [(row["name"], row["version"], row["is_served"]) for row in rows] == [("m", "", False)]
    kept = Override("m", "", False, str(rows[0]["who"]), NOW.timestamp())
    node = world.add(stored=replace(remembered(node), overrides=(kept,)), again=node)
    assert node.stage() == ""


def test_two_versions_are_served_at_once_when_the_former_is_loaded_besides() -> None:
    world, node = serving(versions=("1", "2"))
    assert (node.stage("1"), node.stage("2")) == ("", "ready")
    decide(world, node, "1", is_served=True)
    assert (node.stage("1"), node.stage("2")) == ("ready", "ready")
    view = view_of(node.site)
    assert resolve(view, "m", None).version == "2"
    assert resolve(view, "m", "1").version == "1"


def test_while_the_version_that_is_meant_is_unloaded_the_other_one_answers() -> None:
    world, node = serving(versions=("1", "2"))
    decide(world, node, "1", is_served=True)
    decide(world, node, "2", is_served=False)
    assert resolve(view_of(node.site), "m", None).version == "1"


def test_a_model_planned_elsewhere_is_served_here_too_once_it_is_loaded() -> None:
    world = World()
    one, other = world.add(), world.add()
    world.meet(one, other)
    world.feed(other, BlobStored(model().manifest))
    world.submit(one, model(), deployment(sites=("site-2",)))
    world.run(5)
    assert (one.stage(), other.stage()) == ("", "ready")
    decide(world, one, ALL, is_served=True)
    world.run(5)
    assert one.stage() == "ready"


def test_a_load_never_brings_a_model_where_its_label_does_not_let_it() -> None:
    world, node = serving("FR")
    with pytest.raises(Refused, match="its residency is FR, this site is in DE"):
        decide(world, node, ALL, is_served=True)
    assert node.stage() == ""


def test_what_the_catalog_does_not_have_is_not_found_and_how_to_publish_it_is_said() -> None:
    _, node = serving()
    for version, text in (("9", "known are 1"), (ALL, "")):
        for check in (node.site.holdings.check_loadable, node.site.holdings.check_unloadable):
            with pytest.raises(NotFound, match=f"{text}.*atoll model push"):
                check("m" if version else "nope", version)


def test_a_refused_model_is_tried_again_by_a_load_and_a_quarantined_one_is_not() -> None:
    world, node = serving()
    key = model_key("m", "1")
    world.feed(node, ModelFailed(key, "out of memory"))
    assert node.stage() == "refused"
    decide(world, node, ALL, is_served=True)
    assert node.stage() == "ready"
    for _ in range(3):
        world.feed(node, ModelFailed(key, "it crashed", is_crash=True))
    decide(world, node, ALL, is_served=True)
    assert node.stage() == "refused"
    assert "atoll model release m:1" in node.site.shelf.items[key].reason


def test_a_version_that_waits_for_its_successor_goes_when_it_is_unloaded() -> None:
    world, node = serving()
    node.refuses.add("2")
    world.feed(node, BlobStored(model("2").manifest))
    world.submit(node, model("2"), deployment("2"))
    assert (node.stage("1"), node.stage("2")) == ("ready", "refused")
    decide(world, node, "1", is_served=False)
    assert (node.stage("1"), node.stage("2")) == ("", "refused")


def test_without_a_deployment_a_load_takes_the_newest_version() -> None:
    world = World()
    node = world.add()
    for version in ("1", "2"):
        world.feed(node, BlobStored(model(version).manifest))
        world.submit(node, model(version))
    targets: list[ModelVersion] = node.site.holdings.check_loadable("m", ALL)
    assert [one.version for one in targets] == ["2"]
