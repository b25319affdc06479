"""The nursery with real forks: who shares what with whom, who dies with whom, and when it is gone."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from test_training_process import JOB, bars

from agent.drivers.trainers import TrainerProcess, Trainers, Weighed
from agent.foundation.ids import JobId
from agent.training.contract import AttemptFailed

pytestmark = pytest.mark.process
OTHER = replace(JOB, id=JobId("bars-00000002"))
LONG_S = 600.0


@pytest_asyncio.fixture
async def trainers(tmp_path: Path) -> AsyncIterator[Trainers]:
    made = Trainers(jobs_dir=tmp_path / "jobs", kept_warm_s=LONG_S)
    yield made
    await made.close()


def named(trainers: Trainers, name: str, job: str = "") -> TrainerProcess | None:
    found = (one for one in trainers.processes() if (one.name, one.job) == (name, job))
    return next(found, None)


def the(trainers: Trainers, name: str, job: str = "") -> TrainerProcess:
    found = named(trainers, name, job)
    assert found is not None, trainers.processes()
    return found


def held_by(pid: int) -> list[str]:
    """What its descriptors lead to."""
    return [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]


def has_pytorch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


async def until_gone(pid: int) -> None:
    for _ in range(1000):
        if not psutil.pid_exists(pid):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"process {pid} is still there")


async def test_trainers_of_two_jobs_are_forked_by_one_process_and_see_nothing_of_each_other(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    for job in (JOB, OTHER):
        assert await trainers.warm(job, folder) == 540
    nursery = the(trainers, "nursery")
    assert psutil.Process(nursery.pid).ppid() == os.getpid()
    for job in (JOB, OTHER):
        one = psutil.Process(the(trainers, "trainer", job.id).pid)
        assert one.ppid() == nursery.pid
        assert os.getsid(one.pid) == one.pid
        held = held_by(one.pid)
        sockets = [path for path in held if path.startswith("socket:")]
        assert len(sockets) == 1, "its own channel and nobody else's"
        logs = {path for path in held if path.endswith(".log")}
        assert logs == {str(tmp_path / "jobs" / job.id / "work.log")}


async def test_a_site_that_only_makes_means_never_loads_pytorch(
    trainers: Trainers, tmp_path: Path
) -> None:
    other = Trainers(jobs_dir=tmp_path / "other")
    base = await other.initialise(JOB, bars(tmp_path / "data", 600, 1))
    assert has_pytorch(the(other, "nursery").pid)
    await trainers.aggregate(JOB, 1, [Weighed(base, 1)], base=base)
    for name in ("nursery", "aggregation"):
        assert not has_pytorch(the(trainers, name).pid)
    await other.close()


async def test_a_nursery_that_is_killed_takes_its_trainers_along_and_the_next_attempt_has_another(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    base = await trainers.initialise(JOB, folder)
    first = (await trainers.train(JOB, folder, 1, base, 5)).update.read_bytes()
    nursery, trainer = the(trainers, "nursery"), the(trainers, "trainer", JOB.id)
    os.kill(nursery.pid, signal.SIGKILL)
    await until_gone(trainer.pid)
    assert named(trainers, "trainer", JOB.id) is None
    again = (await trainers.train(JOB, folder, 1, base, 5)).update.read_bytes()
    assert again == first
    assert the(trainers, "nursery").pid != nursery.pid


async def test_a_trainer_that_is_killed_leaves_no_zombie_and_harms_no_other(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    base = await trainers.initialise(JOB, folder)
    await trainers.warm(OTHER, folder)
    killed, other = (the(trainers, "trainer", job.id) for job in (JOB, OTHER))
    os.kill(killed.pid, signal.SIGKILL)
    for _ in range(500):
        if named(trainers, "trainer", JOB.id) is None:
            break
        await asyncio.sleep(0.01)
    await trainers.train(JOB, folder, 1, base, 5)
    await until_gone(killed.pid)
    assert the(trainers, "trainer", OTHER.id) == other
    nursery = psutil.Process(the(trainers, "nursery").pid)
    assert all(one.status() != psutil.STATUS_ZOMBIE for one in nursery.children())


async def test_whoever_no_longer_wants_a_trainer_that_is_just_being_forked_leaves_none_behind(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    await trainers.warm(OTHER, folder)
    nursery = psutil.Process(the(trainers, "nursery").pid)
    before = {one.pid for one in nursery.children()}
    for wait_s in (0.0, 0.001, 0.003, 0.005, 0.01, 0.02):
        call = asyncio.create_task(trainers.warm(JOB, folder))
        await asyncio.sleep(wait_s)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call  # it may have been faster
        await trainers.release(JOB.id)
    for _ in range(500):
        if {one.pid for one in nursery.children()} == before:
            break
        await asyncio.sleep(0.01)
    assert {one.pid for one in nursery.children()} == before
    assert await trainers.warm(JOB, folder) == 540, "and it can be had afterwards"


async def test_it_is_kept_a_while_after_the_last_job_and_comes_back_when_it_is_wanted(
    tmp_path: Path,
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    trainers = Trainers(jobs_dir=tmp_path / "jobs", kept_warm_s=0.2)
    for _ in range(2):
        await trainers.warm(JOB, folder)
        nursery = the(trainers, "nursery")
        await asyncio.sleep(0.4)
        assert the(trainers, "nursery") == nursery, "a job holds it"
        await trainers.release(JOB.id)
        await until_gone(nursery.pid)
        assert trainers.processes() == ()
    await trainers.close()


async def test_the_end_of_the_site_ends_them_all_and_a_later_call_says_so(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    await trainers.warm(JOB, folder)
    pids = [one.pid for one in trainers.processes()]
    call = asyncio.create_task(trainers.warm(OTHER, folder))
    await asyncio.sleep(0.01)
    await trainers.close()
    with pytest.raises(AttemptFailed):
        await call
    for pid in pids:
        await until_gone(pid)
    with pytest.raises(AttemptFailed, match="is stopping"):
        await trainers.warm(JOB, folder)


async def test_a_job_that_ends_while_the_next_ones_trainer_is_being_forked_takes_nothing_from_it(
    tmp_path: Path,
) -> None:
    """The rest would begin in between, and nothing put an end to it."""
    folder = bars(tmp_path / "data", 600, 1)
    for kept_s in (0.0, 0.2):
        for wait_s in (0.0, 0.001, 0.002, 0.004):
            trainers = Trainers(jobs_dir=tmp_path / f"jobs-{kept_s}-{wait_s}", kept_warm_s=kept_s)
            await trainers.warm(JOB, folder)
            call = asyncio.create_task(trainers.warm(OTHER, folder))
            await asyncio.sleep(wait_s)
            await trainers.release(JOB.id)
            assert await call == 540
            trainer = the(trainers, "trainer", OTHER.id)
            await asyncio.sleep(kept_s + 0.1)
            assert the(trainers, "trainer", OTHER.id) == trainer
            await trainers.close()


async def test_a_nursery_that_nobody_got_a_worker_from_goes_too(tmp_path: Path) -> None:
    trainers = Trainers(jobs_dir=tmp_path / "jobs", kept_warm_s=0.1)
    call = asyncio.create_task(trainers.initialise(JOB))
    for _ in range(500):
        if named(trainers, "nursery") is not None:
            break
        await asyncio.sleep(0.01)
    pid = the(trainers, "nursery").pid
    call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call
    await until_gone(pid)
    await trainers.close()


async def test_the_end_of_the_site_leaves_no_zombie_to_anybody(
    trainers: Trainers, tmp_path: Path
) -> None:
    """Children of a nursery that is dead are left to process 1, which in a container may let none go."""
    folder = bars(tmp_path / "data", 600, 1)
    for job in (JOB, OTHER):
        await trainers.warm(job, folder)
    pids = [one.pid for one in trainers.processes()]
    await trainers.close()
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []


async def test_nothing_that_is_stopped_holds_up_the_end_of_the_site(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    base = await trainers.initialise(JOB, folder)
    pids = [one.pid for one in trainers.processes()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    call = asyncio.create_task(trainers.train(JOB, folder, 1, base, 5))
    await asyncio.sleep(0.05)
    async with asyncio.timeout(3.0):
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await trainers.close()
    for pid in pids:
        await until_gone(pid)


async def test_without_handles_of_processes_it_works_too(
    trainers: Trainers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 5.3."""
    monkeypatch.setattr("agent.drivers.nursery._handle", lambda _: None)
    folder = bars(tmp_path / "data", 600, 1)
    base = await trainers.initialise(JOB, folder)
    os.kill(the(trainers, "trainer", JOB.id).pid, signal.SIGSTOP)
    call = asyncio.create_task(trainers.train(JOB, folder, 1, base, 5))
    await asyncio.sleep(0.05)
    trainer = the(trainers, "trainer", JOB.id)
    os.kill(trainer.pid, signal.SIGKILL)
    with pytest.raises(AttemptFailed, match="killed by SIGKILL"):
        await call
    await until_gone(trainer.pid)
    await trainers.train(JOB, folder, 1, base, 5)
    trainer = the(trainers, "trainer", JOB.id)
    await trainers.release(JOB.id)
    await until_gone(trainer.pid)
