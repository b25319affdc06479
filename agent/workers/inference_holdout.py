"""A version's accuracy on a site's own labelled images, before it may serve there.

The files are the hold-out of a data set as the trainer reads it (``recipes_idx``), given as descriptors; what
leaves the process is whether the accuracy suffices. The model takes one float32 tensor whose elements, but for the
first dimension, are as many as an image has pixels (0 to 1), and its first output has a number for each class.
"""

import mmap
import os
from math import prod

import numpy as np

from agent.workers.inference_session import LoadRefused, ModelSession
from agent.workers.recipes_idx import (
    FILE_BYTES_MAX,
    IMAGES_MAGIC,
    LABELS_MAGIC,
    Bytes,
    parse_idx,
)

IMAGES_MAX = 2000
"""Judged: the accuracy of so many is known within a point; at a millisecond each they take two seconds."""
BATCH = 50


def check_accuracy(session: ModelSession, images: int, labels: int, accuracy_min: float) -> None:
    """Judge a model by the first ``IMAGES_MAX`` images; the descriptors stay open.

    Raises:
        LoadRefused: the accuracy is less, or the files or the model do not lend themselves to it.
    """
    pixels, wanted = _read(images, IMAGES_MAGIC, 3), _read(labels, LABELS_MAGIC, 1)
    count = min(len(pixels), len(wanted), IMAGES_MAX)
    if not count:
        raise LoadRefused("this site's hold-out has no images")
    shape, batch = _input(session, pixels[0].size)
    right = 0
    for start in range(0, count - count % batch, batch):
        given = pixels[start : start + batch].reshape(batch, *shape).astype(np.float32) / 255.0
        try:
            found = session.run_plain({session.signature.inputs[0].name: given})[0]
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions share no base
            raise LoadRefused(f"it fails on this site's hold-out: {str(error)[:300]}") from None
        classes = found.reshape(batch, -1).argmax(axis=1)
        right += int((classes == wanted[start : start + batch]).sum())
    judged = count - count % batch
    if not judged or right < accuracy_min * judged:
        raise LoadRefused(
            f"its accuracy on {judged} images of this site's hold-out is"
            f" {right / max(1, judged):.3f}; {accuracy_min:g} is asked for"
        )


def _input(session: ModelSession, pixels: int) -> tuple[tuple[int, ...], int]:
    """The shape of one image as the model takes it, and how many are given at once."""
    inputs = session.signature.inputs
    spec = inputs[0]
    first, rest = spec.shape[:1], spec.shape[1:]
    if len(inputs) != 1 or spec.datatype.name != "FP32" or prod(rest) != pixels or -1 in rest:
        told = ", ".join(f"{one.name} {list(one.shape)} {one.datatype.name}" for one in inputs)
        raise LoadRefused(
            f"it cannot be judged by this site's hold-out: it takes {told}, an image has {pixels} pixels"
        )
    return rest, first[0] if first[0] > 0 else BATCH


def _read(descriptor: int, magic: int, dimensions: int) -> Bytes:
    size = os.fstat(descriptor).st_size
    if not 0 < size <= FILE_BYTES_MAX:
        raise LoadRefused(f"this site's hold-out has a file of {size} bytes")
    content = np.frombuffer(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ), np.uint8)
    try:
        data, shape = parse_idx(content, magic, dimensions)
    except ValueError as error:
        raise LoadRefused(f"this site's hold-out cannot be read: {error}") from None
    return data.reshape(shape)
