"""Round-trip estimation, so that a probe's timeout is measured, not configured.

Source: RFC 6298 section 2 (Jacobson/Karels), without back-off: Lifeguard's health score scales
timeouts instead.
"""

from dataclasses import dataclass

GAIN = 1 / 8
VARIATION_GAIN = 1 / 4
VARIATIONS = 4


@dataclass(slots=True)
class RoundTrip:
    """Smoothed round trip and its mean deviation, in seconds."""

    smoothed_s: float | None = None
    variation_s: float = 0.0

    def add(self, sample_s: float) -> None:
        """Take one measured round trip (>= 0)."""
        if self.smoothed_s is None:
            self.smoothed_s, self.variation_s = sample_s, sample_s / 2
            return
        self.variation_s += VARIATION_GAIN * (abs(self.smoothed_s - sample_s) - self.variation_s)
        self.smoothed_s += GAIN * (sample_s - self.smoothed_s)

    def timeout_s(self, low: float, high: float) -> float:
        """Time after which an answer is late, within ``low`` to ``high``; ``high`` if unmeasured."""
        if self.smoothed_s is None:
            return high
        return min(high, max(low, self.smoothed_s + VARIATIONS * self.variation_s))
