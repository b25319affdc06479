"""Messages between the processes of one site, over an inherited Unix socket pair.

Rule: whoever holds an end of a channel was started by this site, so a frame is trusted to be whole
or absent, never to be right: its content is still decoded by ``agent.wire.inside``.

A frame is ``length (4, big-endian) | descriptors (1) | data``. File descriptors travel as
``SCM_RIGHTS`` with the frame's first byte; the kernel never lets one read run past bytes that carry
descriptors into the next that do, so they arrive in frame order and are dealt out by the count in
the header (Linux ``unix(7)``).

The end of the stream, clean or by a killed process, is ``None`` from ``receive``.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import struct
import sys
import threading
from collections import deque
from collections.abc import Sequence
from typing import Self

from agent.foundation.errors import Busy, Malformed, Unreachable

FRAME_BYTES_MAX = 16 << 20
"""The largest is a gateway's view of 10,000 members (about 1 KiB each)."""
DESCRIPTORS_MAX = 8
"""The most that travel together today are two (doorbell and memory)."""
QUEUE_FRAMES_MAX = 1024
"""Frames waiting for a reader that is slow: beyond it the sender is told, not the memory filled."""
READ_BYTES = 1 << 18

_HEADER = struct.Struct("!IB")
_DESCRIPTOR = struct.Struct("i")
_ANCILLARY_BYTES = socket.CMSG_SPACE(DESCRIPTORS_MAX * _DESCRIPTOR.size)
_PR_SET_PDEATHSIG = 1

Frame = tuple[bytes, list[int]]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; neither is inherited by other processes unless passed on purpose."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


def exit_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it dies (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _header(data: bytes, descriptors: Sequence[int]) -> bytes:
    if len(data) > FRAME_BYTES_MAX or len(descriptors) > DESCRIPTORS_MAX:
        raise ValueError(f"frame of {len(data)} bytes with {len(descriptors)} descriptors")
    return _HEADER.pack(len(data), len(descriptors))


def _ancillary(descriptors: Sequence[int]) -> list[tuple[int, int, bytes]]:
    if not descriptors:
        return []
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"".join(map(_DESCRIPTOR.pack, descriptors)))]


