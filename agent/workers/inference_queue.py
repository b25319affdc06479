"""Requests that wait for a runner, in order; those for one model may be taken together."""

import threading
from collections import deque
from collections.abc import Callable

from agent.serving.batching import share
from agent.workers.inference_work import Work


class WorkQueue:
    """First come, first served; bounded by the slots of the attached gateways."""

    def __init__(self, runners: int, rows_max: Callable[[bytes], int]) -> None:
        """``rows_max(key)``: how many rows of a model to run together now, 1 = one request."""
        self._runners, self._rows_max = runners, rows_max
        self._works: deque[Work] = deque()
        self._filled = threading.Condition()

    def put(self, work: Work) -> None:
        """Add one at the end."""
        with self._filled:
            self._works.append(work)
            self._filled.notify()

    def take(self) -> list[Work]:
        """Wait for the first, and take its share of those behind it for the same model."""
        with self._filled:
            while not self._works:
                self._filled.wait()
            first = self._works.popleft()
            key = first.ring.key
            if not self._works or (rows_max := self._rows_max(key)) == 1:
                return [first]
            fellows = [work for work in self._works if work.ring.key == key]
            count = share(1 + len(fellows), runners=self._runners, rows_max=rows_max)
            taken = fellows[: count - 1]
            for work in taken:
                self._works.remove(work)
            return [first, *taken]
