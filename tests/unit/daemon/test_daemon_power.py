import asyncio
from pathlib import Path

import pytest

from agent.daemon import power
from agent.site.events import PowerMeasured


async def test_the_site_is_told_what_is_free_and_only_when_that_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "EVERY_S", 0.0)
    meter = tmp_path / "sys/class/hwmon/hwmon0/power1_input"
    meter.parent.mkdir(parents=True)
    meter.write_text("20000000")
    told: asyncio.Queue[PowerMeasured] = asyncio.Queue()
    following = asyncio.create_task(power.follow_power(100.0, told.put_nowait, tmp_path))
    async with asyncio.timeout(10):
        assert await told.get() == PowerMeasured(80.0)
        meter.write_text("70000000")
        assert await told.get() == PowerMeasured(30.0)
    following.cancel()
    assert told.empty()


async def test_where_no_supply_is_told_nothing_is_read(tmp_path: Path) -> None:
    async with asyncio.timeout(10):
        await power.follow_power(0.0, lambda _: pytest.fail("nothing is known"), tmp_path)
