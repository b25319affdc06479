"""What a new version must keep to while it is being tried, judged from what one site has seen of it.

Rule: a gate fails as soon as it is certain that it does. Errors are set against the requests so far, or
against ``ERRORS_OF_MIN`` if there are fewer: one early error does not hide behind a small number, and is
not taken for 100 per cent either. Latency is judged once there are ``P99_OF_MIN`` requests. Requests that are
answered with status 400 are the callers' matter, unless there are many more of them than the previous
version had: then the new one has other inputs than those it is given.
"""

from dataclasses import dataclass

from agent.wire.documents import Rollout
from agent.wire.records import Gate

ERRORS_OF_MIN = 20
INVALID_MORE_MAX = 0.2
"""Share of requests that may be invalid beyond the previous version's: a caller that is wrong now and then
stops no rollout."""
P99_OF_MIN = 100
"""The hundredth part of fewer is no request at all."""
BOUNDS_S = tuple(0.0005 * 1.25**step for step in range(53))
"""Of the histograms: half a millisecond to a minute, so that a p99 is known to a tenth or so."""
TELLABLE_MAX = 2**31
"""Largest number that is told (``wire.records.Trial``)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests that one version has run at this site."""

    requests: int = 0
    """With the errors."""
    errors: int = 0
    """Status 500 or 504, or lost with a worker."""
    times: tuple[int, ...] = ()
    """How many took up to each of ``BOUNDS_S``, and more than all; empty: none."""
    invalid: int = 0
    """Status 400; not among the requests."""

    def minus(self, former: "Counts") -> "Counts":
        """What has come since; all of it, if the counter began anew in between."""
        if former.all > self.all or len(former.times) not in (0, len(self.times)):
            return self
        before = former.times or (0,) * len(self.times)
        return Counts(
            self.requests - former.requests,
            max(0, self.errors - former.errors),
            tuple(max(0, b - a) for a, b in zip(before, self.times, strict=True)),
            max(0, self.invalid - former.invalid),
        )

    def plus(self, more: "Counts") -> "Counts":
        """Both together."""
        a, b = self.times or (0,) * len(more.times), more.times or (0,) * len(self.times)
        times = tuple(x + y for x, y in zip(a, b, strict=True))
        return Counts(
            self.requests + more.requests, self.errors + more.errors, times,
            self.invalid + more.invalid,
        )  # fmt: skip

    @property
    def all(self) -> int:
        """Requests of either kind."""
        return self.requests + self.invalid

    @property
    def p99_ms(self) -> float:
        """The bound below which 99 of 100 stay, read between the bounds; 0: too few to say."""
        total = sum(self.times)
        if total < P99_OF_MIN:
            return 0.0
        wanted, below, low_s = 0.99 * total, 0, 0.0
        for bound_s, count in zip(BOUNDS_S, self.times, strict=False):
            if count and below + count >= wanted:
                return 1000.0 * (low_s + (bound_s - low_s) * (wanted - below) / count)
            below, low_s = below + count, bound_s
        return 1000.0 * 2 * BOUNDS_S[-1]  # beyond the last: twice that, for want of better


NO_COUNTS = Counts()


class Meter:
    """Adds up counters that begin at zero whenever the process that counts does."""

    def __init__(self) -> None:
        self.total = Counts()
        self._seen = Counts()

    def note(self, counts: Counts) -> None:
        """The counters as they are now."""
        self.total = self.total.plus(counts.minus(self._seen))
        self._seen = counts


def judge(terms: Rollout, tried: Counts, former: Counts) -> tuple[Gate, str]:
    """The gate that does not hold, and why in words; ``Gate.NONE`` if all hold.

    Args:
        terms: the gates.
        tried: what the new version has done here since it began.
        former: what the previous one has, for comparison.
    """
    if tried.errors > terms.error_rate_max * max(tried.requests, ERRORS_OF_MIN):
        return Gate.ERRORS, (
            f"{tried.errors} of {tried.requests} requests failed; {terms.error_rate_max:.2%} may"
        )
    if former.all >= ERRORS_OF_MIN:
        share = former.invalid / former.all
        if tried.invalid > (share + INVALID_MORE_MAX) * max(tried.all, ERRORS_OF_MIN):
            return Gate.INVALID, (
                f"{tried.invalid} of {tried.all} requests do not fit it (status 400); of the "
                f"previous version {share:.2%} did not"
            )
    p99_ms = tried.p99_ms
    if terms.p99_ms_max and p99_ms > terms.p99_ms_max:
        return Gate.LATENCY, f"p99 is {p99_ms:.1f} ms; {terms.p99_ms_max:g} ms are allowed"
    former_ms = former.p99_ms
    if terms.p99_ratio_max and former_ms and p99_ms > terms.p99_ratio_max * former_ms:
        return Gate.LATENCY, (
            f"p99 is {p99_ms:.1f} ms, of the previous version {former_ms:.1f} ms; "
            f"{terms.p99_ratio_max:g} times that is allowed"
        )
    return Gate.NONE, ""


def told(number: float) -> int:
    """The largest power of two that is no larger, so that a number is told anew only now and then."""
    whole = int(number)
    return 0 if whole < 1 else min(TELLABLE_MAX, 1 << (whole.bit_length() - 1))
