"""One run for each idempotency key, whoever asks, waits, or goes away meanwhile."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.foundation.errors import AtollError, Busy, Refused, Unreachable, UsageError
from agent.gateway import once as module
from agent.gateway.asked import Answered, Asked
from agent.gateway.once import Once
from agent.routing.policy import Question
from agent.serving.failures import DeadlineExceeded, KeyReused, KeySpent, RequestLost
from agent.wire.inside import KnownModel, model_key

MODEL = KnownModel(model_key("m", "1"), "m", "1", True, ())
ANSWER = Answered(200, b"{}", None, "home", run_us=5)


def asked(
    key: str = "k", body: bytes = b"{}", application: str = "local", left_s: float = 5
) -> Asked:
    return Asked(
        "r",
        MODEL,
        Question(MODEL, ()),
        None,
        body,
        time.monotonic() + left_s,
        application,
        once=key,
    )


class Disk:
    """Keys that outlive the gateway."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.fault: Unreachable | None = None

    async def claim(self, key: bytes) -> bool:
        if self.fault is not None:
            raise self.fault
        is_new = key not in self.keys
        self.keys.add(key)
        return is_new

    def release(self, key: bytes) -> None:
        self.keys.discard(key)


class World:
    """A model whose runs are counted and end when they are let go."""

    def __init__(self) -> None:
        self.disk = Disk()
        self.once = Once(self.disk)
        self.runs = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.act: Callable[[], Answered] = lambda: ANSWER

    async def run(self) -> Answered:
        self.runs += 1
        self.begun.set()
        await self.gate.wait()
        return self.act()

    async def ask(self, request: Asked | None = None) -> Answered:
        return await self.once.answer(request or asked(), self.run)

    def fail(self, error: AtollError) -> None:
        def act() -> Answered:
            raise error

        self.act = act


@pytest.fixture
async def world() -> World:
    return World()


async def test_who_asks_again_hears_the_same_and_nothing_runs(world: World) -> None:
    assert await world.ask() == ANSWER
    again = await world.ask()
    assert (again.body, again.is_replayed, again.run_us) == (b"{}", True, 0)
    assert (world.runs, world.once.replayed) == (1, 1)
    await world.ask(asked("other"))
    await world.ask(asked(application="camera"))
    assert world.runs == 3, "a key belongs to one application"


async def test_who_asks_meanwhile_waits_for_the_same_run(world: World) -> None:
    world.gate.clear()
    first = asyncio.create_task(world.ask())
    await world.begun.wait()
    second = asyncio.create_task(world.ask())
    with pytest.raises(DeadlineExceeded):
        await world.ask(asked(left_s=0.01))
    world.gate.set()
    assert [(await one).is_replayed for one in (first, second)] == [False, True]
    assert world.runs == 1


async def test_a_run_goes_on_when_its_caller_is_gone(world: World) -> None:
    world.gate.clear()
    first = asyncio.create_task(world.ask())
    await world.begun.wait()
    first.cancel()
    again = asyncio.create_task(world.ask())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not first.done(), "it holds the memory of its body until the end"
    world.gate.set()
    assert (await again).is_replayed
    with pytest.raises(asyncio.CancelledError):
        await first
    assert world.runs == 1


async def test_a_key_is_for_one_request(world: World) -> None:
    await world.ask()
    for other in (asked(body=b"[]"), replace(asked(), header="2")):
        with pytest.raises(KeyReused, match="used for another request"):
            await world.ask(other)
    assert world.runs == 1


@pytest.mark.parametrize(
    "error", [Busy("full"), Unreachable("no worker"), Refused("not here"), UsageError("wrong")]
)
async def test_what_did_not_run_may_be_asked_again(world: World, error: AtollError) -> None:
    world.fail(error)
    with pytest.raises(type(error)):
        await world.ask()
    world.act = lambda: replace(ANSWER, status=400)
    assert (await world.ask()).status == 400, "the worker refused it"
    world.act = lambda: ANSWER
    assert await world.ask() == ANSWER
    assert len(world.disk.keys) == 1


@pytest.mark.parametrize("error", [RequestLost("stopped"), DeadlineExceeded("late")])
async def test_what_may_have_run_is_never_run_again(world: World, error: AtollError) -> None:
    world.fail(error)
    with pytest.raises(type(error)):
        await world.ask()
    world.act = lambda: ANSWER
    with pytest.raises(KeySpent, match="or may have been"):
        await world.ask()
    world.once = Once(world.disk)
    with pytest.raises(KeySpent):
        await world.ask()
    with pytest.raises(KeySpent):
        await world.ask()
    assert world.runs == 1, "also after a restart"


async def test_nothing_runs_for_a_key_that_is_not_on_disk(world: World) -> None:
    world.disk.fault = Unreachable("the disk is full")
    with pytest.raises(Unreachable, match="the disk is full"):
        await world.ask()
    world.disk.fault = None
    assert await world.ask() == ANSWER
    assert world.runs == 1


@pytest.mark.parametrize(
    ("bound", "value"), [("ANSWERS_BYTES_MAX", 3), ("ANSWER_LIFE_S", 0.0), ("ONCE_KEYS_MAX", 1)]
)
async def test_an_answer_that_is_not_kept_is_not_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch, bound: str, value: Any
) -> None:
    monkeypatch.setattr(module, bound, value)
    await world.ask()
    await world.ask(asked("other"))
    with pytest.raises(KeySpent):
        await world.ask()
    assert world.runs == 2


async def test_requests_with_keys_are_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RUNNING_MAX", 1)
    world.gate.clear()
    first = asyncio.create_task(world.ask())
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="the bound is 1"):
        await world.ask(asked("other"))
    world.gate.set()
    await first
    assert (await world.ask(asked("other"))).status == 200
