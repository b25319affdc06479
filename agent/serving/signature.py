"""What a model takes and gives: names, datatypes and shapes, and their JSON forms."""

from dataclasses import dataclass
from typing import Any

import orjson

from agent.foundation.errors import Malformed
from agent.serving.datatypes import DATATYPES, Datatype

PLATFORM = "onnx_onnxv1"
"""The Open Inference Protocol's name for ONNX models."""
FREE = -1
"""A dimension that each request chooses."""

_CONFIG_TYPES = {"BYTES": "TYPE_STRING"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    """``FREE`` where the request chooses the dimension."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of one model version."""

    name: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    others: tuple[str, ...] = ()
    """Further versions of the model that may be asked for by their number now."""

    def metadata(self) -> bytes:
        """Model metadata as the protocol's JSON (``GET /v2/models/M``)."""
        return orjson.dumps(self.description())

    def description(self) -> dict[str, Any]:
        """What ``metadata`` says, as Python objects."""
        return {
            "name": self.name,
            "versions": [self.version, *self.others],
            "platform": PLATFORM,
            "inputs": [_describe(spec) for spec in self.inputs],
            "outputs": [_describe(spec) for spec in self.outputs],
        }

    def config(self) -> bytes:
        """Triton's model configuration as JSON, as far as it applies to this runtime."""
        return orjson.dumps(self.configuration())

    def configuration(self) -> dict[str, Any]:
        """What ``config`` says, as Python objects."""
        return {
            "name": self.name,
            "platform": "onnxruntime_onnx",
            "backend": "onnxruntime",
            "version_policy": {"specific": {"versions": [self.version, *self.others]}},
            "max_batch_size": 0,
            "input": [_configure(spec) for spec in self.inputs],
            "output": [_configure(spec) for spec in self.outputs],
        }


def signature_of_metadata(text: str | bytes) -> Signature:
    """The inverse of ``Signature.metadata``; what it says of other versions is left out.

    Raises:
        Malformed: the text is not model metadata.
    """
    try:
        content = orjson.loads(text)
        return Signature(
            name=str(content["name"]),
            version=str(content["versions"][0]),
            inputs=tuple(_spec(item) for item in content["inputs"]),
            outputs=tuple(_spec(item) for item in content["outputs"]),
        )
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise Malformed("model metadata does not decode", why=type(error).__name__) from None


def _describe(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.name, "shape": list(spec.shape)}


def _configure(spec: TensorSpec) -> dict[str, Any]:
    name = spec.datatype.name
    return {
        "name": spec.name,
        "data_type": _CONFIG_TYPES.get(name, f"TYPE_{name}"),
        "dims": list(spec.shape),
    }


def _spec(item: Any) -> TensorSpec:
    return TensorSpec(
        name=str(item["name"]),
        datatype=DATATYPES[item["datatype"]],
        shape=tuple(int(dimension) for dimension in item["shape"]),
    )
