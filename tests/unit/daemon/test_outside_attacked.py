"""What an attack found about updates that are cut, and ranges, on their way to the disk. Each failed first."""

# ruff: noqa: F811 - fixtures are named twice

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from sites_for_outside import JOB
from test_outside import Rig, rig  # noqa: F401 - a fixture

from agent.drivers.trainers import Trained
from agent.federation import events as job
from agent.foundation.errors import StoreFault
from agent.foundation.ids import Digest
from agent.site.events import JobEnded
from agent.wire.limits import CHUNK_BYTES

CUT = replace(JOB, ranges=4)


async def base_of(rig: Rig) -> Digest:
    return await rig.blobs.put_bytes(b"base")


async def test_an_update_whose_file_is_gone_ends_the_attempt_all_the_same(
    rig: Rig, tmp_path: Path
) -> None:
    """ "Every effect that promises an event gives exactly one, whatever goes wrong." """

    async def train(*_: object) -> Trained:
        return Trained(tmp_path / "released meanwhile", 5, ())

    rig.trainers.train = train  # type: ignore[method-assign,assignment]
    base = await base_of(rig)
    for the_job in (JOB, CUT):
        rig.events.clear()
        rig.outside.work(job.Train(replace(the_job, dataset="d"), 1, base))
        await asyncio.gather(*rig.tasks, return_exceptions=True)
        assert [type(one.event) for one in rig.events if isinstance(one, JobEnded)] == [
            job.AttemptEnded
        ], the_job.ranges
        rig.tasks.clear()


async def test_parts_of_an_update_that_could_not_be_stored_whole_go(
    rig: Rig, tmp_path: Path
) -> None:
    path = tmp_path / "update"
    path.write_bytes(
        bytes(CHUNK_BYTES) + b"\1" * CHUNK_BYTES + b"\2" * CHUNK_BYTES + b"\3" * CHUNK_BYTES
    )

    async def train(*_: object) -> Trained:
        return Trained(path, 5, ())

    rig.trainers.train = train  # type: ignore[method-assign,assignment]
    base = await base_of(rig)
    put, count = rig.blobs.put_file, 0

    async def put_file(*args: Any) -> Digest:
        nonlocal count
        count += 1
        if count == 4:
            raise StoreFault("the disk is full")
        return await put(*args)

    rig.blobs.put_file = put_file  # type: ignore[method-assign,assignment]
    rig.outside.work(job.Train(replace(CUT, dataset="d"), 1, base))
    await rig.settled()
    assert [type(one.event) for one in rig.events if isinstance(one, JobEnded)] == [
        job.AttemptEnded
    ]
    assert set(rig.blobs.list()) == {base}


async def test_a_mean_that_is_stored_leaves_no_file_behind(rig: Rig, tmp_path: Path) -> None:
    """Nobody else removes them where the site does not train."""

    async def aggregate_range(*_: object) -> Path:
        path = tmp_path / "mean-1-7.range"
        path.write_bytes(b"mean")
        return path

    rig.trainers.aggregate_range = aggregate_range  # type: ignore[attr-defined]
    base, part = await base_of(rig), await rig.blobs.put_bytes(b"a")
    rig.outside.work(job.AggregateRange(1, CUT, 1, base, [job.Counting(part, 1)], (0, 2)))
    await rig.settled()
    (done,) = [one.event for one in rig.events if isinstance(one, JobEnded)]
    assert isinstance(done, job.WorkDone)
    assert rig.blobs.path(done.digest).read_bytes() == b"mean"
    assert not (tmp_path / "mean-1-7.range").exists()
