"""What passes between the site, its model workers and the gateway; the processes are the test's own."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.config.settings import ServingPart
from agent.daemon.workers import WorkerPlan, Workers, worker_plan
from agent.drivers.blobs import BlobStore
from agent.drivers.holdout import Holdout
from agent.foundation.ids import Digest
from agent.site.events import (
    Judged,
    LoadModel,
    ModelFailed,
    ModelReady,
    SiteEvent,
    UnloadModel,
    WorkerDown,
    WorkerUp,
)
from agent.wire import inside
from agent.wire.documents import ModelVersion

READY = inside.WorkerReady(1, "onnxruntime", "landlock")
KEY = inside.model_key("m", "1")


class Rig:
    """``Workers`` whose processes only remember what they are sent."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        self.events: list[SiteEvent] = []
        self.blobs = BlobStore(folder, reserve_bytes=0)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.to_gateway: list[Any] = []
        self.to_worker: list[list[Any]] = [[] for _ in range(count)]
        plan = WorkerPlan((), ("",) * count, 2, 4096, ("GPU", "CPU"), "berlin", 0.01)
        self.workers = Workers(
            plan, blobs=self.blobs, to_gateway=self._to_gateway, feed=self.events.append,
            spawn=self._spawn,
        )  # fmt: skip
        for worker, sent in zip(self.workers.all, self.to_worker, strict=True):

            def post(data: bytes, _: object = (), sent: list[Any] = sent) -> bool:
                sent.append(inside.TO_WORKER.unpack(data))
                return True

            monkeypatch.setattr(worker.child, "post", post)

    def _to_gateway(self, data: bytes, _: Sequence[int]) -> bool:
        self.to_gateway.append(inside.TO_GATEWAY.unpack(data))
        return True

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        return task

    async def load(self, name: str = "m", version: str = "1") -> bytes:
        digest = await self.blobs.put_bytes(b"a model")
        key = inside.model_key(name, version)
        self.workers.model(LoadModel(key, ModelVersion(name, version, digest, 7, "onnx", ())))
        await self.settled()
        return key

    async def settled(self) -> None:
        async with asyncio.timeout(5):
            await asyncio.gather(*self.tasks)

    async def says(self, index: int, *messages: Any) -> None:
        for message in messages:
            self.workers._received(index, inside.FROM_WORKER.pack(message), [])
        await self.settled()

    def loads(self, index: int) -> list[bytes]:
        return [m.key for m in self.to_worker[index] if isinstance(m, inside.LoadModel)]

    def held(self) -> dict[int, set[bytes]]:
        """As the gateway was told last."""
        told = [m for m in self.to_gateway if isinstance(m, inside.WorkerHolds)]
        return {m.index: set(m.models) for m in told}


def loaded(key: bytes) -> inside.ModelLoaded:
    return inside.ModelLoaded(key, ("CPU",), "{}", 5, 100)


@pytest.fixture
async def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path / "blobs", monkeypatch, 1)


@pytest.fixture
async def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    return Rig(tmp_path / "blobs", monkeypatch, 2)


async def test_a_version_is_judged_by_the_hold_out_that_the_operator_has_bound(
    rig: Rig, tmp_path: Path
) -> None:
    await rig.says(0, READY)
    for kind in ("images-idx3", "labels-idx1"):
        (tmp_path / f"t10k-{kind}-ubyte").write_text(kind)
    rig.workers._plan = replace(
        rig.workers._plan,
        holdouts={
            "digits": Holdout(tmp_path, ("m",)), "mine": Holdout(tmp_path, ()),
            "gone": Holdout(tmp_path / "gone", ("*",)),
        },
    )  # fmt: skip
    digest = await rig.blobs.put_bytes(b"a model")
    for holdout, asked in (("digits", 0.9), ("mine", 0.0), ("gone", 0.0), ("unbound", 0.0)):
        key = inside.model_key("m", holdout)
        version = ModelVersion("m", holdout, digest, 7, "onnx", ())
        rig.workers.model(LoadModel(key, version, Judged(holdout, 0.9)))
        await rig.settled()
        message = rig.to_worker[0][-1]
        assert isinstance(message, inside.LoadModel)
        assert (message.version, message.accuracy_min) == (holdout, asked)
        await rig.says(0, loaded(key))


