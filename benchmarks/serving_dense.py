"""A model that gains by running requests together on a CPU: dense layers, whose weights are read once
for all rows. The convolutions of the packaged models gain nothing there: a row costs what it costs.
"""

import itertools
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from serving_servers import BINARY, Body

WIDTHS = (784, 2048, 2048, 10)
MEASURED_S = 1.0


def write_dense(path: Path) -> Path:
    """x [b, 784] -> y [b, 10]; 23 MB."""
    random = np.random.default_rng(1)
    nodes, weights, name = [], [], "x"
    layers = list(itertools.pairwise(WIDTHS))
    for number, (width, following) in enumerate(layers):
        matrix = random.standard_normal((width, following), np.float32) / np.float32(width**0.5)
        weights.append(numpy_helper.from_array(matrix, f"w{number}"))
        is_last = number == len(layers) - 1
        sums = "y" if is_last else f"s{number}"
        nodes.append(helper.make_node("MatMul", [name, f"w{number}"], [sums]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [sums], [f"r{number}"]))
        name = f"r{number}"
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", width])
        for name, width in (("x", WIDTHS[0]), ("y", WIDTHS[-1]))
    ]
    graph = helper.make_graph(nodes, "dense", tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def dense_body() -> Body:
    """One row, in the binary tensor extension."""
    content = np.full((1, WIDTHS[0]), 0.5, np.float32).tobytes()
    given = {"name": "x", "shape": [1, WIDTHS[0]], "datatype": "FP32",
             "parameters": {"binary_data_size": len(content)}}  # fmt: skip
    head = json.dumps({"parameters": {"binary_data_output": True}, "inputs": [given]}).encode()
    return Body(head + content, BINARY, len(head))


def row_us(model: Path, shape: tuple[int, ...], rows: int) -> float:
    """What a row costs in raw ONNX Runtime on one thread where ``rows`` run together, microseconds."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    feed = {"x": np.full((rows, *shape), 0.5, np.float32)}
    runs, began = 0, time.perf_counter()
    while (took_s := time.perf_counter() - began) < MEASURED_S:
        session.run(None, feed)
        runs += 1
    return took_s * 1e6 / (runs * rows)
