"""Children that lie, played by small programs."""

import sys
import time
from pathlib import Path

import pytest

from agent.drivers.worker_process import SOURCE_ROOT, WorkerProcess
from agent.training.contract import (
    FROM_TRAINER,
    TO_TRAINER,
    AttemptFailed,
    Initialise,
    TrainerReady,
    Written,
)

READY = FROM_TRAINER.pack(TrainerReady("played", "none: played"))
WRITTEN = FROM_TRAINER.pack(Written(0.5))


async def started(folder: Path, *answers: str, ready: bytes = READY) -> WorkerProcess:
    """A child that says ``ready`` and then meets each request with the next piece of code."""
    program = folder / "python"
    lines = [
        f"#!{sys.executable}",
        "import os, sys",
        f"sys.path.insert(0, {str(SOURCE_ROOT)!r})",
        "from agent.drivers.channel import BlockingChannel",
        "channel = BlockingChannel.from_descriptor(int(sys.argv[sys.argv.index('--channel-fd') + 1]))",
        f"channel.send({ready!r})",
    ]
    for answer in answers:
        lines += ["channel.receive()", answer]
    lines += ["channel.receive()"]
    program.write_text("\n".join(lines))
    program.chmod(0o700)
    work = folder / "work"
    work.mkdir(exist_ok=True)
    worker = await WorkerProcess.start(
        "played",
        name="trainer",
        python=str(program),
        folder=work,
        threads=1,
        tags=(TO_TRAINER, FROM_TRAINER),
    )
    await worker.greeted(time.monotonic())
    return worker


async def ask(worker: WorkerProcess) -> Written:
    return await worker.ask(Initialise("file"), expect=Written, timeout_s=20.0)


async def test_an_answer_is_returned_and_the_child_stays(tmp_path: Path) -> None:
    worker = await started(tmp_path, f"channel.send({WRITTEN!r})", f"channel.send({WRITTEN!r})")
    assert (worker.runtime, worker.sandbox) == ("played", "none: played")
    assert await ask(worker) == Written(0.5)
    assert worker.is_alive
    assert await ask(worker) == Written(0.5)
    await worker.end()
    assert not worker.is_alive


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("channel.send(bytes([7]))", "tagged pair"),
        (f"channel.send({READY!r})", "to no question"),
        (f"channel.send({WRITTEN!r}, [0])", "with descriptors"),
        ("os.write(channel.fileno(), bytes([255] * 8))", "frame of 4294967295 bytes"),
        ("sys.exit('last words')", "ended with status 1; last words"),
        ("os.abort()", "killed by SIGABRT"),
        ("channel.close(); import time; time.sleep(60)", "killed by SIGKILL"),
    ],
)
async def test_a_child_that_answers_wrongly_is_ended(answer: str, why: str, tmp_path: Path) -> None:
    worker = await started(tmp_path, answer)
    with pytest.raises(AttemptFailed, match=why):
        await ask(worker)
    assert not worker.is_alive
    with pytest.raises(AttemptFailed):
        await ask(worker)


async def test_a_child_that_does_not_greet_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(AttemptFailed, match="to no question"):
        await started(tmp_path, ready=WRITTEN)


async def test_the_environment_and_descriptors_of_this_process_do_not_reach_the_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATOLL_SECRET", "s3cret")
    with (tmp_path / "held").open("w") as held:
        held_name = held.name
        answer = (
            "seen = [os.readlink('/proc/self/fd/' + fd) for fd in os.listdir('/proc/self/fd')"
            " if os.path.exists('/proc/self/fd/' + fd)]; "
            f"sys.exit('leak' if 'ATOLL_SECRET' in os.environ or {held_name!r} in seen"
            " else os.getcwd() + os.environ['USER'])"
        )
        worker = await started(tmp_path, answer)
        with pytest.raises(AttemptFailed, match="status 1; /atoll"):
            await ask(worker)
