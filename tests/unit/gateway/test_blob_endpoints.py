"""The way out for blobs, where it is rationed (what is given to whom: process/test_forwarding_process)."""

import asyncio

import pytest

from agent.foundation.errors import Busy
from agent.foundation.ids import SiteId
from agent.gateway.blob_endpoints import Line

ONE, OTHER = SiteId(b"1" * 32), SiteId(b"2" * 32)


async def test_turns_come_in_time_and_one_that_is_given_up_holds_up_nobody() -> None:
    line = Line(100_000.0)
    async with asyncio.timeout(5):
        await line.turn(ONE, 25_000)  # the burst
        waiting = [asyncio.create_task(line.turn(ONE, 1000)) for _ in range(3)]
        other = asyncio.create_task(line.turn(OTHER, 1000))
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.gather(waiting[0], waiting[2], other)
    assert waiting[1].cancelled()


async def test_who_would_wait_too_long_is_refused() -> None:
    line = Line(100.0)
    first = asyncio.create_task(line.turn(ONE, 2000))
    await first
    long = asyncio.create_task(line.turn(ONE, 2000))
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="more is asked for than this site may send"):
        await line.turn(OTHER, 1)
    long.cancel()