async def test_a_dead_worker_is_told_to_everybody_and_the_model_at_work_is_blamed(rig: Rig) -> None:
    await rig.says(0, READY)
    assert isinstance(rig.to_worker[0][0], inside.AttachGateway)
    memory = rig.workers.all[0].memory
    assert memory is not None
    memory.note_running(1, b"12345678")
    rig.workers._gone(0, "killed by SIGSEGV")
    assert rig.to_gateway[-1] == inside.DetachWorker(0, is_blameless=False)
    up, blamed, down = rig.events
    assert isinstance(up, WorkerUp)
    assert isinstance(blamed, ModelFailed)
    assert (blamed.key, blamed.is_crash) == (b"12345678", True)
    assert isinstance(down, WorkerDown)
    assert not down.is_any_up
    await rig.workers.stop()


async def test_of_several_loads_only_the_one_at_work_is_blamed(rig: Rig) -> None:
    """Else a poison model would have those behind it quarantined with it."""
    await rig.says(0, READY)
    keys = [await rig.load("m", version) for version in "1234"]
    await rig.says(0, loaded(keys[0]))
    rig.workers.model(UnloadModel(keys[3]))
    for expected in ([keys[1]], []):
        rig.events.clear()
        rig.workers._gone(0, "killed by SIGSEGV")
        blamed = [event for event in rig.events if isinstance(event, ModelFailed)]
        assert [(one.key, one.is_crash) for one in blamed] == [(key, True) for key in expected]
    await rig.workers.stop()


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
async def test_where_somebody_ended_the_worker_no_model_is_to_blame(rig: Rig, signal: str) -> None:
    await rig.says(0, READY)
    key = await rig.load()
    rig.events.clear()
    rig.workers._gone(0, f"killed by {signal}")
    assert rig.to_gateway[-1] == inside.DetachWorker(0, is_blameless=True)
    assert rig.events == [
        WorkerDown(f"the model worker ended: killed by {signal}", frozenset({key}), is_any_up=False)
    ]
    await rig.workers.stop()


async def test_where_the_kernel_killed_it_for_want_of_memory_its_model_is_to_blame(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.says(0, READY)
    key = await rig.load()
    rig.events.clear()
    before = rig.workers.all[0].oom_kills
    monkeypatch.setattr("agent.daemon.workers.oom.kills", lambda: before + 1)
    rig.workers._gone(0, "killed by SIGKILL")
    assert isinstance(rig.events[0], ModelFailed)
    assert (rig.events[0].key, rig.events[0].is_crash) == (key, True)
    await rig.workers.stop()


async def test_a_model_is_loaded_from_a_descriptor_and_answers_are_passed_on(rig: Rig) -> None:
    await rig.says(0, READY)
    rig.events.clear()
    key = await rig.load()
    load = rig.to_worker[0][-1]
    assert (load.key, load.site, load.providers) == (key, "berlin", ("GPU", "CPU"))
    await rig.says(0, loaded(key))
    assert rig.events == [ModelReady(key, ("CPU",), "{}", 100)]
    assert rig.held() == {0: {key}}
    other = await rig.load("n")
    await rig.says(0, inside.ModelRefused(other, "no"))
    assert rig.events[-1] == ModelFailed(other, "no")
    rig.workers.model(UnloadModel(key))
    assert inside.UnloadModel(key) not in rig.to_worker[0], "the gateway may still ask for it"
    async with asyncio.timeout(5):
        while inside.UnloadModel(key) not in rig.to_worker[0]:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.005)
    assert rig.held() == {0: set()}
    await rig.workers.stop()


