"""The site and its network: hints, greetings, and what happens when addresses change."""

from dataclasses import replace
from typing import Any

import pytest
from sites_of_one_cluster import World

from agent.foundation.ids import SiteId
from agent.site.causes import Cause
from agent.site.discovery import LOOSE_TIMEOUT_S, TIMEOUT_S
from agent.site.events import Ask, CallEnded, Discovered, NetworkChanged
from agent.site.relations import PAGES_MAX
from agent.wire.mesh import SyncReply, SyncRequest
from agent.wire.records import Endpoint

NOWHERE = Endpoint("10.77.0.1", 7411, 7412)
NEW = Endpoint("10.88.0.1", 7411, 7412)


@pytest.fixture
def world() -> World:
    return World()


def asked(effects: object) -> list[Ask]:
    assert isinstance(effects, list)
    return [effect for effect in effects if isinstance(effect, Ask)]


def test_an_announcement_is_greeted_at_once_with_little_patience_and_a_seed_with_more(
    world: World,
) -> None:
    site, now = world.add().site, world.now
    told = Discovered(NOWHERE, "mdns", SiteId(b"\7" * 32), NOWHERE.host, 1)
    (ask,) = asked(site.step(told, now))
    assert (ask.site, ask.endpoint, ask.timeout_s) == (None, NOWHERE, LOOSE_TIMEOUT_S)
    assert asked(site.step(told, now)) == [], "it says nothing new"
    (ask,) = asked(site.step(Discovered(NEW, "seed"), now))
    assert ask.timeout_s == TIMEOUT_S


def test_what_came_of_a_greeting_is_kept_with_its_cause(world: World) -> None:
    site, now = world.add().site, world.now
    (ask,) = asked(site.step(Discovered(NOWHERE, "seed"), now))
    site.step(CallEnded(ask.call, None, None, "no route to host", Cause.NO_ROUTE), now)
    hint = next(one for one in site.discovery.hints if one.endpoint == NOWHERE)
    assert (hint.cause, hint.detail) == (Cause.NO_ROUTE, "no route to host")


def test_a_changed_network_is_told_and_what_failed_is_tried_again_at_once(world: World) -> None:
    site, now = world.add().site, world.now
    (ask,) = asked(site.step(Discovered(NOWHERE, "seed"), now))
    for _ in range(6):
        site.step(CallEnded(ask.call, None, None, "no route to host", Cause.NO_ROUTE), now)
        now = max(now, site.discovery.wake_at())
        (ask,) = asked(site.step(NetworkChanged(site.swim.record.endpoint), now))
    site.step(CallEnded(ask.call, None, None, "no route to host", Cause.NO_ROUTE), now)
    (ask,) = asked(site.step(NetworkChanged(NEW), now))
    assert ask.endpoint == NOWHERE
    assert site.swim.record.endpoint == NEW


def test_every_call_to_a_member_is_remembered_for_the_way_to_it(world: World) -> None:
    one, other = world.add(), world.add("FR")
    world.meet(one, other)
    world.run(1)
    called = one.site.paths.of(other.site.me)
    assert called is not None
    assert called.cause is Cause.ANSWERED


@pytest.mark.parametrize("has_members", [True, False])
def test_a_member_that_always_has_more_is_not_asked_for_ever(
    world: World, monkeypatch: pytest.MonkeyPatch, *, has_members: bool
) -> None:
    """Whether by a lie, or because it has what this site refuses (expired passports, say)."""
    one, other = world.add(), world.add()
    honest = other.site.exchange.answer

    def more(*asked: Any) -> SyncReply:
        reply = honest(*asked)
        return replace(reply, members=reply.members if has_members else (), has_more=True)

    monkeypatch.setattr(other.site.exchange, "answer", more)
    world.meet(one, other)
    world.run(0.5)
    asked = [ask for ask in one.asked if isinstance(ask.message, SyncRequest)]
    assert 1 <= len(asked) <= PAGES_MAX + 2
