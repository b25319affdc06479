import gc
import os
import subprocess
import sys

import pytest

from agent.drivers import memory


def test_the_collector_rests_while_modules_are_imported_and_leaves_them_alone_afterwards() -> None:
    frozen = gc.get_freeze_count()
    try:
        with memory.importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with memory.importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


def test_a_failed_import_leaves_the_collector_on() -> None:
    try:
        with pytest.raises(ImportError), memory.importing():
            raise ImportError
        assert gc.isenabled()
    finally:
        gc.unfreeze()


BURST = """
import ctypes, threading
from agent.drivers import memory

def resident_kib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4

assert memory.hold_little()
memory.give_back()
before = resident_kib()
small = []
for _ in range(5):
    burst = []
    for _ in range(40):
        burst.append(bytearray(256 << 10))
        burst[-1][::4096] = bytes(64)
        small.append(bytes(600))
    del burst
print(resident_kib() - before)
"""


def test_a_burst_of_large_buffers_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BURST], check=True, capture_output=True, text=True, timeout=30
    )
    assert int(done.stdout) < 2048, "10 MiB were used five times, with small objects between"


def test_the_memory_of_a_process_is_told_and_one_that_is_gone_has_none() -> None:
    assert memory.resident_bytes(os.getpid()) > 1 << 20
    assert memory.resident_bytes(None) == memory.resident_bytes(2**22 + 1) == 0
