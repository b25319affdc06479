"""Parameters on disk: safetensors, float32 only, read without copying, written byte for byte alike.

Theory of operation. A safetensors file is ``length (8, little endian) | header (JSON) | tensors``.
It is read here, not by the library, for three reasons: a confined process is given descriptors, not
paths (the library opens paths); the bytes come from other sites, so each field has a bound; and the
same parameters must give the same bytes, or their digests differ (the library's metadata has no
fixed order). Files of either are read by the other; tests/properties holds them to that.

One metadata entry, ``atoll``, names what the parameters belong to: ``recipe/side`` of the image.

Source: https://github.com/huggingface/safetensors, README "Format".
"""

import contextlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.foundation.errors import Malformed

Floats: TypeAlias = NDArray[np.float32]

HEADER_BYTES_MAX = 4 << 20
"""About 10,000 tensors of 100 bytes of header each; with control variates and an optimizer's state four times as many."""
FILE_BYTES_MAX = 8 << 30
"""Two billion parameters: beyond it one aggregator's memory is the wrong place for a round."""
DIMENSIONS_MAX = 8
CONTROL = "~control/"
"""Begins the name of a control variate. Files hold tensors in the order of their names: these follow all others,
and in the order of what they are about."""
LABEL = "atoll"
LABEL_CHARS_MAX = 200
VALUE_MAX = 1e15
"""Larger ones have diverged: soon the square of a step between two of them would be no float32 any more, and what an
outer optimizer carries on would be spoilt for good."""
CHECK_ELEMENTS = 1 << 18
"""Looked at together: 1 MiB stays in the second-level cache."""
_MADV_POPULATE_READ = 22
"""Linux ``include/uapi/asm-generic/mman-common.h``."""
ALIGNMENT = 8
"""The header is padded with spaces so that tensors lie aligned in a mapped file."""


@dataclass(frozen=True, slots=True)
class Parameters:
    """Named tensors and what they belong to."""

    label: str
    tensors: Mapping[str, Floats]

    def outline(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes: what two sets must share to be averaged."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """Values of a file in a row, from ``start`` on; of a part of one, too."""

    values: Floats
    content: memoryview
    """What they are a view of: they are its end."""
    start: int = 0
    """Which of all values of the file is the first here."""

    def block(self, at: slice) -> Floats:
        """The values ``at``, as the whole file counts them."""
        return self.values[at.start - self.start : at.stop - self.start]

    def expect(self, at: slice) -> None:
        """These values are read next: all their pages at once, since a fault for each costs more than adding it up."""
        whole = self.content.obj
        if isinstance(whole, mmap.mmap):
            before = len(self.content) - self.values.nbytes - 4 * self.start
            first = (before + 4 * at.start) // mmap.PAGESIZE * mmap.PAGESIZE
            end = min(before + 4 * at.stop, len(self.content))
            with contextlib.suppress(OSError):  # Linux before 5.14: page by page, then
                whole.madvise(_MADV_POPULATE_READ, first, end - first)


@dataclass(frozen=True, slots=True)
class Stored(Parameters):
    """Parameters in a file, or in its bytes."""

    head: bytes
    """What precedes the values."""
    row: Row
    """All tensors' values, in the order of the file."""

    @property
    def values(self) -> Floats:
        """All of them."""
        return self.row.values

    @property
    def content(self) -> memoryview:
        """The bytes of the file."""
        return self.row.content


def name_at(parameters: Parameters, index: int) -> str:
    """The tensor that holds value ``index`` of a file of them."""
    for name in sorted(parameters.tensors):
        index -= parameters.tensors[name].size
        if index < 0:
            return name
    raise IndexError(index)


def read(descriptor: int) -> Stored:
    """Map a file's tensors (read-only views of it; the descriptor may be closed afterwards).

    Raises:
        Malformed: not a safetensors file of float32 tensors within bounds. The update it came as
            is dropped.
    """
    return parse(mapped(descriptor))


def mapped(descriptor: int) -> memoryview:
    """A file's bytes, read-only; the descriptor may be closed afterwards.

    Raises:
        Malformed: too many for parameters, or none.
    """
    size = os.fstat(descriptor).st_size
    if not 0 < size <= FILE_BYTES_MAX:
        raise Malformed(f"parameters of {size} bytes", why=f"the bound is {FILE_BYTES_MAX}")
    return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))


def parse(content: bytes | memoryview) -> Stored:
    """As ``read``, from bytes in memory."""
    view = memoryview(content)
    length = int.from_bytes(view[:8], "little")
    if len(view) < ALIGNMENT or not 0 < length <= min(HEADER_BYTES_MAX, len(view) - 8):
        raise Malformed("parameters do not start with a header", why="not safetensors, or cut off")
    try:
        header = json.loads(bytes(view[8 : 8 + length]))
    except (ValueError, RecursionError):
        raise Malformed("the header of the parameters is not JSON") from None
    if not isinstance(header, dict):
        raise Malformed("the header of the parameters is not a table")
    label = _label(header.pop("__metadata__", {}))
    tensors: dict[str, Floats] = {}
    at = 8 + length
    for name, place in sorted(header.items(), key=_offset):
        shape, end = _checked(name, place, at - 8 - length)
        if 8 + length + end > len(view):
            raise Malformed(f"tensor {name!r} is cut off")
        tensors[name] = np.frombuffer(view[at : 8 + length + end], dtype="<f4").reshape(shape)
        at = 8 + length + end
    if at != len(view) or not tensors:
        raise Malformed("parameters and their header differ", why="bytes that no tensor names")
    values = np.frombuffer(view[8 + length :], dtype="<f4")
    return Stored(label, tensors, bytes(view[: 8 + length]), Row(values, view))


