"""Any order of updates gives the same bytes; any safetensors file means the same to both readers."""

import io
import os
from itertools import pairwise
from random import Random

import numpy as np
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.foundation.errors import Malformed
from agent.wire.limits import CHUNK_BYTES
from agent.workers.mean import Mean, make_range
from agent.workers.parameters import VALUE_MAX, Parameters, parse, write

shapes = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)
MOST = float(np.nextafter(np.float32(VALUE_MAX), np.float32(0)))
finite = st.floats(-MOST, MOST, width=32)


def content(parameters: Parameters) -> bytes:
    file = io.BytesIO()
    write(parameters, file)
    return file.getvalue()


def mean_of(updates: list[tuple[Parameters, int]], cuts: set[int] | None = None) -> bytes:
    """The mean's file, made in one, or in ranges of chunks that end at ``cuts``."""
    mean = Mean()
    for update, samples in updates:
        mean.include(parse(content(update)), samples)
    chunks = -(-len(content(updates[0][0])) // CHUNK_BYTES)
    ends = sorted({cut % chunks for cut in cuts or ()} - {0} | {chunks})
    made = b""
    for first, end in pairwise([0, *ends]):
        descriptor = os.memfd_create("range")
        size = make_range(mean, range(first, end), descriptor, 2)
        made += os.pread(descriptor, size, 0)
        os.close(descriptor)
    return made


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
    shuffled = updates[:]
    Random(shuffle).shuffle(shuffled)
    assert mean_of(shuffled) == mean_of(updates)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 120_000), min_size=1, max_size=4),
    cuts=st.sets(st.integers(0, 50)),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_mean_is_the_same_in_any_ranges(sizes: list[int], cuts: set[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    updates = [
        (
            Parameters(
                "r/8",
                {
                    f"t{n}": random.standard_normal(size).astype(np.float32) * 10.0**n
                    for n, size in enumerate(sizes)
                },
            ),
            int(random.integers(1, 1 << 20)),
        )
        for _ in range(3)
    ]
    assert mean_of(updates, cuts) == mean_of(updates)


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
