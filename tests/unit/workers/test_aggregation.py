import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from agent.foundation.errors import Malformed, UsageError
from agent.training.contract import Add, Averaged, Begin, Finish, Inspect, Inspected, Outer
from agent.workers.aggregation import Aggregation, FloatMean, Mean
from agent.workers.parameters import Parameters, parse, write

Update = tuple[Parameters, int]


def made(*values: float, label: str = "r/8") -> Parameters:
    return Parameters(label, {"w": np.array(values, np.float32)})


def mean_of(updates: Sequence[Update]) -> Parameters:
    mean = Mean()
    for update, samples in updates:
        mean.inspect(update, samples)
    for update, samples in updates:
        mean.add(update, samples)
    return mean.result()


def test_updates_weigh_by_their_samples() -> None:
    averaged = mean_of([(made(1.0, -4.0), 3), (made(5.0, 4.0), 1)])
    assert averaged.tensors["w"].tolist() == [2.0, -2.0]
    assert averaged.label == "r/8"


def test_a_single_update_is_its_own_mean() -> None:
    values = np.random.default_rng(1).standard_normal(300_000).astype(np.float32)
    averaged = mean_of([(Parameters("r/8", {"w": values}), 7919)])
    assert np.array_equal(averaged.tensors["w"], values)


def test_the_mean_is_exact_to_float32_against_a_dumb_sum_in_fractions() -> None:
    random = np.random.default_rng(2)
    updates = [
        (made(*random.standard_normal(50) * 10.0**k), int(random.integers(1, 10_000)))
        for k in range(-2, 3)
    ]
    weight = sum(samples for _, samples in updates)
    averaged = mean_of(updates).tensors["w"]
    for place in range(50):
        exact = sum(Fraction(float(u.tensors["w"][place])) * n for u, n in updates) / weight
        assert averaged[place] == np.float32(float(exact))


@pytest.mark.parametrize("values", [(3.4e38, -3.4e38), (1e-45, -1e-45), (0.0, 0.0), (-0.0, 1e-38)])
def test_extreme_magnitudes_neither_overflow_nor_vanish(values: tuple[float, ...]) -> None:
    averaged = mean_of([(made(*values), 2**34), (made(*values), 2**34)])
    assert averaged.tensors["w"].tolist() == np.array(values, np.float32).tolist()


def test_the_largest_sums_stay_exact() -> None:
    most = float(np.nextafter(np.float32(2.0), np.float32(0.0)))
    averaged = mean_of([(made(most, -most), 2**35 - 1), (made(most, -most), 2**35)])
    assert averaged.tensors["w"].tolist() == [most, -most]


def test_an_empty_tensor_is_carried_along() -> None:
    empty = Parameters("r/8", {"w": np.zeros((0, 3), np.float32)})
    assert mean_of([(empty, 1), (empty, 2)]).tensors["w"].shape == (0, 3)


def test_more_samples_than_the_precision_bears_are_refused() -> None:
    mean = Mean()
    mean.inspect(made(1.0), 2**35)
    with pytest.raises(UsageError, match="samples"):
        mean.inspect(made(1.0), 2**35)


@pytest.mark.parametrize("kind", [Mean, FloatMean])
@pytest.mark.parametrize(
    "bad", [made(1.0), made(1.0, np.nan), made(1.0, 2.0, label="other/8"), made(np.inf, 1.0)]
)
def test_a_bad_update_leaves_the_set_as_it_was(bad: Parameters, kind: type[Mean]) -> None:
    mean = kind(made(0.0, 0.0))
    mean.inspect(made(1.0, 3.0), 1)
    with pytest.raises(Malformed):
        mean.inspect(bad, 1)
    mean.add(made(1.0, 3.0), 1)
    assert mean.result().tensors["w"].tolist() == [1.0, 3.0]


def test_float_sums_are_close_to_exact_ones_and_alike_in_one_order() -> None:
    random = np.random.default_rng(3)
    updates = [
        (Parameters("r/8", {"w": random.standard_normal(100_000).astype(np.float32)}), n + 1)
        for n in range(20)
    ]
    found = []
    for _ in range(2):
        mean = FloatMean(updates[0][0])
        for update, samples in updates:
            mean.inspect(update, samples)
        for update, samples in updates:
            mean.add(update, samples)
        found.append(mean.result().tensors["w"])
    assert np.array_equal(found[0], found[1])
    exact = mean_of(updates).tensors["w"]
    assert float(np.abs(found[0] - exact).max()) < 1e-6


def test_an_update_that_became_infinite_after_its_inspection_spoils_no_float_mean() -> None:
    mean = FloatMean()
    mean.inspect(made(1.0), 1)
    mean.add(made(np.inf), 1)
    with pytest.raises(Malformed, match="not finite"):
        mean.result()


