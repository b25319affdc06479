"""A worker gives up, for ever, what it will not need: files, network, new programs, other processes.

Theory of operation. A worker starts as an ordinary process, opens and imports what it needs, then
calls ``confine`` on itself. From then on neither it nor any thread it starts can

- open a file outside the paths given (Landlock; descriptors already open, or received over an
  inherited socket, keep working),
- make, connect, bind or accept a socket; inherited sockets keep working (seccomp),
- start a program or a process, trace or signal others, mount, load kernel code (seccomp),
- gain privileges by a set-user-id file (``no_new_privs``), dump core, or hold unbounded memory.

What the kernel lacks is named in the answer, never passed over in silence: the caller reports it.

Order matters: Landlock binds the calling thread and its future children only, so ``confine`` comes
before the first thread. numpy's OpenBLAS starts threads on import unless ``OPENBLAS_NUM_THREADS=1``
is in the environment; threads that exist already are named as a gap. The system-call filter
reaches all of them (``SECCOMP_FILTER_FLAG_TSYNC``).

Source: Linux ``Documentation/userspace-api/landlock.rst``, ``include/uapi/linux/landlock.h``.
"""

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.foundation.errors import ConfigError
from agent.workers.system_calls import AUDIT_ARCH, SECCOMP, filter_program

OPEN_FILES_MAX = 512
"""A worker holds a channel, a doorbell, shared memory, some libraries and data files."""

_PR_SET_NO_NEW_PRIVS = 38
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_TSYNC = 1, 1
_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_LANDLOCK_CREATE_RULESET_VERSION, _LANDLOCK_RULE_PATH_BENEATH = 1, 1

_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

_FILESYSTEM_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many file-system rights each Landlock ABI knows (16 from ABI 5 on); all known are handled."""
_NETWORK_SINCE, _SCOPE_SINCE = 4, 6
_NETWORK_RIGHTS, _SCOPES = 0b11, 0b11
"""TCP bind and connect; abstract Unix sockets and signals of others."""

_READ = _READ_FILE | _READ_DIR
_WRITE = (
    _READ | _WRITE_FILE | _TRUNCATE | _MAKE_REG | _MAKE_DIR | _REMOVE_FILE | _REMOVE_DIR | _REFER
)
"""No symbolic links, devices or sockets: whoever reads the folder later must not be led astray."""
_DEVICE = _READ_FILE | _WRITE_FILE | _IOCTL_DEV
_OF_A_FILE = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
"""The rights that a rule about a single file may name."""

_SYSTEM_READ = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/etc/ld.so.cache",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems",
    "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu", "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
"""Libraries for lazy imports, and the machine's shape for thread pools. No secret lives there."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Confinement:
    """What holds this process from now on."""

    landlock: int
    """ABI in force; 0 = none."""
    is_filtered: bool
    """Whether the system-call filter is in force."""
    gaps: tuple[str, ...]
    """What could not be done and why; empty = complete."""

    def describe(self) -> str:
        """For a person: ``landlock 7, seccomp``; starts with ``none:`` if nothing holds."""
        held = [f"landlock {self.landlock}"] if self.landlock else []
        held += ["seccomp"] if self.is_filtered else []
        missing = "; ".join(self.gaps)
        if not held:
            return f"none: {missing}"
        return ", ".join(held) + (f" (not: {missing})" if missing else "")


def confine(
    *,
    read: Sequence[Path],
    write: Sequence[Path] = (),
    devices: Sequence[Path] = (),
    memory_bytes: int | None = None,
    file_bytes_max: int | None = None,
) -> str:
    """Confine this process and say what confines it; see ``apply``.

    Returns:
        ``landlock 7, seccomp``, with what is missing in brackets; ``none: why`` if nothing holds.
    """
    return apply(
        read=read,
        write=write,
        devices=devices,
        memory_bytes=memory_bytes,
        file_bytes_max=file_bytes_max,
    ).describe()


