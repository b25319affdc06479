"""The protocol's gRPC messages, from the compiled form of ``open_inference.proto``.

They live in a pool of their own: a process that also holds another program's definition of the same
package (a client library, say) would refuse the second one in the common pool.
"""

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"


def _load() -> tuple[dict[str, Any], dict[str, tuple[Any, Any, bool]]]:
    compiled = files("agent.gateway").joinpath("open_inference.desc").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    (file,) = descriptor_pb2.FileDescriptorSet.FromString(compiled).file
    pool.AddSerializedFile(file.SerializeToString())  # type: ignore[no-untyped-call]
    found = pool.FindFileByName(file.name)  # type: ignore[no-untyped-call]
    classes = {
        name: message_factory.GetMessageClass(descriptor)
        for name, descriptor in found.message_types_by_name.items()
    }
    service = found.services_by_name[SERVICE.rpartition(".")[2]]
    methods = {
        method.name: (
            classes[method.input_type.name],
            classes[method.output_type.name],
            method.client_streaming,
        )
        for method in service.methods
    }
    return classes, methods


_classes, METHODS = _load()
"""Each method's request class, response class and whether it is a stream of both."""


def message(name: str) -> Any:
    """The class of a top-level message of the protocol."""
    return _classes[name]
