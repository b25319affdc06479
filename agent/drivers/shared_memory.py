"""The memory in which requests and answers lie, shared by the gateway and one model worker.

One sealed memfd: a header, then ``slots`` slots of ``slot_bytes``. It is sealed against
resizing, so neither side can make the other touch memory that is gone. Slots are sparse: memory is
used as far as bodies have reached, and given back after large ones.

The header also says how many requests the worker runs at once; which model each slot is running:
after a crash the control process reads there whom to blame; and which requests nobody waits for any
more: a worker whose threads all compute has nobody to hear a message.
"""

import contextlib
import fcntl
import mmap
import os
import socket
import struct
from typing import Self

from agent.foundation.errors import Malformed
from agent.serving.doorbell import RING_BYTES_MAX

SLOTS_MAX = 256
"""As many as the configuration allows; their notes (twice 8 bytes each) fit the header."""
SLOT_BYTES_MAX = 1 << 30
HEADER_BYTES = 8192
ALIGNMENT = 64
"""Tensors start at multiples of it, as vector instructions like."""
KEPT_BYTES = 2 << 20
"""A slot that held more than this gives its memory back when it is released. Giving back and fetching
anew costs the gateway's loop about 1 ms for each MB, which smaller bodies need not pay."""

_MAGIC = b"atoll-sm"
_GEOMETRY = struct.Struct("<8sIQ")
_RUNNERS = struct.Struct("<I")
_RUNNERS_AT = 64
_NOTES_AT = 128
_KEY_BYTES = 8
_NO_KEY = bytes(_KEY_BYTES)
_NUMBER = struct.Struct("<Q")
_CANCELS_AT = _NOTES_AT + SLOTS_MAX * _KEY_BYTES
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SharedSlots:
    """One process's mapping of the memory."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind ``descriptor``, which is taken over.

        Raises:
            Malformed: it is not such a memory, or not sealed.
        """
        self._descriptor = descriptor
        self.slots, self.slot_bytes = _check(descriptor)
        self._map = mmap.mmap(descriptor, HEADER_BYTES + self.slots * self.slot_bytes)
        self._view = memoryview(self._map)

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> Self:
        """New memory; ``slot_bytes`` is rounded up to whole pages."""
        slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if not 0 < slots <= SLOTS_MAX or not 0 < slot_bytes <= SLOT_BYTES_MAX:
            raise ValueError(f"{slots} slots of {slot_bytes} bytes")
        descriptor = os.memfd_create("atoll-slots", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, HEADER_BYTES + slots * slot_bytes)
        os.pwrite(descriptor, _GEOMETRY.pack(_MAGIC, slots, slot_bytes), 0)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return cls(descriptor)

    def fileno(self) -> int:
        """The descriptor, to be sent to the other process."""
        return self._descriptor

    def slot(self, index: int) -> memoryview:
        """All bytes of one slot, writable."""
        start = HEADER_BYTES + index * self.slot_bytes
        return self._view[start : start + self.slot_bytes]

    def release(self, index: int, used_bytes: int) -> None:
        """Give a large slot's memory back to the system; its content is lost."""
        if used_bytes > KEPT_BYTES:
            start = HEADER_BYTES + index * self.slot_bytes
            with contextlib.suppress(OSError):  # a kernel without hole punching keeps the memory
                self._map.madvise(mmap.MADV_REMOVE, start, self.slot_bytes)

    @property
    def runners(self) -> int:
        """How many requests the worker runs at once; 0 until it has attached."""
        return int(_RUNNERS.unpack_from(self._map, _RUNNERS_AT)[0])

    @runners.setter
    def runners(self, count: int) -> None:
        _RUNNERS.pack_into(self._map, _RUNNERS_AT, count)

    def note_running(self, index: int, key: bytes | None) -> None:
        """Say which model the slot is running (worker side); None when it has ended."""
        start = _NOTES_AT + index * _KEY_BYTES
        self._map[start : start + _KEY_BYTES] = _NO_KEY if key is None else key

    def is_running(self, index: int) -> bool:
        """Whether the slot's model runs now, or ran when the worker died."""
        start = _NOTES_AT + index * _KEY_BYTES
        return self._map[start : start + _KEY_BYTES] != _NO_KEY

    def running(self) -> list[bytes]:
        """Keys of the models that run now, or ran when the worker died."""
        starts = range(_NOTES_AT, _NOTES_AT + self.slots * _KEY_BYTES, _KEY_BYTES)
        notes = [self._map[start : start + _KEY_BYTES] for start in starts]
        return [note for note in notes if note != _NO_KEY]

    def cancel(self, index: int, number: int) -> None:
        """Say that nobody waits for this request in the slot any more (gateway side)."""
        _NUMBER.pack_into(self._map, _CANCELS_AT + index * _NUMBER.size, number)

    def is_cancelled(self, index: int, number: int) -> bool:
        """Whether that was said of this request; numbers are never used again (worker side)."""
        found: int = _NUMBER.unpack_from(self._map, _CANCELS_AT + index * _NUMBER.size)[0]
        return found == number

    def close(self) -> None:
        """Unmap. Views of slots that are still held keep the mapping alive until they go."""
        with contextlib.suppress(BufferError):
            self._view.release()
            self._map.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _check(descriptor: int) -> tuple[int, int]:
    try:
        is_sealed = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS == _SEALS
        magic, slots, slot_bytes = _GEOMETRY.unpack(os.pread(descriptor, _GEOMETRY.size, 0))
        size = os.fstat(descriptor).st_size
    except (OSError, struct.error) as error:
        raise Malformed("not a shared memory of slots", why=str(error)) from None
    fits = 0 < slots <= SLOTS_MAX and size == HEADER_BYTES + slots * slot_bytes
    if not is_sealed or magic != _MAGIC or not fits:
        raise Malformed("not a shared memory of slots", why="seals, mark or size are wrong")
    return slots, slot_bytes


def doorbell_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a doorbell: small packets, each whole, in order."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        # The default of 208 KiB holds about 270 rings (the kernel counts 768 bytes each), more
        # than twice the slots, so that ringing never blocks.
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * SLOTS_MAX * (768 + RING_BYTES_MAX))
    return ends
