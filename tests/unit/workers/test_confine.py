"""Each case runs in its own process: confinement is for ever."""

import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

from agent.workers.confine import Confinement, landlock_abi

REPOSITORY = Path(__file__).parents[3]


def confined(
    code: str, folder: Path, *, before: str = "", descriptors: tuple[int, ...] = (), **limits: int
) -> str:
    """Run ``code`` in a process that may read ``folder/read`` and write ``folder/write``."""
    (folder / "read").mkdir(exist_ok=True)
    (folder / "write").mkdir(exist_ok=True)
    program = f"""
import os, socket, sys
from pathlib import Path
from agent.workers.confine import confine
folder = Path({str(folder)!r})
{textwrap.dedent(before)}
held = confine(read=[folder / "read"], write=[folder / "write"], **{limits!r})
{textwrap.dedent(code)}
"""
    environment = {
        "PYTHONPATH": str(REPOSITORY),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        pass_fds=descriptors,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def outcomes(statements: list[str], folder: Path, before: str = "") -> dict[str, str]:
    """For each statement the name of the error that it ends in, ``done`` if it ends in none."""
    said = confined(
        f"""
        for statement in {statements!r}:
            try:
                exec(statement)
            except BaseException as error:
                print(type(error).__name__)
            else:
                print("done")
        """,
        folder,
        before=before,
    )
    return dict(zip(statements, said.split("\n"), strict=True))


def test_it_says_what_confines_the_process(tmp_path: Path) -> None:
    assert confined("print(held)", tmp_path) == f"landlock {landlock_abi()}, seccomp"


REFUSED = [
    "open('/etc/passwd')",
    "os.listdir('/etc')",
    "os.listdir(folder)",
    "open(folder / 'secret').read()",
    "open(folder / 'read' / 'new', 'w')",
    "open(folder / 'new', 'w')",
    "os.unlink(folder / 'secret')",
    "os.rename(folder / 'write', folder / 'other')",
    "os.symlink('/etc/passwd', folder / 'write' / 'link')",
    "os.chmod(folder / 'secret', 0o777)",
    "os.utime(folder / 'secret')",
    "os.truncate(folder / 'secret', 0)",
    "os.listdir('/proc/1')",
    "open('/proc/self/root/etc/passwd')",
    "open(f'/proc/{os.getppid()}/environ')",
    "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "open('/tmp/out', 'w')",
    "socket.socket()",
    "socket.socket(socket.AF_UNIX)",
    "socket.socketpair()",
    "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "os.fork()",
    "os.execv('/bin/true', ['true'])",
    "os.posix_spawn('/bin/true', ['true'], {})",
    "os.kill(os.getppid(), 0)",
    "os.kill(1, 0)",
]


def test_what_a_worker_does_not_need_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("patient 7")
    assert outcomes(REFUSED, tmp_path) == dict.fromkeys(REFUSED, "PermissionError")
    assert (tmp_path / "secret").read_text() == "patient 7"


def test_inherited_internet_sockets_connect_and_accept_nothing(tmp_path: Path) -> None:
    before = """
    listener, inherited = socket.create_server(("127.0.0.1", 0)), socket.socket()
    there = listener.getsockname()
    """
    statements = ["inherited.connect(there)", "listener.accept()"]
    assert outcomes(statements, tmp_path, before) == dict.fromkeys(statements, "PermissionError")


def test_given_files_and_inherited_descriptors_keep_working(tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "read" / "data").write_text("kept")
    (tmp_path / "open").write_text("held")
    mine, theirs = socket.socketpair()
    with mine, theirs:
        print_out = confined(
            f"""
            channel = socket.socket(fileno={theirs.fileno()})
            channel.sendall(b"hello")
            out = folder / "write" / "deeper" / "update"
            out.parent.mkdir()
            out.with_suffix(".part").write_text("new")
            out.with_suffix(".part").rename(out)
            os.truncate(out, 1)
            open(os.devnull, "w").write("nothing")
            os.kill(os.getpid(), 0)
            print((folder / "read" / "data").read_text(), held_open.read(), out.read_text())
            """,
            tmp_path,
            before="held_open = open(folder / 'open')",
            descriptors=(theirs.fileno(),),
        )
        assert print_out == "kept held n"
        assert mine.recv(16) == b"hello"


def test_a_descriptor_received_later_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("bytes")
    mine, theirs = socket.socketpair()
    with mine, theirs, (tmp_path / "model").open() as model:
        socket.send_fds(mine, [b"x"], [model.fileno()])
        code = f"""
        _, received, _, _ = socket.recv_fds(socket.socket(fileno={theirs.fileno()}), 1, 1)
        print(os.read(received[0], 9).decode())
        """
        assert confined(code, tmp_path, descriptors=(theirs.fileno(),)) == "bytes"


def test_threads_start_and_are_confined_too(tmp_path: Path) -> None:
    code = """
    import threading
    said = []
    def look():
        try:
            open("/etc/passwd")
        except PermissionError:
            said.append("refused")
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    print(said)
    """
    assert confined(code, tmp_path) == "['refused']"


def test_a_thread_that_is_older_is_named_as_a_gap(tmp_path: Path) -> None:
    before = """
    import threading
    end = threading.Event()
    threading.Thread(target=end.wait).start()
    """
    said = confined("print(held); end.set()", tmp_path, before=before)
    assert "landlock for 1 threads started before" in said


def test_memory_files_and_open_files_are_bounded(tmp_path: Path) -> None:
    code = """
    import resource
    try:
        bytearray(1 << 30)
    except MemoryError:
        print("memory")
    try:
        (folder / "write" / "big").write_bytes(bytes(2 << 20))
    except OSError as error:
        print(error.errno == 27)
    print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    """
    said = confined(code, tmp_path, memory_bytes=512 << 20, file_bytes_max=1 << 20)
    assert said.split("\n") == ["memory", "True", "(0, 0) 512"]


def test_a_path_that_is_missing_is_named(tmp_path: Path) -> None:
    code = """
    from agent.foundation.errors import ConfigError
    try:
        confine(read=[folder / "nowhere"])
    except ConfigError as error:
        print(error.what == f"cannot confine a worker to {folder / 'nowhere'}")
    """
    assert confined(code, tmp_path, before=code).startswith("True")


def test_missing_kernel_features_are_never_passed_over() -> None:
    assert Confinement(0, False, ("landlock: off", "seccomp: off")).describe() == (
        "none: landlock: off; seccomp: off"
    )
    assert Confinement(0, True, ("landlock: off",)).describe() == "seccomp (not: landlock: off)"


def test_onnxruntime_runs_inside(tmp_path: Path) -> None:
    before = """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy, onnxruntime
    """
    code = """
    from onnx import TensorProto, helper
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "a"], ["b"])], "g",
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"])
    print(held, session.run(None, {"a": numpy.ones(2, numpy.float32)})[0].tolist())
    """
    held = f"landlock {landlock_abi()}, seccomp"
    assert confined(code, tmp_path, before=before) == f"{held} [2.0, 2.0]"


def test_every_system_call_of_the_deny_list_is_refused(tmp_path: Path) -> None:
    code = """
    import ctypes, errno, platform
    from agent.workers.system_calls import CLONE3, DENIED
    machine = platform.machine()
    libc = ctypes.CDLL(None, use_errno=True)
    def outcome(number):
        ctypes.set_errno(0)
        return libc.syscall(number, *[ctypes.c_long(-1)] * 6), ctypes.get_errno()
    for name, numbers in DENIED.items():
        number = numbers[0 if machine == "x86_64" else 1]
        if number >= 0 and outcome(number) != (-1, errno.EPERM):
            print(name)
    print(outcome(CLONE3[machine]) == (-1, errno.ENOSYS))
    """
    assert confined(code, tmp_path) == "True"


def test_nobody_gets_rid_of_the_signal_that_comes_when_its_parent_dies(tmp_path: Path) -> None:
    code = """
    import ctypes, signal
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    said = ctypes.c_int()
    print([prctl(1, number) for number in (0, signal.SIGTERM)], prctl(2, ctypes.byref(said)), said.value)
    """
    before = "from agent.drivers.channel import exit_with_parent; exit_with_parent()"
    assert confined(code, tmp_path, before=before) == "[-1, -1] 0 9"


def test_without_confinement_the_same_statements_work(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    harmless = ("os.listdir", "os.chmod", "os.utime", "os.kill(os.getppid")
    chosen = [statement for statement in REFUSED if statement.startswith(harmless)]
    assert len(chosen) == 6
    for statement in chosen:
        exec(statement, {"os": os, "folder": tmp_path})
