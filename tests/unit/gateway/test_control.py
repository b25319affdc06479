"""The gateway's end of the channel to the control process: what it asks, and what if nobody answers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from agent.drivers.channel import Channel, pair
from agent.foundation.errors import AtollError, Busy, NotFound, Refused, Unreachable, UsageError
from agent.gateway import control as control_module
from agent.gateway.control import Control
from agent.gateway.site import Limits, SiteState
from agent.wire.inside import (
    FROM_GATEWAY,
    TO_GATEWAY,
    ControlFigures,
    FiguresAsked,
    RepositoryAnswered,
    RepositoryAsked,
)


class Rig:
    def __init__(self) -> None:
        ours, theirs = pair()
        self.other = Channel(ours)
        channel = Channel(theirs)
        self.control = Control(channel, SiteState(Limits()))
        self.serving = asyncio.create_task(self.control.serve())

    async def asked(self) -> Any:
        async with asyncio.timeout(5):
            frame = await self.other.receive()
        assert frame is not None
        return FROM_GATEWAY.unpack(frame[0])

    async def say(self, message: Any) -> None:
        await self.other.send(TO_GATEWAY.pack(message))


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    yield made
    made.other.close()
    await made.serving
    made.control._channel.close()


async def test_figures_are_asked_for_once_for_all_who_read_them(rig: Rig) -> None:
    readers = [asyncio.create_task(rig.control.figures()) for _ in range(3)]
    assert await rig.asked() == FiguresAsked()
    await rig.say(ControlFigures("x 1\n"))
    assert await asyncio.gather(*readers) == ["x 1\n"] * 3
    again = asyncio.create_task(rig.control.figures())
    assert await rig.asked() == FiguresAsked()
    await rig.say(ControlFigures("x 2\n"))
    assert await again == "x 2\n"


async def test_a_control_process_that_stands_still_costs_readers_little(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "FIGURES_TIMEOUT_S", 0.01)
    assert await rig.control.figures() == ""
    assert await rig.control.figures() == ""
    assert await rig.asked() == FiguresAsked()
    await rig.say(ControlFigures("x 1\n"))
    while await rig.control.figures() == "":
        pass
    assert await rig.control.figures() == "x 1\n", "what it gave last"
    assert await rig.asked() == FiguresAsked(), "asked anew once it had answered"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, UsageError), (403, Refused), (404, NotFound), (503, Busy), (500, Unreachable)],
)
async def test_what_came_of_a_load_keeps_its_status(
    rig: Rig, status: int, kind: type[AtollError]
) -> None:
    asking = asyncio.create_task(rig.control.repository("m", "me", is_load=True))
    asked = await rig.asked()
    assert asked == RepositoryAsked(asked.call, "m", True, "me")
    await rig.say(RepositoryAnswered(asked.call + 1, 200, ""))
    await rig.say(RepositoryAnswered(asked.call, status, "because"))
    with pytest.raises(kind, match="because"):
        await asking


async def test_a_load_that_is_not_answered_ends_with_an_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "REPOSITORY_TIMEOUT_S", 0.01)
    with pytest.raises(Unreachable, match="does not answer"):
        await rig.control.repository("m", "me", is_load=False)
    assert rig.control._asked == {}
