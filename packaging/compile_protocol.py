"""Compile ``agent/gateway/open_inference.proto`` into the descriptor set that the gateway reads.

    .venv/bin/python packaging/compile_protocol.py [--check]

The compiled form is kept in the repository, so that a site needs no compiler; ``--check`` says whether it
is that of the source. Needs grpcio-tools (the ``dev`` extra).
"""

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

GATEWAY = Path(__file__).parent.parent / "agent" / "gateway"
SOURCE = GATEWAY / "open_inference.proto"
COMPILED = GATEWAY / "open_inference.desc"


def compile_protocol() -> bytes:
    """The serialized ``FileDescriptorSet`` of the source, without comments.

    Raises:
        RuntimeError: the compiler refuses the source; it has said why on standard error.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "out"
        shipped = files("grpc_tools") / "_proto"
        status = protoc.main(
            [
                "protoc",
                f"-I{GATEWAY}",
                f"-I{shipped}",
                f"--descriptor_set_out={target}",
                str(SOURCE),
            ]
        )
        if status:
            raise RuntimeError(f"protoc refuses {SOURCE.name}")
        return target.read_bytes()


def main(arguments: list[str] | None = None) -> int:
    """Write the compiled form, or compare it; 1 if it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    compiled = compile_protocol()
    if parser.parse_args(arguments).check:
        return int(compiled != COMPILED.read_bytes())
    COMPILED.write_bytes(compiled)
    return 0


if __name__ == "__main__":
    sys.exit(main())
