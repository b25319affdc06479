"""The file system's small print: durable names, and what its errors mean to the operator."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agent.foundation.errors import StoreFault


def synced(directory: Path) -> None:
    """Make names created, renamed or removed in ``directory`` durable (fsync of the directory)."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_in(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names and facts of the plain files in ``folder``; what goes meanwhile is left out."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.stat(follow_symlinks=False)


def fault_of(error: OSError, what: str) -> StoreFault:
    """The error of the tree that says what the operator can do about ``error``."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            mend = "free space on the disk of state_dir"
        case errno.EROFS:
            mend = "the disk is read-only: check its health (dmesg) and mount it again"
        case errno.EMFILE | errno.ENFILE:
            mend = "raise LimitNOFILE of the service"
        case errno.EACCES | errno.EPERM:
            mend = "give the state_dir to the user that runs the agent"
        case _:
            mend = "check the disk of state_dir"
    return StoreFault(what, why=error.strerror or type(error).__name__, mend=mend)