async def test_a_model_whose_bytes_are_gone_is_refused_with_the_reason(rig: Rig) -> None:
    await rig.says(0, READY)
    version = ModelVersion("m", "1", Digest(b"\7" * 32), 7, "onnx", ())
    rig.workers.model(LoadModel(KEY, version))
    await rig.settled()
    failed = rig.events[-1]
    assert isinstance(failed, ModelFailed)
    assert "its bytes cannot be read" in failed.reason
    await rig.workers.stop()


async def test_one_worker_tries_a_model_and_then_the_other_gets_it_too(pair: Rig) -> None:
    await pair.says(0, READY)
    await pair.says(1, READY)
    key = await pair.load()
    (first,) = [index for index in (0, 1) if pair.loads(index) == [key]]
    assert pair.loads(1 - first) == []
    await pair.says(first, loaded(key))
    assert pair.loads(1 - first) == [key]
    await pair.says(1 - first, loaded(key))
    assert pair.held() == {0: {key}, 1: {key}}
    assert [event for event in pair.events if isinstance(event, ModelReady)] == [
        ModelReady(key, ("CPU",), "{}", 100)
    ]
    await pair.workers.stop()


async def test_what_the_other_worker_holds_is_not_lost_and_the_new_one_loads_it_again(
    pair: Rig,
) -> None:
    await pair.says(0, READY)
    await pair.says(1, READY)
    key = await pair.load()
    for index in (0, 1):
        await pair.says(index, loaded(key))
    pair.workers._gone(0, "killed by SIGKILL")
    down = pair.events[-1]
    assert isinstance(down, WorkerDown)
    assert (down.lost, down.is_any_up) == (frozenset(), True)
    await pair.says(0, READY)
    assert pair.loads(0)[-1] == key
    await pair.workers.stop()


async def test_a_new_gateway_is_told_of_every_worker_and_of_what_it_holds(pair: Rig) -> None:
    await pair.says(0, READY)
    await pair.says(1, READY)
    key = await pair.load()
    await pair.says(0, loaded(key))
    pair.to_gateway.clear()
    pair.workers.gateway_started()
    assert pair.to_gateway == [
        inside.AttachWorker(0), inside.WorkerHolds(0, (key,)),
        inside.AttachWorker(1), inside.WorkerHolds(1, ()),
    ]  # fmt: skip
    await pair.workers.stop()


async def test_a_model_that_ends_its_worker_as_it_is_loaded_leaves_the_other_alone(
    pair: Rig,
) -> None:
    await pair.says(0, READY)
    await pair.says(1, READY)
    key = await pair.load()
    pair.workers._gone(0, "killed by SIGSEGV")
    assert await pair.load() == key  # as the site does when it hears that the model is lost
    assert pair.loads(1) == []
    await pair.says(0, READY)
    assert pair.loads(0) == [key, key]
    assert pair.loads(1) == []
    await pair.workers.stop()


