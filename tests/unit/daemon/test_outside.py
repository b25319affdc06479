"""Every effect that promises an event gives exactly one, whatever goes wrong."""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, cast

import pytest
from sites_for_outside import JOB

from agent.config.settings import DatasetPart
from agent.daemon.outside import SMALL_BLOB_BYTES_MAX, Outside
from agent.drivers.blobs import BlobStore
from agent.federation import events as job
from agent.foundation.errors import OutcomeUnknown, StoreFault, Unreachable
from agent.foundation.ids import Digest, SiteId
from agent.site.events import (
    Answer,
    Ask,
    BlobFailed,
    BlobLoaded,
    BlobStored,
    CallEnded,
    CallReceived,
    FetchBlob,
    JobEnded,
    Resolved,
    SiteEvent,
)
from agent.training.contract import AttemptFailed, UpdatesRejected
from agent.wire.mesh import Done, Have, Reply
from agent.wire.records import Endpoint

SITE, WHERE = SiteId(b"\1" * 32), Endpoint("127.0.0.1", 1, 2)
MISSING = Digest(b"\7" * 32)


class Mesh:
    def __init__(self) -> None:
        self.error: Exception | None = None

    async def call(self, *_: object) -> tuple[SiteId, Reply]:
        if self.error is not None:
            raise self.error
        return SITE, Done()


class Trainers:
    def __init__(self, folder: Path) -> None:
        self.file = folder / "result"
        self.file.write_bytes(b"parameters")
        self.error: Exception | None = None

    async def initialise(self, *_: object) -> Path:
        return self._done()

    async def aggregate(self, *_: object) -> Path:
        return self._done()

    async def train(self, *_: object) -> Path:
        self._done()
        raise AttemptFailed("no data")

    def _done(self) -> Path:
        if self.error is not None:
            raise self.error
        return self.file


class Rig:
    def __init__(self, folder: Path) -> None:
        self.mesh, self.trainers = Mesh(), Trainers(folder)
        self.blobs = BlobStore(folder / "blobs", reserve_bytes=0)
        self.events: list[SiteEvent] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self.outside = Outside(
            me=SITE, gossip=cast("Any", None), mesh=cast("Any", self.mesh), blobs=self.blobs,
            trainers=cast("Any", self.trainers), datasets={"d": DatasetPart(folder)},
        )  # fmt: skip
        self.outside.connect(self.events.append, self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def settled(self) -> list[SiteEvent]:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)
        return self.events


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def test_a_call_ends_in_its_answer_or_its_error(rig: Rig) -> None:
    ask = Ask(3, SITE, WHERE, Have(()), 1.0)
    rig.outside.ask(ask)
    await rig.settled()
    rig.mesh.error = Unreachable("nobody there")
    rig.outside.ask(ask)
    assert await rig.settled() == [
        CallEnded(3, SITE, Done()), CallEnded(3, SITE, None, "nobody there"),
    ]  # fmt: skip


async def test_a_members_call_waits_for_its_answer_and_its_fault(rig: Rig) -> None:
    call = asyncio.create_task(rig.outside.handle(SITE, Have(())))
    await asyncio.sleep(0)
    (received,) = rig.events
    assert isinstance(received, CallReceived)
    rig.outside.answer(Answer(received.call, Done()))
    rig.outside.answer(Answer(received.call, Done()))
    assert await call == Done()
    failing = asyncio.create_task(rig.outside.handle(SITE, Have(())))
    await asyncio.sleep(0)
    rig.outside.fail(Answer(received.call + 1, Done()), StoreFault("full"))
    with pytest.raises(StoreFault):
        await failing
    rig.outside.answer(Answer(999, Done()))  # its caller is gone
    assert rig.outside._answers == {}


async def test_a_submission_that_is_not_on_disk_is_told_to_be_of_unknown_outcome(rig: Rig) -> None:
    token, future = rig.outside.expect()
    rig.outside.resolve(Resolved(token, ("",)))
    assert await future == ("",)
    token, future = rig.outside.expect()
    rig.outside.fail(Resolved(token, ()), StoreFault("the disk is full"))
    with pytest.raises(OutcomeUnknown, match=r"not on disk yet.*the disk is full"):
        await future


async def test_a_blob_that_nobody_has_fails_and_one_that_is_here_needs_nobody(rig: Rig) -> None:
    digest = await rig.blobs.put_bytes(b"x")
    rig.outside.fetch(FetchBlob(MISSING, ()))
    await rig.settled()
    rig.outside.fetch(FetchBlob(digest, ()))
    failed, stored = await rig.settled()
    assert isinstance(failed, BlobFailed)
    assert "no living site" in failed.reason
    assert stored == BlobStored(digest)


async def test_small_blobs_are_read_and_large_ones_are_not(rig: Rig) -> None:
    small = await rig.blobs.put_bytes(b"x")
    large = await rig.blobs.put_bytes(bytes(SMALL_BLOB_BYTES_MAX + 1))
    for digest in (small, large, MISSING):
        rig.outside.read(job.ReadBlob(digest))
        await rig.settled()
    loaded, *failed = rig.events
    assert loaded == BlobLoaded(small, b"x")
    assert [type(event) for event in failed] == [BlobFailed, BlobFailed]


async def test_a_blob_that_has_served_may_be_gone_already(rig: Rig) -> None:
    digest = await rig.blobs.put_bytes(b"x")
    for _ in range(2):
        rig.outside.forget(job.ForgetBlob(digest))
        assert await rig.settled() == []
    assert not rig.blobs.is_held(digest)


async def test_work_ends_in_a_blob_or_a_reason(rig: Rig) -> None:
    rig.outside.work(job.Initialise(5, JOB))
    stored, done = await rig.settled()
    assert isinstance(stored, BlobStored)
    assert done == JobEnded(JOB.id, job.WorkDone(5, stored.digest, len(b"parameters")))
    rig.events.clear()
    rig.trainers.error = AttemptFailed("out of memory")
    rig.outside.work(job.Initialise(6, JOB))
    assert await rig.settled() == [JobEnded(JOB.id, job.WorkFailed(6, "out of memory"))]


async def test_the_updates_that_spoil_a_mean_are_named(rig: Rig) -> None:
    good, bad = await rig.blobs.put_bytes(b"a"), await rig.blobs.put_bytes(b"b")
    rig.trainers.error = UpdatesRejected(((1, "NaN"),))
    rig.outside.work(job.Aggregate(5, JOB, 1, good, [job.Counting(good, 1), job.Counting(bad, 1)]))
    (ended,) = await rig.settled()
    assert isinstance(ended, JobEnded)
    assert isinstance(ended.event, job.WorkFailed)
    assert ended.event.culprits == (bad,)


@pytest.mark.parametrize("base", [MISSING, None])
async def test_an_attempt_that_fails_says_why(rig: Rig, base: Digest | None) -> None:
    held = base or await rig.blobs.put_bytes(b"x")
    rig.outside.work(job.Train(JOB, 1, held))
    (ended,) = await rig.settled()
    assert isinstance(ended, JobEnded)
    assert isinstance(ended.event, job.AttemptEnded)
    assert ended.event.reason


async def test_a_disk_that_fails_a_fetch_ends_the_fetch_and_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(rig.blobs, "fetch", fetch)
    rig.outside.fetch(FetchBlob(MISSING, ((SITE, WHERE),)))
    assert await rig.settled() == [BlobFailed(MISSING, "[Errno 2] No such file or directory")]
