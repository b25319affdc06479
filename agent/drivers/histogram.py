"""A histogram as Prometheus has it: counts of values up to each bound, their sum and number."""

from bisect import bisect_left
from collections.abc import Iterator

REQUEST_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""For requests and their parts: models of a millisecond and of a second are told apart alike."""


class Histogram:
    """Of seconds, since the start."""

    __slots__ = ("_bounds", "_sum_s", "counts")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        """``bounds``: seconds, ascending."""
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Values up to each bound and above the one before; the last are above all."""
        self._sum_s = 0.0

    def note(self, value_s: float) -> None:
        """One value, not negative."""
        self.counts[bisect_left(self._bounds, value_s)] += 1
        self._sum_s += value_s

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """Its samples; ``labels`` are of the form ``a="b",``, each with its comma."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}le="{bound}"}} {total}'
        plain = f"{{{labels[:-1]}}}" if labels else ""
        yield f"{name}_sum{plain} {self._sum_s:.6f}"
        yield f"{name}_count{plain} {total}"
