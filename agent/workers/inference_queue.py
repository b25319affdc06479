"""Requests of one gateway, each in its turn; those for one model may be taken together.

While a runner is free, rings go from the doorbell's socket straight to it, each handed over once, by
the kernel, to the thread that goes on with it. A runner that comes back from work, when all the others
are at work too, fetches what has come meanwhile and takes whose turn it is (``serving.fair``).

Where the operator lets a first request wait for company, one runner at a time is the one that reads
and waits, the others stand behind it (Schmidt et al. 2000, "Leader/Followers"). It waits only while
nobody else does: what is not for its model ends it.

Those that run together with the first are served before others that would have been next. So they are
of its priority, they are charged as if it were their turn, and while anybody is passed over all of
them together are short.
"""

import contextlib
import select
import threading
import time
from collections.abc import Callable, Sequence

from agent.serving.batching import Company, share
from agent.serving.fair import FairQueue, Turn
from agent.workers.inference_work import Link, Work

JUMP_US_MAX = 10_000
"""Work that may go before somebody whose turn it was, by its typical run time: what a person or a
control loop does not notice, and long enough for sixty-four of the models that gain by it."""


class WorkQueue:
    """Bounded by the slots of the gateway."""

    def __init__(
        self,
        link: Link,
        runners: int,
        rows_max: Callable[[bytes], int],
        company: Company = Company(),  # noqa: B008 - frozen
    ) -> None:
        """``rows_max(key)``: how many rows of a model to run together now, 1 = one request."""
        self._link, self._runners, self._rows_max = link, runners, rows_max
        self._company = company
        self._leading: contextlib.AbstractContextManager[object] = (
            threading.Lock() if company.delay_s else contextlib.nullcontext()
        )
        self._fetched: FairQueue[Work] = FairQueue()
        self._idle = 0
        """Runners that want work."""
        self._at_socket = 0
        """Those of them that wait there; while there are any, nothing is fetched for later."""
        self._lock = threading.Lock()

    def take(self, done: Sequence[Work] = ()) -> list[Work]:
        """Wait for the first, and take its share of its fellows: those for the same model.

        Empty when the gateway is gone. ``done`` is what this runner took before; it is settled by
        the time that it has really cost.
        """
        with self._lock:
            self._idle += 1
            for work in done:
                if work.is_answered:  # else it is held back until its model is there
                    self._fetched.settle(work.ring.turn, work.run_us)
        with self._leading:
            first = self._first()
            if first is None:
                return []
            found = [first]
            if (rows_max := self._rows_max(first.ring.key)) > 1:
                if self._company.delay_s:
                    self._await_company(first, rows_max)
                found += self._fellows(first, rows_max)
        with self._lock:
            self._idle -= 1
        return found

    def _first(self) -> Work | None:
        with self._lock:
            self._fetch()
            found = self._fetched.pop()
            if found is not None:
                return found[1]
            self._at_socket += 1
            if self._idle == self._runners:
                self._fetched.rest()
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

    def _await_company(self, first: Work, most: int) -> None:
        """Until enough are there, the first has waited long enough, or anybody else waits."""
        until = min(first.ring.asked_at + self._company.delay_s, first.deadline)
        watch = select.poll()
        watch.register(self._link.doorbell, select.POLLIN)
        while (left_s := until - time.monotonic()) > 0:
            with self._lock:
                self._fetch()
                fellows = len(self._fellows_of(first))
                others = len(self._fetched) - fellows
            if others or self._company.is_enough(1 + fellows, most) or self._link.is_over:
                return
            watch.poll(left_s * 1000)

    def _fellows_of(self, first: Work) -> list[tuple[Turn, Work]]:
        key, priority = first.ring.key, first.ring.turn.priority
        return self._fetched.fellows(priority, lambda work: work.ring.key == key)

    def _fellows(self, first: Work, most: int) -> list[Work]:
        """Those that run with the first, taken out of the queue."""
        with self._lock:
            self._fetch()
            fellows = self._fellows_of(first)
            there = 1 + len(fellows)
            if not self._company.delay_s:  # else it has waited to take them all
                there = share(there, runners=self._runners, rows_max=most)
            count = self._company.taken(there, most) - 1
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
