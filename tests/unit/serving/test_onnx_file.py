"""A model is one file: whatever hides a path to another one is found, wherever ONNX allows it."""

from collections.abc import Callable
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from agent.foundation.errors import Malformed, Refused
from agent.serving.onnx_file import DEPTH_MAX, check_one_file


def tensor(name: str = "w") -> Any:
    return helper.make_tensor(name, TensorProto.UINT8, [4], [1, 2, 3, 4])


def outside(name: str = "w", location: str = "/etc/passwd") -> Any:
    found = TensorProto(name=name, data_type=TensorProto.UINT8, dims=[4])
    found.data_location = TensorProto.EXTERNAL
    found.external_data.add(key="location", value=location)
    return found


def only_a_path() -> Any:
    found = outside()
    found.ClearField("data_location")
    return found


def only_a_place() -> Any:
    found = outside()
    found.ClearField("external_data")
    return found


def graph(held: Any = None, *nodes: Any) -> Any:
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, [4])
    made = nodes or (helper.make_node("Identity", ["w"], ["y"]),)
    return helper.make_graph(list(made), "g", [], [output], [] if held is None else [held])


def model(made: Any) -> Any:
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def in_attribute(**attributes: Any) -> Any:
    return graph(None, helper.make_node("Constant", [], ["y"], **attributes))


def in_function() -> Any:
    node = helper.make_node("Constant", [], ["y"], value=outside())
    made = model(graph(tensor()))
    opset = [helper.make_opsetid("", 17)]
    made.functions.append(helper.make_function("d", "f", [], ["y"], [node], opset))
    return made


def in_sparse(*, is_index: bool) -> Any:
    made = onnx.SparseTensorProto()
    made.values.CopyFrom(tensor() if is_index else outside())
    made.indices.CopyFrom(outside() if is_index else tensor())
    return made


def in_sparse_initializer() -> Any:
    made = model(graph(tensor()))
    made.graph.sparse_initializer.append(in_sparse(is_index=True))
    return made


def in_training() -> Any:
    made = model(graph(tensor()))
    made.training_info.add().algorithm.CopyFrom(graph(outside()))
    return made


def twice() -> bytes:
    """Protobuf merges a field that comes twice: the second graph adds to the first."""
    return bytes(model(graph(tensor())).SerializeToString()) + bytes(
        model(graph(outside())).SerializeToString()
    )


HIDDEN: dict[str, Callable[[], Any]] = {
    "initializer": lambda: model(graph(outside())),
    "path without a place": lambda: model(graph(only_a_path())),
    "place without a path": lambda: model(graph(only_a_place())),
    "attribute": lambda: model(in_attribute(value=outside())),
    "sparse attribute": lambda: model(in_attribute(sparse_value=in_sparse(is_index=False))),
    "sparse initializer": in_sparse_initializer,
    "subgraph": lambda: model(
        graph(
            None,
            helper.make_node(
                "If", ["c"], ["y"], then_branch=graph(outside()), else_branch=graph(tensor())
            ),
        )
    ),
    "function": in_function,
    "training": in_training,
    "second graph": twice,
}


@pytest.mark.parametrize("case", HIDDEN)
def test_a_tensor_in_another_file_is_refused_by_name(case: str) -> None:
    made = HIDDEN[case]()
    content = made if isinstance(made, bytes) else made.SerializeToString()
    with pytest.raises(Refused, match="tensor 'w' has its data in another file"):
        check_one_file(content)


def test_a_whole_model_passes() -> None:
    check_one_file(model(graph(tensor())).SerializeToString())
    made = model(graph(tensor()))
    made.graph.initializer[0].data_location = TensorProto.DEFAULT
    check_one_file(memoryview(bytearray(made.SerializeToString())))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no graph"),
        (b"root:x:0:0:root:/root:/bin/bash\n", "no ONNX model"),
        (b"\x08\x00\x00\x00ORTM", "no ONNX model"),
        (b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "does not end"),
        (b"\x3a\x05abc", "cut off"),
        (b"\x3a\x02\x0b\x0c", "unknown kind 3"),
        (b"\x38\x01", "a message is a number"),
    ],
)
def test_what_is_no_model_is_malformed(content: bytes, why: str) -> None:
    with pytest.raises(Malformed, match="no ONNX model") as caught:
        check_one_file(content)
    assert why in str(caught.value)


def test_nesting_is_bounded() -> None:
    content = b""
    for number in range(3 * DEPTH_MAX):  # a graph in an attribute of a node of a graph
        key = (0x32, 0x2A, 0x0A)[number % 3]
        size = len(content)
        varint = b""
        while size > 0x7F:
            varint += bytes([size & 0x7F | 0x80])
            size >>= 7
        content = bytes([key]) + varint + bytes([size]) + content
    size = len(content)
    outer = b"\x3a" + bytes([size & 0x7F | 0x80, size >> 7]) + content
    with pytest.raises(Malformed, match="nested more than 100 deep"):
        check_one_file(outer)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(content: bytes) -> None:
    for start in (b"", b"\x3a\x7f", b"\x3a\x10\x2a\x0e"):
        try:
            check_one_file(start + content)
        except (Malformed, Refused):
            continue
