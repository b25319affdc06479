"""What ``make test`` needs is there: with ATOLL_REQUIRE_ALL set, what is missing is a failure."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "avahi-daemon", "avahi-browse", "dbus-daemon", "ip", "nft", "tcpdump", "gcc", "systemd-analyze",
)  # fmt: skip
MODULES = (
    "aiohttp", "cryptography", "hypothesis", "magika", "msgpack", "onnx", "onnxruntime", "onnxscript",
    "orjson", "psutil", "pynvml", "rich", "safetensors", "sklearn", "rapidocr_onnxruntime", "schemathesis",
    "sqlite_utils", "torch",
    "tritonclient", "uvloop", "zeroconf",
)  # fmt: skip


def is_there(command: str) -> bool:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


def required() -> bool:
    return os.environ.get("ATOLL_REQUIRE_ALL") == "1"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_there(command: str) -> None:
    assert is_there(command) or not required(), (
        f"{command} is missing; run packaging/setup.sh as root"
    )


@pytest.mark.parametrize("module", MODULES)
def test_the_module_is_there(module: str) -> None:
    assert importlib.util.find_spec(module) or not required(), f"{module} is missing; run make venv"


def test_the_tests_data_is_there() -> None:
    assert (ROOT / ".cache/mnist/SOURCE").is_file() or not required(), "run make mnist"
