"""Requests of one gateway, in order; those for one model may be taken together.

They wait in the doorbell's socket until a runner is free, so that each is handed over once, by the
kernel, to a thread that goes on with it. Only to find out who may run together with the first are
those behind it fetched, and only while no runner waits at the socket, where one of them may be on its
way to it.
"""

import threading
from collections import deque
from collections.abc import Callable

from agent.serving.batching import share
from agent.workers.inference_work import Link, Work


class WorkQueue:
    """First come, first served; bounded by the slots of the gateway."""

    def __init__(self, link: Link, runners: int, rows_max: Callable[[bytes], int]) -> None:
        """``rows_max(key)``: how many rows of a model to run together now, 1 = one request."""
        self._link, self._runners, self._rows_max = link, runners, rows_max
        self._fetched: deque[Work] = deque()
        self._waiting = 0
        """Runners at the socket; while there are any, nothing is fetched for later."""
        self._lock = threading.Lock()

    def take(self) -> list[Work]:
        """Wait for the first, and take its share of those behind it for the same model.

        Empty when the gateway is gone.
        """
        with self._lock:
            first = self._fetched.popleft() if self._fetched else None
            self._waiting += first is None
        if first is None:
            first = self._link.receive()
            with self._lock:
                self._waiting -= 1
            if first is None:
                return []
        if (rows_max := self._rows_max(first.ring.key)) == 1:
            return [first]
        return [first, *self._fellows(first.ring.key, rows_max)]

    def _fellows(self, key: bytes, rows_max: int) -> list[Work]:
        with self._lock:
            if self._waiting == 0:
                while (work := self._link.receive(is_waiting=False)) is not None:
                    self._fetched.append(work)
            fellows = [work for work in self._fetched if work.ring.key == key]
            count = share(1 + len(fellows), runners=self._runners, rows_max=rows_max)
            taken = fellows[: count - 1]
            for work in taken:
                self._fetched.remove(work)
            return taken
