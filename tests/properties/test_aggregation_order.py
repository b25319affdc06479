"""Any order of updates gives the same bytes; any safetensors file means the same to both readers."""

import io
from random import Random

import numpy as np
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.foundation.errors import Malformed
from agent.workers.aggregation import Mean
from agent.workers.parameters import Parameters, parse, write

shapes = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def content(parameters: Parameters) -> bytes:
    file = io.BytesIO()
    write(parameters, file)
    return file.getvalue()


def mean_of(
    updates: list[tuple[Parameters, int]], inspected: list[tuple[Parameters, int]]
) -> bytes:
    mean = Mean()
    for update, samples in inspected:
        mean.inspect(update, samples)
    for update, samples in updates:
        mean.add(update, samples)
    return content(mean.result())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), shuffle=st.integers(0, 2**32))
def test_the_mean_has_no_order(data: st.DataObject, shuffle: int) -> None:
    outline = data.draw(st.dictionaries(st.text(max_size=5), shapes, min_size=1, max_size=3))
    updates = [
        (
            Parameters(
                "r/8",
                {
                    name: data.draw(arrays.arrays(np.float32, shape, elements=finite))
                    for name, shape in outline.items()
                },
            ),
            data.draw(st.integers(1, 2**33)),
        )
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    straight = mean_of(updates, updates)
    random = Random(shuffle)
    one, other = updates[:], updates[:]
    random.shuffle(one)
    random.shuffle(other)
    assert mean_of(one, other) == straight


def test_a_floating_point_mean_would_fail_this_test() -> None:
    random = np.random.default_rng(3)
    updates = [random.standard_normal(100).astype(np.float32) for _ in range(9)]
    forwards, backwards = np.zeros(100, np.float32), np.zeros(100, np.float32)
    for update in updates:
        forwards += update
    for update in reversed(updates):
        backwards += update
    assert forwards.tobytes() != backwards.tobytes()


@settings(max_examples=60, deadline=None)
@given(
    tensors=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
        arrays.arrays(np.float32, shapes, elements=finite),
        min_size=1,
        max_size=4,
    ),
    label=st.text(max_size=20),
)
def test_the_library_and_this_reader_agree(tensors: dict[str, np.ndarray], label: str) -> None:
    theirs = safetensors.numpy.load(content(Parameters(label, tensors)))
    ours = parse(safetensors.numpy.save(tensors, {"atoll": label}))
    assert ours.label == label
    assert theirs.keys() == ours.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert theirs[name].tobytes() == ours.tensors[name].tobytes() == tensor.tobytes()
        assert theirs[name].shape == ours.tensors[name].shape == tensor.shape


@settings(max_examples=200, deadline=None)
@given(cut=st.binary(max_size=200), at=st.integers(0, 300), noise=st.binary(max_size=8))
def test_no_bytes_raise_anything_but_malformed(cut: bytes, at: int, noise: bytes) -> None:
    good = content(
        Parameters("r/8", {"a": np.ones((2, 3), np.float32), "b": np.ones(1, np.float32)})
    )
    for bad in (cut, good[:at], good[:at] + noise + good[at + len(noise) :]):
        try:
            parse(bad)
        except Malformed:
            continue
