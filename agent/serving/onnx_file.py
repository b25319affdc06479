"""What an ONNX file says of other files, read without a protobuf library.

Rule: a model is one file. ONNX lets any tensor of any graph say that its bytes lie in another one, by
a path of the author's choice, and ONNX Runtime opens it: relative to the folder that the process
happens to stand in, wherever its sandbox lets it read. So no such tensor reaches ONNX Runtime, and
what is no ONNX file does not either (the runtime's own format, for one, is checked far less).

The file is walked by the schema's few paths that lead to a tensor; everything else is stepped over.

Source: onnx/onnx ``onnx/onnx.proto`` (ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto,
SparseTensorProto, FunctionProto, TrainingInfoProto); Protocol Buffers "Encoding".
"""

from collections.abc import Iterator, Mapping
from typing import Final

from agent.foundation.errors import Malformed, Refused

DEPTH_MAX = 100
"""Messages in messages, as protobuf's own parsers allow."""
VARINT_BYTES_MAX = 10

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}

_LEADS_TO: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_GRAPH, _NAME, _EXTERNAL_DATA, _DATA_LOCATION = 7, 8, 13, 14
"""Of ModelProto the first, of TensorProto the others."""


def check_one_file(content: bytes | bytearray | memoryview) -> None:
    """Let through a model that is whole in its file.

    Raises:
        Malformed: it is no ONNX file.
        Refused: a tensor's data lies in another file; the text names the tensor.
    """
    view = memoryview(content)
    fields = {number for number, _, _ in _fields(view, 0, len(view))}
    if _GRAPH not in fields:
        raise Malformed("the file is no ONNX model", why="it holds no graph")
    waiting = [("model", 0, len(view), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > DEPTH_MAX:
            raise _broken(f"its messages are nested more than {DEPTH_MAX} deep")
        if kind == "tensor":
            _check_tensor(view, start, end)
            continue
        leads_to = _LEADS_TO[kind]
        for number, begin, stop in _fields(view, start, end):
            inner = leads_to.get(number)
            if inner is not None:
                if begin < 0:
                    raise _broken("a message is a number")
                waiting.append((inner, begin, stop, depth + 1))


def _check_tensor(view: memoryview, start: int, end: int) -> None:
    name, is_outside = "", False
    for number, begin, stop in _fields(view, start, end):
        if number == _NAME and begin >= 0:
            name = bytes(view[begin : min(stop, begin + 80)]).decode("utf-8", "replace")
        is_outside |= number == _EXTERNAL_DATA or (number == _DATA_LOCATION and stop != 0)
    if is_outside:
        raise Refused(
            f"tensor {name!r} has its data in another file",
            why="a model is served from one file, and nothing else is read",
            mend="save the model with its data inside: onnx.save(..., save_as_external_data=False)",
        )


def _fields(view: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each field: its number and where its bytes are; for a number ``(-1, value)``."""
    while at < end:
        key, at = _varint(view, at, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise _broken("a field has no number")
        if kind == _VARINT:
            value, at = _varint(view, at, end)
            yield number, -1, value
            continue
        if kind == _BYTES:
            size, at = _varint(view, at, end)
        elif kind in _FIXED_BYTES:
            size = _FIXED_BYTES[kind]
        else:
            raise _broken(f"a field is of the unknown kind {kind}")
        if size > end - at:
            raise _broken("it is cut off")
        if kind == _BYTES:
            yield number, at, at + size
        at += size


def _varint(view: memoryview, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    for position in range(at, min(at + VARINT_BYTES_MAX, end)):
        byte = view[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte has no continuation bit
            return value, position + 1
        shift += 7
    raise _broken("it is cut off" if end - at < VARINT_BYTES_MAX else "a number does not end")


def _broken(why: str) -> Malformed:
    return Malformed("the file is no ONNX model", why=why)
