import os
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from stored_parameters import made, mean_of, stored

from agent.foundation.errors import Malformed, UsageError
from agent.training.contract import (
    Averaged,
    Begin,
    Finish,
    Include,
    Included,
    Join,
    Outer,
    Part,
)
from agent.wire.documents import RANGES_MAX
from agent.wire.limits import CHUNK_BYTES
from agent.workers.aggregation import Aggregation
from agent.workers.mean import FloatMean, Mean, Ranges, Spoiled, blocks, make_range
from agent.workers.parameters import Parameters, Stored, head_of, parse, write

BIG = 300_000
"""Values in five chunks."""


def big(seed: int, size: int = BIG) -> Stored:
    values = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    return stored(Parameters("r/8", {"a": values[:1000], "b": values[1000:].reshape(-1, 10)}))


def flat(parameters: Parameters) -> list[float]:
    found: list[float] = parameters.tensors["w"].tolist()
    return found


def test_updates_weigh_by_their_samples() -> None:
    averaged = mean_of([(made(1.0, -4.0), 3), (made(5.0, 4.0), 1)])
    assert flat(averaged) == [2.0, -2.0]
    assert averaged.label == "r/8"


@pytest.mark.parametrize("threads", [1, 3])
def test_a_single_update_is_its_own_mean(threads: int) -> None:
    averaged = mean_of([(big(1), 7919)], threads=threads)
    assert np.array_equal(averaged.values, big(1).values)


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


@pytest.mark.parametrize("values", [(1e15, -1e15), (1e-45, -1e-45), (0.0, 0.0), (-0.0, 1e-38)])
def test_extreme_magnitudes_neither_overflow_nor_vanish(values: tuple[float, ...]) -> None:
    averaged = mean_of([(made(*values), 2**34), (made(*values), 2**34)])
    assert flat(averaged) == np.array(values, np.float32).tolist()


def test_the_largest_sums_stay_exact() -> None:
    most = float(np.nextafter(np.float32(2.0), np.float32(0.0)))
    averaged = mean_of([(made(most, -most), 2**35 - 1), (made(most, -most), 2**35)])
    assert flat(averaged) == [most, -most]


def test_an_empty_tensor_is_carried_along() -> None:
    empty = stored(Parameters("r/8", {"w": np.zeros((0, 3), np.float32)}))
    assert mean_of([(empty, 1), (empty, 2)]).tensors["w"].shape == (0, 3)


def test_more_samples_than_the_precision_bears_are_refused() -> None:
    mean = Mean()
    mean.include(made(1.0), 2**35)
    with pytest.raises(UsageError, match="samples"):
        mean.include(made(1.0), 2**35)


@pytest.mark.parametrize("kind", [Mean, FloatMean])
@pytest.mark.parametrize("bad", [made(1.0), made(1.0, 2.0, label="other/8")])
def test_another_model_leaves_the_set_as_it_was(bad: Stored, kind: type[Mean]) -> None:
    mean = kind(made(0.0, 0.0))
    mean.include(made(1.0, 3.0), 1)
    with pytest.raises(Malformed):
        mean.include(bad, 1)
    assert flat(mean_of([], mean)) == [1.0, 3.0]


def test_the_same_tensors_in_another_order_are_refused() -> None:
    """A mean is made value by value, in the order of the file."""
    one = Parameters("r/8", {"a": np.ones(2, np.float32), "b": np.zeros(2, np.float32)})
    head, _ = head_of(one)
    turned = head.replace(b"[0,8]", b"[X]").replace(b"[8,16]", b"[0,8]").replace(b"[X]", b"[8,16]")
    assert turned != head
    mean = Mean(stored(one))
    with pytest.raises(Malformed, match="layout"):
        mean.include(parse(turned + bytes(16)), 1)


@pytest.mark.parametrize("kind", [Mean, FloatMean])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_whoever_sent_what_is_no_number_is_named(value: float, kind: type[Mean]) -> None:
    spoilt = big(2)
    values = spoilt.values.copy()
    values[200_000] = value
    bad = stored(Parameters("r/8", {"a": values[:1000], "b": values[1000:].reshape(-1, 10)}))
    mean = kind(big(0))
    for one in (big(1), bad, big(3), bad):
        mean.include(one, 5)
    with pytest.raises(Spoiled, match="tensor 'b' is not finite") as raised:
        mean_of([], mean)
    assert raised.value.updates == (1, 3)


def test_float_sums_are_close_to_exact_ones_and_alike_in_one_order() -> None:
    updates = [(big(n), n + 1) for n in range(20)]
    one = mean_of(updates, FloatMean(), threads=3)
    other = mean_of(updates, FloatMean())
    assert np.array_equal(one.values, other.values)
    assert float(np.abs(one.values - mean_of(updates).values).max()) < 1e-6


