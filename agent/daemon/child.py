"""One child process, kept alive: started, listened to, restarted with back-off, stopped in time.

Children are spawned, never forked (a session inherited over fork hangs ONNX Runtime), get a bare
environment, and end by themselves when their end of the channel closes.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from agent.drivers.channel import Channel, pair
from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError

BACKOFF_MIN_S, BACKOFF_MAX_S = 0.1, 10.0
STEADY_S = 30.0
"""A child that lived this long failed for a new reason: back-off starts over."""
STOP_TIMEOUT_S = 1.5
"""Between SIGTERM and SIGKILL; the whole site stops within 5 s."""
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
                  "CUDA_VISIBLE_DEVICES", "TMPDIR")  # fmt: skip
"""What a child may inherit: nothing that carries a secret or another program's settings."""

_log = logging.getLogger("atoll.processes")


def bare_environment() -> dict[str, str]:
    """The environment of a child."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {**kept, "ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class Callbacks:
    """What the owner does about a child; all run in the loop's thread."""

    started: Callable[[Channel], None]
    received: Callable[[bytes, list[int]], None]
    gone: Callable[[str], None]


class Child:
    """A supervised process."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        callbacks: Callbacks,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Runs ``python -m module --channel-fd N *arguments``, with more in its environment."""
        self.name, self.restarts = name, 0
        self.state = "starting"
        self._module, self._arguments, self._callbacks = module, tuple(arguments), callbacks
        self._environment = dict(environment)
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._is_stopping = self._is_blameless = False

    @property
    def pid(self) -> int | None:
        """Of the running process."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def run(self) -> None:
        """Keep it alive until ``stop``."""
        delay_s = BACKOFF_MIN_S
        while not self._is_stopping:
            began = monotonic_s()
            reason = await self._live()
            if self._is_ended():
                break
            if monotonic_s() - began > STEADY_S:
                delay_s = BACKOFF_MIN_S
            self.state = f"restarting: {reason}"
            self._callbacks.gone(reason)
            if self._is_blameless:
                self._is_blameless, delay_s = False, BACKOFF_MIN_S
            _log.warning("%s ended (%s); it is started again in %.1f s", self.name, reason, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, BACKOFF_MAX_S)
            self.restarts += 1
        self.state = "stopped"

    def absolve(self) -> None:
        """Called while it is ``gone``: somebody ended it, so nothing is gained by waiting longer."""
        self._is_blameless = True

    def _is_ended(self) -> bool:
        return self._is_stopping  # ``stop`` may have been called during an await

    async def _live(self) -> str:
        ours, theirs = pair()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", self._module, "--channel-fd", str(theirs.fileno()),
                *self._arguments, pass_fds=(theirs.fileno(),),
                env=bare_environment() | self._environment,
                stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            ours.close()
            return f"cannot be started: {error}"
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._process = process
        self._channel = channel = Channel(ours)
        if self._is_ended():
            await self._end(process)
        self.state = "running"
        self._callbacks.started(channel)
        try:
            while (frame := await channel.receive()) is not None:
                self._callbacks.received(*frame)
        except AtollError as error:
            _log.warning("%s sends nonsense: %s", self.name, error)
        finally:
            channel.close()
            self._channel = None
        # The channel closes as the process ends; one that hangs on after it is of no use.
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                code = await process.wait()
        except TimeoutError:
            process.kill()
            code = await process.wait()
        return _meaning(code)

    async def send(self, data: bytes) -> None:
        """As ``post``, and wait until the kernel has taken it (or the child is gone)."""
        if self._channel is not None:
            with contextlib.suppress(AtollError):
                await self._channel.send(data)

    def post(self, data: bytes, descriptors: Sequence[int] = ()) -> bool:
        """Send to the child; False if it is not there."""
        if self._channel is None:
            return False
        try:
            self._channel.post(data, descriptors)
        except AtollError:
            return False
        return True

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL."""
        self._is_stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            await self._end(process)

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _meaning(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"
