"""A new version among six whole sites: who serves which version when, and what brings all of them back."""

from dataclasses import replace

import pytest
from sites_of_one_cluster import Node, World, deployment, model, remembered

from agent.catalog.gates import Counts
from agent.foundation.ids import SiteId
from agent.site.events import DrainRequested, Judged, LoadMeasured, ModelFailed, ModelOverridden
from agent.site.view import view_of
from agent.wire.documents import Deployment, Rollout
from agent.wire.inside import model_key
from agent.wire.records import Stage

TERMS = Rollout("1", 1, (10.0, 50.0), observe_s=20.0)
NEW = model_key("m", "2")


class Six:
    """Six sites that serve version 1; the first wave of the new one is one site, the second two more."""

    def __init__(self) -> None:
        self.world = World()
        self.nodes = [self.world.add() for _ in range(6)]
        for node in self.nodes[1:]:
            self.world.meet(node, self.nodes[0])
        self.world.run(10)
        for node in self.nodes:
            node.site.held |= {model(one).manifest for one in ("1", "2")}
        self.submit(deployment("1"))
        self.world.run(10)
        assert self.answering("1") == 6

    def submit(self, wanted: Deployment) -> None:
        versions = model("1"), model("2")
        assert not any(self.world.submit(self.nodes[0], *versions, wanted))

    def begin(self, terms: Rollout = TERMS) -> None:
        self.submit(replace(deployment("2"), rollout=terms))

    def in_order(self) -> list[Node]:
        site = self.nodes[0].site
        (wanted,) = site.holdings.rollouts.running()
        by_id = {node.site.me: node for node in self.nodes}
        return [by_id[one] for wave in site.holdings.rollouts.planned(wanted) for one in wave]

    def stages(self) -> list[str]:
        return [
            node.site.holdings.rollouts.parts["m"].standing.stage.name for node in self.in_order()
        ]

    def answering(self, version: str) -> int:
        return sum(default(node) == version for node in self.nodes)

    def measure(self, node: Node, counts: Counts) -> None:
        self.world.feed(node, LoadMeasured(0.1, {}, {NEW: counts}))


def default(node: Node) -> str:
    return next(one.version for one in view_of(node.site).known if one.is_default)


def test_a_good_version_reaches_all_sites_wave_after_wave() -> None:
    six = Six()
    six.begin()
    six.world.run(5)
    first = six.in_order()[0]
    assert six.stages() == ["TRYING", *["WAITING"] * 5]
    assert (default(first), six.answering("1")) == ("2", 5)
    six.world.run(22)
    assert six.stages() == ["PASSED", "TRYING", "TRYING", *["WAITING"] * 3]
    six.world.run(22)
    assert six.stages() == [*["PASSED"] * 3, *["TRYING"] * 3]
    assert [node.stage("1") for node in six.nodes] == ["ready"] * 6, "the previous one is kept"
    six.world.run(25)
    assert six.stages() == ["ENDED"] * 6
    assert six.answering("2") == 6
    assert [node.stage("1") for node in six.nodes] == [""] * 6, "and let go in the end"


def test_a_version_that_is_refused_goes_back_and_stays_away_from_the_others() -> None:
    six = Six()
    for node in six.nodes:
        node.refuses.add("2")
    six.begin()
    six.world.run(5)
    assert six.stages() == ["FAILED", *["STOPPED"] * 5]
    first, other, *_ = six.in_order()
    assert first.site.holdings.rollouts.reasons() == [
        "the rollout of m:2 was taken back: it is broken"
    ]
    told = other.site.holdings.rollouts.parts["m"].standing.reason
    assert (
        told
        == f"at {first.site.identity.claims.name} it cannot be served, or answers its golden question or hold-out wrongly"
    )
    assert six.answering("1") == 6
    assert sum(len(node.loaded) for node in six.nodes) == 7, "nobody else has tried it"
    assert any("rollout of m:2: this site is failed: it is broken" in one for one in first.noted)
    six.world.run(300)
    assert six.answering("1") == 6


