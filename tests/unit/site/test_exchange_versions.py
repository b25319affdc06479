"""Documents of a newer version pass through older sites unharmed; wrong clocks are told of."""

from dataclasses import dataclass, replace

import pytest
from sites_of_one_cluster import OFFSET_S, Node, World, model, remembered

from agent.catalog.placement import Placement
from agent.foundation.errors import Refused
from agent.identity.admin import sign_packed
from agent.site.events import WallClock
from agent.site.exchange import DOCUMENTS_PER_MESSAGE_MAX
from agent.wire.documents import Key, Stamp, Unknown
from agent.wire.mesh import SyncRequest
from agent.wire.schema import Tagged


@dataclass(frozen=True)
class Rule:
    """Of a newer version."""

    kind: str
    name: str
    rules: tuple[str, ...]


NEWER = Tagged({99: Rule})
KEY = Key("rule", "eu-only")


def test_what_an_older_site_does_not_understand_it_keeps_and_passes_on_as_it_was_signed() -> None:
    world = World()
    one, two = world.add(), world.add()
    at_ms = int(one.site.wall_s(world.now) * 1000)
    body = NEWER.pack(Rule("rule", "eu-only", ("no transit",)))
    newer = sign_packed(world.keys.admin, Stamp(at_ms, 1), body)
    changed, _, errors = one.site.exchange.merge((newer,), one.site.wall_s(world.now))
    assert errors == [""]
    assert changed == [(newer, Unknown("rule", "eu-only"))]
    world.meet(two, one)
    world.run(1.0)
    entry = two.site.catalog.get(KEY)
    assert entry is not None
    assert entry.document == newer
    again = world.add(stored=remembered(two), again=two)
    world.run(1.0)
    three = world.add()
    world.meet(three, again)
    world.run(1.0)
    entry = three.site.catalog.get(KEY)
    assert entry is not None, "over a restarted site that never understood it"
    assert entry.document == newer


def test_an_unknown_kind_cannot_take_the_place_of_a_known_one() -> None:
    world = World()
    one = world.add()
    world.submit(one, model())
    at_ms = int(one.site.wall_s(world.now) * 1000)
    body = NEWER.pack(Rule("model", "m", ()))
    forged = sign_packed(world.keys.admin, Stamp(at_ms + 1, 1), body)
    _, _, errors = one.site.exchange.merge((forged,), one.site.wall_s(world.now))
    assert "calls itself a model" in errors[0]
    assert one.site.catalog.model("m", "1") is not None


def test_a_site_whose_clock_is_far_from_the_others_signs_nothing_and_says_why() -> None:
    world = World()
    right, other = world.add(), world.add()
    wrong = world.add(offset_s=OFFSET_S + 3600.0)
    for node in (other, wrong):
        world.meet(node, right)
    world.run(2.0)
    assert wrong.site.clocks_heard >= 1
    assert wrong.site.clock_ahead_s == pytest.approx(3600.0, abs=1.0)
    with pytest.raises(Refused, match="3600 s ahead of"):
        wrong.site.next_stamp(int(wrong.site.wall_s(world.now) * 1000))
    right.site.next_stamp(int(right.site.wall_s(world.now) * 1000))
    wrong.site.step(WallClock(OFFSET_S), world.now)
    assert wrong.site.clock_ahead_s == pytest.approx(0.0, abs=1.0)
    wrong.site.next_stamp(int(wrong.site.wall_s(world.now) * 1000))


def test_a_member_whose_documents_are_refused_is_named_once() -> None:
    world = World()
    right = world.add()
    wrong = world.add(offset_s=OFFSET_S + 3600.0)
    ahead = world.keys.document(model(), wall_ms=int(wrong.site.wall_s(world.now) * 1000))
    _, _, errors = wrong.site.exchange.merge((ahead,), wrong.site.wall_s(world.now))
    assert errors == [""], "by its own clock it is right"
    for _ in range(3):
        world.meet(right, wrong)
        world.run(1.0)
    told = [text for text in right.noted if "not taken" in text]
    assert len(told) == 1
    assert "1 of site-2's documents" in told[0]
    assert "in the future" in told[0]
    assert right.site.catalog.model("m", "1") is None


def requests_of(node: Node) -> list[SyncRequest]:
    return [ask.message for ask in node.asked if isinstance(ask.message, SyncRequest)]


def test_prints_are_sent_to_whoever_has_said_that_it_knows_them() -> None:
    world = World()
    one, two = world.add(), world.add()
    for number in range(5):
        world.submit(one, model(name=f"m{number}"))
    world.meet(two, one)
    world.run(1.0)
    assert [request.prints for request in requests_of(two)] == [b""]
    world.submit(one, model(name="later"))
    world.submit(two, model(name="too"))
    world.run(10.0)
    later = [request for node in (one, two) for request in requests_of(node) if request.prints]
    assert later
    assert all(request.documents == () for request in later)
    assert len(one.site.catalog) == len(two.site.catalog) == 7


def test_a_site_of_an_older_version_is_sent_heads() -> None:
    world = World()
    one, two = world.add(), world.add()
    answer = two.site.exchange.answer
    two.site.exchange.answer = lambda *a: replace(answer(*a), knows_prints=False)  # type: ignore[method-assign]
    world.submit(one, model(name="a"))
    world.meet(one, two)
    world.run(1.0)
    world.submit(one, model(name="b"))
    world.submit(two, model(name="c"))
    world.run(10.0)
    assert len(requests_of(one)) > 1
    assert not any(request.prints for request in requests_of(one))
    assert len(one.site.catalog) == len(two.site.catalog) == 3


def test_many_pages_are_looked_at_together() -> None:
    """Placing deployments takes longer than taking a page."""
    world = World()
    one, two = world.add(), world.add()
    pages = 6
    for start in range(0, pages * DOCUMENTS_PER_MESSAGE_MAX, 64):
        world.submit(one, *(model(name=f"m{number}") for number in range(start, start + 64)))
    looks: list[float] = []
    versions = two.site.holdings.versions
    placements = versions.placements

    def counted(*, as_written: bool = False) -> list[Placement]:
        looks.append(world.now)
        return placements(as_written=as_written)

    versions.placements = counted  # type: ignore[method-assign]
    world.meet(two, one)
    world.run(3.0)
    assert len(two.site.catalog) == pages * DOCUMENTS_PER_MESSAGE_MAX
    assert 1 <= len(looks) < pages