class _Assembly:
    """Frames out of what single reads return."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._descriptors: deque[int] = deque()

    def read(self, connection: socket.socket) -> bool:
        """Take what one read returns; False at the end of the stream."""
        try:
            data, ancillary, flags, _ = connection.recvmsg(
                READ_BYTES, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
            )
        except (ConnectionError, ValueError):
            return False
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = content[: len(content) - len(content) % _DESCRIPTOR.size]
                self._descriptors.extend(number for (number,) in _DESCRIPTOR.iter_unpack(whole))
        if flags & socket.MSG_CTRUNC:
            raise Malformed(
                "descriptors were lost on a channel",
                why="the process may be at its limit of open files",
            )
        self._data += data
        return bool(data)

    def next(self) -> Frame | None:
        """The next whole frame, if it is there."""
        if len(self._data) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._data)
        if length > FRAME_BYTES_MAX or count > DESCRIPTORS_MAX:
            raise Malformed(f"channel frame of {length} bytes with {count} descriptors")
        end = _HEADER.size + length
        if len(self._data) < end:
            return None
        if len(self._descriptors) < count:
            raise Malformed("channel frame lacks its descriptors")
        data = bytes(memoryview(self._data)[_HEADER.size : end])
        del self._data[:end]
        return data, [self._descriptors.popleft() for _ in range(count)]

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())


class _Outgoing:
    """A frame on its way: what is left of it, and descriptors of its own until they are sent."""

    def __init__(self, data: bytes, descriptors: Sequence[int], done: asyncio.Future[None]) -> None:
        self.rest = memoryview(data)
        self.descriptors = list(descriptors)
        self.done = done

    def write(self, connection: socket.socket) -> bool:
        """Write what the socket takes; True when nothing is left."""
        while self.rest:
            sent = connection.sendmsg([self.rest], _ancillary(self.descriptors))
            self.close()
            self.rest = self.rest[sent:]
        return True

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        self.descriptors = []


class Channel:
    """One end, in an asyncio (or uvloop) loop. One task receives; any task may send."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over ``connection`` (a connected AF_UNIX stream socket); needs a running loop."""
        connection.setblocking(False)
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._assembly = _Assembly()
        self._outgoing: deque[_Outgoing] = deque()
        self._readable: asyncio.Future[None] | None = None
        self._is_closed = False

    @classmethod
    def from_descriptor(cls, descriptor: int) -> Self:
        """The end inherited as an open descriptor (``--channel-fd``)."""
        return cls(socket.socket(fileno=descriptor))

    async def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Hand one frame to the kernel, in the order of calls; ``descriptors`` stay the caller's.

        A cancelled call still sends its frame whole.

        Raises:
            Unreachable: the other process is gone.
            Busy: ``QUEUE_FRAMES_MAX`` frames already wait.
        """
        self.post(data, descriptors)
        if self._outgoing:
            await asyncio.shield(self._outgoing[-1].done)

    def post(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """As ``send``, without waiting until the kernel has taken the frame."""
        if self._is_closed:
            raise Unreachable("the channel is closed", why="the other process is gone")
        if len(self._outgoing) >= QUEUE_FRAMES_MAX:
            raise Busy("the channel is full", why="the other process does not read")
        frame = _header(data, descriptors) + data
        outgoing = _Outgoing(frame, [os.dup(d) for d in descriptors], self._loop.create_future())
        outgoing.done.add_done_callback(_retrieve)
        self._outgoing.append(outgoing)
        if len(self._outgoing) == 1:
            self._flush()
            if self._is_closed:
                raise Unreachable("the channel is closed", why="the other process is gone")
            if self._outgoing:
                self._loop.add_writer(self._connection.fileno(), self._flush)

    async def receive(self) -> Frame | None:
        """The next frame and the descriptors that are now the caller's; None at the end.

        Raises:
            Malformed: the stream is not one of frames.
        """
        while True:
            if (frame := self._assembly.next()) is not None:
                return frame
            if self._is_closed:
                return None
            try:
                if not self._assembly.read(self._connection):
                    return None
            except BlockingIOError:
                await self._wait_readable()

    @property
    def is_over(self) -> bool:
        """Whether the other end is gone, or this one closed: nobody will answer any more."""
        if self._is_closed:
            return True
        try:
            return not self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close this end: a waiting ``receive`` returns None, waiting sends raise Unreachable."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_writer(self._connection.fileno())
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        self._assembly.close()
        self._wake()
        while self._outgoing:
            outgoing = self._outgoing.popleft()
            outgoing.close()
            if not outgoing.done.done():
                outgoing.done.set_exception(
                    Unreachable("the channel is closed", why="the other process is gone")
                )

    async def _wait_readable(self) -> None:
        assert self._readable is None, "one task receives"
        self._readable = self._loop.create_future()
        self._loop.add_reader(self._connection.fileno(), self._wake)
        try:
            await self._readable
        finally:
            self._readable = None
            if not self._is_closed:
                self._loop.remove_reader(self._connection.fileno())

    def _wake(self) -> None:
        if self._readable is not None and not self._readable.done():
            self._readable.set_result(None)

    def _flush(self) -> None:
        try:
            while self._outgoing:
                self._outgoing[0].write(self._connection)
                done = self._outgoing.popleft().done
                if not done.done():
                    done.set_result(None)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        self._loop.remove_writer(self._connection.fileno())


def _retrieve(done: asyncio.Future[None]) -> None:
    """A frame that was posted and not awaited may fail: the reader of the channel learns of it."""
    if not done.cancelled():
        done.exception()


class BlockingChannel:
    """One end in a process without asyncio. One thread receives; any thread may send."""

    def __init__(self, connection: socket.socket) -> None:
        """Take over ``connection`` (a connected AF_UNIX stream socket)."""
        connection.setblocking(True)
        self._connection = connection
        self._assembly = _Assembly()
        self._sending = threading.Lock()

    @classmethod
    def from_descriptor(cls, descriptor: int) -> Self:
        """The end inherited as an open descriptor (``--channel-fd``)."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        """The descriptor, for a selector."""
        return self._connection.fileno()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Hand one frame to the kernel; ``descriptors`` stay the caller's.

        Raises:
            Unreachable: the other process is gone.
        """
        rest = memoryview(_header(data, descriptors) + data)
        with self._sending:
            try:
                while rest:
                    sent = self._connection.sendmsg([rest], _ancillary(descriptors))
                    descriptors = ()
                    rest = rest[sent:]
            except OSError as error:
                raise Unreachable(
                    "the channel is closed", why="the other process is gone"
                ) from error

    def receive(self) -> Frame | None:
        """Wait for the next frame and its descriptors (now the caller's); None at the end.

        Raises:
            Malformed: the stream is not one of frames.
        """
        while (frame := self._assembly.next()) is None:
            if not self._assembly.read(self._connection):
                return None
        return frame

    def let_go(self) -> None:
        """Forget this end, which another process holds too and goes on with."""
        self._connection.close()
        self._assembly.close()

    def close(self) -> None:
        """Close this end; the other one sees the end of the stream."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        self._assembly.close()
