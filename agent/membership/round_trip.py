"""Round-trip estimation, so that a probe's timeout is measured, not configured.

Sources: RFC 6298 sections 2 and 5.5 (Jacobson/Karels); Ledlie, Gardner, Seltzer 2007, section 4.1
(the latency filter: a low percentile of a few samples forgets what busy moments added).
"""

from dataclasses import dataclass

GAIN = 1 / 8
VARIATION_GAIN = 1 / 4
VARIATIONS = 4
FILTERED_SAMPLES = 5
"""Samples in the latency filter; a member is probed too seldom for more."""
BACKOFF_MAX = 8


@dataclass(slots=True)
class RoundTrip:
    """Smoothed round trip and its mean deviation, in seconds."""

    smoothed_s: float | None = None
    variation_s: float = 0.0
    measured_at: float = float("-inf")
    """Monotonic time of the last sample."""
    recent: tuple[float, ...] = ()
    backoff: int = 1

    @property
    def filtered_s(self) -> float | None:
        """The lowest quarter of the last samples ends here: what coordinates are made from.

        Ledlie found the 25th percentile better than the median: queues and schedulers only add.
        """
        return sorted(self.recent)[len(self.recent) // 4] if self.recent else None

    def add(self, sample_s: float, now: float) -> None:
        """Take one measured round trip (>= 0)."""
        self.measured_at, self.backoff = now, 1
        self.recent = (*self.recent, sample_s)[-FILTERED_SAMPLES:]
        if self.smoothed_s is None:
            self.smoothed_s, self.variation_s = sample_s, sample_s / 2
            return
        self.variation_s += VARIATION_GAIN * (abs(self.smoothed_s - sample_s) - self.variation_s)
        self.smoothed_s += GAIN * (sample_s - self.smoothed_s)

    def late(self) -> None:
        """An answer came after its timeout, and to which ping is unknown (Karn's rule).

        Until one comes in time the timeout doubles: else a path that became slower than its own
        history would never be measured again.
        """
        self.backoff = min(2 * self.backoff, BACKOFF_MAX)

    def timeout_s(self, low: float, high: float) -> float:
        """Time after which an answer is late, within ``low`` to ``high``; ``high`` if unmeasured."""
        if self.smoothed_s is None:
            return high
        measured_s = max(low, self.smoothed_s + VARIATIONS * self.variation_s)
        return min(high, measured_s * self.backoff)
