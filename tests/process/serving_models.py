"""Real models out of published packages, and small ones for each datatype.

The packages are installed for their model files only: none of them is imported.
"""

import importlib.util
from pathlib import Path


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