def test_a_set_without_updates_has_no_mean() -> None:
    with pytest.raises(UsageError, match="without updates"):
        mean_of([], Mean(made(1.0)))


# --- ranges --------------------------------------------------------------------------------------
def ranges_of(updates: Sequence[tuple[Stored, int]], cuts: Sequence[int]) -> list[memoryview]:
    parts = []
    for first, end in pairwise(cuts):
        chunks = range(first, end)
        mean = Mean(updates[0][0])
        for update, samples in updates:
            part = update.content[first * CHUNK_BYTES : end * CHUNK_BYTES]
            mean.include_part(part, chunks, samples)
        descriptor = os.memfd_create("range")
        size = make_range(mean, chunks, descriptor, 2)
        parts.append(memoryview(os.pread(descriptor, size + 1, 0)))
        os.close(descriptor)
    return parts


@pytest.mark.parametrize("cuts", [(0, 5), (0, 1, 5), (0, 2, 3, 5), (0, 1, 2, 3, 4, 5)])
def test_ranges_make_the_same_bytes_as_the_whole(cuts: Sequence[int]) -> None:
    updates = [(big(n), 100 + n) for n in range(5)]
    whole = mean_of(updates)
    parts = ranges_of(updates, cuts)
    assert b"".join(parts) == bytes(whole.content)
    assert len(whole.content) == (parts[-1].nbytes + CHUNK_BYTES * cuts[-2])
    joined = mean_of([], Ranges(updates[0][0], parts), threads=2)
    assert bytes(joined.content) == bytes(whole.content)


def test_a_head_longer_than_a_chunk_is_cut_with_the_rest() -> None:
    tensors = {f"{'n' * 200}{n:05}": np.full(3, n, np.float32) for n in range(1200)}
    one = stored(Parameters("r/8", tensors))
    assert len(one.head) > CHUNK_BYTES
    assert list(blocks(one, range(1))) == []
    parts = ranges_of([(one, 1)], (0, 1, 2))
    assert b"".join(parts) == bytes(one.content)
    assert bytes(mean_of([], Ranges(one, parts)).content) == bytes(one.content)


def test_ranges_that_do_not_fit_are_refused() -> None:
    updates = [(big(n), 1) for n in range(2)]
    first, second = ranges_of(updates, (0, 2, 5))
    for wrong in ([first], [second, first], [first, second[:-4]], [first[:-4], second], []):
        with pytest.raises(Malformed, match=r"ranges of|another head"):
            Ranges(big(0), wrong)
    bad = memoryview(bytearray(second))
    bad[-4:] = np.array([np.nan], np.float32).tobytes()
    with pytest.raises(Malformed, match="tensor 'b' is not finite"):
        mean_of([], Ranges(big(0), [first, bad]))
    mean = Mean(big(0))
    mean.include(big(1), 1)
    for out in (range(5, 6), range(3, 3), range(6)):
        with pytest.raises(Malformed, match="chunks"):
            make_range(mean, out, os.memfd_create("x"), 1)


def test_a_part_of_another_file_is_refused() -> None:
    one, mean = big(1), Mean(big(0))
    good = one.content[CHUNK_BYTES : 3 * CHUNK_BYTES]
    for wrong, chunks in (
        (one.content[: 2 * CHUNK_BYTES], range(1, 4)),
        (good[:-4], range(1, 3)),
        (good, range(2)),
        (good, range(3, 5)),
    ):
        with pytest.raises(Malformed, match="part of other parameters"):
            mean.include_part(wrong, chunks, 1)
    with pytest.raises(Malformed, match=r"tensor .* is missing"):
        mean.include_part(good, range(1, 3), 1, made(1.0))
    with pytest.raises(UsageError, match="without updates"):
        mean_of([], mean)


def test_a_late_part_counts_by_what_it_changed() -> None:
    base, older, late, fresh = (big(n) for n in range(4))
    whole = Mean(base)
    whole.include(late, 2, older)
    whole.include(fresh, 3)
    parts = []
    for chunks in (range(2), range(2, 5)):
        mean = Mean(base)
        for update, samples, started_from in ((late, 2, older), (fresh, 3, None)):
            part = update.content[chunks.start * CHUNK_BYTES : chunks.stop * CHUNK_BYTES]
            mean.include_part(part, chunks, samples, started_from)
        descriptor = os.memfd_create("range")
        size = make_range(mean, chunks, descriptor, 1)
        parts.append(os.pread(descriptor, size, 0))
        os.close(descriptor)
    assert b"".join(parts) == bytes(mean_of([], whole).content)


