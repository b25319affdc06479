"""One worker that answers requests over a channel: started or forked, asked, ended.

A process that is started gets its channel, a log file for what it prints, and an environment made from nothing: no
variable, path or descriptor of the control process reaches it. It runs with ``-P -s`` in
``/``, so that no folder it may write is ever searched for code.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

import agent
from agent.drivers.channel import Channel, pair
from agent.foundation.errors import AtollError, Malformed
from agent.training.contract import AttemptFailed, Failed, TrainerReady
from agent.wire.schema import Tagged

ReplyT = TypeVar("ReplyT")

START_S_MAX = 60.0
"""Starting Python takes 0.2 s here, confinement less; a cold SD card and seven others at once are 30 times slower."""
DYING_S_MAX = 2.0
"""From the end of its channel to the end of a process that unloads PyTorch."""
LOG_TAIL_BYTES = 4096
LAST_WORDS_CHARS = 300
SOURCE_ROOT = Path(agent.__file__).parent.parent


class Child(Protocol):
    """A process whose end somebody can wait for."""

    @property
    def pid(self) -> int:
        """Its number."""
        ...

    async def end(self, patience_s: float) -> int:
        """Wait for its end, and kill it after ``patience_s``; a second call says the same.

        Returns:
            Its exit status, or the signal that killed it as a negative number.
        """
        ...


class Started:
    """A child of this very process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    async def end(self, patience_s: float) -> int:
        """As ``Child``."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                return await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        return await asyncio.shield(self._process.wait())


class WorkerProcess:
    """A running worker. One request at a time; after any failure to answer it is gone."""

    def __init__(
        self,
        name: str,
        child: Child,
        channel: Channel,
        log: Path,
        tags: tuple[Tagged, Tagged],
    ) -> None:
        """Use ``start``, or ``greeted`` with a process that was made otherwise."""
        self.name = name
        self.sandbox = ""
        self.runtime = ""
        self.start_s = 0.0
        self._child = child
        self._channel = channel
        self._status: int | None = None
        self._log = log
        self._requests, self._replies = tags
        self._is_ended = False

    @classmethod
    async def start(
        cls,
        module: str,
        *,
        name: str,
        python: str,
        folder: Path,
        threads: int,
        tags: tuple[Tagged, Tagged],
    ) -> Self:
        """Start ``python -m module``; ``greeted`` is to follow.

        Args:
            module: with a ``--channel-fd`` argument; answers ``TrainerReady`` first.
            name: for messages.
            python: the interpreter.
            folder: where it may keep temporary files; beside it stands its log, ``folder.log``.
            threads: of numerical libraries.
            tags: its requests and its replies.

        Raises:
            AttemptFailed: there is no such program.
        """
        ours, theirs = pair()
        log = folder.with_suffix(".log")
        with contextlib.ExitStack() as opened:
            opened.callback(theirs.close)
            undo = opened.enter_context(contextlib.ExitStack())
            undo.callback(ours.close)
            errors = opened.enter_context(log.open("wb"))
            command = (python, "-P", "-s", "-m", module, "--channel-fd", str(theirs.fileno()))
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=errors,
                    cwd="/",
                    env=_environment(folder, threads),
                    start_new_session=True,
                )
            except OSError as error:
                raise AttemptFailed(f"the {name} did not start", why=str(error)) from None
            undo.pop_all()
        return cls(name, Started(process), Channel(ours), log, tags)

    async def greeted(self, began: float) -> None:
        """Wait until it says that it is ready; it was wanted at ``began`` (monotonic, seconds).

        Raises:
            AttemptFailed: it did not start; with its last words.
        """
        ready = await self._reply(TrainerReady, START_S_MAX)
        self.sandbox, self.runtime = ready.sandbox, ready.runtime
        self.start_s = time.monotonic() - began

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return not self._is_ended and not self._channel.is_over

    @property
    def ended_by_itself(self) -> bool:
        """Whether what it was asked has ended it: no signal that others send, and no time-out."""
        status = self._status
        return status is not None and -status not in (0, signal.SIGKILL, signal.SIGTERM)

    async def ask(
        self,
        request: object,
        descriptors: Sequence[int] = (),
        *,
        expect: type[ReplyT],
        timeout_s: float,
    ) -> ReplyT:
        """The reply to one request.

        A caller that is cancelled ends the process: what it was doing has no receiver any more.

        Raises:
            AttemptFailed: the worker said no (it goes on); or it died, took too long, or answered
                what it was not asked (it is ended).
        """
        try:
            await self._channel.send(self._requests.pack(request), descriptors)
        except AtollError:
            raise await self._dead() from None
        except asyncio.CancelledError:
            await self.end()
            raise
        return await self._reply(expect, timeout_s)

    async def end(self, patience_s: float = 0.0) -> None:
        """Wait for the process, and kill it if it still runs after ``patience_s``."""
        self._is_ended = True
        self._channel.close()
        status = await self._child.end(patience_s)
        self._status = status if self._status is None else self._status

    async def _reply(self, expect: type[ReplyT], timeout_s: float) -> ReplyT:
        try:
            async with asyncio.timeout(timeout_s):
                frame = await self._channel.receive()
            if frame is None:
                raise await self._dead()
            reply = self._decoded(*frame)
        except TimeoutError:
            await self.end()
            raise AttemptFailed(
                f"the {self.name} was ended", why=f"no answer within {timeout_s:g} s"
            ) from None
        except Malformed as error:
            await self.end()
            raise AttemptFailed(f"the {self.name} was ended", why=str(error)) from None
        except asyncio.CancelledError:
            await self.end()
            raise
        if isinstance(reply, expect):
            return reply
        if isinstance(reply, Failed):
            raise AttemptFailed(reply.reason)
        await self.end()
        raise AttemptFailed(f"the {self.name} was ended", why="its answer was to no question")

    def _decoded(self, data: bytes, descriptors: list[int]) -> object:
        for descriptor in descriptors:
            os.close(descriptor)
        if descriptors:
            raise Malformed("an answer came with descriptors", why="none has any")
        reply: object = self._replies.unpack(data)
        return reply

    async def _dead(self) -> AttemptFailed:
        """Why the process is gone: its channel is closed, so it is dying, or must."""
        await self.end(DYING_S_MAX)
        status = self._status
        last_words = await asyncio.to_thread(_last_line, self._log)
        if status is not None and status < 0:
            return AttemptFailed(
                f"the {self.name} was killed by {signal.Signals(-status).name}", why=last_words
            )
        return AttemptFailed(f"the {self.name} ended with status {status}", why=last_words)


def _environment(folder: Path, threads: int) -> Mapping[str, str]:
    return {
        "PYTHONPATH": str(SOURCE_ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "USER": "atoll",  # getpass.getuser() reads /etc/passwd without it
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",  # else its threads start before confinement
        "ORT_DISABLE_TELEMETRY": "1",
    }


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            lines = file.read(LOG_TAIL_BYTES).decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:LAST_WORDS_CHARS] if lines else ""
