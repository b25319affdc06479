"""The comparison with PyTorch; the exporter itself runs in tests/process (it takes 6 s)."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from agent.training.contract import AttemptFailed
from agent.workers import export

SIDE = 2


def model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Linear(SIDE * SIDE, 10)


def by_hand(layer: torch.nn.Module, error: float) -> bytes:
    state = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["image", "weight", "bias"], ["logits"], transB=1)],
        "hand",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", SIDE * SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [
            numpy_helper.from_array(state["weight"], "weight"),
            numpy_helper.from_array(state["bias"] + np.float32(error), "bias"),
        ],
    )
    opset = [helper.make_opsetid("", 20)]
    return bytes(helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString())


def test_an_equal_model_passes_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_exported", lambda layer, _: by_hand(layer, 0.0))
    content, error_max = export.to_onnx(model(), SIDE)
    assert content
    assert error_max < 1e-6


@pytest.mark.parametrize("error", [2e-4, float("nan")])
def test_a_model_that_answers_differently_is_refused(
    error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_exported", lambda layer, _: by_hand(layer, error))
    with pytest.raises(AttemptFailed, match="differs from PyTorch"):
        export.to_onnx(model(), SIDE)
