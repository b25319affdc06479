"""State sync in pages; what a lying member sends is dropped."""

from dataclasses import replace

import pytest
from sites_of_one_cluster import World, model

from agent.site import exchange
from agent.site.exchange import DOCUMENTS_PER_MESSAGE_MAX
from agent.wire.mesh import Introduction, SyncReply


def test_members_come_in_pages_with_the_answerer_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MEMBERS_PER_MESSAGE_MAX", 4)
    world = World()
    hub = world.add()
    count = 9
    for _ in range(count):
        world.meet(world.add(), hub)
    asker = world.add()
    reply = hub.site.exchange.answer(asker.site.exchange.request())
    assert len(reply.members) == 4
    assert reply.has_more
    assert reply.members[0] == hub.site.exchange.introduction(hub.site.me)
    world.meet(asker, hub)
    world.run(0.1)
    assert len(asker.site.swim.members()) == count + 1


def test_a_push_is_a_page_too() -> None:
    world = World()
    hub, other = world.add(), world.add()
    for start in range(0, DOCUMENTS_PER_MESSAGE_MAX + 64, 64):
        world.submit(hub, *(model(f"{n}") for n in range(start, start + 64)))
    lacking = other.site.exchange.answer(hub.site.exchange.request())
    assert len(lacking.wanted_documents) == DOCUMENTS_PER_MESSAGE_MAX + 64
    push, is_all = hub.site.exchange.push(lacking)
    assert push is not None
    assert (len(push.documents), is_all) == (DOCUMENTS_PER_MESSAGE_MAX, False)
    assert hub.site.exchange.push(SyncReply((), (), (), ())) == (None, True)


def test_a_member_with_a_strangers_passport_is_dropped() -> None:
    world, elsewhere = World(), World(seed=2)
    one, stranger = world.add(), elsewhere.add()
    introduction = stranger.site.exchange.introduction(stranger.site.me)
    assert introduction is not None
    at = 1_777_000_000.0
    assert one.site.exchange.admit((introduction,), at) == []
    own = one.site.exchange.introduction(one.site.me)
    assert own is not None
    broken = replace(own.passport, chain=(own.passport.chain[0][:-1],))
    assert one.site.exchange.admit((Introduction(broken, own.record),), at) == []


def test_documents_stamped_far_in_the_future_are_refused_from_others_and_kept_from_disk() -> None:
    world = World()
    one = world.add()
    ahead = world.keys.document(model(), wall_ms=int((world.now + 2_000_000_000) * 1000))
    changed, effects, errors = one.site.exchange.merge((ahead,), one.site.wall_s(world.now))
    assert (changed, effects) == ([], [])
    assert "in the future" in errors[0]
    assert len(one.site.exchange.restore((ahead,))) == 1
    assert one.site.next_stamp(0) > ahead.stamp, "a stamp made here is newer than all that is held"
