"""What an attack found about SCAFFOLD and the mean. Each failed first."""

# ruff: noqa: F811 - fixtures are named twice

import contextlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stored_parameters import content, made, mean_of, stored
from test_trainer import JOB, base, data  # noqa: F401 - fixtures

from agent.foundation.errors import AtollError
from agent.training.contract import Attempted, Prepare, Train
from agent.workers import scaffold
from agent.workers.mean import FloatMean, Mean
from agent.workers.parameters import (
    VALUE_MAX,
    Parameters,
    parse,
    with_controls,
)
from agent.workers.trainer import Trainer


def test_after_a_recovery_to_an_earlier_round_control_variates_are_kept_again(
    tmp_path: Path,
) -> None:
    """The register went from round 10 back to 2: rounds 3.. are made anew."""
    one = {"w": torch.ones(2)}
    for round_ in (9, 10):
        scaffold.keep(tmp_path, round_, "r/8", one)
    for round_ in (3, 4, 5):
        scaffold.keep(tmp_path, round_, "r/8", one)
    assert scaffold.newest(tmp_path, 6) is not None, sorted(p.name for p in tmp_path.iterdir())


def test_a_round_from_spoilt_parameters_does_not_keep_a_site_out_for_ever(
    tmp_path: Path,
    data: Path,
    base: int,
) -> None:
    job = replace(JOB, correction="scaffold", learning_rate=1e-3, batch=64)
    trainer = Trainer(tmp_path, data)
    trainer.answer(Prepare(job), [])
    good = parse((tmp_path / "initial").read_bytes())
    # One round's parameters are large, and finite: a hostile update was in their mean.
    big = Parameters(
        good.label, {n: (t * np.float32(1e10)).astype(np.float32) for n, t in good.tensors.items()}
    )
    (tmp_path / "big").write_bytes(content(big))
    descriptor = os.open(tmp_path / "big", os.O_RDONLY)
    with contextlib.suppress(AtollError):
        trainer.answer(Train(1, 5, "update-1"), [descriptor])
    for round_ in (2, 3):
        assert isinstance(trainer.answer(Train(round_, 5, f"update-{round_}"), [base]), Attempted)


def test_a_control_variate_that_is_no_number_is_as_good_as_lost(
    tmp_path: Path,
    data: Path,
    base: int,
) -> None:
    """docs: "if it is lost, the site's next round is plain SGD"."""
    job = replace(JOB, correction="scaffold")
    trainer = Trainer(tmp_path, data)
    trainer.answer(Prepare(job), [])
    good = parse((tmp_path / "initial").read_bytes())
    own = {n: torch.full(t.shape, 2e18) for n, t in good.tensors.items()}
    scaffold.keep(tmp_path, 1, good.label, own)
    assert isinstance(trainer.answer(Train(2, 5, "update-2"), [base]), Attempted)


def test_a_model_that_a_job_may_have_may_have_control_variates() -> None:
    """A header of up to 1 MiB is read; with control variates, and an optimizer's state, it is longer."""
    many = Parameters("r/8", {f"layer.{n:05}.weight": np.zeros(1, np.float32) for n in range(8000)})
    assert parse(content(many)) is not None
    controls = with_controls(many)
    assert parse(content(controls)) is not None


@pytest.mark.parametrize("kind", [Mean, FloatMean])
def test_updates_at_the_bound_have_a_mean(kind: type[Mean]) -> None:
    most = float(np.float32(VALUE_MAX))
    mean = kind(made(0.0))
    for weight in (1, 2, 4, 7, 11, 13, 17):
        mean.include(made(most), weight)
    mean_of([], mean)


def test_hostile_files_end_no_process() -> None:
    good = stored(
        Parameters("r/8", {"w": np.zeros((0, 3), np.float32), "x": np.ones(3, np.float32)})
    )
    bodies = [
        b"{" + b'"a":' * 5,
        b'{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0.0,4]}}',
        b'{"a":{"dtype":"F32","shape":[0,9999999999999],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[0,8589934592,8589934592,8589934592,8589934592],"data_offsets":[0,0]}}',
        b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"__metadata__":{"atoll":"\\ud800"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}',
        b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}}',
        b"[" * 100000,
        b"1" * 5000,
        b'{"a":1e999}',
        b"\xff\xfe{}",
        b'{"a":null}',
        b'"x"',
    ]
    for body in bodies:
        for pad in (b"", b"\0" * 4):
            raw = len(body).to_bytes(8, "little") + body + pad
            try:
                parsed = parse(raw)
                mean = Mean(good)
                mean.include(parsed, 1)
            except AtollError as error:
                str(error).encode()
