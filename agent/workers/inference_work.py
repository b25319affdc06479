"""One request from ring to answer, one run of one or several, and the gateway they came from."""

import contextlib
import math
import select
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

from agent.drivers.shared_memory import SharedSlots
from agent.foundation.errors import Malformed
from agent.serving.doorbell import RING_BYTES_MAX, AnswerRing, InferRing, unpack_ring


@dataclass(slots=True, eq=False)
class Link:
    """One attached gateway."""

    doorbell: socket.socket
    slots: SharedSlots
    listeners: int = 0
    """Threads that wait for its rings, or work on one."""
    pending: set[int] = field(default_factory=set)
    """Numbers of requests that are not answered."""
    is_over: bool = False
    """The gateway has closed its end: nobody waits for anything."""
    closing: threading.Lock = field(default_factory=threading.Lock)

    def receive(self, *, is_waiting: bool = True) -> "Work | None":
        """The next request; None if the gateway is gone, or none is there and ``is_waiting`` is not.

        Several threads may wait at once: the kernel gives each ring to one of them.

        Raises:
            Malformed: the gateway and this process do not understand each other.
        """
        try:
            packet = self.doorbell.recv(RING_BYTES_MAX, 0 if is_waiting else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError:
            packet = b""
        if not packet:
            self.is_over = True
            return None
        ring = unpack_ring(packet)
        if not isinstance(ring, InferRing):
            raise Malformed("a gateway rang an answer")
        if ring.slot >= self.slots.slots or ring.offset + ring.body_bytes > self.slots.slot_bytes:
            raise Malformed("a gateway rang for memory that is not there")
        self.pending.add(ring.number)
        return Work(self, ring, ring.deadline)

    def look(self) -> None:
        """Find out whether the gateway is gone, for when all listeners are at work."""
        watch = select.poll()
        watch.register(self.doorbell, 0)  # the end of a connection is always told
        self.is_over = self.is_over or bool(watch.poll(0))

    def answer(self, ring: AnswerRing) -> None:
        """Ring the answer; a gateway that is gone needs none."""
        with contextlib.suppress(OSError):
            self.doorbell.send(ring.pack())

    def leave(self) -> None:
        """One of its listeners listens no more."""
        with self.closing:
            self.listeners -= 1
        self.close_if_idle()

    def close_if_idle(self) -> None:
        """Let go of the memory once the gateway is gone and nothing runs in it."""
        if self.is_over:
            with self.closing:
                if not self.pending and not self.listeners:
                    self.doorbell.close()
                    self.slots.close()


@dataclass(slots=True, eq=False)
class Work:
    """One request from ring to answer."""

    link: Link
    ring: InferRing
    deadline: float
    begun_at: float = 0.0
    is_answered: bool = False
    run_us: int = 0
    """Its part of the run; 0 if it did not run."""

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for it any more."""
        ring, link = self.ring, self.link
        return link.is_over or link.slots.is_cancelled(ring.slot, ring.number)


@dataclass(slots=True, eq=False)
class Run:
    """What is inside ONNX Runtime now: one request, or several together."""

    works: list[Work]
    options: Any
    """``onnxruntime.RunOptions``: setting its ``terminate`` stops the run."""
    told_at: float = math.inf
    """When the run was told to stop."""

    def stop(self, now: float) -> None:
        """Tell it, once."""
        if self.told_at == math.inf:
            self.told_at = now
            self.options.terminate = True
