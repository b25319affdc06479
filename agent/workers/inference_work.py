"""One request from ring to answer, one run of one or several, and the gateway they came from."""

import contextlib
import math
import socket
import threading
from dataclasses import dataclass, field
from typing import Any

from agent.drivers.shared_memory import SharedSlots
from agent.serving.doorbell import AnswerRing, InferRing


@dataclass(slots=True, eq=False)
class Link:
    """One attached gateway."""

    doorbell: socket.socket
    slots: SharedSlots
    pending: "dict[int, Work]" = field(default_factory=dict)
    is_over: bool = False
    """The gateway has closed its end."""
    closing: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, ring: AnswerRing) -> None:
        """Ring the answer; a gateway that is gone needs none."""
        with contextlib.suppress(OSError):
            self.doorbell.send(ring.pack())

    def close_if_idle(self) -> None:
        """Let go of the memory once the gateway is gone and nothing runs in it."""
        with self.closing:
            if self.is_over and not self.pending:
                self.doorbell.close()
                self.slots.close()


@dataclass(slots=True, eq=False)
class Work:
    """One request from ring to answer."""

    link: Link
    ring: InferRing
    rung_at: float
    deadline: float
    begun_at: float = 0.0
    is_cancelled: bool = False
    is_answered: bool = False
    run: "Run | None" = None
    """The run that it is part of now."""


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