def test_an_update_that_grew_after_its_inspection_is_refused() -> None:
    mean = Mean()
    mean.inspect(made(1.0), 1)
    with pytest.raises(Malformed, match="changed since"):
        mean.add(made(1.5), 1)


def test_a_weight_that_grew_after_its_inspection_is_refused() -> None:
    mean = Mean()
    mean.inspect(made(1.0), 1)
    with pytest.raises(Malformed, match="more samples"):
        mean.add(made(1.0), 2)


def test_a_set_that_is_not_whole_has_no_mean() -> None:
    mean = Mean()
    with pytest.raises(UsageError, match="without updates"):
        mean.result()
    mean.inspect(made(1.0), 1)
    mean.inspect(made(2.0), 1)
    mean.add(made(1.0), 1)
    with pytest.raises(UsageError, match="1 updates of 2"):
        mean.result()


def test_the_process_answers_each_message(tmp_path: Path) -> None:
    aggregation = Aggregation()
    opened = []
    for at, parameters in enumerate((made(1.0), made(3.0), made(np.nan))):
        with (tmp_path / f"{at}").open("w+b") as file:
            write(parameters, file)
            opened.append(os.dup(file.fileno()))
    out = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY)
    try:
        first, second, bad = opened
        with pytest.raises(UsageError, match="no mean was begun"):
            aggregation.answer(Inspect(1), [first])
        assert aggregation.answer(Begin(3, is_float=True), [first]) == Inspected()
        assert isinstance(aggregation._mean, FloatMean)
        assert aggregation.answer(Begin(3), [first]) == Inspected()
        assert aggregation.answer(Inspect(1), [first]) == Inspected()
        assert aggregation.answer(Inspect(1), [second]) == Inspected()
        with pytest.raises(Malformed, match="'w' is not finite"):
            aggregation.answer(Inspect(1), [bad])
        assert aggregation.answer(Add(1), [first]) == Inspected()
        assert aggregation.answer(Add(1), [second]) == Inspected()
        averaged = aggregation.answer(Finish(), [out])
        assert isinstance(averaged, Averaged)
        assert averaged.bytes == (tmp_path / "out").stat().st_size
        assert parse((tmp_path / "out").read_bytes()).tensors["w"].tolist() == [2.0]
        with pytest.raises(UsageError, match="no mean was begun"):
            aggregation.answer(Finish(), [out])
    finally:
        for descriptor in (*opened, out):
            os.close(descriptor)


@pytest.mark.parametrize("kind", [Mean, FloatMean])
def test_a_late_update_counts_by_what_it_changed(kind: type[Mean]) -> None:
    """It went from 1 to 4 and is worth half of what it was; the round starts from 10."""
    mean = kind(made(10.0, 10.0))
    late, older, fresh = made(4.0, 0.0), made(1.0, 1.0), made(12.0, 10.0)
    for step in (mean.inspect, mean.add):
        step(late, 2, older)
        step(fresh, 2)
    assert mean.result().tensors["w"].tolist() == [12.5, 9.5]


def test_a_late_update_of_other_parameters_is_refused() -> None:
    mean = Mean(made(10.0, 10.0))
    with pytest.raises(Malformed, match="shape"):
        mean.inspect(made(1.0, 1.0), 1, made(1.0))
    with pytest.raises(Malformed, match="not finite"):
        mean.inspect(made(3e38, 1.0), 1, made(-3e38, 1.0))


def test_the_worker_takes_late_updates_and_an_outer_step(tmp_path: Path) -> None:
    def opened(name: str, *values: float) -> int:
        with (tmp_path / name).open("wb") as file:
            write(made(*values), file)
        return os.open(tmp_path / name, os.O_RDONLY)

    worker = Aggregation()
    base, update, older = opened("base", 10.0), opened("update", 4.0), opened("older", 1.0)
    outer = Outer("momentum", 0.5, 0.9, 0.99, 1e-3)
    places = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("out", "left")]
    worker.answer(Begin(1), [base])
    worker.answer(Inspect(2), [update, older])
    worker.answer(Add(2), [update, older])
    worker.answer(Finish(outer), places)
    assert parse((tmp_path / "out").read_bytes()).tensors["w"].tolist() == [11.5]
    left = parse((tmp_path / "left").read_bytes())
    assert left.tensors["momentum/w"].tolist() == [3.0]
    again = [os.open(tmp_path / name, os.O_RDWR | os.O_CREAT) for name in ("out2", "left2")]
    worker.answer(Begin(1), [base])
    worker.answer(Inspect(2), [base])
    worker.answer(Add(2), [base])
    worker.answer(Finish(outer), [*again, os.open(tmp_path / "left", os.O_RDONLY)])
    assert parse((tmp_path / "out2").read_bytes()).tensors["w"].tolist() == pytest.approx([11.35])
