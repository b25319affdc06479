"""What needs no PyTorch: means by the real process, job folders, children that die."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from agent.drivers.trainers import TrainerProcess, Trainers, Weighed
from agent.foundation.ids import JobId
from agent.training.contract import AttemptFailed, UpdatesRejected
from agent.training.ranges import cut
from agent.wire.documents import Job
from agent.wire.limits import CHUNK_BYTES
from agent.workers.confine import landlock_abi
from agent.workers.parameters import Parameters, parse, write

JOB = Job(
    JobId("digits-00000001"),
    recipe="mnist-2nn",
    dataset="digits",
    committee=(),
    rounds=3,
    epochs=1,
    batch=32,
    learning_rate=0.1,
    seed=7,
    sites_min=1,
    round_timeout_s=60.0,
    publish="",
    residency=(),
)


@pytest_asyncio.fixture
async def trainers(tmp_path: Path) -> AsyncIterator[Trainers]:
    made = Trainers(jobs_dir=tmp_path / "jobs")
    yield made
    await made.close()


def update(folder: Path, name: str, *values: float) -> Path:
    path = folder / name
    with path.open("wb") as file:
        write(Parameters("mnist-2nn/8", {"w": np.array(values, np.float32)}), file)
    return path


def values_of(path: Path) -> list[float]:
    read: list[float] = parse(path.read_bytes()).tensors["w"].tolist()
    return read


def workers(trainers: Trainers) -> list[TrainerProcess]:
    """Those that work; the nursery only forks them."""
    return [one for one in trainers.processes() if one.name != "nursery"]


@pytest.mark.parametrize("is_float", [False, True])
async def test_a_mean_is_weighted_and_has_no_order(
    trainers: Trainers, tmp_path: Path, *, is_float: bool
) -> None:
    job = replace(JOB, is_float_mean=is_float)
    updates = [
        Weighed(update(tmp_path, f"u{k}", 0.1 * k, -7.0 / (k + 1)), 100 + k) for k in range(7)
    ]
    one = (await trainers.aggregate(job, 1, updates)).parameters.read_bytes()
    other = (await trainers.aggregate(job, 1, list(reversed(updates)))).parameters.read_bytes()
    assert one == other
    (average,) = workers(trainers)
    assert average.sandbox == f"landlock {landlock_abi()}, seccomp"


async def test_bad_updates_are_all_named_and_the_rest_still_counts(
    trainers: Trainers, tmp_path: Path
) -> None:
    good = update(tmp_path, "good", 1.0, 3.0)
    torn = tmp_path / "torn"
    torn.write_bytes(good.read_bytes()[:-1])
    link = tmp_path / "link"
    link.symlink_to(good)
    updates = [
        Weighed(update(tmp_path, "nan", float("nan"), 1.0), 5),
        Weighed(good, 4),
        Weighed(update(tmp_path, "short", 1.0), 5),
        Weighed(torn, 5),
        Weighed(link, 5),
        Weighed(good, 0),
        Weighed(good, 2**39),
    ]
    with pytest.raises(UpdatesRejected) as raised:
        await trainers.aggregate(JOB, 1, updates, base=good)
    told = dict(raised.value.rejected)
    assert sorted(told) == [2, 3, 4, 5, 6]
    assert "has shape (1,)" in told[2]
    assert "cut off" in told[3]
    assert "cannot read" in told[4]
    assert "no weight" in told[5]
    assert "samples in one round" in told[6]
    with pytest.raises(UpdatesRejected) as raised:
        await trainers.aggregate(JOB, 1, updates[:2], base=good)
    ((guilty, reason),) = raised.value.rejected
    assert guilty == 0
    assert "not finite" in reason
    assert values_of((await trainers.aggregate(JOB, 1, [updates[1]], base=good)).parameters) == [
        1.0,
        3.0,
    ]


async def test_an_outer_optimizer_leaves_what_the_next_round_goes_on_from(
    trainers: Trainers, tmp_path: Path
) -> None:
    job = replace(JOB, outer="momentum", outer_rate=0.5)
    base, one = update(tmp_path, "base", 10.0), Weighed(update(tmp_path, "one", 14.0), 3)
    first = await trainers.aggregate(job, 1, [one], base)
    assert first.carried is not None
    assert values_of(first.parameters) == [12.0]
    late = Weighed(update(tmp_path, "late", 5.0), 1, update(tmp_path, "older", 5.0))
    second = await trainers.aggregate(job, 2, [late], first.parameters, first.carried)
    assert values_of(second.parameters) == pytest.approx([12.0 + 0.5 * 0.9 * 4.0])
    assert (await trainers.aggregate(JOB, 3, [one], base)).carried is None


async def test_an_empty_round_has_no_mean(trainers: Trainers) -> None:
    with pytest.raises(AttemptFailed, match="without updates"):
        await trainers.aggregate(JOB, 1, [])


async def test_a_killed_child_fails_one_call_and_the_next_starts_another(
    trainers: Trainers, tmp_path: Path
) -> None:
    updates = [Weighed(update(tmp_path, "u", 1.0), 1)]
    await trainers.aggregate(JOB, 1, updates)
    os.kill(workers(trainers)[0].pid, signal.SIGSTOP)
    call = asyncio.create_task(trainers.aggregate(JOB, 2, updates))
    await asyncio.sleep(0)  # the request is sent
    os.kill(workers(trainers)[0].pid, signal.SIGKILL)
    with pytest.raises(AttemptFailed, match="killed by SIGKILL"):
        await call
    assert values_of((await trainers.aggregate(JOB, 2, updates)).parameters) == [1.0]
    assert [p.name for p in (tmp_path / "jobs" / JOB.id).glob("*.part")] == []


async def test_a_cancelled_call_leaves_no_half_done_work_behind(
    trainers: Trainers, tmp_path: Path
) -> None:
    updates = [Weighed(update(tmp_path, "u", 1.0), 1)]
    await trainers.aggregate(JOB, 1, updates)
    os.kill(workers(trainers)[0].pid, signal.SIGSTOP)
    call = asyncio.create_task(trainers.aggregate(JOB, 2, updates))
    await asyncio.sleep(0)  # the request is sent
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert workers(trainers) == []
    assert values_of((await trainers.aggregate(JOB, 2, updates)).parameters) == [1.0]


async def test_a_full_or_forbidden_folder_is_told(trainers: Trainers, tmp_path: Path) -> None:
    updates = [Weighed(update(tmp_path, "u", 1.0), 1)]
    (tmp_path / "jobs").write_text("in the way")
    with pytest.raises(AttemptFailed, match="cannot make"):
        await trainers.aggregate(JOB, 1, updates)
    (tmp_path / "jobs").unlink()
    for number in range(9):
        (tmp_path / "jobs" / JOB.id / f"mean-1-{number}.part").mkdir(parents=True)
    with pytest.raises(AttemptFailed, match="cannot write"):
        await trainers.aggregate(JOB, 1, updates)


@pytest.mark.parametrize("name", ["..", "a/b", "", "/etc", "A", "x" * 81, "a\n"])
async def test_a_job_id_that_would_be_a_path_is_refused(trainers: Trainers, name: str) -> None:
    job = replace(JOB, id=JobId(name))
    with pytest.raises(AttemptFailed, match="no job id"):
        await trainers.aggregate(job, 1, [Weighed(Path("x"), 1)])
    with pytest.raises(AttemptFailed, match="no job id"):
        await trainers.release(name)


async def test_data_that_is_not_there_is_told_with_its_mend(
    trainers: Trainers, tmp_path: Path
) -> None:
    with pytest.raises(AttemptFailed, match=r"there is no folder .*datasets"):
        await trainers.warm(JOB, tmp_path / "nowhere")


async def test_an_interpreter_that_is_not_there_is_told(tmp_path: Path) -> None:
    made = Trainers(jobs_dir=tmp_path / "jobs", python=str(tmp_path / "python"))
    with pytest.raises(AttemptFailed, match="the nursery did not start"):
        await made.aggregate(JOB, 1, [Weighed(update(tmp_path, "u", 1.0), 1)])


async def test_a_child_that_cannot_start_leaves_its_last_words(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Traceback >&2\necho 'no module torch' >&2\nexit 3\n")
    python.chmod(0o700)
    made = Trainers(jobs_dir=tmp_path / "jobs", python=str(python))
    with pytest.raises(AttemptFailed, match="nursery ended with status 3; no module torch"):
        await made.aggregate(JOB, 1, [Weighed(update(tmp_path, "u", 1.0), 1)])


async def test_the_memory_of_a_mean_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """Two updates of 256 MiB, in a process that may have 96 MiB of its own."""
    made = Trainers(jobs_dir=tmp_path / "jobs", memory_bytes=96 << 20, threads=2)
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        write(Parameters("mnist-2nn/8", {"w": np.ones(64 << 20, np.float32)}), file)
    averaged = await made.aggregate(JOB, 1, [Weighed(huge, 1), Weighed(huge, 2)])
    assert averaged.parameters.read_bytes() == huge.read_bytes()
    await made.close()


async def test_ranges_of_a_mean_join_to_the_same_round(trainers: Trainers, tmp_path: Path) -> None:
    job = replace(JOB, outer="nesterov", outer_rate=0.7)
    random = np.random.default_rng(5)

    def big(name: str) -> Path:
        path = tmp_path / name
        with path.open("wb") as file:
            values = random.standard_normal(200_000).astype(np.float32)
            write(Parameters("mnist-2nn/8", {"w": values}), file)
        return path

    base, updates = big("base"), [Weighed(big(f"u{n}"), n + 1) for n in range(3)]
    whole = await trainers.aggregate(job, 1, updates, base)
    wanted = whole.parameters.read_bytes()
    assert whole.carried is not None
    left = whole.carried.read_bytes()

    def part_of(one: Weighed, chunks: range) -> Weighed:
        path = tmp_path / f"{one.update.name}-{chunks.start}"
        content = one.update.read_bytes()
        path.write_bytes(content[chunks.start * CHUNK_BYTES : chunks.stop * CHUNK_BYTES])
        return Weighed(path, one.weight)

    ranges, parts = [], updates
    for number, chunks in enumerate(cut(base.stat().st_size, 3)):
        parts = [part_of(one, chunks) for one in updates]
        ranges.append(await trainers.aggregate_range(job, 1, parts, base, (number, 3)))
    joined = await trainers.join(job, 1, ranges, base)
    assert joined.carried is not None
    assert joined.parameters.read_bytes() == wanted
    assert joined.carried.read_bytes() == left
    with pytest.raises(AttemptFailed, match="ranges of"):
        await trainers.join(job, 1, ranges[1:], base)
    with pytest.raises(UpdatesRejected) as raised:
        await trainers.aggregate_range(job, 1, [*parts, updates[0]], base, (2, 3))
    assert [index for index, _ in raised.value.rejected] == [3]
    with pytest.raises(AttemptFailed, match="part 0 of 5; there are 4"):
        await trainers.aggregate_range(job, 1, parts, base, (0, 5))


async def test_release_removes_the_jobs_folder_and_tidy_those_nobody_keeps(
    trainers: Trainers, tmp_path: Path
) -> None:
    await trainers.tidy(())
    updates = [Weighed(update(tmp_path, "u", 1.0), 1)]
    other = replace(JOB, id=JobId("other-00000002"))
    for job in (JOB, other):
        await trainers.aggregate(job, 1, updates)
    await trainers.tidy({other.id})
    assert sorted(p.name for p in (tmp_path / "jobs").iterdir() if p.is_dir()) == [other.id]
    await trainers.release(other.id)
    assert workers(trainers) == []
    assert not (tmp_path / "jobs" / other.id).exists()


async def test_nothing_starts_once_closed(tmp_path: Path) -> None:
    made = Trainers(jobs_dir=tmp_path / "jobs")
    await made.close()
    with pytest.raises(AttemptFailed, match="stopping"):
        await made.aggregate(JOB, 1, [Weighed(update(tmp_path, "u", 1.0), 1)])
    with pytest.raises(AttemptFailed, match="stopping"):
        await made.warm(JOB, tmp_path)
