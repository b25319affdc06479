"""How late an event loop is: what a request that came at any moment would have waited to be noticed.

A timer asks for a fixed instant and sees when it gets it. The instants do not depend on what the loop does,
so that their delays are a fair sample of what anything else would wait, a stall shorter than the period
included: it is met as often as it lasts.

A process that is to sleep most of the time has no timer of its own for this: it notes how late the timers
were that it has anyway.
"""

import asyncio

from agent.drivers.histogram import Histogram

EVERY_S = 0.1
"""Ten wake-ups a second cost some hundredths of a percent of a core."""
MISSED_MAX = 600
"""A minute: a machine that was suspended for a night was not late for each moment of it."""
BUCKETS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
STALL_S = 0.05
"""What no loop of a site is to stand still for."""


class LoopLag:
    """A histogram of delays since the start."""

    def __init__(self, name: str, about: str) -> None:
        """``name`` and ``about``: of the metric."""
        self._name, self._about = name, about
        self._longest_s = 0.0
        self._delays = Histogram(BUCKETS_S)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Sample from now on; needs a running loop."""
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + EVERY_S, self._tick, loop.time() + EVERY_S)

    def stop(self) -> None:
        """Sample no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self, wanted_at: float) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self.note(now - wanted_at)
        missed = int((now - wanted_at) / EVERY_S)
        for number in range(1, min(missed, MISSED_MAX) + 1):  # what would have waited since, too
            self.note(now - wanted_at - number * EVERY_S)
        following = wanted_at + (missed + 1) * EVERY_S
        self._timer = loop.call_at(following, self._tick, following)

    def note(self, lag_s: float) -> None:
        """One delay, seconds."""
        self._longest_s = max(self._longest_s, lag_s)
        self._delays.note(max(lag_s, 0.0))

    def summary(self) -> dict[str, float]:
        """For ``atoll status``: samples, those over ``STALL_S``, and the longest, milliseconds."""
        counts = self._delays.counts
        return {
            "samples": sum(counts),
            "over_50_ms": sum(counts[BUCKETS_S.index(STALL_S) + 1 :]),
            "longest_ms": round(1000 * self._longest_s, 1),
        }

    def render(self) -> str:
        """The Prometheus text format."""
        name = self._name
        lines = (f"# HELP {name} {self._about}", f"# TYPE {name} histogram")
        return "\n".join((*lines, *self._delays.lines(name))) + "\n"
