"""The trainer's answers, in this process; tests/process runs it confined."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.foundation.errors import UsageError
from agent.foundation.ids import JobId
from agent.training.contract import Attempted, Initialise, Prepare, Prepared, Train, Written
from agent.wire.documents import Job
from agent.workers.parameters import parse
from agent.workers.trainer import Trainer

JOB = Job(
    JobId("noise-00000001"),
    recipe="mnist-2nn",
    dataset="noise",
    committee=(),
    rounds=3,
    epochs=1,
    batch=16,
    learning_rate=0.1,
    seed=7,
    sites_min=1,
    round_timeout_s=60.0,
    publish="",
    residency=(),
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 256, 40 * 64), random.integers(0, 10, 40)
    (folder / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">4I", 0x803, 40, 8, 8) + images.astype(np.uint8).tobytes()
    )
    (folder / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">2I", 0x801, 40) + labels.astype(np.uint8).tobytes()
    )
    return folder


@pytest.fixture
def base(data: Path, tmp_path: Path) -> Iterator[int]:
    trainer = Trainer(tmp_path, data)
    trainer.answer(Prepare(JOB), [])
    assert trainer.answer(Initialise("initial"), []) == Written()
    descriptor = os.open(tmp_path / "initial", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def test_an_attempt_leaves_an_update_and_tells_of_the_hold_out(
    data: Path, base: int, tmp_path: Path
) -> None:
    trainer = Trainer(tmp_path, data)
    assert trainer.answer(Prepare(JOB), []) == Prepared(36, 4)
    reply = trainer.answer(Train(1, 5, "update-1"), [base])
    assert isinstance(reply, Attempted)
    assert reply.samples == 36
    assert [name for name, _ in reply.metrics] == ["accuracy", "loss", "holdout", "train_s"]
    update, initial = ((tmp_path / name).read_bytes() for name in ("update-1", "initial"))
    assert parse(update).outline() == parse(initial).outline()
    assert update != initial


def test_without_data_a_trainer_initialises_for_mnist_and_does_not_train(
    base: int, tmp_path: Path
) -> None:
    trainer = Trainer(tmp_path, None)
    assert trainer.answer(Prepare(JOB), []) == Prepared(0, 0)
    trainer.answer(Initialise("bare"), [])
    assert parse((tmp_path / "bare").read_bytes()).label == "mnist-2nn/28"
    with pytest.raises(UsageError, match="no data"):
        trainer.answer(Train(1, 5, "update-1"), [base])


def test_nothing_is_done_before_a_job_is_prepared(data: Path, base: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no job"):
        Trainer(tmp_path, data).answer(Train(1, 5, "update-1"), [base])


def test_a_file_outside_the_jobs_folder_is_a_broken_invariant(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path, data)
    trainer.answer(Prepare(JOB), [])
    with pytest.raises(AssertionError, match="one folder"):
        trainer.answer(Initialise("../escaped"), [])