def with_controls(like: Parameters) -> Parameters:
    """Names and shapes of parameters with a control variate for each; the latter take no memory."""
    nothing = np.zeros(1, np.float32)
    controls = {
        CONTROL + name: np.broadcast_to(nothing, tensor.shape)
        for name, tensor in like.tensors.items()
    }
    return Parameters(like.label, {**like.tensors, **controls})


def check_like(given: Parameters, wanted: Parameters) -> None:
    """Pass if ``given`` has the label, names and shapes of ``wanted``.

    Raises:
        Malformed: names the first difference.
    """
    if given.label != wanted.label:
        raise Malformed(
            f"parameters of {given.label!r}", why=f"those of {wanted.label!r} are wanted"
        )
    mine, theirs = given.outline(), wanted.outline()
    for name, shape in theirs.items():
        if name not in mine:
            raise Malformed(f"tensor {name!r} is missing")
        if mine[name] != shape:
            raise Malformed(f"tensor {name!r} has shape {mine[name]}", why=f"{shape} is wanted")
    if extra := sorted(mine.keys() - theirs.keys()):
        raise Malformed(f"tensor {extra[0]!r} is not part of {wanted.label!r}")


def largest(parameters: Parameters) -> dict[str, float]:
    """The largest magnitude in each tensor (0 if it is empty).

    Raises:
        Malformed: a tensor holds NaN, infinity or what is as good as that; it is named.
    """
    found = {}
    for name, tensor in parameters.tensors.items():
        flat = tensor.reshape(-1)
        blocks = (flat[at : at + CHECK_ELEMENTS] for at in range(0, flat.size, CHECK_ELEMENTS))
        found[name] = max((largest_of(block) for block in blocks), default=0.0)
        if not np.isfinite(found[name]):
            raise not_finite(name)
    return found


def largest_of(values: Floats) -> float:
    """The largest magnitude of some values; infinity if any of them is no number, or beyond ``VALUE_MAX``."""
    most = max(float(values.max()), -float(values.min()))  # NaN, if any is
    return most if most <= VALUE_MAX else float("inf")


def not_finite(name: str) -> Malformed:
    """The error for a tensor that holds NaN or infinity."""
    return Malformed(f"tensor {name!r} is not finite", why="training diverged, or was made to")


def write(parameters: Parameters, file: BinaryIO) -> int:
    """Write the parameters; equal parameters give equal bytes. Returns the number of bytes."""
    head, size = head_of(parameters)
    file.write(head)
    for name in sorted(parameters.tensors):
        tensor = np.ascontiguousarray(parameters.tensors[name], dtype="<f4")
        file.write(tensor.reshape(-1).view(np.uint8).data)
    return len(head) + size


def make(outline: Parameters, descriptor: int) -> Stored:
    """A new file for parameters such as ``outline``, all zero; the tensors are writable views of it.

    What is written there takes no memory of the process's own.

    Raises:
        OSError: the disk has no room.
    """
    head, size = head_of(outline)
    content = make_bytes(descriptor, len(head) + size)
    content[: len(head)] = head
    return parse(content)


def make_bytes(descriptor: int, size: int) -> memoryview:
    """A new file of ``size`` bytes, all zero, as writable memory.

    Raises:
        OSError: the disk has no room.
    """
    os.truncate(descriptor, size)
    os.posix_fallocate(descriptor, 0, size)  # else a full disk ends the process later
    return memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def head_of(parameters: Parameters) -> tuple[bytes, int]:
    """What precedes the tensors in a file, and how many bytes they take."""
    header: dict[str, object] = {"__metadata__": {LABEL: parameters.label}}
    at = 0
    for name in sorted(parameters.tensors):
        tensor = parameters.tensors[name]
        assert tensor.dtype == np.float32, name
        end = at + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), sort_keys=True).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, at


def _offset(item: tuple[str, object]) -> tuple[int, int]:
    match item[1]:
        case {"data_offsets": [int(start), int(end)]}:
            return start, end
        case _:
            raise Malformed(f"tensor {item[0][:80]!r} has no place in the file")


def _checked(name: str, place: Mapping[str, object], start: int) -> tuple[tuple[int, ...], int]:
    """The shape of a tensor and where it ends, if it starts where the one before ended."""
    match place:
        case {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, int(end)]}:
            pass
        case _:
            raise Malformed(f"tensor {name[:80]!r} is not float32")
    sizes_are_sound = len(shape) <= DIMENSIONS_MAX and all(
        type(size) is int and 0 <= size <= FILE_BYTES_MAX for size in shape
    )
    # An empty tensor has sides, too, and numpy multiplies them.
    if not sizes_are_sound or prod(size for size in shape if size) > FILE_BYTES_MAX:
        raise Malformed(f"tensor {name[:80]!r} has an impossible shape")
    if begin != start or end - start != 4 * prod(shape):
        raise Malformed(f"tensor {name[:80]!r} overlaps another, leaves a gap, or misses bytes")
    return tuple(shape), end


def _label(metadata: object) -> str:
    if not isinstance(metadata, dict):
        raise Malformed("the metadata of the parameters is not a table")
    label = metadata.get(LABEL, "")
    if not isinstance(label, str) or len(label) > LABEL_CHARS_MAX:
        raise Malformed("the label of the parameters is not a short text")
    return label
