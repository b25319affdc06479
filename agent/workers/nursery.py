"""The nursery: one process that has imported the large libraries, and becomes a new worker whenever one is wanted.

``python -m agent.workers.nursery --channel-fd N``. Importing PyTorch takes 1.5 s of a core and 150 MiB; a fork takes
milliseconds, and all workers share those pages. So the second job of a site begins at once.

The nursery itself sees no data, no parameters and no job: it is told folders and numbers by the control process, and
forks. The child confines itself (``agent.workers.confine``) before it is given anything. It must be forked from the
only thread of this process, and Landlock binds a thread: so nothing here, nor any import, may start one.

One request, one answer, and none waits. A child that has ended is let go of when the control process asks how it
ended, not before: until then its number is nobody else's. Whoever ends this process ends all its children with it.
"""

import argparse
import contextlib
import gc
import importlib
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, cast

from agent.drivers.channel import BlockingChannel, exit_with_parent
from agent.foundation.errors import UsageError
from agent.training.contract import (
    FROM_NURSERY,
    TO_NURSERY,
    Fork,
    Forked,
    Reap,
    Reaped,
    TrainerReady,
)
from agent.workers.conversation import converse

CHILDREN_MAX = 64
"""Eight trainers, one process for means, and some exports at once: more is a fault of the one who asks."""


Run = Callable[[BlockingChannel, Fork], None]
"""What a child goes on with: it confines the process and serves the channel until that closes."""


class Nursery:
    """Forks, and waits for what was forked."""

    def __init__(self, channel: BlockingChannel) -> None:
        """``channel``: to the control process; children let go of it."""
        self._channel = channel
        self._children: set[int] = set()

    def answer(self, message: object, descriptors: list[int]) -> Forked | Reaped:
        """The reply to ``message``.

        Raises:
            UsageError: too many children, none of that number, or what it would need is not installed.
        """
        match message, descriptors:
            case Fork(), [channel, log]:
                return self._fork(message, channel, log)
            case Reap(pid), []:
                return self._reap(pid)
            case _:
                raise AssertionError(
                    f"{type(message).__name__} with {len(descriptors)} descriptors"
                )

    def _fork(self, fork: Fork, channel: int, log: int) -> Forked:
        if len(self._children) >= CHILDREN_MAX:
            raise UsageError(f"{CHILDREN_MAX} workers run already", mend="end one first")
        run = _imported(fork.kind)
        parent = os.getpid()
        pid = os.fork()
        if not pid:
            self._become(run, fork, channel, log, parent)
        self._children.add(pid)
        return Forked(pid)

    def _become(self, run: Run, fork: Fork, channel: int, log: int, parent: int) -> NoReturn:
        """What a child does, and all it does: it never returns to what its parent was about."""
        status = 1
        try:
            exit_with_parent()
            if os.getppid() != parent:
                os._exit(status)  # it was gone before: nobody would end this one
            os.setsid()
            self._channel.let_go()
            os.dup2(log, sys.stderr.fileno())
            os.close(log)
            with contextlib.suppress(OSError):
                Path("/proc/self/comm").write_text(fork.kind)  # for whoever lists processes
            os.environ.update(HOME=fork.folder, TMPDIR=fork.folder)
            tempfile.tempdir = None  # whatever an import has found out about the parent's
            run(BlockingChannel.from_descriptor(channel), fork)
            status = 0
        except BaseException:  # noqa: BLE001 - nothing may get back into the parent's loop
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)

    def _reap(self, pid: int) -> Reaped:
        if pid not in self._children:
            raise UsageError(f"process {pid} is no child of this one, or was reaped before")
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return Reaped(None)
        self._children.discard(pid)
        return Reaped(os.waitstatus_to_exitcode(status))


def _imported(kind: str) -> Run:
    """The worker's ``run``, imported once for all who come after; without PyTorch where nobody trains."""
    try:
        module = importlib.import_module(f"agent.workers.{kind}")
    except ImportError as error:
        raise UsageError(
            f"a {kind} cannot start", why=str(error), mend="pip install 'atoll-agent[train]'"
        ) from None
    gc.freeze()  # what is never looked at again is never copied
    return cast("Run", module.run)


def main() -> None:
    """Serve the channel until it closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel-fd", type=int, required=True)
    exit_with_parent()
    channel = BlockingChannel.from_descriptor(parser.parse_args().channel_fd)
    runtime = f"Python {sys.version.split()[0]}"
    channel.send(FROM_NURSERY.pack(TrainerReady(runtime, "none: its children confine themselves")))
    converse(channel, TO_NURSERY, FROM_NURSERY, Nursery(channel).answer)


if __name__ == "__main__":
    main()
