"""Other sites are asked in turn or side by side, within budgets, and never where the label forbids."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from agent.foundation.errors import AtollError, Unreachable
from agent.foundation.ids import SiteId
from agent.gateway import elsewhere as module
from agent.gateway.elsewhere import Elsewhere
from agent.gateway.members import MemberAnswer, NotConnected
from agent.gateway.site import Limits, SiteState
from agent.routing.outlook import LATE_IN_A_ROW, Outlook
from agent.routing.policy import Question, Verdict, judge_local
from agent.wire.inside import KnownModel, LocalModel, RemoteSite, View, model_key
from agent.wire.records import Served

KEY = model_key("m", "1")
MODEL = KnownModel(KEY, "m", "1", True, ())


def remote(number: int, law: str = "DE", rtt_ms: float = 1.0) -> RemoteSite:
    return RemoteSite(
        SiteId(bytes([number]) * 32), f"s{number}", "eu", "edge", law, "127.0.0.1", 7412, "alive",
        False, rtt_ms, 0.0, (Served(KEY, 1000),),
    )  # fmt: skip


VIEW = View(
    site=SiteId(bytes(32)), name="home", jurisdiction="DE", is_draining=False,
    local=(LocalModel(KEY, "m", "1", True, "", (), "{}", 1000),), known=(MODEL,),
    sites=(remote(1), remote(2, rtt_ms=50.0), remote(3, "US", 0.5)), blobs=(), revoked=(),
)  # fmt: skip
IN_DE = Question(MODEL, ("DE",))


@dataclass(frozen=True)
class Said:
    status: int
    body: bytes = b""


class World:
    """Sends requests to sites that behave as ``acts`` says."""

    def __init__(self) -> None:
        self.state = SiteState(Limits())
        self.state.outlook = Outlook(Random(1))
        self.state.replace_view(VIEW)
        self.members = Mock(under_way={})
        self.elsewhere = Elsewhere(self.state, self.members)
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.acts: dict[str, Callable[[], Any]] = {}

    async def send(self, _: Question, verdict: Verdict) -> Said:
        self.asked.append(verdict.name)
        act = self.acts.get(verdict.name)
        if act is None:
            return Said(200, verdict.name.encode())
        try:
            return await act()  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            self.cancelled.append(verdict.name)
            raise

    async def ask(self, question: Question = IN_DE) -> Said | AtollError | None:
        return await self.elsewhere.ask(question, time.monotonic() + 5, self.send)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr("agent.routing.outlook.PATIENCE_UNKNOWN_MS", 20.0)
    return World()


async def never() -> Said:
    await asyncio.Event().wait()
    raise AssertionError


async def gone() -> Said:
    raise Unreachable("it is gone")


async def full() -> Said:
    return Said(503, b"full")


@pytest.mark.parametrize("act", [gone, full])
async def test_after_a_failure_the_next_is_asked(world: World, act: Any) -> None:
    world.acts["s1"] = act
    assert await world.ask() == Said(200, b"s2")
    assert world.asked == ["s1", "s2"]
    assert +world.state.figures.routing == {"retried": 1}


async def test_retries_end_with_their_budget(world: World) -> None:
    world.acts["s1"] = gone
    for _ in range(100):
        await world.ask()
    retries = len(world.asked) - 100
    assert retries <= 0.2 * 100 + module.RETRIES_SAVED_MAX
    assert world.state.figures.routing["retry refused"] == 100 - retries


async def test_a_late_site_is_outrun_by_the_next_and_cancelled(world: World) -> None:
    world.acts["s1"] = never
    assert await world.ask() == Said(200, b"s2")
    assert (world.asked, world.cancelled) == (["s1", "s2"], ["s1"])
    assert +world.state.figures.routing == {"hedged": 1, "hedge won": 1}


async def test_hedges_end_with_their_budget(world: World) -> None:
    async def late() -> Said:
        await asyncio.sleep(0.03)
        return Said(200, b"s1")

    world.acts = {"s1": late, "s2": never}
    await asyncio.gather(*(world.ask() for _ in range(40)))
    hedged = world.asked.count("s2")
    assert 0 < hedged <= 0.05 * 40 + module.HEDGES_SAVED_MAX
    assert world.state.figures.routing["hedge refused"] == 40 - hedged


async def test_neither_a_retry_nor_a_hedge_crosses_a_label(world: World) -> None:
    world.acts = {"s1": gone, "s2": never}
    asking = asyncio.create_task(world.ask())
    done, _ = await asyncio.wait([asking], timeout=0.3)
    assert not done
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert set(world.asked) == {"s1", "s2"}
    assert world.cancelled == ["s2"]


async def test_with_nobody_to_ask_there_is_no_answer(world: World) -> None:
    assert await world.ask(Question(MODEL, ("FR",))) is None
    assert world.asked == []


async def call(world: World, verdict: Verdict) -> MemberAnswer:
    return await world.elsewhere.call(
        verdict, KEY, "POST", "/", headers={}, body=b"", deadline=time.monotonic() + 1
    )


async def test_a_site_that_cannot_be_connected_or_is_full_comes_last(world: World) -> None:
    first, second = (verdict for verdict, _ in world.elsewhere.candidates(IN_DE))
    world.members.call = AsyncMock(side_effect=NotConnected("no"))
    with pytest.raises(NotConnected):
        await call(world, first)
    assert +world.state.figures.routing == {"broken": 1}
    assert [v.name for v, _ in world.elsewhere.candidates(IN_DE)] == ["s2", "s1"]
    world.members.call = AsyncMock(return_value=MemberAnswer(200, {}, b""))
    await call(world, first)
    world.members.call = AsyncMock(return_value=MemberAnswer(503, {"Retry-After": "2"}, b""))
    await call(world, first)
    assert [v.name for v, _ in world.elsewhere.candidates(IN_DE)] == ["s2", "s1"]
    assert second.name == "s2"


async def test_the_time_that_a_new_connection_took_is_not_held_against_a_site(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = world.elsewhere.candidates(IN_DE)[0][0]
    now_s, is_cold = 0.0, True

    async def slow(*_: object, **__: object) -> MemberAnswer:
        nonlocal now_s
        now_s += 0.5
        return MemberAnswer(200, {}, b"", is_cold)

    async def ask_often() -> str:
        for _ in range(LATE_IN_A_ROW):
            await world.elsewhere.call(first, KEY, "POST", "/", headers={}, body=b"", deadline=60.0)
        return world.elsewhere.candidates(IN_DE)[0][0].name

    world.members.call = slow
    monkeypatch.setattr(module, "monotonic_s", lambda: now_s)
    assert await ask_often() == "s1"
    is_cold = False
    assert await ask_often() == "s2"


async def test_a_request_leaves_home_only_for_a_clear_gain(world: World) -> None:
    home = judge_local(VIEW, IN_DE, is_worker_up=True)
    assert not world.elsewhere.is_better(IN_DE, home)
    world.state.admission.wait_s = Mock(return_value=0.005)  # type: ignore[method-assign]
    assert not world.elsewhere.is_better(IN_DE, home)
    world.state.admission.wait_s = Mock(return_value=0.5)  # type: ignore[method-assign]
    assert world.elsewhere.is_better(IN_DE, home)
    assert not world.elsewhere.is_better(replace(IN_DE, hops=1), home), "it came from another site"
    assert not world.elsewhere.is_better(Question(MODEL, ("FR",)), home), "the label forbids it"
