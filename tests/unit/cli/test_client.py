"""``agent.cli.client``: every way in which the agent may fail to answer."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.api import admin
from agent.cli.client import AdminClient
from agent.foundation.errors import (
    Busy,
    Malformed,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unreachable,
    UsageError,
)

if TYPE_CHECKING:
    from conftest import CannedSite


@contextmanager
def answering(path: Path, reply: bytes) -> Iterator[None]:
    """Something on the socket that sends ``reply`` to one request and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65_536)
            connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


def test_a_read_returns_what_the_agent_says(socket_path: Path) -> None:
    assert AdminClient(socket_path).get("/1/status")["name"] == "berlin"


def test_no_socket_means_that_the_agent_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="does not run") as caught:
        AdminClient(tmp_path / "none.sock").get("/1/status")
    assert "systemctl start atoll" in caught.value.mend


def test_a_leftover_socket_is_told_from_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "left.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(Unreachable, match="leftover"):
        AdminClient(path).get("/1/status")


@pytest.mark.parametrize(
    "reply", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{", b"SSH-2.0-x\r\n"]
)
def test_a_read_that_breaks_off_can_be_tried_again(tmp_path: Path, reply: bytes) -> None:
    path = tmp_path / "a.sock"
    with answering(path, reply), pytest.raises(Unreachable):
        AdminClient(path).get("/1/status")


def test_a_change_that_breaks_off_has_an_unknown_outcome(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"
    with answering(path, reply), pytest.raises(OutcomeUnknown, match="may or may not"):
        AdminClient(path).post("/1/leave")


def test_an_answer_of_another_program_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.sock"
    reply = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<htm>"
    with answering(path, reply), pytest.raises(Malformed, match="not JSON"):
        AdminClient(path).get("/1/status")


@pytest.mark.parametrize("kind", [UsageError, Refused, NotFound, Busy, OutcomeUnknown])
def test_an_error_comes_out_as_it_went_in(
    kind: Callable[..., UsageError], canned: "CannedSite", socket_path: Path
) -> None:
    canned.error = kind("what", why="why", mend="mend")
    with pytest.raises(type(canned.error)) as caught:
        AdminClient(socket_path).get("/1/status")
    assert type(caught.value) is type(canned.error)
    assert (caught.value.what, caught.value.why, caught.value.mend) == ("what", "why", "mend")


def test_a_large_file_is_streamed_whole(canned: "CannedSite", socket_path: Path) -> None:
    data = bytes(range(256)) * 8192
    answer = AdminClient(socket_path).upload("/1/blobs", BytesIO(data), len(data))
    assert answer["bytes"] == len(data)
    assert canned.blob == data


def test_a_stream_ends_with_its_source_and_hides_what_keeps_it_alive(
    canned: "CannedSite", socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "KEEP_ALIVE_S", 0.001)
    canned.changes = [{"round": number} for number in range(3)]
    found = list(AdminClient(socket_path).stream("/1/jobs/digits-00000001/watch"))
    assert found == canned.changes


def test_an_error_before_the_stream_is_an_error(socket_path: Path) -> None:
    with pytest.raises(NotFound, match="no job"):
        list(AdminClient(socket_path).stream("/1/jobs/other-00000001/watch"))
