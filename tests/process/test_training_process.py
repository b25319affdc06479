"""Real trainer processes, confined, on small images: start, train, mean, export, die, start again."""

import asyncio
import os
import signal
import struct
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import pytest_asyncio

from agent.drivers.trainers import TrainerProcess, Trainers, Weighed
from agent.foundation.ids import JobId
from agent.training.contract import AttemptFailed
from agent.wire.documents import Job
from agent.workers.confine import landlock_abi
from agent.workers.parameters import Parameters, parse, write

pytestmark = pytest.mark.process

JOB = Job(
    JobId("bars-00000001"),
    recipe="mnist-2nn",
    dataset="bars",
    committee=(),
    rounds=3,
    epochs=4,
    batch=16,
    learning_rate=0.2,
    seed=7,
    sites_min=1,
    round_timeout_s=60.0,
    publish="",
    residency=(),
)


def bars(folder: Path, count: int, seed: int) -> Path:
    """IDX files of 8 x 8 images whose bright row is their label."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    labels = random.integers(0, 8, count).astype(np.uint8)
    images = random.integers(0, 80, (count, 8, 8)).astype(np.uint8)
    images[np.arange(count), labels] = 255
    (folder / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">4I", 0x803, count, 8, 8) + images.tobytes()
    )
    (folder / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">2I", 0x801, count) + labels.tobytes()
    )
    return folder


@pytest_asyncio.fixture
async def trainers(tmp_path: Path) -> AsyncIterator[Trainers]:
    made = Trainers(jobs_dir=tmp_path / "jobs")
    yield made
    await made.close()


def trainer_of(trainers: Trainers) -> TrainerProcess | None:
    """The job's, if it runs."""
    return next((one for one in trainers.processes() if one.job == JOB.id), None)


@pytest.mark.timeout(240)  # two exports load PyTorch's compiler: 6 s each on an idle core
async def test_rounds_learn_and_the_result_is_served_as_pytorch_computes_it(
    trainers: Trainers, tmp_path: Path
) -> None:
    folders = [bars(tmp_path / f"data-{site}", 600, site) for site in range(2)]
    sites = [trainers, Trainers(jobs_dir=tmp_path / "jobs-1")]
    base = await trainers.initialise(JOB, folders[0])
    accuracies = []
    for round_ in range(1, 4):
        attempts = [
            await site.train(JOB, folder, round_, base, seed)
            for seed, (site, folder) in enumerate(zip(sites, folders, strict=True))
        ]
        accuracies.append(dict(attempts[0].metrics)["accuracy"])
        assert dict(attempts[0].metrics)["holdout"] == 60
        updates = [Weighed(attempt.update, attempt.samples) for attempt in attempts]
        assert [one.weight for one in updates] == [540, 540]
        base = (await trainers.aggregate(JOB, round_, updates, base=base)).parameters
    assert accuracies[0] < 0.5
    assert accuracies[-1] > 0.9

    exported = await trainers.export(JOB, base)
    assert exported.error_max <= 1e-4
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    images = np.full((3, 8, 8), 40, np.float32)
    for label in range(3):
        images[label, label] = 255
    (logits,) = session.run(["logits"], {"image": images.reshape(3, 64) / 255})
    assert logits.argmax(1).tolist() == [0, 1, 2]
    content = exported.path.read_bytes()
    assert str(Path(__file__).parents[2]).encode() not in content, "no local paths leave a site"
    assert b"site-packages" not in content
    assert (await trainers.export(JOB, base)).path.read_bytes() == content

    trainer = trainer_of(trainers)
    assert trainer is not None
    assert trainer.sandbox == f"landlock {landlock_abi()}, seccomp"
    await sites[1].close()


async def test_a_killed_trainer_fails_its_attempt_and_the_next_gives_the_same_update(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    assert await trainers.warm(JOB, folder) == 540
    base = await trainers.initialise(JOB, folder)
    first = (await trainers.train(JOB, folder, 1, base, 5)).update.read_bytes()

    trainer = trainer_of(trainers)
    assert trainer is not None
    os.kill(trainer.pid, signal.SIGSTOP)
    call = asyncio.create_task(trainers.train(JOB, folder, 1, base, 5))
    await asyncio.sleep(0)
    os.kill(trainer.pid, signal.SIGKILL)
    with pytest.raises(AttemptFailed, match="trainer was killed by SIGKILL"):
        await call
    again = await trainers.train(JOB, folder, 1, base, 5)
    assert again.update.read_bytes() == first
    assert parse(first).label == "mnist-2nn/8"


async def test_what_cannot_be_done_is_told_and_the_trainer_stays_warm(
    trainers: Trainers, tmp_path: Path
) -> None:
    folder = bars(tmp_path / "data", 600, 1)
    base = await trainers.initialise(JOB, folder)
    trainer = trainer_of(trainers)
    assert trainer is not None
    useless = tmp_path / "useless"
    huge = {name: t + np.float32(9e14) for name, t in parse(base.read_bytes()).tensors.items()}
    with useless.open("wb") as file:
        write(Parameters("mnist-2nn/8", huge), file)
    with pytest.raises(AttemptFailed, match="no finite loss"):
        await trainers.train(JOB, folder, 1, useless, 1)
    with pytest.raises(AttemptFailed, match="no recipe 'resnet'"):
        await trainers.warm(replace(JOB, recipe="resnet"), folder)
    with pytest.raises(AttemptFailed, match="parameters of 'mnist-2nn/8'"):
        await trainers.train(replace(JOB, recipe="mnist-cnn"), folder, 1, base, 1)
    torn = tmp_path / "torn"
    torn.write_bytes(base.read_bytes()[:-4])
    with pytest.raises(AttemptFailed, match="cut off"):
        await trainers.train(JOB, folder, 1, torn, 1)
    await trainers.train(JOB, folder, 1, base, 1)
    assert trainer_of(trainers) == trainer

    endless = replace(JOB, epochs=1000, batch=1, round_timeout_s=1.0)
    with pytest.raises(AttemptFailed, match="no answer within 1 s"):
        await trainers.train(endless, folder, 2, base, 1)
    assert trainer_of(trainers) is None

    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(AttemptFailed, match=r"cannot train on .*labels"):
        await trainers.warm(JOB, folder)
