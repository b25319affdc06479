"""Against a small C library that stands in for libnvidia-ml.so.1; the binding is the real one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.drivers.hardware_nvml import NvmlReading, decode, read_nvml

STUB = r"""
#include <string.h>
#include <stdio.h>
#include <unistd.h>
#include <stdlib.h>
typedef struct { unsigned long long total, free, used; } memory_t;
static int mode(const char *word) { const char *m = getenv("STUB"); return m && !strcmp(m, word); }
int nvmlInitWithFlags(unsigned f) {
  if (mode("hang")) sleep(600);
  if (mode("crash")) abort();
  return mode("mismatch") ? 18 : 0;
}
int nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(int e) { return e == 18 ? "Driver/library version mismatch" : "stub error"; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { snprintf(s, n, "550.54.15"); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) {
  if (i == 1 && mode("lost")) return 15;
  *h = (void *)(unsigned long)(i + 1); return 0;
}
int nvmlDeviceGetName(void *h, char *s, unsigned n) { snprintf(s, n, "NVIDIA L4"); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) { m->total = 24ull << 30; m->free = m->used = 0; return 0; }
int nvmlDeviceGetTemperature(void *h, int s, unsigned *t) { *t = 41; return 0; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *p) { *p = 16500; return 0; }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *p) { return 3; /* not supported */ }
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed: packaging/setup.sh installs gcc"
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "stub.c").write_text(STUB)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "stub.c"], check=True)
    return folder


def ask(
    stub: Path, mode: str, monkeypatch: pytest.MonkeyPatch, timeout_s: float = 20.0
) -> NvmlReading:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(stub))
    monkeypatch.setenv("STUB", mode)
    return read_nvml(timeout_s)


def test_two_cards_are_read(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = ask(stub, "", monkeypatch)
    assert reading.problem == ""
    facts = {fact.name: fact.value for fact in reading.facts()}
    assert facts == {
        "gpu.driver": "550.54.15",
        "gpu.count": 2,
        "gpu.names": ("NVIDIA L4", "NVIDIA L4"),
        "gpu.memory_bytes": 48 << 30,
    }
    assert reading.gpus[0].temperature_c == 41
    assert reading.gpus[0].power_mw == 16_500
    assert reading.gpus[0].power_limit_mw is None


def test_a_lost_card_does_not_hide_the_other(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = ask(stub, "lost", monkeypatch)
    assert len(reading.gpus) == 1
    assert reading.problem.startswith("GPU 1: ")


def test_a_mismatched_driver_is_told(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reading = ask(stub, "mismatch", monkeypatch)
    assert reading.gpus == ()
    assert "mismatch" in reading.problem.lower()


def test_a_crash_inside_the_library_is_told(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(stub, "crash", monkeypatch).problem == "the NVML reader ended with -6"


def test_a_library_that_hangs_is_left(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(stub, "hang", monkeypatch, 1.0).problem == "NVML did not answer within 1 s"


def test_no_driver_at_all_is_a_problem_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file that is no library hides a real driver on the machine of the test.
    (tmp_path / "libnvidia-ml.so.1").write_bytes(b"no library")
    reading = ask(tmp_path, "", monkeypatch)
    assert reading.problem.startswith("NVML: ")
    assert list(reading.facts()) == []


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b'{"gpus": [{"nme": 1}], "driver": "", "problem": ""}', b"x" * (2 << 20)],
)
def test_a_wrong_answer_is_a_problem_and_no_error(answer: bytes) -> None:
    assert decode(answer).problem


def test_a_missing_interpreter_is_a_problem_and_no_error() -> None:
    assert "did not start" in read_nvml(python="/nonexistent/python").problem


def test_importing_the_reader_loads_no_binding() -> None:
    code = "import sys, agent.drivers.hardware_nvml; print('pynvml' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert json.loads(done.stdout.lower()) is False
