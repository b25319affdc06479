"""What every server of the serving bench shares: the models, fixed payloads, the protocol's two forms.

Runs in each peer's own environment; needs numpy, and onnxruntime for ``session``. The models come out
of packages (``serving_setup``): a voice activity detector, a text angle classifier, a text detector.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np

FOLDER = Path(
    os.environ.get("SERVING_MODELS") or Path(__file__).parents[2] / ".cache/serving/models"
)
Shapes = dict[str, tuple[int, ...]]
MODELS: dict[str, Shapes] = {
    "vad": {"input": (1, 576), "state": (2, 1, 128)},
    "cls": {"x": (1, 3, 48, 192)},
    "det": {"x": (1, 3, 224, 224)},
}
BOUNDARY = "atoll-bench"


def session(model: str) -> Any:
    """One thread and no spinning, as everywhere in this bench."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = str(FOLDER / f"{model}.onnx")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(model: str, shapes: Shapes | None = None) -> dict[str, Any]:
    """The same inputs for everybody; the recurrent state starts with zeros."""
    random = np.random.default_rng(7)
    return {
        name: random.random(shape, dtype=np.float32) * np.float32(name != "state")
        for name, shape in (shapes or MODELS[model]).items()
    }


def binary_body(model: str, shapes: Shapes | None = None) -> tuple[int, bytes]:
    """Length of the JSON part, and the body in the binary tensor extension, answered in binary."""
    given = feeds(model, shapes)
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP32",
         "parameters": {"binary_data_size": array.nbytes}}
        for name, array in given.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return len(head), head + b"".join(array.tobytes() for array in given.values())


def json_body(model: str, shapes: Shapes | None = None) -> bytes:
    """The same request all in JSON, six digits a number."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "FP32",
         "data": [float(f"{value:.6g}") for value in array.ravel().tolist()]}
        for name, array in feeds(model, shapes).items()
    ]  # fmt: skip
    return json.dumps({"inputs": inputs}).encode()


def multipart_body(model: str) -> bytes:
    """The binary form as two parts of a form: LitServe takes no raw body."""
    length, body = binary_body(model)
    part = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    return (
        f'{part}"h"\r\n\r\n{length}\r\n{part}"f"; filename="f"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode() + body + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip


def decode(
    body: bytes, json_bytes: int | None, loads: Callable[[Any], Any]
) -> tuple[dict[str, Any], bool]:
    """Inputs by name, and whether the answer is to be binary. Trusts the body: this is the floor."""
    at = len(body) if json_bytes is None else json_bytes
    request = loads(body if json_bytes is None else bytes(memoryview(body)[:json_bytes]))
    found = {}
    for tensor in request["inputs"]:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is None:
            array = np.asarray(tensor["data"], np.float32)
        else:
            array = np.frombuffer(body, np.float32, size // 4, at)
            at += size
        found[tensor["name"]] = array.reshape(tensor["shape"])
    return found, bool((request.get("parameters") or {}).get("binary_data_output"))


def encode(
    model: str, names: list[str], outputs: list[Any], dumps: Callable[[Any], bytes], *, is_binary: bool
) -> tuple[int | None, bytes]:  # fmt: skip
    """Length of the JSON part of a binary answer (None: all JSON), and the body."""
    described: list[dict[str, Any]] = []
    tail = []
    for name, array in zip(names, outputs, strict=True):
        entry = {"name": name, "shape": list(array.shape), "datatype": "FP32"}
        if is_binary:
            entry["parameters"] = {"binary_data_size": array.nbytes}
            tail.append(np.ascontiguousarray(array).tobytes())
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    head = dumps({"model_name": model, "model_version": "1", "outputs": described})
    return (len(head) if is_binary else None), b"".join([head, *tail])


class Sessions:
    """All three models in one process; what the wrappers of this folder call."""

    def __init__(self, loads: Callable[[Any], Any], dumps: Callable[[Any], bytes]) -> None:
        self._loads, self._dumps = loads, dumps
        self._sessions = {model: session(model) for model in MODELS}
        self._outputs = {
            model: [output.name for output in one.get_outputs()]
            for model, one in self._sessions.items()
        }

    def answer(self, model: str, body: bytes, json_bytes: int | None) -> tuple[int | None, bytes]:
        """The protocol's answer to one body."""
        given, is_binary = decode(body, json_bytes, self._loads)
        found = self._sessions[model].run(None, given)
        return encode(model, self._outputs[model], found, self._dumps, is_binary=is_binary)
