"""The demo as an application developer: the ordinary Triton client against the local site."""

import importlib.util
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from agent.cli.demo.cluster import Failed
from agent.cli.demo.data import Images
from agent.foundation.errors import Unreachable


@dataclass(frozen=True, slots=True)
class FileTypes:
    """The magika model: tells what kind of content a file has from its first and last bytes."""

    path: Path
    labels: tuple[str, ...]
    begin: int
    end: int
    padding: int

    @classmethod
    def find(cls) -> "FileTypes":
        """The model inside the installed package, which itself is not imported.

        Raises:
            Failed: the package is not installed or holds no model.
        """
        found = importlib.util.find_spec("magika")
        folders = list(found.submodule_search_locations or ()) if found is not None else []
        models = sorted(
            path for folder in folders for path in Path(folder).glob("models/*/model.onnx")
        )
        if not models:
            raise Failed(
                "no ONNX model at hand: install one with `pip install --no-deps magika` (make demo "
                "does)"
            )
        path = models[-1]
        config = json.loads((path.parent / "config.min.json").read_text())
        return cls(
            path, tuple(config["target_labels_space"]), config["beg_size"], config["end_size"],
            config["padding_token"],
        )  # fmt: skip

    def features(self, content: bytes) -> np.ndarray:
        """The model's input for one file: shape [1, begin + end], int32."""
        content = content.strip()
        head = np.full(self.begin, self.padding, np.int32)
        tail = np.full(self.end, self.padding, np.int32)
        first, last = content[: self.begin], content[-self.end :]
        head[: len(first)] = np.frombuffer(first, np.uint8)
        tail[self.end - len(last) :] = np.frombuffer(last, np.uint8)
        return np.concatenate([head, tail])[None, :]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an application saw."""

    label: str
    served_by: str
    took_ms: float


def file_type(http: str, model: FileTypes, content: bytes) -> Answer:
    """Ask ``magika`` through the site at ``http`` what kind of file ``content`` is."""
    features = model.features(content)
    with triton.InferenceServerClient(http, network_timeout=20.0) as client:
        tensor = triton.InferInput("bytes", list(features.shape), "INT32")
        tensor.set_data_from_numpy(features)
        began = time.perf_counter()
        result = _infer(client, http, "magika", tensor)
        took_ms = (time.perf_counter() - began) * 1000
    scores = result.as_numpy("target_label")[0]
    served_by = result.get_response().get("parameters", {}).get("served_by", "")
    return Answer(model.labels[int(scores.argmax())], served_by, took_ms)


@dataclass(frozen=True, slots=True)
class Score:
    """How well a site answered."""

    right: int
    total: int
    served_by: frozenset[str]
    image_ms: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.total


def classify(http: str, model: str, images: Images, batch: int = 500) -> Score:
    """Send every image to the site at ``http`` and count the right answers."""
    size = images.side * images.side
    pixels = np.frombuffer(images.pixels, np.uint8).reshape(-1, size).astype(np.float32) / 255
    labels = np.frombuffer(images.labels, np.uint8)
    right, served = 0, set()
    began = time.perf_counter()
    with triton.InferenceServerClient(http, network_timeout=30.0) as client:
        for start in range(0, len(images), batch):
            part = np.ascontiguousarray(pixels[start : start + batch])
            tensor = triton.InferInput("image", list(part.shape), "FP32")
            tensor.set_data_from_numpy(part)
            result = _infer(client, http, model, tensor)
            right += int(
                (result.as_numpy("logits").argmax(1) == labels[start : start + batch]).sum()
            )
            served.add(result.get_response().get("parameters", {}).get("served_by", ""))
    took_ms = (time.perf_counter() - began) * 1000
    return Score(right, len(images), frozenset(served), took_ms / len(images))


def _infer(
    client: triton.InferenceServerClient, http: str, model: str, tensor: triton.InferInput
) -> triton.InferResult:
    try:
        return client.infer(model, [tensor])
    except InferenceServerException as error:
        raise Unreachable(f"{http} gives no answer", why=str(error)) from None
