"""A golden question: what agrees, what does not, and what is no question for the model."""

import json
from typing import Any

import pytest
from onnx import parser

from agent.workers.inference_golden import check_golden
from agent.workers.inference_session import LoadRefused, ModelSession


def session(signature: str, body: str) -> ModelSession:
    text = f'<ir_version: 8, opset_import: ["" : 13]> g ({signature}) {{ {body} }}'
    return ModelSession(parser.parse_model(text).SerializeToString(), "m", "1", ())


@pytest.fixture(scope="module")
def negative() -> ModelSession:
    return session("float[N] x) => (float[N] y, int64[1] shape", "y = Neg(x) shape = Shape(x)")


def tensor(name: str, *data: float, datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": list(data)}


def golden(*outputs: dict[str, Any], **more: Any) -> str:
    return json.dumps({"inputs": [tensor("x", 1.0, 100.0)], "outputs": list(outputs), **more})


def test_no_question_is_no_condition(negative: ModelSession) -> None:
    check_golden(negative, "")


def test_a_right_answer_passes_and_outputs_left_out_are_not_compared(
    negative: ModelSession,
) -> None:
    check_golden(negative, golden(tensor("y", -1.0, -100.0)))
    shape = tensor("shape", 2, datatype="INT64")
    check_golden(negative, golden(shape, tensor("y", -1.0, -100.0)))


def test_floating_point_answers_may_differ_a_little(negative: ModelSession) -> None:
    check_golden(negative, golden(tensor("y", -1.09, -100.0)))
    with pytest.raises(LoadRefused, match=r"output 'y' differs by 0\.09"):
        check_golden(negative, golden(tensor("y", -1.09, -100.0), tolerance=0.0001))


@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (
            [tensor("y", -1.0, 100.0)],
            "output 'y' differs by 200, and its largest expected value is",
        ),
        ([tensor("y", -1.0)], r"output 'y' has shape \[2\], not \[1\]"),
        ([tensor("shape", 3, datatype="INT64")], "output 'shape' has other values"),
    ],
)
def test_a_wrong_answer_is_told_by_how_it_differs(
    negative: ModelSession, outputs: list[dict[str, Any]], told: str
) -> None:
    with pytest.raises(LoadRefused, match=told):
        check_golden(negative, golden(*outputs))


def test_an_answer_that_is_not_a_number_is_wrong() -> None:
    root = session("float[N] x) => (float[N] y", "y = Sqrt(x)")
    question = {"inputs": [tensor("x", -1.0)], "outputs": [tensor("y", 0.0)]}
    with pytest.raises(LoadRefused, match="differs by nan"):
        check_golden(root, json.dumps(question))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"inputs": 1, "outputs": []}',
        golden(),
        golden(tensor("z", 1.0)),
        golden(tensor("y", 1.0), tolerance="much"),
        golden(tensor("y", 1.0, datatype="INT64")),
        json.dumps({"inputs": [tensor("w", 1.0)], "outputs": [tensor("y", 1.0)]}),
    ],
)
def test_what_is_no_question_for_the_model_is_refused_in_words(
    negative: ModelSession, text: str
) -> None:
    with pytest.raises(LoadRefused, match="its golden question is none for this model"):
        check_golden(negative, text)


def test_a_model_that_fails_on_its_question_is_refused() -> None:
    strict = session("float[N] x, int64[M] to) => (float[K] y", "y = Reshape(x, to)")
    question = {
        "inputs": [tensor("x", 1.0, 2.0), tensor("to", 7, datatype="INT64")],
        "outputs": [tensor("y", 1.0)],
    }
    with pytest.raises(LoadRefused, match="it fails on its golden question"):
        check_golden(strict, json.dumps(question))
