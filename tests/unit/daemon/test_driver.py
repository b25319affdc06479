"""The Ready rule: nothing that rests on a row leaves before the row is durable, full disk or not."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import pytest

from agent.daemon import driver as driver_module
from agent.daemon.driver import Driver
from agent.daemon.outside import Outside
from agent.federation.events import Persisted, Progressed, StoreBytes
from agent.foundation.errors import AtollError, StoreFault
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.writes import Put, Write
from agent.membership.events import LoopLagged
from agent.site.events import (
    Answer,
    Ask,
    BlobStored,
    CallEnded,
    GatewayChanged,
    Noted,
    Persist,
    Resolved,
    SiteEffect,
    SiteEvent,
    WallClock,
)
from agent.site.site import Site
from agent.wire.mesh import Done, Have, SyncRequest
from agent.wire.records import Endpoint

DIGEST = Digest(b"\1" * 32)
GO = WallClock(0.0)
ROW = Persist((Put("meta", {"key": "a", "value": 1}),), token=5)


def asking(message: object = None) -> Ask:
    where = Endpoint("127.0.0.1", 1, 2)
    return Ask(9, SiteId(b"\1" * 32), where, message or Have(()), 1.0)  # type: ignore[arg-type]


async def until(is_so: Callable[[], object]) -> None:
    """Let the loop run until it is so."""
    async with asyncio.timeout(5):
        while not is_so():  # noqa: ASYNC110 - the code under test has no event for tests
            await asyncio.sleep(0.002)


class Machine:
    """Answers ``GO`` with what the test wants, remembers all else."""

    def __init__(self) -> None:
        self.plan: list[list[SiteEffect]] = []
        self.heard: list[SiteEvent] = []
        self.due = NEVER

    def step(self, event: SiteEvent, now: float) -> list[SiteEffect]:
        if event is GO:
            return self.plan.pop(0)
        self.heard.append(event)
        if isinstance(event, Woke):
            self.due = now + 3600
        return []

    def wake_at(self) -> float:
        return self.due


class World:
    """Disk and outside in one, so that their order is seen."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.is_full = False
        self.is_broken = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def commit(self, writes: Sequence[Write]) -> None:
        await self.gate.wait()
        if self.is_full or self.is_broken:
            raise StoreFault("the disk is full", is_fatal=self.is_broken)
        self.done.append(("committed", len(writes)))

    async def store_bytes(self, digest: Digest, _: bytes) -> None:
        if self.is_full:
            raise StoreFault("the disk is full")
        self.done.append(("stored", digest))

    def connect(self, *_: object) -> None:
        pass

    def fail(self, effect: object, fault: AtollError) -> None:
        self.done.append(("failed", type(effect).__name__, str(fault)))

    def __getattr__(self, name: str) -> Any:
        return lambda *_: self.done.append(name)


class Rig:
    def __init__(self) -> None:
        self.machine, self.world = Machine(), World()
        self.driver = Driver(
            cast("Site", self.machine), cast("Any", self.world), cast("Outside", self.world)
        )

    def give(self, *effects: SiteEffect) -> None:
        self.machine.plan.append(list(effects))
        self.driver.feed(GO)

    async def settled(self) -> list[object]:
        await until(lambda: self.driver._writing is None)
        return self.world.done


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setattr(driver_module, "OWED_RETRY_S", 0.01)
    made = Rig()
    yield made
    await made.driver.stop()


async def test_what_needs_no_disk_happens_at_once(rig: Rig) -> None:
    rig.give(asking(), GatewayChanged())
    assert rig.world.done == ["ask", "gateway_changed"]


async def test_nothing_passes_a_row_that_is_not_durable_yet(rig: Rig) -> None:
    rig.world.gate.clear()
    rig.give(ROW, Answer(1, Done()))
    rig.give(asking())
    await asyncio.sleep(0)
    assert rig.world.done == []
    rig.world.gate.set()
    assert await rig.settled() == [("committed", 1), "answer", "ask"]
    assert rig.machine.heard == [Persisted(5)]


async def test_a_small_blob_is_stored_before_the_row_that_names_it(rig: Rig) -> None:
    rig.give(StoreBytes(DIGEST, b"x"), ROW)
    assert await rig.settled() == [("stored", DIGEST), ("committed", 1)]
    assert rig.machine.heard == [BlobStored(DIGEST), Persisted(5)]


