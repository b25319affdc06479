"""The compiled protocol is that of its source, and agrees with the public definition."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pool
from tritonclient.grpc import service_pb2

from agent.gateway.grpc_messages import METHODS, SERVICE, message

ROOT = Path(__file__).parents[3]


def agrees(ours: Any, pool: Any) -> int:
    """How many fields of a message and of those inside it were found in the other definition."""
    theirs = pool.FindMessageTypeByName(ours.full_name)
    for field in ours.fields:
        other = theirs.fields_by_number[field.number]
        assert (other.name, other.type, other.is_repeated) == (
            field.name,
            field.type,
            field.is_repeated,
        )
    return len(ours.fields) + sum(agrees(inner, pool) for inner in ours.nested_types)


def test_the_compiled_form_is_that_of_the_source() -> None:
    command = [sys.executable, "packaging/compile_protocol.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_every_message_and_method_agrees_with_a_client_that_others_wrote() -> None:
    pool = descriptor_pool.Default()  # type: ignore[no-untyped-call]
    service = service_pb2.DESCRIPTOR.services_by_name[SERVICE.rpartition(".")[2]]
    fields = 0
    for name, (request, response, is_stream) in METHODS.items():
        method = service.methods_by_name[name]
        assert method.input_type.full_name == request.DESCRIPTOR.full_name
        assert method.output_type.full_name == response.DESCRIPTOR.full_name
        assert method.client_streaming is is_stream
    for descriptor in message("ModelConfig").DESCRIPTOR.file.message_types_by_name.values():
        fields += agrees(descriptor, pool)
    assert fields > 100
    ours = message("ModelInput").DESCRIPTOR.fields_by_name["data_type"].enum_type
    theirs = pool.FindEnumTypeByName(ours.full_name)
    assert {v.number: v.name for v in ours.values} == {v.number: v.name for v in theirs.values}