# --- the process ---------------------------------------------------------------------------------
class Files:
    """Descriptors for the worker; closed at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.opened: list[int] = []

    def of(self, name: str, *values: float) -> int:
        with (self._folder / name).open("wb") as file:
            write(made(*values), file)
        return self.open(name)

    def open(self, name: str) -> int:
        self.opened.append(os.open(self._folder / name, os.O_RDWR | os.O_CREAT))
        return self.opened[-1]

    def read(self, name: str) -> Stored:
        return parse((self._folder / name).read_bytes())


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_the_process_answers_each_message(files: Files) -> None:
    worker = Aggregation()
    first, second, bad = files.of("1", 1.0), files.of("2", 3.0), files.of("bad", np.nan)
    out = files.open("out")
    with pytest.raises(UsageError, match="no mean was begun"):
        worker.answer(Include(1), [first])
    assert worker.answer(Begin(is_float=True), [first]) == Included()
    assert isinstance(worker._mean, FloatMean)
    assert worker.answer(Begin(), [first]) == Included()
    for one in (first, bad, second):
        assert worker.answer(Include(1), [one]) == Included()
    spoilt = worker.answer(Finish(), [out])
    assert spoilt == Averaged(
        0, (1,), "tensor 'w' is not finite; training diverged, or was made to"
    )
    with pytest.raises(UsageError, match="no mean was begun"):
        worker.answer(Finish(), [out])
    worker.answer(Begin(), [first])
    for one in (first, second):
        worker.answer(Include(1), [one])
    averaged = worker.answer(Finish(), [out])
    assert isinstance(averaged, Averaged)
    assert flat(files.read("out")) == [2.0]
    assert averaged.bytes == len(files.read("out").content)


def test_the_process_joins_ranges(files: Files) -> None:
    worker = Aggregation()
    base, one = files.of("base", 10.0), files.of("one", 14.0)
    with pytest.raises(UsageError, match="part 1 of 2; there are 1"):
        worker.answer(Begin(part=1, parts=2), [base])
    worker.answer(Begin(), [base])
    worker.answer(Include(3), [one])
    worker.answer(Finish(), [files.open("range")])
    outer = Outer("momentum", 0.5, 0.9, 0.99, 1e-3)
    worker.answer(Begin(), [base])
    worker.answer(Part(), [files.open("range")])
    worker.answer(Join(outer), [files.open("out"), files.open("left")])
    assert flat(files.read("out")) == [12.0]
    assert files.read("left").tensors["momentum/w"].tolist() == [4.0]
    worker.answer(Begin(), [base])
    for _ in range(RANGES_MAX):
        worker.answer(Part(), [files.open("range")])
    with pytest.raises(UsageError, match="ranges"):
        worker.answer(Part(), [files.open("range")])


@pytest.mark.parametrize("kind", [Mean, FloatMean])
def test_a_late_update_counts_by_what_it_changed(kind: type[Mean]) -> None:
    """It went from 1 to 4 and is worth half of what it was; the round starts from 10."""
    mean = kind(made(10.0, 10.0))
    mean.include(made(4.0, 0.0), 2, made(1.0, 1.0))
    mean.include(made(12.0, 10.0), 2)
    assert flat(mean_of([], mean)) == [12.5, 9.5]


def test_a_late_update_of_other_parameters_is_refused() -> None:
    mean = Mean(made(10.0, 10.0))
    with pytest.raises(Malformed, match="shape"):
        mean.include(made(1.0, 1.0), 1, made(1.0))
    mean.include(made(3e38, 1.0), 1, made(-3e38, 1.0))
    with pytest.raises(Spoiled, match="not finite"):
        mean_of([], mean)


def test_the_worker_takes_late_updates_and_an_outer_step(files: Files) -> None:
    worker = Aggregation()
    base, update, older = files.of("base", 10.0), files.of("update", 4.0), files.of("older", 1.0)
    outer = Outer("momentum", 0.5, 0.9, 0.99, 1e-3)
    worker.answer(Begin(), [base])
    worker.answer(Include(2), [update, older])
    worker.answer(Finish(outer), [files.open("out"), files.open("left")])
    assert flat(files.read("out")) == [11.5]
    assert files.read("left").tensors["momentum/w"].tolist() == [3.0]
    worker.answer(Begin(), [base])
    worker.answer(Include(2), [base])
    worker.answer(Finish(outer), [files.open("out2"), files.open("left2"), files.open("left")])
    assert flat(files.read("out2")) == pytest.approx([11.35])
