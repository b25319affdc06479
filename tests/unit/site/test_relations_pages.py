"""A site that comes back with much to learn is told each thing once, however many would tell it."""

from sites_of_one_cluster import Node, World, deployment, model

from agent.foundation.machine import Woke
from agent.site.events import Ask, CallEnded, CallReceived, SiteEffect
from agent.site.exchange import DOCUMENTS_PER_MESSAGE_MAX
from agent.site.relations import PAGE_S_MAX
from agent.wire.mesh import Done, Push, SyncRequest

NOW = 1000.0


def knowing(world: World, pages: int) -> Node:
    node = world.add()
    for number in range(pages * DOCUMENTS_PER_MESSAGE_MAX // 2):
        world.submit(node, model(name=f"m{number}"), deployment(name=f"m{number}"))
    return node


def sync(asker: Node, other: Node, now: float) -> list[SiteEffect]:
    """``asker`` begins a sync with ``other`` and gets its answer; what it does then."""
    asker.site.step(Woke(), now)
    asker.site._relations._sync(other.site.me, other.where)
    (call,) = [effect for effect in asker.site.step(Woke(), now) if isinstance(effect, Ask)]
    assert isinstance(call.message, SyncRequest)
    reply = other.site.exchange.answer(call.message, asker.site.me, 0.0)
    effects = asker.site.step(CallEnded(call.call, other.site.me, reply), now)
    for push in [one for one in effects if isinstance(one, Ask) and isinstance(one.message, Push)]:
        effects += asker.site.step(CallEnded(push.call, other.site.me, Done()), now)
    return effects


def pushes(effects: list[SiteEffect]) -> int:
    """How often it brings documents."""
    messages = [effect.message for effect in effects if isinstance(effect, Ask)]
    return sum(isinstance(one, Push) and bool(one.documents) for one in messages)


def pages(effects: list[SiteEffect]) -> int:
    """How many further ones it asks for."""
    return sum(isinstance(one, Ask) and isinstance(one.message, SyncRequest) for one in effects)


def test_who_fetches_page_after_page_is_not_pushed_the_same() -> None:
    world = World()
    teacher, learner = knowing(world, 3), world.add()
    assert pushes(sync(teacher, learner, NOW)) == 1
    teacher.site.step(CallReceived(7, learner.site.me, learner.site.exchange.request()), NOW)
    assert pushes(sync(teacher, learner, NOW)) == 0
    assert pushes(sync(teacher, learner, NOW + PAGE_S_MAX)) == 1, "it has given up"


def test_pages_are_fetched_from_one_member_at_a_time() -> None:
    world = World()
    first, second, learner = knowing(world, 3), knowing(world, 3), world.add()
    assert pages(sync(learner, first, NOW)) == 1
    assert pages(sync(learner, second, NOW)) == 0
    assert pages(sync(learner, second, NOW + PAGE_S_MAX)) == 1, "the first one has given up"


def test_if_the_one_that_tells_goes_away_another_goes_on() -> None:
    world = World()
    first, second = world.add(), world.add()
    world.meet(first, second)
    world.run(10)
    for number in range(2 * DOCUMENTS_PER_MESSAGE_MAX):
        world.submit(first, model(name=f"m{number}"), deployment(name=f"m{number}"))
    world.run(30)
    learner = world.add()
    world.meet(learner, first)
    world.down.add(first.site.me)
    world.meet(learner, second)
    world.run(60)
    assert len(learner.site.catalog) == 4 * DOCUMENTS_PER_MESSAGE_MAX