def apply(
    *,
    read: Sequence[Path],
    write: Sequence[Path] = (),
    devices: Sequence[Path] = (),
    memory_bytes: int | None = None,
    file_bytes_max: int | None = None,
) -> Confinement:
    """Give up everything but the paths named, the Python runtime and the descriptors held.

    Args:
        read: files or folders that stay readable; each must exist.
        write: files or folders in which this process may also create, change and remove; likewise.
        devices: device files (an accelerator's) that stay readable, writable and controllable.
        memory_bytes: bound of private writable memory (``RLIMIT_DATA``: touched or not, without
            read-only mappings, shared memory and reservations); beyond it allocation fails.
        file_bytes_max: bound of any file written; beyond it the write fails with ``EFBIG``.

    Raises:
        ConfigError: a named path cannot be opened.
    """
    _limit(memory_bytes, file_bytes_max)
    gaps: list[str] = []
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        gaps.append(f"no_new_privs: {os.strerror(ctypes.get_errno())}")
    wanted = [(path, _READ) for path in runtime_paths() if path.exists()]
    wanted += [(path, _READ) for path in read]
    wanted += [(path, _WRITE) for path in write]
    wanted += [(path, _DEVICE) for path in (Path(os.devnull), *devices)]
    landlock = _restrict_files(wanted, gaps)
    is_filtered = _filter_calls(gaps)
    return Confinement(landlock, is_filtered, tuple(gaps))


def landlock_abi() -> int:
    """The kernel's Landlock ABI; 0 if it has none or it is switched off at boot."""
    abi = _libc.syscall(
        _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _LANDLOCK_CREATE_RULESET_VERSION
    )
    return max(0, int(abi))


def runtime_paths() -> tuple[Path, ...]:
    """What every worker may read: the interpreter's libraries, this package, the machine's shape."""
    installed = [
        sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    installed += [p for p in sys.path if p.rstrip("/").endswith(("site-packages", "dist-packages"))]
    installed += [str(Path(sys.base_prefix, "lib")), str(Path(__file__).parent.parent)]
    return tuple(dict.fromkeys(Path(p) for p in (*installed, *_SYSTEM_READ)))


def _limit(memory_bytes: int | None, file_bytes_max: int | None) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    bounds = (
        (resource.RLIMIT_NOFILE, OPEN_FILES_MAX),
        (resource.RLIMIT_DATA, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes_max),
    )
    for kind, bound in bounds:
        if bound is not None:
            hard = resource.getrlimit(kind)[1]
            most = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
            resource.setrlimit(kind, (most, most))


def _restrict_files(wanted: Iterable[tuple[Path, int]], gaps: list[str]) -> int:
    abi = landlock_abi()
    if abi == 0:
        gaps.append(f"landlock: {os.strerror(ctypes.get_errno())}")
        return 0
    handled = (1 << _FILESYSTEM_RIGHTS.get(abi, 16)) - 1
    attributes = struct.pack("<Q", handled)
    if abi >= _NETWORK_SINCE:
        attributes += struct.pack("<Q", _NETWORK_RIGHTS)
    if abi >= _SCOPE_SINCE:
        attributes += struct.pack("<Q", _SCOPES)
    rules = int(
        _libc.syscall(_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    )
    if rules < 0:
        gaps.append(f"landlock: {os.strerror(ctypes.get_errno())}")
        return 0
    try:
        for path, rights in wanted:
            _allow(rules, path, rights & handled)
        if older := len(list(Path("/proc/self/task").iterdir())) - 1:
            gaps.append(f"landlock for {older} threads started before")
        if _libc.syscall(_LANDLOCK_RESTRICT_SELF, rules, 0) != 0:
            gaps.append(f"landlock: {os.strerror(ctypes.get_errno())}")
            return 0
    finally:
        os.close(rules)
    return abi


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(
            f"cannot confine a worker to {path}",
            why=os.strerror(error.errno or errno.EIO),
            mend="create the path, or correct it in the configuration",
        ) from None
    try:
        if not path.is_dir():
            rights &= _OF_A_FILE
        beneath = struct.pack("<Qi", rights, place)
        kind = _LANDLOCK_RULE_PATH_BENEATH
        outcome = _libc.syscall(_LANDLOCK_ADD_RULE, rules, kind, beneath, 0)
        assert outcome == 0, f"landlock rule for {path}: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(place)


def _filter_calls(gaps: list[str]) -> bool:
    machine = platform.machine()
    if machine not in AUDIT_ARCH:
        gaps.append(f"seccomp: no filter for {machine}")
        return False
    program = filter_program(machine, os.getpid())
    instructions = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))

    filter_ = Program(len(program) // 8, ctypes.addressof(instructions))
    outcome = _libc.syscall(
        SECCOMP[machine],
        _SECCOMP_SET_MODE_FILTER,
        _SECCOMP_FILTER_FLAG_TSYNC,
        ctypes.byref(filter_),
    )
    if outcome != 0:
        reason = os.strerror(ctypes.get_errno()) if outcome < 0 else f"thread {outcome} differs"
        gaps.append(f"seccomp: {reason}")
        return False
    return True