def test_errors_in_the_second_wave_bring_everybody_back_within_seconds() -> None:
    six = Six()
    six.begin()
    six.world.run(30)
    second = six.in_order()[1]
    six.measure(second, Counts())
    six.measure(second, Counts(30, 3))
    six.world.run(4)
    assert sorted(set(six.stages())) == ["FAILED", "STOPPED"]
    assert six.answering("1") == 6
    assert [node.stage("2") for node in six.nodes] == [""] * 6
    assert second.site.holdings.rollouts.parts["m"].standing.reason.startswith("3 of 30 requests")


def test_a_crash_of_the_model_worker_brings_everybody_back() -> None:
    six = Six()
    six.begin()
    six.world.run(5)
    first = six.in_order()[0]
    six.world.feed(first, ModelFailed(NEW, "it took the worker down", is_crash=True))
    six.world.run(4)
    assert six.stages() == ["FAILED", *["STOPPED"] * 5]
    assert six.answering("1") == 6


def test_a_pause_holds_the_next_wave_and_resuming_goes_on_without_beginning_anew() -> None:
    six = Six()
    six.begin()
    six.world.run(5)
    six.begin(replace(TERMS, is_paused=True))
    six.world.run(60)
    assert six.stages() == ["PASSED", *["WAITING"] * 5]
    six.begin()
    six.world.run(5)
    assert six.stages() == ["PASSED", "TRYING", "TRYING", *["WAITING"] * 3]


def test_an_older_version_without_waves_is_back_at_once() -> None:
    six = Six()
    six.begin()
    six.world.run(5)
    six.submit(deployment("1"))
    six.world.run(5)
    assert six.answering("1") == 6
    assert all("m" not in node.site.holdings.rollouts.parts for node in six.nodes)
    assert all(not node.site.swim.record.trials for node in six.nodes)


def test_a_failure_is_remembered_by_all_through_a_restart_of_all() -> None:
    six = Six()
    six.begin()
    six.world.run(30)
    six.measure(six.in_order()[1], Counts())
    six.measure(six.in_order()[1], Counts(30, 30))
    six.world.run(5)
    stored = [(node, remembered(node)) for node in six.nodes]
    six.nodes = [six.world.add(stored=one, again=node) for node, one in stored]
    six.world.run(60)
    assert sorted(set(six.stages())) == ["FAILED", "STOPPED"]
    assert six.answering("1") == 6
    six.begin(replace(TERMS, attempt=2))
    six.world.run(100)
    assert six.stages() == ["ENDED"] * 6, "another attempt begins anew"


def test_a_site_that_dies_in_its_wave_is_not_waited_for() -> None:
    six = Six()
    six.begin()
    six.world.run(30)
    dead = six.in_order()[2]
    assert dead.site.holdings.rollouts.parts["m"].standing.stage is Stage.TRYING
    six.world.down.add(dead.site.me)
    six.world.run(100)
    living = [node for node in six.nodes if node is not dead]
    assert {default(node) for node in living} == {"2"}
    six.world.down.discard(dead.site.me)
    again = six.world.add(stored=remembered(dead), again=dead)
    six.nodes[six.nodes.index(dead)] = again
    six.world.run(60)
    assert default(again) == "2"


def test_a_first_wave_that_dies_keeps_everybody_where_they_are() -> None:
    six = Six()
    six.begin()
    six.world.run(10)
    six.begin(replace(TERMS, is_paused=True))
    six.world.run(20)
    assert six.stages()[0] == "PASSED"
    dead = six.in_order()[0]
    six.world.down.add(dead.site.me)
    six.world.run(20)
    living = [node for node in six.nodes if node is not dead]
    assert not any(six.world.submit(living[0], replace(deployment("2"), rollout=TERMS)))
    six.world.run(100)
    assert {default(node) for node in living} == {"1"}
    reasons = {node.site.holdings.rollouts.parts["m"].why_waiting for node in living}
    assert f"nobody of wave 1 is alive: {dead.site.identity.claims.name}" in reasons


