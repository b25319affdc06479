"""Loads and unloads as the daemon carries them out: when they are answered, and with what."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "site"))

from sites_of_one_cluster import World, deployment, model

from agent.daemon import model_desk
from agent.daemon.model_desk import ModelDesk
from agent.foundation.errors import Busy, NotFound, UsageError
from agent.site.events import BlobStored, ModelFailed, ModelReady, SiteEvent, WorkerUp
from agent.wire.inside import model_key

KEY = model_key("m", "1")


class Rig:
    """A site machine whose model worker is the test, and a desk on it."""

    def __init__(self) -> None:
        self.world = World()
        self.node = self.world.add()
        self.node.refuses.add("1")
        self.shown: list[str] = []
        self.watchers: set[Callable[[], object]] = set()
        self._last = 0
        self._futures: dict[int, asyncio.Future[tuple[str, ...]]] = {}
        self.control: Any = None
        rig: Any = self
        self.desk = ModelDesk(rig, rig, rig)

    # As driver, outside and inference, in that order.
    @property
    def site(self) -> Any:
        return self.node.site

    def feed(self, event: SiteEvent) -> None:
        self.world.feed(self.node, event)
        for token in tuple(self.node.resolved):
            if token in self._futures:
                self._futures.pop(token).set_result(self.node.resolved.pop(token))
        for told in tuple(self.watchers):
            told()

    def expect(self) -> tuple[int, asyncio.Future[tuple[str, ...]]]:
        self._last += 1
        self._futures[self._last] = asyncio.get_running_loop().create_future()
        return self._last, self._futures[self._last]

    def watch_shelf(self, told: Callable[[], object]) -> Callable[[], None]:
        self.watchers.add(told)
        return lambda: self.watchers.discard(told)

    async def show(self) -> None:
        self.shown.append(self.node.stage())

    def publish(self, *, is_held: bool = True) -> None:
        if is_held:
            self.feed(BlobStored(model().manifest))
        self.world.submit(self.node, model(), deployment())


async def test_a_load_is_answered_when_the_model_is_ready_and_the_gateway_knows() -> None:
    rig = Rig()
    rig.node.refuses.clear()
    rig.publish()
    await rig.desk.control("m", "me", is_load=False)
    assert rig.shown == [""]
    assert rig.desk.status() == [
        {
            "name": "m", "version": "1", "state": "unloaded", "digest": model().manifest.hex(),
            "reason": "unloaded by me at 2026-05-01 12:00:00 UTC", "providers": [],
        }
    ]  # fmt: skip
    assert rig.desk.models()[0]["sites"][0]["state"] == "unloaded"
    await rig.desk.control("m:1", "me", is_load=True)
    assert rig.shown == ["", "ready"]
    assert rig.watchers == set()


async def test_a_load_waits_for_the_worker() -> None:
    rig = Rig()
    rig.node.refuses.clear()
    rig.publish()
    rig.site.shelf.worker_down("it was killed", (KEY,), 0, is_any_up=False)
    waiting = asyncio.create_task(rig.desk.control("m", "me", is_load=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    rig.feed(WorkerUp())
    await waiting
    assert rig.shown == ["ready"]


async def test_a_model_that_cannot_be_loaded_is_told_with_its_reason() -> None:
    rig = Rig()
    rig.publish()
    with pytest.raises(UsageError, match="cannot be loaded; it is broken"):
        await rig.desk.control("m", "me", is_load=True)
    assert rig.shown == []


async def test_a_quarantined_model_names_the_command_that_frees_it() -> None:
    rig = Rig()
    rig.publish()
    rig.node.refuses.clear()
    rig.feed(ModelReady(KEY, ("CPU",), "{}", 1))
    for _ in range(3):
        rig.feed(ModelFailed(KEY, "it crashed", is_crash=True))
    with pytest.raises(UsageError, match=r"quarantined.*atoll model release m:1"):
        await rig.desk.control("m", "me", is_load=True)


async def test_bytes_that_nobody_has_are_told_at_once_and_tried_on() -> None:
    rig = Rig()
    rig.publish(is_held=False)
    with pytest.raises(Busy, match=r"cannot be fetched: nobody has it.*tried again"):
        await rig.desk.control("m", "me", is_load=True)
    rig.node.refuses.clear()
    rig.feed(BlobStored(model().manifest))
    await rig.desk.control("m", "me", is_load=True)
    assert rig.shown == ["ready"]


async def test_the_wait_is_bounded_and_says_how_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_desk, "LOAD_WAIT_S", 0.0)
    rig = Rig()
    rig.publish()
    rig.site.shelf.worker_down("it was killed", (KEY,), 0, is_any_up=False)
    rig.site.shelf.items[KEY].stage = "held"
    with pytest.raises(Busy, match=r"not ready after 0 s.*still being tried"):
        await rig.desk.control("m", "me", is_load=True)
    assert rig.watchers == set()


async def test_what_is_unloaded_while_a_load_waits_is_told_to_who_waits() -> None:
    rig = Rig()
    rig.node.refuses.clear()
    rig.publish()
    rig.site.shelf.worker_down("it was killed", (KEY,), 0, is_any_up=False)
    waiting = asyncio.create_task(rig.desk.control("m", "me", is_load=True))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await rig.desk.control("m", "another", is_load=False)
    with pytest.raises(Busy, match="unloaded by another"):
        await waiting


async def test_so_many_loads_may_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_desk, "LOADS_MAX", 0)
    rig = Rig()
    rig.publish()
    with pytest.raises(Busy, match="too many loads"):
        await rig.desk.control("m", "me", is_load=True)


async def test_a_name_outside_the_catalog_is_not_found() -> None:
    rig = Rig()
    for is_load in (True, False):
        with pytest.raises(NotFound):
            await rig.desk.control("nope", "me", is_load=is_load)


async def test_a_release_needs_a_model_that_is_to_be_served() -> None:
    rig = Rig()
    rig.publish()
    assert rig.desk.release("m:1") == {
        "name": "m", "version": "1", "state": "refused", "reason": "it is broken",
    }  # fmt: skip
    with pytest.raises(NotFound, match="atoll model list"):
        rig.desk.release("m:2")
