"""Accuracy on labelled images: who passes, who does not, and what is no hold-out for a model."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from agent.workers import inference_holdout
from agent.workers.inference_holdout import check_accuracy
from agent.workers.inference_session import LoadRefused, ModelSession


def session(shape: str = "N, 4") -> ModelSession:
    """The class is the brightest of four pixels."""
    text = (
        f'<ir_version: 8, opset_import: ["" : 13]> g (float[{shape}] x) => (float[N, 4] y)'
        "<int64[2] flat = {-1, 4}> { y = Reshape(x, flat) }"
    )
    return ModelSession(parser.parse_model(text).SerializeToString(), "m", "1", ())


def idx(path: Path, data: np.ndarray) -> Path:
    header = bytes([0, 0, 8, data.ndim]) + b"".join(n.to_bytes(4, "big") for n in data.shape)
    path.write_bytes(header + data.astype(np.uint8).tobytes())
    return path


class Files:
    """Images of which a known share is labelled as the model sees them."""

    def __init__(self, folder: Path, count: int, right: int) -> None:
        brightest = np.arange(count) % 4
        images = np.zeros((count, 2, 2), np.uint8)
        images.reshape(count, 4)[np.arange(count), brightest] = 200
        labels = np.where(np.arange(count) < right, brightest, (brightest + 1) % 4)
        self.images = os.open(idx(folder / "images", images), os.O_RDONLY)
        self.labels = os.open(idx(folder / "labels", labels), os.O_RDONLY)

    def close(self) -> None:
        os.close(self.images)
        os.close(self.labels)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path, 100, 90)
    yield made
    made.close()


@pytest.mark.parametrize("shape", ["N, 4", "N, 1, 2, 2", "50, 4", "1, 2, 2"])
def test_enough_right_answers_pass_and_one_too_few_does_not(files: Files, shape: str) -> None:
    model = session(shape)
    check_accuracy(model, files.images, files.labels, 0.9)
    with pytest.raises(
        LoadRefused, match=r"on 100 images of this site's hold-out is 0\.900; 0\.91"
    ):
        check_accuracy(model, files.images, files.labels, 0.91)


def test_no_more_is_judged_than_the_bound(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_holdout, "IMAGES_MAX", 50)
    check_accuracy(session(), files.images, files.labels, 1.0)


@pytest.mark.parametrize("shape", ["N, 5", "N, M", "N, 3, 2, 2"])
def test_a_model_that_takes_something_else_is_refused(files: Files, shape: str) -> None:
    with pytest.raises(LoadRefused, match=r"it takes x \[.*an image has 4 pixels"):
        check_accuracy(session(shape), files.images, files.labels, 0.5)


def test_a_model_of_two_inputs_is_refused(files: Files) -> None:
    text = '<ir_version: 8, opset_import: ["" : 13]> g (float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { y = Add(x, z) }'
    model = ModelSession(parser.parse_model(text).SerializeToString(), "m", "1", ())
    with pytest.raises(LoadRefused, match="cannot be judged"):
        check_accuracy(model, files.images, files.labels, 0.5)


@pytest.mark.parametrize("content", [b"", b"short", bytes(100), b"\0\0\x08\x03" + b"\xff" * 40])
def test_files_that_are_no_hold_out_are_refused(
    files: Files, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "bad").write_bytes(content)
    bad = os.open(tmp_path / "bad", os.O_RDONLY)
    with pytest.raises(LoadRefused, match="hold-out"):
        check_accuracy(session(), bad, files.labels, 0.5)
    with pytest.raises(LoadRefused, match="hold-out"):
        check_accuracy(session(), files.images, bad, 0.5)
    os.close(bad)
