"""Requests of one gateway, each in its turn; those for one model may be taken together.

While a runner is free, rings go from the doorbell's socket straight to it, each handed over once, by
the kernel, to the thread that goes on with it. A runner that comes back from work, when all the others
are at work too, fetches what has come meanwhile and takes whose turn it is (``serving.fair``).

Those that run together with the first are served before others that would have been next. So they are
of its priority, they are charged as if it were their turn, and while anybody is passed over all of
them together are short.
"""

import threading
from collections.abc import Callable, Sequence

from agent.serving.batching import share
from agent.serving.fair import FairQueue
from agent.workers.inference_work import Link, Work

JUMP_US_MAX = 10_000
"""Work that may go before somebody whose turn it was, by its typical run time: what a person or a
control loop does not notice, and long enough for sixty-four of the models that gain by it."""


class WorkQueue:
    """Bounded by the slots of the gateway."""

    def __init__(self, link: Link, runners: int, rows_max: Callable[[bytes], int]) -> None:
        """``rows_max(key)``: how many rows of a model to run together now, 1 = one request."""
        self._link, self._runners, self._rows_max = link, runners, rows_max
        self._fetched: FairQueue[Work] = FairQueue()
        self._at_socket = 0
        """Runners that wait there; while there are any, nothing is fetched for later."""
        self._lock = threading.Lock()

    def take(self, done: Sequence[Work] = ()) -> list[Work]:
        """Wait for the first, and take its share of its fellows: those for the same model.

        Empty when the gateway is gone. ``done`` is what this runner took before; it is settled by
        the time that it has really cost.
        """
        with self._lock:
            for work in done:
                if work.is_answered:  # else it is held back until its model is there
                    self._fetched.settle(work.ring.turn, work.run_us)
            self._fetch()
            found = self._fetched.pop()
            if found is None:
                self._at_socket += 1
                if self._at_socket == self._runners:
                    self._fetched.rest()
        first = found[1] if found is not None else self._from_socket()
        if first is None:
            return []
        if (rows_max := self._rows_max(first.ring.key)) == 1:
            return [first]
        return [first, *self._fellows(first, rows_max)]

    def _from_socket(self) -> Work | None:
        work = self._link.receive()
        with self._lock:
            self._at_socket -= 1
            if work is not None:
                self._fetched.pass_by(work.ring.turn)
        return work

    def _fetch(self) -> None:
        if self._at_socket == 0:
            while (work := self._link.receive(is_waiting=False)) is not None:
                self._fetched.push(work.ring.turn, work)

    def _fellows(self, first: Work, rows_max: int) -> list[Work]:
        with self._lock:
            self._fetch()
            key, priority = first.ring.key, first.ring.turn.priority
            fellows = self._fetched.fellows(priority, lambda work: work.ring.key == key)
            count = share(1 + len(fellows), runners=self._runners, rows_max=rows_max) - 1
            left_us = JUMP_US_MAX if len(self._fetched) > len(fellows) else None
            taken: list[Work] = []
            for turn, work in fellows[:count]:
                if left_us is not None:
                    left_us -= turn.cost_us
                    if left_us < 0:
                        break
                self._fetched.take(turn, work)
                taken.append(work)
            return taken
