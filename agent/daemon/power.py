"""Tells the site how much of the machine's power supply is free."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from agent.drivers.clock import monotonic_s
from agent.hardware.power import FreePower, PowerReader
from agent.site.events import PowerMeasured

EVERY_S = 5.0


async def follow_power(
    supply_w: float, feed: Callable[[PowerMeasured], object], root: Path = Path("/")
) -> None:
    """Read the draw every ``EVERY_S``; nothing is read where the operator has not told the supply.

    Args:
        supply_w: what the machine may draw; 0 = not told.
        feed: takes what the site is to know.
        root: of the file system; a recorded tree in tests.
    """
    reader, free = PowerReader(root), FreePower(supply_w)
    while supply_w:
        draw_w = await asyncio.to_thread(reader.draw_w, monotonic_s())
        if free.drawn(draw_w, monotonic_s()):
            feed(PowerMeasured(free.free_w))
        await asyncio.sleep(EVERY_S)