async def test_a_new_worker_is_sent_what_may_end_it_last_however_small_that_is(
    pair: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digests of small files are computed sooner."""
    await pair.says(0, READY)
    await pair.says(1, READY)
    good = await pair.load("good")
    for index in (0, 1):
        await pair.says(index, loaded(good))
    bad = await pair.load("bad")
    pair.workers._gone(0, "killed by SIGSEGV")
    assert await pair.load("bad") == bad
    turns = iter((5, 0))

    async def sha256(_: Digest) -> bytes:
        for _turn in range(next(turns)):
            await asyncio.sleep(0)
        return bytes(32)

    monkeypatch.setattr(pair.blobs, "sha256", sha256)
    await pair.says(0, READY)
    assert pair.loads(0)[-2:] == [good, bad]
    await pair.workers.stop()


async def test_each_worker_is_shown_with_what_it_runs_on_and_counted(pair: Rig) -> None:
    await pair.says(1, READY)
    key = await pair.load()
    await pair.says(1, loaded(key))
    first, second = pair.workers.rows()
    assert (first["worker"], first["is_up"], first["models"]) == (0, False, 0)
    assert second == {
        "worker": 1, "is_up": True, "device": "", "providers": ["CPU"], "models": 1, "loading": 0,
        "runtime": "onnxruntime", "sandbox": "landlock",
    }  # fmt: skip
    pair.workers.all[0].child.restarts = 3
    lines = pair.workers.render().splitlines()
    assert 'atoll_worker_up{worker="0"} 0' in lines
    assert 'atoll_worker_up{worker="1"} 1' in lines
    assert 'atoll_worker_restarts_total{worker="0"} 3' in lines
    await pair.workers.stop()


def plan(serving: ServingPart, threads: int, accelerators: int = 0) -> WorkerPlan:
    hardware: Any = SimpleNamespace(
        inference_threads=threads, accelerators=accelerators, providers=("CPU",)
    )
    return worker_plan(serving, hardware, "berlin")


def test_threads_and_slots_are_shared_among_the_workers() -> None:
    found = plan(ServingPart(workers=3, slots=16), threads=7)
    assert len(found.devices) == 3
    assert found.slots == 6
    assert found.arguments[:4] == ("--workers", "3", "--threads", "2")


def test_the_operators_wishes_for_batches_reach_the_workers() -> None:
    found = plan(ServingPart(batch_delay_ms=2.5, batch_preferred=(4, 8)), threads=1).arguments
    assert found[6:] == ("--batch-delay-s", "0.0025", "--batch-preferred", "4", "8")
    assert "--batch-delay-s" not in plan(ServingPart(), threads=1).arguments


def test_a_small_machine_has_one_worker_and_a_large_one_several() -> None:
    assert [len(plan(ServingPart(), threads).devices) for threads in (1, 7, 8, 15, 200)] == [
        1, 1, 2, 3, 8,
    ]  # fmt: skip


def test_each_of_several_gpus_has_a_worker_that_sees_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert plan(ServingPart(), threads=31, accelerators=2).devices == ("0", "1")
    assert plan(ServingPart(workers=4), 31, accelerators=2).devices == ("0", "1", "0", "1")
    assert plan(ServingPart(), threads=31, accelerators=1).devices == ("",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert plan(ServingPart(), threads=31, accelerators=2).devices == ("2", "5")


async def test_a_model_that_falls_back_to_another_provider_is_an_alarm_until_it_is_gone(
    rig: Rig,
) -> None:
    await rig.says(0, READY)
    key = await rig.load()
    reason = "CUDAExecutionProvider: no CUDA-capable device is detected"
    await rig.says(0, replace(loaded(key), passed_over=(reason,)))
    monitored = rig.workers.render().splitlines()
    assert f"a model runs on CPU: {reason}" in rig.workers.troubles
    assert 'atoll_worker_fallbacks{worker="0"} 1' in monitored
    rig.workers.model(UnloadModel(key))
    async with asyncio.timeout(5):
        while rig.held()[0]:  # noqa: ASYNC110 - the code under test has no event
            await asyncio.sleep(0.005)
    assert not any(reason in text for text in rig.workers.troubles)
    await rig.workers.stop()


async def test_the_memory_of_each_worker_is_told(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.daemon.workers.resident_bytes", lambda _: 4096)
    assert 'atoll_worker_memory_bytes{worker="0"} 4096' in rig.workers.render().splitlines()
    await rig.workers.stop()


def test_a_bound_of_the_gpus_memory_is_passed_on() -> None:
    assert "--gpu-memory-bytes" not in plan(ServingPart(), threads=1).arguments
    found = plan(ServingPart(gpu_memory_bytes=1 << 30), threads=1).arguments
    assert found[found.index("--gpu-memory-bytes") + 1] == str(1 << 30)
