"""Virtual time and an unreliable network; the same seed gives the same trace.

Ties in time are broken by insertion, never by identity or hash. The vocabulary of faults follows
tigerbeetle's packet simulator: loss, duplication, delay (which reorders), one-way cuts, pauses.
"""

import heapq
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Generic, TypeVar

A = TypeVar("A", bound=Hashable)


@dataclass(slots=True)
class Faults:
    """What the network does to each message; may be changed while the simulation runs."""

    loss: float = 0.0
    """Probability that a message is dropped."""
    duplicate: float = 0.0
    """Probability that a message is delivered twice."""
    delay_min_s: float = 0.002
    delay_mean_s: float = 0.010
    """Mean of the exponential part added to ``delay_min_s``; unequal delays reorder."""


class Network(Generic[A]):
    """Posts messages between addresses and runs actions at virtual times (seconds)."""

    def __init__(
        self, rng: Random, deliver: Callable[[A, A, object], None], faults: Faults | None = None
    ) -> None:
        """``deliver(source, target, payload)`` is called at the time of arrival."""
        self.now = 0.0
        self.faults = faults if faults is not None else Faults()
        self.posted = 0
        self.delays: dict[tuple[A, A], float] = {}
        """One-way distance of (source, target) in seconds, added to the delay of the faults."""
        self._rng, self._deliver = rng, deliver
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()
        self._cuts: set[tuple[A, A]] = set()
        self._paused: dict[A, float] = {}

    def post(self, source: A, target: A, payload: object) -> None:
        """Send; it may be lost, doubled, delayed, or cut off (judged at sending and at arrival)."""
        self.posted += 1
        faults, rng = self.faults, self._rng
        copies = 2 if rng.random() < faults.duplicate else 1
        for _ in range(copies):
            if rng.random() < faults.loss:
                continue
            delay_s = faults.delay_min_s
            if self.delays:
                delay_s += self.delays.get((source, target), 0.0)
            if faults.delay_mean_s > 0:
                delay_s += rng.expovariate(1 / faults.delay_mean_s)
            if not self._cuts or (source, target) not in self._cuts:
                self.call_at(self.now + delay_s, self._arrive, source, target, payload)

    def _arrive(self, source: A, target: A, payload: object) -> None:
        if self._cuts and (source, target) in self._cuts:
            return
        if self._paused and (until := self._paused.get(target, 0.0)) > self.now:
            self.call_at(until, self._arrive, source, target, payload)
            return
        self._deliver(source, target, payload)

    def call_at(self, at: float, action: Callable[..., None], *arguments: object) -> None:
        """Run ``action(*arguments)`` at virtual time ``at`` (now, if that has passed)."""
        when = max(self.now, at)
        heapq.heappush(self._heap, (when, next(self._order), action, arguments))

    def run_until(self, deadline: float) -> None:
        """Advance virtual time to ``deadline``, doing everything due on the way."""
        while self._heap and self._heap[0][0] <= deadline:
            self.now, _, action, arguments = heapq.heappop(self._heap)
            action(*arguments)
        self.now = deadline

    def one_way_s(self, source: A, target: A) -> float:
        """How long a message takes on average."""
        usual_s = self.faults.delay_min_s + self.faults.delay_mean_s
        return usual_s + self.delays.get((source, target), 0.0)

    def cut(self, sources: Iterable[A], targets: Iterable[A]) -> None:
        """Drop everything from each source to each target (one way)."""
        others = list(targets)
        self._cuts.update((a, b) for a in sources for b in others if a != b)

    def is_connected(self, a: A, b: A) -> bool:
        """Whether nothing is cut between two sites, in either direction (as TCP needs it)."""
        return (a, b) not in self._cuts and (b, a) not in self._cuts

    def heal(self) -> None:
        """Undo every cut."""
        self._cuts.clear()

    def pause(self, site: A, until: float) -> None:
        """Deliver nothing to ``site`` before ``until`` (a stopped process: messages wait)."""
        self._paused[site] = until

    def paused_until(self, site: A) -> float:
        """When the site runs again; 0.0 if it runs."""
        if not self._paused:
            return 0.0
        until = self._paused.get(site, 0.0)
        return until if until > self.now else 0.0
