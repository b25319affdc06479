"""Committed parameters become an ONNX model, compared with PyTorch before anybody may serve it.

The model takes ``image``, float32 (n, side * side), values 0 to 1, and answers ``logits``, float32
(n, 10): unnormalised; the largest names the class. Equal parameters give equal bytes: what the
exporter notes for its own debugging (source paths, stack traces) is removed.

The maintained exporter (``torch.export``, dynamo=True) is used: 6 s and 130 MiB more than the
deprecated TorchScript one, paid once a job, in a process of its own.
"""

import io
import logging
import os
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from agent.training.contract import AttemptFailed

ERROR_MAX = 1e-4
"""Largest absolute difference of a logit; float32 sums in another order differ by about 1e-6."""
TRIALS = (1, 7, 64)
"""Batch sizes compared, none of them the traced one."""
INPUT, OUTPUT = "image", "logits"


def to_onnx(model: nn.Module, side: int) -> tuple[bytes, float]:
    """The model as ONNX with a free batch size, and its largest error against PyTorch.

    Raises:
        AttemptFailed: ONNX Runtime gives other answers than PyTorch by more than ``ERROR_MAX``.
    """
    model.eval()
    content = _exported(model, side)
    error_max = _difference(model, side, content)
    if not error_max <= ERROR_MAX:  # NaN fails too
        raise AttemptFailed(
            f"the exported model differs from PyTorch by {error_max:.3g}",
            why=f"the bound is {ERROR_MAX}",
        )
    return content, error_max


def _exported(model: nn.Module, side: int) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's of itself; nothing we could act on
        program = torch.onnx.export(
            model,
            (torch.zeros(2, side * side),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None, "the exporter returns a program when it is given no file"
    proto = program.model_proto
    _strip(proto, (proto.graph, *proto.functions))
    file = io.BytesIO(proto.SerializeToString(deterministic=True))
    return file.getvalue()


def _strip(proto: Any, graphs: Iterable[Any]) -> None:
    """Remove what differs between machines and says where this one keeps its sources."""
    proto.doc_string = ""
    del proto.metadata_props[:]
    for graph in graphs:
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.value_info, *graph.input, *graph.output):
            part.doc_string = ""
            del part.metadata_props[:]


def _difference(model: nn.Module, side: int, content: bytes) -> float:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime  # noqa: PLC0415 - only after the variable is set, and only for exports

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        content, sess_options=options, providers=["CPUExecutionProvider"]
    )
    generator = torch.Generator().manual_seed(side)
    error_max = 0.0
    for count in TRIALS:
        images = torch.rand(count, side * side, generator=generator)
        with torch.inference_mode():
            wanted = model(images)
        (given,) = session.run([OUTPUT], {INPUT: images.numpy()})
        error = float((torch.from_numpy(given) - wanted).abs().max())
        error_max = max(error_max, error if error == error else float("inf"))  # noqa: PLR0124 - NaN
    return error_max
