"""Whether rows stand apart is found out by trying; joined requests get their own rows back."""

import json
from typing import Any

import numpy as np
import pytest
from onnx import parser

from agent.foundation.errors import UsageError
from agent.serving.request import InferRequest, parse_request
from agent.workers.inference_batching import run_together, stand_rows_apart
from agent.workers.inference_session import ModelSession, run_options
from agent.workers.inference_tensors import Array, array_of


def session(body: str, given: str = "float[N,4] x", made: str = "float[N,4] y") -> ModelSession:
    text = f'<ir_version: 8, opset_import: ["" : 13]> g ({given}) => ({made}) {{ {body} }}'
    return ModelSession(parser.parse_model(text).SerializeToString(), "m", "1", ())


@pytest.mark.parametrize(
    ("body", "stands"),
    [
        ("y = Relu(x)", True),
        ("y = Softmax<axis = 1>(x)", True),
        ("y = Softmax<axis = 0>(x)", False),
        ("z = Constant<value_int = 0>()\ny = CumSum(x, z)", False),
        ("m = ReduceMean<axes = [0], keepdims = 1>(x)\ny = Sub(x, m)", False),
        ("m = ReduceMax<axes = [0], keepdims = 1>(x)\nn = Neg(m)\ny = Add(x, n)", False),
    ],
)
def test_a_row_that_sees_its_neighbours_is_found_out(body: str, *, stands: bool) -> None:
    assert stand_rows_apart(session(body)) is stands


def test_models_that_prove_nothing_or_have_no_batch_run_alone() -> None:
    assert not stand_rows_apart(session("z = Constant<value_float = 0.0>()\ny = Mul(x, z)"))
    assert not stand_rows_apart(session("y = Relu(x)", "float[1,4] x", "float[1,4] y"))
    one_row = "z = Constant<value_ints = [1, 4]>()\ny = Reshape(x, z)"
    assert not stand_rows_apart(session(one_row))


def test_words_and_numbers_are_compared_exactly() -> None:
    words = session("y = Identity(x)", "string[N,2] x", "string[N,2] y")
    assert stand_rows_apart(words)
    places = session("y = ArgMax<axis = 1>(x)", made="int64[N,1] y")
    assert stand_rows_apart(places)


def asked(loaded: ModelSession, rows: int, first: float, **more: Any) -> tuple[InferRequest, Any]:
    content = {"name": "x", "datatype": "FP32", "shape": [rows, 4]}
    data = [first + index for index in range(4 * rows)]
    body = memoryview(
        bytearray(json.dumps({"inputs": [content | {"data": data}], **more}).encode())
    )
    request = parse_request(body, None, loaded.signature)
    return request, [array_of(tensor, body) for tensor in request.inputs]


def test_each_request_gets_its_rows_and_its_outputs() -> None:
    loaded = session("y = Neg(x)\nz = Relu(x)", made="float[N,4] y, float[N,4] z")
    one = asked(loaded, 1, 10.0, outputs=[{"name": "z"}])
    two = asked(loaded, 2, 20.0, outputs=[{"name": "y"}, {"name": "z"}])
    found = run_together(loaded, [one[0], two[0]], [one[1], two[1]], run_options())
    assert found is not None
    ((z,), (y, both)) = found
    assert z.tolist() == [[10.0, 11.0, 12.0, 13.0]]
    assert both.tolist() == [[20.0, 21.0, 22.0, 23.0], [24.0, 25.0, 26.0, 27.0]]
    assert np.array_equal(y, -both)


def test_a_model_that_gives_other_rows_than_it_got_is_noticed() -> None:
    loaded = session("y = NonZero(x)", made="int64[N,M] y")
    one, two = asked(loaded, 1, 1.0), asked(loaded, 2, 1.0)
    assert run_together(loaded, [one[0], two[0]], [one[1], two[1]], run_options()) is None


def test_a_failure_is_told_as_of_a_single_run() -> None:
    body = "z = Constant<value_ints = [1, 4]>()\ny = Reshape(x, z)"
    loaded = session(body)
    one, two = asked(loaded, 1, 1.0), asked(loaded, 1, 2.0)
    with pytest.raises(UsageError, match="does not take this input"):
        run_together(loaded, [one[0], two[0]], [one[1], two[1]], run_options())
    alone: list[Array] = loaded.run(one[0], one[1], run_options())
    assert alone[0].shape == (1, 4)
