"""Checks of the machine: they need neither settings nor an agent."""

import ctypes
import os
import platform
import resource
import sqlite3
import sys
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from agent.cli.checks import Finding, guarded

PYTHON_MIN = (3, 11)
SQLITE_MIN = (3, 37, 0)
"""STRICT tables (sqlite.org/stricttables.html)."""
ONNXRUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
PACKAGES = (
    "aiohttp",
    "cryptography",
    "msgpack",
    "numpy",
    "orjson",
    "psutil",
    "sqlite-utils",
    "zeroconf",
)
TRAINING_PACKAGES = ("torch", "safetensors", "onnx", "onnxscript")
FILES_MIN = 4096
"""A connection to each of some hundred sites, applications, workers and blobs."""
_LANDLOCK_CREATE_RULESET = 444
_LANDLOCK_VERSION = 1
_TIME_ERROR = 5
_TIMEX_BYTES = 256
"""``struct timex`` has 208 bytes on 64-bit Linux."""


def machine_findings() -> Iterator[Finding]:
    """Every finding about this machine, in the order of dependence."""
    for name, look in {
        "python": _python,
        "sqlite": _sqlite,
        "packages": _packages,
        "onnxruntime": _onnxruntime,
        "training packages": _training_packages,
        "sandbox: landlock": _landlock,
        "sandbox: seccomp": _seccomp,
        "clock": _clock,
        "open files": _open_files,
    }.items():
        yield guarded(name, partial(look, name))


def _python(check: str) -> Finding:
    ok = sys.version_info[:2] >= PYTHON_MIN
    return Finding(
        check,
        ok=ok,
        evidence=f"{platform.python_version()} at {sys.executable}",
        mend="" if ok else "install Python 3.11 or newer",
    )


def _sqlite(check: str) -> Finding:
    ok = sqlite3.sqlite_version_info >= SQLITE_MIN
    return Finding(
        check,
        ok=ok,
        evidence=sqlite3.sqlite_version,
        mend="" if ok else "SQLite 3.37 or newer is needed (STRICT tables)",
    )


def _packages(check: str) -> Finding:
    found, missing = _versions(PACKAGES)
    return Finding(
        check,
        ok=not missing,
        evidence=", ".join(found) + ("; missing: " + ", ".join(missing) if missing else ""),
        mend="install the agent again (packaging/setup.sh)" if missing else "",
    )


def _onnxruntime(check: str) -> Finding:
    found, _ = _versions(ONNXRUNTIME_PACKAGES)
    if not found:
        return Finding(
            check,
            ok=False,
            evidence="not installed",
            mend="install onnxruntime, or onnxruntime-gpu where there is an NVIDIA GPU",
        )
    both = len(found) == len(ONNXRUNTIME_PACKAGES)
    return Finding(
        check,
        ok=True,
        evidence=", ".join(found),
        mend="both packages write one folder, so the one installed last has replaced parts of the"
        " other: remove both and install one"
        if both
        else "",
    )


def _training_packages(check: str) -> Finding:
    found, missing = _versions(TRAINING_PACKAGES)
    return Finding(
        check,
        ok=True,
        evidence=", ".join(found) + ("; missing: " + ", ".join(missing) if missing else ""),
        mend="this site can serve but not train; install the `train` extra to take part in jobs"
        if missing
        else "",
    )


def _versions(names: tuple[str, ...]) -> tuple[list[str], list[str]]:
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    return found, missing


def _landlock(check: str) -> Finding:
    # landlock_create_ruleset(NULL, 0, LANDLOCK_CREATE_RULESET_VERSION) only asks for the ABI.
    abi = ctypes.CDLL(None, use_errno=True).syscall(
        _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_VERSION
    )
    if abi >= 1:
        return Finding(check, ok=True, evidence=f"ABI {abi}")
    return Finding(
        check,
        ok=True,
        evidence=f"this kernel lacks it ({os.strerror(ctypes.get_errno())})",
        mend="model workers and trainers can read files they need not: boot a kernel with Landlock"
        " (5.13 or newer, lsm=landlock,...)",
    )


def _seccomp(check: str) -> Finding:
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    if any(line.startswith("Seccomp:") for line in lines):
        return Finding(check, ok=True, evidence="the kernel filters system calls")
    return Finding(
        check,
        ok=True,
        evidence="this kernel lacks it",
        mend="workers are not kept from opening sockets: use a kernel with CONFIG_SECCOMP_FILTER",
    )


def _clock(check: str) -> Finding:
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    if state not in (-1, _TIME_ERROR):
        return Finding(check, ok=True, evidence="synchronised, as the kernel says")
    return Finding(
        check,
        ok=True,
        evidence="not synchronised, as far as the kernel knows",
        mend="run a time service (systemd-timesyncd, chrony): certificates and catalog changes need"
        " the time to within 5 minutes",
    )


def _open_files(check: str) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ok = hard == resource.RLIM_INFINITY or hard >= FILES_MIN
    return Finding(
        check,
        ok=ok,
        evidence=f"{soft} (may be raised to {'any' if hard == resource.RLIM_INFINITY else hard})",
        mend="" if ok else f"allow {FILES_MIN} open files (LimitNOFILE= in the unit, ulimit -n)",
    )
