import struct
from pathlib import Path

import numpy as np
import pytest

from agent.foundation.errors import ConfigError
from agent.workers.recipes_idx import IMAGES_MAGIC, LABELS_MAGIC, load


def write_pair(folder: Path, prefix: str, count: int, side: int = 8) -> None:
    pixels = np.arange(count * side * side, dtype=np.uint64).astype(np.uint8)
    header = struct.pack(">4I", IMAGES_MAGIC, count, side, side)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
    labels = bytes(at % 10 for at in range(count))
    header = struct.pack(">2I", LABELS_MAGIC, count)
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels)


def test_without_test_files_the_last_tenth_is_held_out(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 25)
    dataset = load(tmp_path)
    assert dataset.side == 8
    assert dataset.images.shape == (23, 64)
    assert dataset.holdout_images.shape == (2, 64)
    assert dataset.holdout_labels.tolist() == [3, 4]


@pytest.mark.parametrize("prefix", ["t10k", "test"])
def test_test_files_are_the_hold_out(prefix: str, tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 25)
    write_pair(tmp_path, prefix, 4)
    dataset = load(tmp_path)
    assert len(dataset.images) == len(dataset.labels) == 25
    assert len(dataset.holdout_images) == len(dataset.holdout_labels) == 4


def test_test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 25)
    write_pair(tmp_path, "test", 4, side=9)
    with pytest.raises(ConfigError, match="side 9, those to train on have 8"):
        load(tmp_path)


def test_one_image_cannot_be_trained_on_and_held_out(tmp_path: Path) -> None:
    write_pair(tmp_path, "train", 1)
    with pytest.raises(ConfigError, match="one image"):
        load(tmp_path)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        (IMAGES, b"", "shorter than an IDX header"),
        (IMAGES, struct.pack(">4I", LABELS_MAGIC, 3, 8, 8) + bytes(192), "starts with 0x0801"),
        (IMAGES, struct.pack(">4I", IMAGES_MAGIC, 3, 8, 8) + bytes(191), "191 bytes of data"),
        (IMAGES, struct.pack(">4I", IMAGES_MAGIC, 2**31, 2**31, 2**31), "header says"),
        (IMAGES, struct.pack(">4I", IMAGES_MAGIC, 3, 8, 4) + bytes(96), "8 x 4"),
        (IMAGES, struct.pack(">4I", IMAGES_MAGIC, 3, 0, 0), "0 x 0"),
        (IMAGES, struct.pack(">4I", IMAGES_MAGIC, 0, 8, 8), "no images"),
        (LABELS, struct.pack(">2I", LABELS_MAGIC, 4) + bytes(4), "4 labels for 3 images"),
        (LABELS, struct.pack(">2I", LABELS_MAGIC, 3) + bytes([0, 10, 1]), "label of 10"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(
    file: str, content: bytes, what: str, tmp_path: Path
) -> None:
    write_pair(tmp_path, "train", 3)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=what) as raised:
        load(tmp_path)
    assert file in raised.value.what


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{IMAGES}; No such file"):
        load(tmp_path)
