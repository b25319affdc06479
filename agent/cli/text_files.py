"""Files that a person gives to a command, read as text."""

import sys
from pathlib import Path

from agent.foundation.errors import UsageError


def unreadable(what: object, error: OSError) -> UsageError:
    """The error for a file, named by the caller, that could not be opened or read."""
    return UsageError(
        f"{what} cannot be read",
        why=error.strerror or str(error),
        mend="name a file that is there and that you may read",
    )


def read_text(path: Path, bytes_max: int) -> str:
    """The file's text; ``-`` is standard input. A bound, as a device may be given by mistake.

    Raises:
        UsageError: it cannot be read, is too long or is not UTF-8.
    """
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(bytes_max + 1)
        else:
            with path.open("rb") as file:
                data = file.read(bytes_max + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) > bytes_max:
        raise UsageError(f"{path} is too long", why=f"the bound is {bytes_max:,} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8", mend="save it as UTF-8") from None
