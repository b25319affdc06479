import os

import psutil
import pytest

from agent.drivers.hardware_psutil import read_psutil


def test_this_machine_tells_cores_and_memory() -> None:
    facts = {fact.name: fact.value for fact in read_psutil()}
    assert facts["cpu.usable"] == len(os.sched_getaffinity(0))
    memory = facts["memory.bytes"]
    assert isinstance(memory, int)
    assert memory > 1 << 28
    assert facts["cpu.architecture"] == os.uname().machine


def test_what_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", broken)
    names = {fact.name for fact in read_psutil()}
    assert "memory.bytes" not in names
    assert "cpu.usable" in names
