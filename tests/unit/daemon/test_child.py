"""A supervised process: real ones, of modules written for the test."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from agent.daemon import child as child_module
from agent.daemon.child import Callbacks, Child, bare_environment

ECHO = """
import sys
from agent.drivers.channel import BlockingChannel
channel = BlockingChannel.from_descriptor(int(sys.argv[2]))
channel.send(b"up")
while (frame := channel.receive()) is not None:
    channel.send(frame[0])
"""
DEAF = (
    "import signal, time\nsignal.signal(15, signal.SIG_IGN)\n"
    + ECHO.replace("while (", "print('deaf', flush=True)\nwhile (")
    + "\ntime.sleep(60)\n"
)


class Kept:
    def __init__(self, folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "a_child.py").write_text(source)
        environment = {**bare_environment(), "PYTHONPATH": f"{folder}:{Path.cwd()}"}
        monkeypatch.setattr(child_module, "bare_environment", lambda: environment)
        self.got: asyncio.Queue[bytes] = asyncio.Queue()
        self.gone: asyncio.Queue[str] = asyncio.Queue()
        self.child = Child(
            "echo", "a_child", (),
            Callbacks(lambda _: None, lambda data, _: self.got.put_nowait(data), self.gone.put_nowait),
        )  # fmt: skip
        self.task = asyncio.create_task(self.child.run())

    async def up(self) -> int:
        assert await self.got.get() == b"up"
        pid = self.child.pid
        assert pid is not None
        return pid

    async def end(self) -> None:
        await self.child.stop()
        await self.task


@pytest.fixture
async def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kept]:
    made = Kept(tmp_path, ECHO, monkeypatch)
    async with asyncio.timeout(30):
        yield made
        await made.end()


async def test_messages_pass_both_ways(kept: Kept) -> None:
    await kept.up()
    assert kept.child.post(b"one")
    await kept.child.send(b"two")
    assert [await kept.got.get(), await kept.got.get()] == [b"one", b"two"]


async def test_a_killed_child_is_started_again_and_the_reason_told(kept: Kept) -> None:
    first = await kept.up()
    os.kill(first, signal.SIGKILL)
    assert await kept.gone.get() == "killed by SIGKILL"
    assert await kept.up() != first
    assert (kept.child.state, kept.child.restarts) == ("running", 1)


async def test_what_somebody_ended_is_back_at_once_however_often(
    kept: Kept, caplog: pytest.LogCaptureFixture
) -> None:
    kept.child._callbacks = replace(kept.child._callbacks, gone=lambda _: kept.child.absolve())
    for _ in range(4):
        os.kill(await kept.up(), signal.SIGKILL)
    await kept.up()
    waits = [line for line in caplog.messages if "started again in" in line]
    assert len(waits) == 4
    assert all(line.endswith("in 0.1 s") for line in waits)


async def test_back_off_grows_while_it_keeps_failing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "BACKOFF_MIN_S", 0.01)
    waits: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        await real(0)

    monkeypatch.setattr("agent.daemon.child.asyncio.sleep", sleep)
    kept = Kept(tmp_path, "raise SystemExit(3)", monkeypatch)
    async with asyncio.timeout(30):
        assert [await kept.gone.get() for _ in range(3)] == ["exit code 3"] * 3
        monkeypatch.undo()
        await kept.end()
    assert waits[:3] == [0.01, 0.02, 0.04]


async def test_stopping_ends_it_for_good(kept: Kept) -> None:
    pid = await kept.up()
    await kept.end()
    assert (kept.child.state, kept.child.pid) == ("stopped", None)
    assert not psutil.pid_exists(pid)
    assert not kept.child.post(b"x")
    await kept.child.send(b"x")


async def test_one_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_module, "STOP_TIMEOUT_S", 0.2)
    kept = Kept(tmp_path, DEAF, monkeypatch)
    async with asyncio.timeout(30):
        pid = await kept.up()
        await kept.end()
    assert not psutil.pid_exists(pid)


async def test_a_stop_while_it_is_being_started_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[asyncio.subprocess.Process] = []
    real = asyncio.create_subprocess_exec

    async def slowly(*words: object, **options: object) -> asyncio.subprocess.Process:
        process = await real(*words, **options)  # type: ignore[arg-type]
        started.append(process)
        await starting[0].child.stop()  # nothing is known of the process yet
        return process

    monkeypatch.setattr("agent.daemon.child.asyncio.create_subprocess_exec", slowly)
    starting = [Kept(tmp_path, ECHO, monkeypatch)]
    async with asyncio.timeout(30):
        await starting[0].task
    assert started[0].returncode is not None
    assert starting[0].child.state == "stopped"


async def test_one_that_sends_nonsense_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = (
        "import os, sys\nos.write(int(sys.argv[2]), b'\\xff' * 100)\nimport time; time.sleep(60)"
    )
    monkeypatch.setattr(child_module, "STOP_TIMEOUT_S", 0.2)
    kept = Kept(tmp_path, source, monkeypatch)
    async with asyncio.timeout(30):
        assert await kept.gone.get() == "killed by SIGKILL"
        await kept.end()


def test_a_child_inherits_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "x")
    environment = bare_environment()
    assert "SECRET_TOKEN" not in environment
    assert environment["ORT_DISABLE_TELEMETRY"] == "1"
