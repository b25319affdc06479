"""Which system calls a confined worker is refused, and the filter program that refuses them.

A deny list: an allow list would have to follow every release of glibc, PyTorch and CUDA, and what
is worth taking, the files, is guarded by Landlock's allow list anyway (``agent.workers.confine``).

Refusal is ``EPERM`` (a library that probes goes on; a test can see it), except for a foreign calling
convention (32-bit, x32), whose numbers mean other calls: that kills the process.

Sources: Linux ``Documentation/userspace-api/seccomp_filter.rst``, ``include/uapi/linux/filter.h``,
``arch/x86/entry/syscalls/syscall_64.tbl``, ``include/uapi/asm-generic/unistd.h``.
"""

import errno
import struct
from collections.abc import Mapping

AUDIT_ARCH: Mapping[str, int] = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""``platform.machine()`` to the kernel's name of the calling convention."""

DENIED: Mapping[str, tuple[int, int]] = {
    # name: (x86_64, aarch64); -1 = that machine has no such call
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, -1), "vfork": (58, -1),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "kcmp": (312, 272), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186),
    "mq_open": (240, 180), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "syslog": (103, 116), "personality": (135, 92), "iopl": (172, -1), "ioperm": (173, -1),
    "modify_ldt": (154, -1), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119), "sched_setparam": (142, 118), "sched_setattr": (314, 274),
}  # fmt: skip
"""chmod, chown, xattr and utime stand here because Landlock does not guard a file's metadata;
priorities because a process may lower those of others of its user."""

CLONE: Mapping[str, int] = {"x86_64": 56, "aarch64": 220}
CLONE3: Mapping[str, int] = {"x86_64": 435, "aarch64": 435}
KILL: Mapping[str, int] = {"x86_64": 62, "aarch64": 129}
TGKILL: Mapping[str, int] = {"x86_64": 234, "aarch64": 131}
PRLIMIT64: Mapping[str, int] = {"x86_64": 302, "aarch64": 261}
IOCTL: Mapping[str, int] = {"x86_64": 16, "aarch64": 29}
PRCTL: Mapping[str, int] = {"x86_64": 157, "aarch64": 167}
SECCOMP: Mapping[str, int] = {"x86_64": 317, "aarch64": 277}

X32_BIT = 0x40000000
CLONE_THREAD = 0x10000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
"""Both type into a terminal as if the operator had."""
PR_SET_PDEATHSIG = 1
"""Whoever undoes it outlives the process that started it."""

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6] (little endian)
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS = 0x7FFF0000, 0x80000000
_REFUSE, _ABSENT = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS


def filter_program(machine: str, pid: int) -> bytes:
    """The classic BPF program (8 bytes an instruction) that refuses what a worker must not do.

    Args:
        machine: a key of ``AUDIT_ARCH``.
        pid: the process to confine; it may signal and limit itself, nobody else.
    """
    column = 0 if machine == "x86_64" else 1
    code = [
        _op(_LOAD, _ARCH),
        _op(_JUMP_EQUAL, AUDIT_ARCH[machine], 1, 0),
        _op(_RETURN, _KILL_PROCESS),
    ]
    code.append(_op(_LOAD, _NR))
    if machine == "x86_64":
        code += [_op(_JUMP_AT_LEAST, X32_BIT, 0, 1), _op(_RETURN, _KILL_PROCESS)]
    for numbers in DENIED.values():
        if numbers[column] >= 0:
            code += [_op(_JUMP_EQUAL, numbers[column], 0, 1), _op(_RETURN, _REFUSE)]
    # clone3 keeps its flags in memory, where a filter cannot look: glibc then falls back to clone.
    code += [_op(_JUMP_EQUAL, CLONE3[machine], 0, 1), _op(_RETURN, _ABSENT)]
    code += _when(CLONE[machine], [
        _op(_LOAD, _ARG0), _op(_JUMP_BIT, CLONE_THREAD, 1, 0),
        _op(_RETURN, _REFUSE), _op(_RETURN, _ALLOW),
    ])  # fmt: skip
    for own_only, others in ((KILL, (pid,)), (TGKILL, (pid,)), (PRLIMIT64, (0, pid))):
        code += _when(own_only[machine], _allow_only(_ARG0, others))
    code += _when(IOCTL[machine], [
        _op(_LOAD, _ARG1), _op(_JUMP_EQUAL, TIOCSTI, 1, 0), _op(_JUMP_EQUAL, TIOCLINUX, 0, 1),
        _op(_RETURN, _REFUSE), _op(_RETURN, _ALLOW),
    ])  # fmt: skip
    code += _when(PRCTL[machine], [
        _op(_LOAD, _ARG0), _op(_JUMP_EQUAL, PR_SET_PDEATHSIG, 0, 1),
        _op(_RETURN, _REFUSE), _op(_RETURN, _ALLOW),
    ])  # fmt: skip
    code.append(_op(_RETURN, _ALLOW))
    return b"".join(code)


def _op(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)


def _when(number: int, block: list[bytes]) -> list[bytes]:
    """``block`` (which returns on every way) if the call is ``number``; the number stays loaded."""
    return [_op(_JUMP_EQUAL, number, 0, len(block)), *block]


def _allow_only(argument: int, values: tuple[int, ...]) -> list[bytes]:
    """Compares the low half, as the kernel does: a pid is an int."""
    tests = [_op(_JUMP_EQUAL, value, len(values) - at, 0) for at, value in enumerate(values)]
    return [_op(_LOAD, argument), *tests, _op(_RETURN, _REFUSE), _op(_RETURN, _ALLOW)]