def test_a_site_whose_operator_has_unloaded_the_version_takes_no_part() -> None:
    six = Six()
    for node in six.nodes[:5]:
        six.world.feed(node, ModelOverridden(900 + node.number, "m", "2", False, "me"))
    six.begin()
    six.world.run(60)
    parts = [node.site.holdings.rollouts.parts["m"].standing.stage.name for node in six.nodes]
    assert parts == [*["UNABLE"] * 5, "ENDED"]
    assert [default(node) for node in six.nodes] == [*["1"] * 5, "2"]


@pytest.mark.parametrize("replicas", [2])
def test_replicas_change_their_version_in_waves_too(replicas: int) -> None:
    six = Six()
    wanted = replace(deployment("2"), replicas=replicas, rollout=TERMS)
    six.submit(wanted)
    six.world.run(10)
    serving = [node for node in six.nodes if node.stage("2") == "ready"]
    assert len(serving) == 1, "the first wave of two"
    six.world.run(120)
    serving = [node for node in six.nodes if node.stage("2") == "ready"]
    assert len(serving) == replicas
    assert six.answering("2") == 6, "also where it is not served"


def test_a_replica_that_failed_remembers_it_when_it_is_not_chosen_any_more() -> None:
    six = Six()
    six.submit(replace(deployment("2"), replicas=1, rollout=TERMS))
    six.world.run(10)
    (first,) = (node for node in six.nodes if node.stage("2") == "ready")
    six.world.feed(first, ModelFailed(NEW, "it took the worker down", is_crash=True))
    six.world.run(2)
    six.world.feed(first, DrainRequested(True))
    six.world.run(20)
    assert first.site.holdings.rollouts.parts["m"].standing.stage is Stage.FAILED
    assert six.answering("1") == 6
    others = [node for node in six.nodes if node is not first]
    assert all(node.stage("2") == "" for node in others), "nobody tries it in its place"


def test_every_site_knows_alike_who_is_first() -> None:
    six = Six()
    six.begin()
    six.world.run(3)
    plans = set()
    for node in six.nodes:
        rollouts = node.site.holdings.rollouts
        (wanted,) = rollouts.running()
        plans.add(tuple(tuple(wave) for wave in rollouts.planned(wanted)))
    (plan,) = plans
    assert [len(wave) for wave in plan] == [1, 2, 3]
    assert isinstance(plan[0][0], bytes)
    assert SiteId(plan[0][0]) in {node.site.me for node in six.nodes}


def test_a_failure_that_a_start_finds_in_the_peer_book_is_durable_at_once() -> None:
    six = Six()
    six.begin()
    six.world.run(5)
    first, late = six.in_order()[0], six.in_order()[5]
    stored = remembered(late)
    six.world.down.add(late.site.me)
    six.world.feed(first, ModelFailed(NEW, "it took the worker down", is_crash=True))
    six.world.run(5)
    told = first.site.exchange.introduction(first.site.me)
    assert told is not None
    six.world.down.discard(late.site.me)
    again = six.world.add(stored=replace(stored, peers=(told,)), again=late)
    assert again.site.holdings.rollouts.parts["m"].standing.stage is Stage.STOPPED
    assert any(put.table == "rollouts" for put in again.persisted)


def test_a_version_is_judged_by_what_its_rollout_says_and_the_previous_one_is_not() -> None:
    world = World()
    one = world.add()
    one.site.held |= {model(number).manifest for number in ("1", "2")}
    world.submit(one, model("1"), model("2"), deployment("1"))
    terms = replace(TERMS, accuracy_min=0.9, holdout="digits")
    world.submit(one, replace(deployment("2"), rollout=terms))
    world.run(5)
    judged = {load.version.version: load.judged for load in one.loaded}
    assert judged == {"1": None, "2": Judged("digits", 0.9)}
