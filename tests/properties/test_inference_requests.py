"""Whatever bytes come, a request is taken whole or refused as the caller's mistake."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.foundation.errors import Malformed, UsageError
from agent.serving.datatypes import DATATYPES
from agent.serving.doorbell import RING_BYTES_MAX, Ring, unpack_ring
from agent.serving.json_data import flat_values
from agent.serving.request import parse_request
from agent.serving.signature import FREE, Signature, TensorSpec

MODEL = Signature(
    "m",
    "1",
    inputs=(
        TensorSpec("x", DATATYPES["FP32"], (FREE, 2)),
        TensorSpec("words", DATATYPES["BYTES"], (FREE,)),
    ),
    outputs=(
        TensorSpec("y", DATATYPES["FP32"], (FREE,)),
        TensorSpec("z", DATATYPES["INT64"], (FREE,)),
    ),
)
RAW = Signature("r", "1", (TensorSpec("x", DATATYPES["FP32"], (FREE, 2)),), MODEL.outputs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["x", "words"]) | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
        "datatype": st.sampled_from(["FP32", "BYTES"]) | JSON,
        "data": JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 99)})
        | JSON,
    },
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "inputs": st.lists(TENSOR, max_size=3) | JSON,
            "outputs": JSON,
            "parameters": JSON,
            "id": JSON,
        },
    ),
    st.binary(max_size=16),
)
def test_no_request_raises_anything_but_a_usage_error(content: dict[str, Any], tail: bytes) -> None:
    header = json.dumps(content).encode()
    try:
        request = parse_request(header + tail, len(header), MODEL)
    except UsageError:
        return
    assert {tensor.spec.name for tensor in request.inputs} == {"x", "words"}
    assert sum(tensor.size for tensor in request.inputs) == len(tail)


@given(st.binary(max_size=64), st.none() | st.integers(0, 64))
def test_no_bytes_raise_anything_but_a_usage_error(content: bytes, header: int | None) -> None:
    length = None if header is None else min(header, len(content))
    for model in (MODEL, RAW):
        try:
            parse_request(content, length, model)
        except UsageError:
            continue


@given(st.binary(max_size=RING_BYTES_MAX))
def test_other_packets_are_malformed(packet: bytes) -> None:
    try:
        ring = unpack_ring(packet)
    except Malformed:
        return
    assert isinstance(ring, Ring)


def nest(values: list[int], shape: tuple[int, ...]) -> list[Any]:
    """A dumb second implementation of nesting, to be undone."""
    if len(shape) == 1:
        return values
    step = len(values) // shape[0]
    return [nest(values[n * step : (n + 1) * step], shape[1:]) for n in range(shape[0])]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), st.data())
def test_nesting_and_flattening_undo_each_other(
    shape: tuple[int, ...], data: st.DataObject
) -> None:
    count = 1
    for dimension in shape:
        count *= dimension
    values = data.draw(st.lists(st.integers(-128, 127), min_size=count, max_size=count))
    nested = nest(values, shape)
    assert flat_values(nested, "x", DATATYPES["INT8"], shape) == values
    assert flat_values(values, "x", DATATYPES["INT8"], shape) == values
