"""The filter of either machine, run by a dumb second implementation of classic BPF."""

import errno
import struct

import pytest

from agent.workers.system_calls import (
    AUDIT_ARCH,
    CLONE,
    CLONE3,
    CLONE_THREAD,
    DENIED,
    IOCTL,
    KILL,
    PRLIMIT64,
    TGKILL,
    TIOCLINUX,
    TIOCSTI,
    X32_BIT,
    filter_program,
)

ME, OTHER = 4242, 4243
ALLOW, KILL_PROCESS = 0x7FFF0000, 0x80000000
REFUSE, ABSENT = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
MACHINES = sorted(AUDIT_ARCH)


def verdict(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    padded = [*arguments, *[0] * (6 - len(arguments))]
    call = struct.pack("<iIQ6Q", number, arch or AUDIT_ARCH[machine], 0, *padded)
    program = list(struct.iter_unpack("<HBBI", filter_program(machine, ME)))
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("<I", call, operand)
            case 0x06:
                return int(operand)
            case 0x15:
                at += if_true if loaded == operand else if_false
            case 0x35:
                at += if_true if loaded >= operand else if_false
            case 0x45:
                at += if_true if loaded & operand else if_false
            case _:
                raise AssertionError(hex(code))


@pytest.mark.parametrize("machine", MACHINES)
def test_denied_calls_are_refused_and_all_others_pass(machine: str) -> None:
    column = 0 if machine == "x86_64" else 1
    denied = {numbers[column] for numbers in DENIED.values()} - {-1}
    special = {table[machine] for table in (CLONE, CLONE3, KILL, TGKILL, PRLIMIT64, IOCTL)}
    assert not denied & special
    for number in set(range(500)) - special:
        assert verdict(machine, number) == (REFUSE if number in denied else ALLOW), number


@pytest.mark.parametrize("machine", MACHINES)
def test_threads_start_and_processes_do_not(machine: str) -> None:
    assert verdict(machine, CLONE[machine], CLONE_THREAD | 0x3D0F00) == ALLOW
    assert verdict(machine, CLONE[machine], 17) == REFUSE
    assert verdict(machine, CLONE3[machine], 0) == ABSENT


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", [KILL, TGKILL, PRLIMIT64])
def test_a_worker_signals_and_limits_nobody_but_itself(machine: str, call: dict[str, int]) -> None:
    assert verdict(machine, call[machine], ME) == ALLOW
    for other in (OTHER, 1, 2**64 - 1):
        assert verdict(machine, call[machine], other) == REFUSE
    assert verdict(machine, call[machine], 0) == (ALLOW if call is PRLIMIT64 else REFUSE)


@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_is_typed_into_a_terminal(machine: str) -> None:
    assert verdict(machine, IOCTL[machine], 0, TIOCSTI) == REFUSE
    assert verdict(machine, IOCTL[machine], 0, TIOCLINUX) == REFUSE
    assert verdict(machine, IOCTL[machine], 0, 0x5401) == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
def test_a_foreign_calling_convention_kills(machine: str) -> None:
    assert verdict(machine, 0, arch=0x40000003) == KILL_PROCESS
    assert verdict("x86_64", X32_BIT | 1) == KILL_PROCESS
