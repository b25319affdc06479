"""A site's labelled images, in the IDX format of the MNIST files.

A dataset folder holds ``train-images-idx3-ubyte`` and ``train-labels-idx1-ubyte``; if it holds the
``t10k-`` (or ``test-``) pair too, that is the hold-out, else the last tenth of the training images
is. Images are square and of one size; labels are 0 to 9.

Source: LeCun, Cortes, Burges, "The MNIST database of handwritten digits", file formats.
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from agent.foundation.errors import ConfigError
from agent.training.contract import HOLDOUT_PREFIXES

Bytes = NDArray[np.uint8]

IMAGES_MAGIC, LABELS_MAGIC = 0x0803, 0x0801
FILE_BYTES_MAX = 1 << 30
"""1.3 million images of 28 x 28: a dataset stands in memory whole."""
SIDE_MAX = 256
CLASSES = 10
HOLDOUT_SHARE = 10
"""One in this many is held out when the folder has no test files."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Images (n, side * side) of 0 to 255 and labels (n,) of 0 to 9, to train on and held out."""

    images: Bytes
    labels: Bytes
    holdout_images: Bytes
    holdout_labels: Bytes
    side: int


def load(folder: Path) -> Dataset:
    """Read and check a dataset folder.

    Raises:
        ConfigError: a file is missing, damaged, or does not fit the others; it is named. The
            operator corrects the folder bound to the dataset's name.
    """
    images, labels, side = _pair(folder, "train")
    for prefix in HOLDOUT_PREFIXES:
        if (folder / f"{prefix}-images-idx3-ubyte").exists():
            held, held_labels, held_side = _pair(folder, prefix)
            if held_side != side:
                raise _bad(
                    folder / f"{prefix}-images-idx3-ubyte",
                    f"images of side {held_side}, those to train on have {side}",
                )
            return Dataset(images, labels, held, held_labels, side)
    kept = len(images) - max(1, len(images) // HOLDOUT_SHARE)
    if kept < 1:
        raise _bad(folder / "train-images-idx3-ubyte", "one image cannot also be held out")
    return Dataset(images[:kept], labels[:kept], images[kept:], labels[kept:], side)


def _pair(folder: Path, prefix: str) -> tuple[Bytes, Bytes, int]:
    images_path = folder / f"{prefix}-images-idx3-ubyte"
    labels_path = folder / f"{prefix}-labels-idx1-ubyte"
    images, (count, rows, columns) = _read(images_path, IMAGES_MAGIC, 3)
    labels, (label_count,) = _read(labels_path, LABELS_MAGIC, 1)
    if rows != columns or not 1 <= rows <= SIDE_MAX:
        raise _bad(images_path, f"images of {rows} x {columns}, square ones up to {SIDE_MAX} work")
    if count < 1:
        raise _bad(images_path, "no images")
    if label_count != count:
        raise _bad(labels_path, f"{label_count} labels for {count} images")
    if int(labels.max()) >= CLASSES:
        raise _bad(
            labels_path, f"a label of {int(labels.max())}, the largest known is {CLASSES - 1}"
        )
    return images.reshape(count, rows * columns), labels, rows


def _read(path: Path, magic: int, dimensions: int) -> tuple[Bytes, tuple[int, ...]]:
    try:
        with path.open("rb") as file:
            content = np.fromfile(file, np.uint8, FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _bad(path, error.strerror or "it cannot be read") from None
    if len(content) > FILE_BYTES_MAX:
        raise _bad(path, f"more than {FILE_BYTES_MAX} bytes")
    try:
        return parse_idx(content, magic, dimensions)
    except ValueError as error:
        raise _bad(path, str(error)) from None


def parse_idx(content: Bytes, magic: int, dimensions: int) -> tuple[Bytes, tuple[int, ...]]:
    """The data of an IDX file of unsigned bytes, flat, and its shape.

    Raises:
        ValueError: it is none of this kind; says why.
    """
    header_bytes = 4 + 4 * dimensions
    if len(content) < header_bytes:
        raise ValueError("it is shorter than an IDX header")
    found, *sizes = struct.unpack(f">{1 + dimensions}I", content[:header_bytes].tobytes())
    if found != magic:
        raise ValueError(f"it starts with {found:#06x}, an IDX file of this kind with {magic:#06x}")
    if len(content) - header_bytes != prod(sizes):
        raise ValueError(
            f"{len(content) - header_bytes} bytes of data, its header says {prod(sizes)}"
        )
    return content[header_bytes:], tuple(sizes)


def _bad(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"cannot train on {path}", why=why, mend="correct the folder bound to the dataset"
    )
