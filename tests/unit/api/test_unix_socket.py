"""``agent.api.unix_socket``: who may connect, and what happens to leftovers."""

import os
import socket
import stat
from pathlib import Path

import pytest

from agent.api import unix_socket
from agent.foundation.errors import ConfigError


def test_the_file_is_for_its_owner_only_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"
    before = os.umask(0)
    try:
        listener, inode = unix_socket.bind(path)
    finally:
        os.umask(before)
    with listener:
        found = path.lstat()
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert found.st_ino == inode


def test_the_umask_of_the_process_is_left_as_it_was(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        listener, _ = unix_socket.bind(tmp_path / "agent.sock")
        listener.close()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)


def test_a_leftover_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    dead, _ = unix_socket.bind(path)
    dead.close()
    assert path.exists()
    listener, _ = unix_socket.bind(path)
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_second_agent_does_not_take_the_socket_of_a_running_one(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    first, inode = unix_socket.bind(path)
    with first:
        with pytest.raises(ConfigError, match="another Atoll agent answers"):
            unix_socket.bind(path)
        assert path.lstat().st_ino == inode


def test_a_file_in_its_place_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is not a socket"):
        unix_socket.bind(path)
    assert path.read_text() == "precious"


def test_a_path_too_long_for_the_kernel_is_told_with_its_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="107"):
        unix_socket.bind(tmp_path / ("x" * 108))


def test_removing_leaves_the_socket_of_a_successor(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    first, first_inode = unix_socket.bind(path)
    path.rename(tmp_path / "kept")  # keeps the inode number from being used again
    second, second_inode = unix_socket.bind(path)
    with first, second:
        unix_socket.remove(path, first_inode)
        assert path.exists()
        unix_socket.remove(path, second_inode)
        assert not path.exists()


def test_the_peer_is_who_the_kernel_says() -> None:
    one, other = socket.socketpair(socket.AF_UNIX)
    with one, other:
        assert unix_socket.peer_uid(one) == os.geteuid()
