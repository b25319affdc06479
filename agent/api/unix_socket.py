"""The admin socket's file: nobody but this site's user (and root) may even connect.

Rules: the file is created with mode 0600, never loosened or tightened later; a socket left behind
by a killed agent is replaced; one that answers means that another agent runs, and is left alone.
"""

import contextlib
import os
import socket
import stat
import struct
from pathlib import Path

from agent.foundation.errors import ConfigError

PATH_BYTES_MAX = 107
"""``sockaddr_un.sun_path`` is 108 bytes with its final zero (Linux unix(7))."""
BACKLOG = 64
"""Connections that wait: an operator's tools, never applications."""

_UCRED = struct.Struct("3i")


def bind(path: Path) -> tuple[socket.socket, int]:
    """A listening socket at ``path``, mode 0600, and its file's inode; its folder is created with mode 0700 if absent.

    Raises:
        ConfigError: the path is too long, not ours to use, or another agent answers there.
    """
    if len(os.fsencode(path)) > PATH_BYTES_MAX:
        raise ConfigError(
            f"the admin socket's path has {len(os.fsencode(path))} bytes: {path}",
            why=f"the kernel allows {PATH_BYTES_MAX}",
            mend="set a shorter runtime_dir in [site]",
        )
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _clear(path)
    except OSError as error:
        raise _unusable(path, error) from error
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o177)
    try:
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
        inode = path.lstat().st_ino
    except OSError as error:
        listener.close()
        raise _unusable(path, error) from error
    finally:
        os.umask(former)
    listener.setblocking(False)
    return listener, inode


def remove(path: Path, listener_inode: int) -> None:
    """Remove the socket's file if it is still the one with ``listener_inode``."""
    with contextlib.suppress(OSError):
        if path.lstat().st_ino == listener_inode:
            path.unlink()


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end, as the kernel says (Linux SO_PEERCRED)."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    _pid, uid, _gid = _UCRED.unpack(data)
    return int(uid)


def _unusable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the admin socket {path} cannot be created",
        why=error.strerror or str(error),
        mend="set runtime_dir in [site] to a folder that this user may write",
    )


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(
            f"{path} exists and is not a socket",
            why="the admin socket belongs there",
            mend="move it away, or set another runtime_dir in [site]",
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
        except BlockingIOError:
            raise _taken(path) from None  # its backlog is full: it lives
        else:
            raise _taken(path)


def _taken(path: Path) -> ConfigError:
    return ConfigError(
        f"another Atoll agent answers on {path}",
        why="two agents cannot share one identity and one store",
        mend="stop it (`atoll status` names its processes), or give this site its own state_dir and runtime_dir",
    )
