"""What sites serve of a deployment with replicas, as six of them find out by themselves."""

from dataclasses import replace

import pytest
from sites_of_one_cluster import Node, World, deployment, model

from agent.catalog.replicas import LINGER_S
from agent.foundation.ids import SiteId
from agent.site.events import DrainRequested
from agent.site.stored import Stored

SETTLE_S = 12.0
"""A death is certain and its place taken by then."""


class Six:
    """Sites that know each other; the model is at the first, which asks for two replicas."""

    def __init__(self, *places: str, residency: tuple[str, ...] = ()) -> None:
        self.world = World()
        self.nodes = [self.world.add(place) for place in (*places, *["DE"] * 6)[:6]]
        for node in self.nodes[1:]:
            self.world.meet(node, self.nodes[0])
        self.world.run(10)
        version = model(residency=residency)
        for node in self.nodes:
            node.site.held.add(version.manifest)
        wanted = replace(deployment(), replicas=2)
        assert self.world.submit(self.nodes[0], version, wanted) == ("", "")
        self.world.run(SETTLE_S)

    def serving(self) -> set[SiteId]:
        return {
            node.site.me
            for node in self.world.nodes
            if node.site.me not in self.world.down and node.stage() == "ready"
        }

    def of(self, site: SiteId) -> Node:
        return next(node for node in self.world.nodes if node.site.me == site)

    def return_of(self, node: Node) -> Node:
        self.world.down.discard(node.site.me)
        stored = Stored(
            peers=tuple(
                found
                for other in self.world.nodes
                if other is not node and (found := other.site.exchange.introduction(other.site.me))
            ),
            documents=tuple(entry.document for entry in self.nodes[0].site.catalog),
            blobs=frozenset(node.site.held),
        )
        return self.world.add(stored=stored, again=node)


def test_two_sites_serve_and_the_others_do_not() -> None:
    six = Six()
    assert len(six.serving()) == 2
    idle = next(node for node in six.nodes if node.site.me not in six.serving())
    (placed,) = idle.site.versions.placements()
    assert set(placed.holders) == six.serving()
    assert "its 2 replicas are at site-" in placed.reason


def test_what_a_dead_site_held_is_served_by_another_and_nothing_else_moves() -> None:
    six = Six()
    before = six.serving()
    lost = min(before)
    six.world.down.add(lost)
    six.world.run(SETTLE_S)
    assert len(six.serving()) == 2
    assert before - {lost} < six.serving()


def test_when_it_comes_back_nobody_leaves_before_it_serves_again() -> None:
    six = Six()
    before = six.serving()
    lost = six.of(min(before))
    six.world.down.add(lost.site.me)
    six.world.run(SETTLE_S)
    stead = six.serving() - before
    six.return_of(lost)
    for _ in range(int(LINGER_S) - 1):
        six.world.run(1.0)
        assert six.serving() >= (before - {lost.site.me}) | stead
    six.world.run(SETTLE_S)
    assert six.serving() == before


def test_a_site_that_refuses_is_passed_over_and_goes_on_saying_so() -> None:
    six = Six()
    refuser = six.of(min(six.serving()))
    refuser.refuses.add("2")
    version = model("2")
    for node in six.nodes:
        node.site.held.add(version.manifest)
    wanted = replace(deployment("2"), replicas=2)
    assert six.world.submit(six.nodes[0], version, wanted) == ("", "")
    six.world.run(SETTLE_S)
    ready = {node.site.me for node in six.nodes if node.stage("2") == "ready"}
    assert len(ready) == 2
    assert refuser.site.me not in ready
    six.world.run(60)
    assert refuser.stage("2") == "refused"
    assert {node.site.me for node in six.nodes if node.stage("2") == "ready"} == ready


def test_what_a_draining_site_holds_moves() -> None:
    six = Six()
    before = six.serving()
    leaving = min(before)
    six.world.feed(six.of(leaving), DrainRequested(is_draining=True))
    six.world.run(SETTLE_S)
    assert len(six.serving() - {leaving}) == 2
    six.world.run(LINGER_S)
    assert leaving not in six.serving()


@pytest.mark.parametrize("inside", [1, 2, 4])
def test_replicas_stay_where_the_models_label_allows_them_however_few_sites_that_are(
    inside: int,
) -> None:
    six = Six(*["FR"] * inside, residency=("FR",))
    places = {six.of(site).site.identity.claims.jurisdiction for site in six.serving()}
    assert places == {"FR"}
    assert len(six.serving()) == min(inside, 2)
