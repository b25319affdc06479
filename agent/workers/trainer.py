"""The trainer: one confined process for each job, warm between rounds.

Forked by the nursery with PyTorch imported, it gives up everything but reading the dataset, writing
the job's folder and its channel (``agent.workers.confine``), and then carries out one request after
the other.

What leaves is only what the contract names: an update with the model's own names and shapes, all
finite, and four numbers about the hold-out.
"""

import os
from pathlib import Path

import torch
from torch import nn

from agent.drivers.channel import BlockingChannel
from agent.foundation.errors import UsageError
from agent.training.contract import (
    FROM_TRAINER,
    TO_TRAINER,
    Attempted,
    Export,
    Fork,
    Initialise,
    Prepare,
    Prepared,
    Train,
    TrainerReady,
    Written,
)
from agent.wire.documents import Job
from agent.workers import recipes, scaffold
from agent.workers.confine import confine
from agent.workers.conversation import converse
from agent.workers.export import to_onnx
from agent.workers.parameters import FILE_BYTES_MAX, Parameters, read, write
from agent.workers.recipes_idx import Dataset, load

NICENESS = 10
"""Serving and gossip come first when a core is short."""


class Trainer:
    """Answers one request after the other for one job."""

    def __init__(self, job_dir: Path, dataset_dir: Path | None) -> None:
        """``dataset_dir``: the data bound to the job's dataset name; None = only build and export."""
        self._job_dir = job_dir
        self._dataset_dir = dataset_dir
        self._dataset: Dataset | None = None
        self._job: Job | None = None

    def answer(self, message: object, descriptors: list[int]) -> object:
        """The reply to ``message``.

        Raises:
            AtollError: it cannot be done; the reason is for a person.
        """
        match message, descriptors:
            case Prepare(job=job), []:
                return self._prepare(job)
            case Initialise(file=file), []:
                return self._initialise(file)
            case Train() as train, [base, *carried]:
                return self._train(train, base, carried)
            case Export(file=file), [parameters]:
                return self._export(file, parameters)
            case _:
                raise AssertionError(
                    f"{type(message).__name__} with {len(descriptors)} descriptors"
                )

    def _prepare(self, job: Job) -> Prepared:
        if self._dataset is None and self._dataset_dir is not None:
            self._dataset = load(self._dataset_dir)
        recipes.build(job.recipe, self._side(), job.seed)
        self._job = job
        if self._dataset is None:
            return Prepared(0, 0)
        return Prepared(len(self._dataset.labels), len(self._dataset.holdout_labels))

    def _initialise(self, file: str) -> Written:
        job, side = self._current(), self._side()
        model = recipes.build(job.recipe, side, job.seed)
        return self._write(recipes.taken_from(model, recipes.label_of(job.recipe, side)), file)

    def _train(self, train: Train, base: int, carried: list[int]) -> Attempted:
        job, dataset = self._current(), self._dataset
        if dataset is None:
            raise UsageError("this trainer was given no data")
        label = recipes.label_of(job.recipe, dataset.side)
        model = recipes.build(job.recipe, dataset.side, job.seed)
        recipes.put_into(model, read(base), label)
        accuracy, loss = recipes.evaluate(model, dataset)
        if job.correction == "scaffold":
            train_s = self._train_corrected(model, dataset, train, label, carried)
        else:
            train_s, _ = recipes.train_locally(model, dataset, job, train.round, train.site_seed)
            self._write(recipes.taken_from(model, label), train.file)
        metrics = (
            ("accuracy", accuracy),
            ("loss", loss),
            ("holdout", float(len(dataset.holdout_labels))),
            ("train_s", train_s),
        )
        return Attempted(len(dataset.labels), metrics)

    def _train_corrected(
        self, model: nn.Module, dataset: Dataset, train: Train, label: str, carried: list[int]
    ) -> float:
        job, before = self._current(), recipes.taken_from(model, label)
        correction = scaffold.correction(
            before,
            read(carried[0]) if carried else None,
            scaffold.newest(self._job_dir, train.round),
        )
        train_s, steps = recipes.train_locally(
            model, dataset, job, train.round, train.site_seed, correction.of(model)
        )
        started = {name: torch.from_numpy(tensor) for name, tensor in before.tensors.items()}
        own = correction.after(started, model, steps, job.learning_rate)
        self._write(scaffold.with_own(recipes.taken_from(model, label), own), train.file)
        scaffold.keep(self._job_dir, train.round, label, own)
        return train_s

    def _export(self, file: str, descriptor: int) -> Written:
        job, parameters = self._current(), read(descriptor)
        side = recipes.side_of(parameters.label, job.recipe)
        model = recipes.build(job.recipe, side, job.seed)
        recipes.put_into(model, parameters, parameters.label)
        content, error_max = to_onnx(model, side)
        self._place(file).write_bytes(content)
        return Written(error_max)

    def _write(self, parameters: Parameters, file: str) -> Written:
        with self._place(file).open("wb") as out:
            write(parameters, out)
        return Written()

    def _place(self, file: str) -> Path:
        assert Path(file).name == file, "files are named by the control process, in one folder"
        return self._job_dir / file

    def _side(self) -> int:
        return recipes.DEFAULT_SIDE if self._dataset is None else self._dataset.side

    def _current(self) -> Job:
        if self._job is None:
            raise UsageError("no job was prepared")
        return self._job


def run(channel: BlockingChannel, wanted: Fork) -> None:
    """Confine the process, then serve ``channel`` until it closes; called by the nursery's child."""
    os.nice(NICENESS)
    folder, dataset = Path(wanted.folder), Path(wanted.dataset) if wanted.dataset else None
    sandbox = confine(
        read=() if dataset is None else (dataset,),
        write=(folder,),
        memory_bytes=wanted.memory_bytes or None,
        file_bytes_max=FILE_BYTES_MAX,
    )
    torch.set_num_threads(wanted.threads)
    channel.send(FROM_TRAINER.pack(TrainerReady(f"torch {torch.__version__}", sandbox)))
    converse(channel, TO_TRAINER, FROM_TRAINER, Trainer(folder, dataset).answer)
