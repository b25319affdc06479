"""Datatypes of the Open Inference Protocol and their sizes.

Source: kserve/open-inference-protocol, ``specification/protocol/inference_rest.md``, "Tensor Data
Types"; BF16 is Triton's addition (``docs/protocol/extension_binary_data.md``).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["bool", "integer", "float", "bytes"]


@dataclass(frozen=True, slots=True)
class Datatype:
    """One datatype: its name on the wire and what its elements are."""

    name: str
    kind: Kind
    element_bytes: int
    """Size of one element in bytes; 0 = each element carries its own length (BYTES)."""
    onnx: str
    """Element type as ONNX Runtime names it: ``tensor(<onnx>)``."""
    has_json_form: bool = True
    """False: 16-bit floats travel in binary only."""
    low: int = 0
    """Smallest integer; meaningful for ``integer`` only."""
    high: int = 0
    """Largest integer; meaningful for ``integer`` only."""


def _integer(name: str, onnx: str, element_bytes: int, *, is_signed: bool) -> Datatype:
    bits = 8 * element_bytes
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed else (0, (1 << bits) - 1)
    return Datatype(name, "integer", element_bytes, onnx, low=low, high=high)


_ALL = (
    Datatype("BOOL", "bool", 1, "bool"),
    _integer("UINT8", "uint8", 1, is_signed=False),
    _integer("UINT16", "uint16", 2, is_signed=False),
    _integer("UINT32", "uint32", 4, is_signed=False),
    _integer("UINT64", "uint64", 8, is_signed=False),
    _integer("INT8", "int8", 1, is_signed=True),
    _integer("INT16", "int16", 2, is_signed=True),
    _integer("INT32", "int32", 4, is_signed=True),
    _integer("INT64", "int64", 8, is_signed=True),
    Datatype("FP16", "float", 2, "float16", has_json_form=False),
    Datatype("BF16", "float", 2, "bfloat16", has_json_form=False),
    Datatype("FP32", "float", 4, "float"),
    Datatype("FP64", "float", 8, "double"),
    Datatype("BYTES", "bytes", 0, "string"),
)

DATATYPES: Mapping[str, Datatype] = {datatype.name: datatype for datatype in _ALL}
"""Every datatype by its name on the wire."""

_BY_ONNX = {f"tensor({datatype.onnx})": datatype for datatype in _ALL}


def datatype_of_onnx(type_name: str) -> Datatype | None:
    """The datatype of an ONNX Runtime type such as ``tensor(float)``; None if it has none."""
    return _BY_ONNX.get(type_name)
