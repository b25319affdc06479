"""Real models out of published packages, and small ones for each datatype.

The packages are installed for their model files only: none of them is imported.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnx import TensorProto, helper

_ONNX = {
    "BOOL": "BOOL", "UINT8": "UINT8", "UINT16": "UINT16", "UINT32": "UINT32", "UINT64": "UINT64",
    "INT8": "INT8", "INT16": "INT16", "INT32": "INT32", "INT64": "INT64", "FP16": "FLOAT16",
    "BF16": "BFLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING",
}  # fmt: skip
"""What ONNX calls the protocol's datatypes."""


def _file_of(package: str, *parts: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None, f"{package} is missing; run make venv"
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0], *parts)


MAGIKA = _file_of("magika", "models", "standard_v3_3", "model.onnx")
"""bytes [b, 2048] INT32 -> target_label [b, 214]."""
DET = _file_of("rapidocr_onnxruntime", "models", "ch_PP-OCRv4_det_infer.onnx")
"""x [b, 3, h, w] FP32 -> [b, 1, h, w]; h and w are multiples of 32."""
CLS = _file_of("rapidocr_onnxruntime", "models", "ch_ppocr_mobile_v2.0_cls_infer.onnx")
"""x [b, 3, 48, 192] FP32 -> [b, 2]."""
REC = _file_of("rapidocr_onnxruntime", "models", "ch_PP-OCRv4_rec_infer.onnx")
"""x [b, 3, 48, w] FP32 -> [b, t, 6625]: about a megabyte."""


def raw_runtime(model: Path) -> Any:
    """A session with the worker's options, in this process: what the site must equal to the bit."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def echo_model(path: Path, datatypes: Sequence[str]) -> Path:
    """For each datatype an input ``x_NAME`` [n] and an output ``y_NAME`` with the same elements."""
    from serving_site import save_model  # noqa: PLC0415 - which imports the models above

    types = {name: getattr(TensorProto, _ONNX[name]) for name in datatypes}
    return save_model(
        path,
        [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in types],
        [(f"x_{name}", kind, ["n"]) for name, kind in types.items()],
        [(f"y_{name}", kind, ["n"]) for name, kind in types.items()],
    )