async def test_a_full_disk_fails_promises_lets_the_rest_go_on_and_pays_later(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rig.world.is_full = True
    rig.give(ROW, Answer(1, Done()), Resolved(2, ("",)), asking(), GatewayChanged())
    told = "the disk is full"
    assert await rig.settled() == [
        ("failed", "Answer", told), ("failed", "Resolved", told), "gateway_changed",
    ]  # fmt: skip
    assert rig.machine.heard == [CallEnded(9, SiteId(b"\1" * 32), None, told)]
    assert rig.driver.fault == told
    rig.world.done.clear()
    rig.give(asking())  # a promise later, without a row of its own
    rig.give(asking(SyncRequest(None, (), ())))  # type: ignore[arg-type]
    await rig.settled()
    assert rig.world.done == ["ask"], "only the sync"
    rig.world.done.clear()
    rig.world.is_full = False
    await until(lambda: not rig.driver.fault)
    assert rig.world.done == [("committed", 1)]
    assert rig.machine.heard[-1] == Persisted(5), "this site's own vote counts now"
    rig.give(asking())
    assert rig.world.done[-1] == "ask"
    assert sum("refuses writes" in text for text in caplog.messages) == 1, "said once"
    assert "the disk takes writes again" in caplog.messages


async def test_a_fault_that_leaves_the_disk_unknown_ends_the_daemon(rig: Rig) -> None:
    ended: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: ended.append(context["exception"]))
    rig.world.is_broken = True
    rig.give(ROW, Answer(1, Done()))
    await rig.settled()
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert isinstance(ended[0], StoreFault)
    assert "answer" not in rig.world.done


async def test_the_machine_is_woken_when_it_wants_to_be(rig: Rig) -> None:
    rig.machine.due = asyncio.get_running_loop().time() + 0.01
    rig.driver.start()
    await until(lambda: rig.machine.heard)
    assert rig.machine.heard == [Woke()]


async def test_a_stall_of_the_loop_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "LAG_WORTH_TELLING_S", -1.0)
    rig.machine.due = asyncio.get_running_loop().time() + 0.01
    rig.driver.start()
    await until(lambda: any(isinstance(event, LoopLagged) for event in rig.machine.heard))


async def test_a_stall_is_told_before_what_came_after_it_and_once(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = asyncio.get_running_loop().time()
    rig.machine.due = began + 0.1
    rig.driver.start()
    monkeypatch.setattr(driver_module, "monotonic_s", lambda: began + 5.0)
    rig.machine.due = began + 6.0
    rig.driver.feed(Woke())
    rig.driver.feed(Woke())
    told, *after = rig.machine.heard
    assert isinstance(told, LoopLagged)
    assert told.lag_s == pytest.approx(4.9, abs=0.05)
    assert after == [Woke(), Woke()]
    assert rig.driver.lag.summary()["samples"] == 1
    assert rig.driver.lag.summary()["longest_ms"] == pytest.approx(4900, abs=50)


async def test_each_timer_that_came_due_is_one_sample_of_the_loops_lag(rig: Rig) -> None:
    rig.machine.due = asyncio.get_running_loop().time() + 10
    rig.driver.start()
    rig.driver.feed(Woke())
    assert rig.driver.lag.summary()["samples"] == 0, "none was due yet"
    rig.machine.due = asyncio.get_running_loop().time() + 0.01
    rig.driver.start()
    await until(lambda: len(rig.machine.heard) > 1)
    assert rig.driver.lag.summary()["samples"] >= 1
    assert "atoll_control_loop_lag_seconds_count" in rig.driver.lag.render()


async def test_watchers_are_told_until_they_go(rig: Rig) -> None:
    seen: list[int] = []
    stop = rig.driver.watch(lambda: seen.append(1))
    rig.give(Progressed(), Noted("x"))
    stop()
    rig.give(Progressed())
    assert seen == [1]


async def test_an_exception_beside_the_loop_is_a_defect(rig: Rig) -> None:
    ended: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: ended.append(context["exception"]))

    async def fail() -> None:
        raise ZeroDivisionError

    rig.driver.spawn(fail())
    for _ in range(3):
        await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert isinstance(ended[0], ZeroDivisionError)
