"""One request at a time to the agent's admin socket, with nothing but the standard library.

``http.client`` is imported in a few milliseconds, an HTTP library with its event loop in hundreds;
``atoll status`` must answer within 300 ms on a small machine, interpreter included.
"""

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote, urlencode

from agent.foundation.errors import (
    AtollError,
    Busy,
    Malformed,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unreachable,
    UsageError,
)

Json = dict[str, Any]

TIMEOUT_S = 30.0
"""The agent answers from memory; the longest wait is for its disk."""
UPLOAD_TIMEOUT_S = 600.0
"""After the last byte of a large model the agent hashes and syncs it."""
STREAM_TIMEOUT_S = 60.0
"""Idle streams carry an empty line every 15 s: four missed means that the agent hangs."""
ANSWER_BYTES_MAX = 64 << 20
"""A table of 10,000 members is about 5 MB."""
LINE_BYTES_MAX = 1 << 20


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self.is_connected = False
        """Whether an agent has taken the connection, so that it may have acted."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(str(self._path))
        except BaseException:
            self.sock.close()
            raise
        self.is_connected = True


def whole(response: http.client.HTTPResponse, bytes_max: int) -> bytes:
    """The body; ``http.client`` itself passes a body that was cut off for a whole one.

    Raises:
        http.client.IncompleteRead: it was cut off, or is longer than ``bytes_max``.
    """
    data = response.read(bytes_max)
    if response.length or len(data) >= bytes_max:
        raise http.client.IncompleteRead(data, response.length)
    return data


class AdminClient:
    """The agent behind one admin socket.

    Every method raises Unreachable if no agent answers, and otherwise the error the agent gave.
    """

    def __init__(self, path: Path) -> None:
        """``path``: the agent's Unix socket."""
        self._path = path

    def get(self, path: str, **query: str) -> Json:
        """The answer of a read."""
        if query := {key: value for key, value in query.items() if value}:
            path = f"{path}?{urlencode(query)}"
        with _Exchange(self._path, TIMEOUT_S) as exchange:
            return exchange.answer("GET", path)

    def post(self, path: str, body: Json | None = None, timeout_s: float = TIMEOUT_S) -> Json:
        """The answer of a change."""
        with _Exchange(self._path, timeout_s) as exchange:
            return exchange.answer("POST", path, json.dumps(body or {}).encode())

    def upload(self, path: str, file: BinaryIO, size: int) -> Json:
        """The answer to ``size`` bytes of ``file``, which are streamed."""
        with _Exchange(self._path, UPLOAD_TIMEOUT_S) as exchange:
            return exchange.answer("POST", path, file, size)

    def stream(self, path: str) -> Iterator[Json]:
        """Each line of an endless answer; ends when the agent ends it."""
        with _Exchange(self._path, STREAM_TIMEOUT_S) as exchange:
            yield from exchange.lines(path)


class _Exchange:
    """One connection, one request; every failure of the transport as an error of ours."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._connection = _UnixConnection(path, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def answer(
        self, method: str, path: str, body: bytes | BinaryIO | None = None, size: int | None = None
    ) -> Json:
        with self._told(method):
            response = self._send(method, path, body, size)
            data = whole(response, ANSWER_BYTES_MAX)
        return _checked(response.status, data)

    def lines(self, path: str) -> Iterator[Json]:
        with self._told("GET"):
            response = self._send("GET", path, None, None)
        if response.status != http.client.OK:
            with self._told("GET"):
                data = whole(response, ANSWER_BYTES_MAX)
            _checked(response.status, data)
        while True:
            with self._told("GET"):
                line = response.readline(LINE_BYTES_MAX)
            if not line:
                return
            if line != b"\n":
                yield _decoded(line)

    def _send(
        self, method: str, path: str, body: bytes | BinaryIO | None, size: int | None
    ) -> http.client.HTTPResponse:
        headers = {} if size is None else {"Content-Length": str(size)}
        try:
            self._connection.request(method, quote(path, safe="/?&=%+:,"), body, headers)
        except BrokenPipeError:
            # The agent refused a large upload early and said why: read that.
            if size is None:
                raise
        return self._connection.getresponse()

    @contextmanager
    def _told(self, method: str) -> Iterator[None]:
        """Failures of the block as errors that say whether the agent may have acted."""
        try:
            yield
        except PermissionError as error:
            raise Refused(
                f"no permission for {self._path}",
                why="only root and the user that runs the agent may administer this site",
                mend="run the command as root (sudo)",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            if method == "GET" or not self._connection.is_connected:
                raise self._silent(error) from error
            raise OutcomeUnknown(
                "the agent went away before it answered",
                why="the change may or may not have been made",
                mend="look (`atoll status`), then try again",
            ) from error

    def _silent(self, error: BaseException) -> Unreachable:
        match error:
            case FileNotFoundError():
                why = "there is no such socket: the agent does not run, or uses another runtime_dir"
            case ConnectionRefusedError():
                why = "the socket is a leftover: the agent does not run"
            case TimeoutError():
                why = f"no answer within {self._timeout_s:g} s"
            case _:
                why = str(error) or type(error).__name__
        return Unreachable(
            f"no agent answers on {self._path}",
            why=why,
            mend="start it with `systemctl start atoll` or `atoll run`, or name its --config or"
            " --socket; `atoll doctor` finds out what is wrong",
        )


def _decoded(data: bytes) -> Json:
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Malformed(
            "the agent's answer is not JSON",
            mend="is it an Atoll agent that listens on this socket?",
        )
    return value


def _checked(status: int, data: bytes) -> Json:
    value = _decoded(data)
    if status == http.client.OK:
        return value
    error = value.get("error")
    fields = error if isinstance(error, dict) else {"what": str(error)}
    what, why, mend = (str(fields.get(key, "")) for key in ("what", "why", "mend"))
    raise _KINDS.get(status, AtollError)(what, why=why, mend=mend)


_KINDS: dict[int, type[AtollError]] = {
    400: UsageError,
    403: Refused,
    404: NotFound,
    409: OutcomeUnknown,
    503: Busy,
}
