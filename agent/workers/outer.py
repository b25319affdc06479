"""What the aggregator makes of a round's mean: the outer optimizer, and what it carries from round to round.

The mean of the updates minus the parameters they started from is the round's *step* d; with the
parameters x, the rate e, the momentum b and, for the last two, the share b2 and the floor t:

- ``momentum``: m = b m + d; x = x + e m (Hsu, Qi and Brown 2019, FedAvgM)
- ``nesterov``: m = b m + d; x = x + e (d + b m) (Douillard et al. 2023, DiLoCo's outer optimizer)
- ``adam``: m = b m + (1 - b) d; v = b2 v + (1 - b2) d^2; x = x + e m / (sqrt(v) + t)
- ``yogi``: as adam, but v = v - (1 - b2) d^2 sign(v - d^2) (both Reddi et al. 2021, Algorithm 2)

At first m is 0 and v is t^2. m and v are float32, are committed with the round like its parameters, and
each operation below is one of IEEE 754's own, rounded once: a successor goes on with the same bits.
"""

import numpy as np

from agent.foundation.errors import Malformed
from agent.training.contract import Outer
from agent.workers.parameters import (
    CONTROL,
    Floats,
    Parameters,
    Stored,
    check_like,
    largest_of,
    name_at,
    not_finite,
)

MOMENTUM = "momentum/"
SECOND = "second/"


def state_outline(outer: Outer | None, like: Parameters, *, has_controls: bool) -> Parameters:
    """Names and shapes of what is carried on for parameters such as ``like``.

    The tensors are views without memory of their own.

    Args:
        outer: the rule, if there is one.
        like: the parameters.
        has_controls: the sites' mean control variate is carried on, too (``agent.workers.scaffold``).
    """
    prefixes = [] if outer is None else [MOMENTUM]
    if outer is not None and outer.rule in ("adam", "yogi"):
        prefixes.append(SECOND)
    if has_controls:
        prefixes.append(CONTROL)
    nothing = np.zeros(1, np.float32)
    return Parameters(
        like.label,
        {
            prefix + name: np.broadcast_to(nothing, tensor.shape)
            for prefix in prefixes
            for name, tensor in like.tensors.items()
        },
    )


class Stepper:
    """One round's outer step, block by block."""

    def __init__(self, outer: Outer, base: Stored, before: Stored | None, after: Stored) -> None:
        """Nothing is computed yet.

        Args:
            outer: the rule and its numbers.
            base: the parameters that the round started from.
            before: what the round before left; None in the first.
            after: takes what this round leaves; writable, such as ``state_outline`` tells.

        Raises:
            Malformed: ``before`` is not such as ``after``: of another rule, or of other parameters.
        """
        self._outer, self._base, self._before, self._after = outer, base, before, after
        if before is not None:
            check_like(before, after)

    def step(self, at: slice, mean: Floats) -> None:
        """Turn the mean of the values ``at`` (a block) into the round's parameters, in place.

        Raises:
            Malformed: the step leads to what is no number.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # what is no number is refused
            self._step(at, mean)

    def _step(self, at: slice, mean: Floats) -> None:
        outer, one = self._outer, np.float32(1)
        keep, base = np.float32(outer.momentum), self._base.values[at]
        second = slice(at.start + self._base.values.size, at.stop + self._base.values.size)
        go: Floats
        d = mean - base
        m = self._kept(at, np.float32(0)) * keep
        if outer.rule in ("adam", "yogi"):
            m += (one - keep) * d
            v = self._grown(second, d * d)
            self._after.values[second] = v
            if not np.isfinite(v).all():
                raise not_finite(name_at(self._base, at.start))
            root: Floats = np.sqrt(v)
            go = m / (root + np.float32(outer.floor))
        else:
            m += d
            go = d + keep * m if outer.rule == "nesterov" else m.copy()
        self._after.values[at] = m
        go *= np.float32(outer.rate)
        go += base
        if not (largest_of(go) < np.inf and largest_of(m) < np.inf):
            raise not_finite(name_at(self._base, at.start))
        mean[:] = go

    def _grown(self, at: slice, square: Floats) -> Floats:
        """The second moments, after the round's step."""
        floor = np.float32(self._outer.floor)
        keep = np.float32(self._outer.second)
        v = self._kept(at, floor * floor)
        part = (np.float32(1) - keep) * square
        if self._outer.rule == "yogi":
            made: Floats = v - part * np.sign(v - square)
            return made
        return v * keep + part

    def _kept(self, at: slice, first: np.float32) -> Floats:
        """A copy of what the round before left there."""
        if self._before is None:
            return np.full(at.stop - at.start, first, np.float32)
        kept = self._before.values[at].copy()
        if not np.isfinite(kept).all():
            name = name_at(self._before, at.start)
            raise Malformed(f"what is carried on of {name!r} is not finite")
        return kept
