"""Control variates: the formulas, what becomes of them in a round's mean, and what they are for."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from recipes_bench import JOB, bars
from stored_parameters import content, stored
from torch import nn

from agent.foundation.errors import Malformed
from agent.training.contract import (
    Averaged,
    Begin,
    Finish,
    FinishRange,
    Include,
    Join,
    Outer,
    Part,
)
from agent.training.ranges import cut
from agent.wire.limits import CHUNK_BYTES
from agent.workers import recipes, scaffold
from agent.workers.aggregation import Aggregation
from agent.workers.parameters import CONTROL, Floats, Parameters, Stored, parse, with_controls
from agent.workers.recipes_idx import Dataset

SIZE = 200_000
"""Four chunks with the control variates."""


def params(seed: int, scale: float = 1.0) -> Parameters:
    values = np.random.default_rng(seed).standard_normal(SIZE).astype(np.float32) * scale
    return Parameters("r/8", {"w": values[:-10].reshape(-1, 10), "x": values[-10:]})


def update(seed: int) -> Stored:
    controls = {name: torch.from_numpy(one) for name, one in params(seed + 100).tensors.items()}
    return stored(scaffold.with_own(params(seed), controls))


# --- the formulas --------------------------------------------------------------------------------
def test_a_step_and_the_control_variate_after_it_are_as_the_paper_says() -> None:
    model = nn.Linear(3, 2)
    like = recipes.taken_from(model, "r/8")
    own = Parameters("r/8", {name: one * 2 for name, one in like.tensors.items()})
    mean = {CONTROL + name: one * 5 for name, one in like.tensors.items()}
    left = Parameters("r/8", {**mean, "momentum/w": np.ones(3, np.float32)})
    correction = scaffold.correction(like, left, own)
    weights, bias = correction.of(model)
    assert np.allclose(weights.numpy(), like.tensors["weight"] * 3)
    assert np.allclose(bias.numpy(), like.tensors["bias"] * 3)
    before = {name: torch.from_numpy(one + 1) for name, one in like.tensors.items()}
    after = correction.after(before, model, steps=4, rate=0.5)
    wanted = like.tensors["weight"] * (2 - 5) + 1 / (4 * 0.5)
    assert np.allclose(after["weight"].numpy(), wanted, atol=1e-6)


def test_a_site_without_one_takes_the_mean_and_the_first_round_has_none() -> None:
    model = nn.Linear(3, 2)
    like = recipes.taken_from(model, "r/8")
    left = Parameters("r/8", {CONTROL + name: one for name, one in like.tensors.items()})
    assert not any(one.any() for one in scaffold.correction(like, left, None).of(model))
    assert not any(one.any() for one in scaffold.correction(like, None, None).of(model))


def test_control_variates_of_other_parameters_or_no_number_are_refused() -> None:
    like = recipes.taken_from(nn.Linear(3, 2), "r/8")
    controls = {CONTROL + name: one for name, one in like.tensors.items()}
    with pytest.raises(Malformed, match="missing"):
        scaffold.correction(like, Parameters("r/8", {}), None)
    bad = {**controls, CONTROL + "bias": np.array([np.nan, 0], np.float32)}
    with pytest.raises(Malformed, match="not finite"):
        scaffold.correction(like, Parameters("r/8", bad), None)


def test_those_of_two_rounds_are_kept_and_an_attempt_made_again_has_the_same(
    tmp_path: Path,
) -> None:
    assert scaffold.newest(tmp_path, 1) is None
    for round_ in (1, 2, 5):
        scaffold.keep(tmp_path, round_, "r/8", {"w": torch.full((2,), float(round_))})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["control-2", "control-5"]
    for round_, wanted in ((9, 5.0), (6, 5.0), (5, 2.0), (3, 2.0)):
        found = scaffold.newest(tmp_path, round_)
        assert found is not None
        assert found.tensors["w"].tolist() == [wanted] * 2
    (tmp_path / "control-5").write_bytes(b"torn")
    assert scaffold.newest(tmp_path, 9) is None


# --- the mean ------------------------------------------------------------------------------------
class Worker:
    def __init__(self, folder: Path, *, part: int = 0, parts: int = 0) -> None:
        self.folder, self.worker = folder, Aggregation(2)
        base = self.file("base", content(params(0)))
        self.worker.answer(Begin(part=part, parts=parts, has_controls=True), [base])

    def file(self, name: str, data: bytes = b"") -> int:
        descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT)
        if data:
            os.write(descriptor, data)
        return descriptor

    def read(self, name: str) -> Stored:
        return parse((self.folder / name).read_bytes())


@pytest.mark.parametrize("outer", [None, Outer("adam", 0.1, 0.9, 0.99, 1e-3)])
def test_a_round_leaves_the_mean_control_variate_and_the_optimizers_state(
    tmp_path: Path, outer: Outer | None
) -> None:
    bench = Worker(tmp_path)
    for seed, samples in ((1, 30), (2, 10)):
        bench.worker.answer(Include(samples), [bench.file(f"u{seed}", bytes(update(seed).content))])
    bench.worker.answer(Finish(outer), [bench.file("out"), bench.file("left")])
    left, out = bench.read("left"), bench.read("out")
    for name in ("w", "x"):
        wanted = 0.75 * update(1).tensors[CONTROL + name] + 0.25 * update(2).tensors[CONTROL + name]
        assert np.allclose(left.tensors[CONTROL + name], wanted, atol=1e-6)
    mean = 0.75 * update(1).tensors["w"] + 0.25 * update(2).tensors["w"]
    assert out.outline() == params(0).outline()
    assert np.allclose(out.tensors["w"], mean, atol=1e-6) == (outer is None)
    states = {name.split("/")[0] for name in left.tensors}
    assert states == ({"~control"} if outer is None else {"momentum", "second", "~control"})


def test_ranges_make_the_same_round(tmp_path: Path) -> None:
    bench = Worker(tmp_path)
    updates = [bytes(update(seed).content) for seed in (1, 2)]
    for number, data in enumerate(updates):
        bench.worker.answer(Include(5 + number), [bench.file(f"u{number}", data)])
    bench.worker.answer(Finish(), [bench.file("out"), bench.file("left")])
    folder = tmp_path / "ranges"
    folder.mkdir()
    chunks = cut(len(updates[0]), 3)
    for number, part in enumerate(chunks):
        one = Worker(folder, part=number, parts=3)
        for which, data in enumerate(updates):
            piece = data[part.start * CHUNK_BYTES : part.stop * CHUNK_BYTES]
            one.worker.answer(Include(5 + which), [one.file(f"{number}-{which}", piece)])
        assert isinstance(one.worker.answer(FinishRange(), [one.file(f"r{number}")]), Averaged)
    join = Worker(folder)
    for number in range(3):
        join.worker.answer(Part(), [join.file(f"r{number}")])
    join.worker.answer(Join(), [join.file("out"), join.file("left")])
    for name in ("out", "left"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_an_update_without_control_variates_is_refused(tmp_path: Path) -> None:
    bench = Worker(tmp_path)
    with pytest.raises(Malformed, match="'~control/w' is missing"):
        bench.worker.answer(Include(5), [bench.file("plain", content(params(1)))])
    assert with_controls(params(0)).outline().keys() == update(1).outline().keys()


def mean(of: Sequence[Parameters]) -> dict[str, Floats]:
    return {
        name: np.mean([one.tensors[name] for one in of], axis=0, dtype=np.float32)
        for name in of[0].tensors
    }


# --- what it is for ------------------------------------------------------------------------------
def rounds_of(correction: str, parts: list[Dataset], rounds: int) -> float:
    """Loss over everybody's data after so many rounds of sites that have different classes."""
    job = replace(JOB, epochs=10, learning_rate=0.1, correction=correction)  # type: ignore[arg-type]
    side, label = parts[0].side, recipes.label_of(job.recipe, parts[0].side)
    base = recipes.taken_from(recipes.build(job.recipe, side, job.seed), label)
    left: Parameters | None = None
    own: list[Parameters | None] = [None] * len(parts)
    model = recipes.build(job.recipe, side, job.seed)
    for round_ in range(1, rounds + 1):
        made: list[Parameters] = []
        for site, data in enumerate(parts):
            recipes.put_into(model, base, label)
            by = scaffold.correction(base, left, own[site])
            steps = by.of(model) if correction == "scaffold" else ()
            _, count = recipes.train_locally(model, data, job, round_, site, steps)
            if correction == "scaffold":
                start = {name: torch.from_numpy(one) for name, one in base.tensors.items()}
                after = by.after(start, model, count, job.learning_rate)
                own[site] = Parameters(label, {name: one.numpy() for name, one in after.items()})
            made.append(recipes.taken_from(model, label))

        base = Parameters(label, mean(made))
        if correction == "scaffold":
            whole = mean([one for one in own if one is not None])
            left = Parameters(label, {CONTROL + name: one for name, one in whole.items()})
    recipes.put_into(model, base, label)
    return sum(recipes.evaluate(model, data)[1] for data in parts)


def test_sites_with_different_classes_get_further_together() -> None:
    everything = bars(1200, 3)
    classes = everything.labels % 10
    parts = [
        Dataset(
            everything.images[wanted], everything.labels[wanted],
            everything.holdout_images, everything.holdout_labels, everything.side,
        )
        for wanted in (classes < 4, classes >= 4)
    ]  # fmt: skip
    plain, corrected = rounds_of("none", parts, 8), rounds_of("scaffold", parts, 8)
    assert corrected < 0.8 * plain, (plain, corrected)
