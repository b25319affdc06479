"""The weighted mean of a round's updates, in integers: the same bytes for any order of updates.

Theory of operation. Floating-point sums depend on their order, so two aggregators of one round
would commit different parameters and nobody could check either. Here each update is seen twice,
one at a time, so that memory does not grow with their number:

1. ``inspect``: names, shapes, finite; the largest magnitude m of each tensor over all updates.
2. ``add``: each value u becomes the integer rint(u * 2^s), is multiplied by the update's sample
   count and added to a 64-bit accumulator. Integer addition has no order.

The scale s is a function of the set alone: with W samples in all, W < 2^b, and m < 2^e,
s = 62 - b - e, so that abs(sum) <= W * 2^(s+e) < 2^62 can never overflow, whatever the updates are.
u * 2^s is exact in float64 (24 significant bits, a power of two), so the mean errs by at most
2^-(s+1), that is 2^-(63-b) of 2^e: 2^-46 for 100,000 samples, and at the bound of W < 2^36 still
2^-27, finer than float32 itself. A round with more samples is refused.

A job may choose float32 sums instead (``FloatMean``): several times as fast, and the same bytes only if the same
updates are added in the same order, which is that of their digests.

Run as ``python -m agent.workers.aggregation --channel-fd N``: a confined process that is given
descriptors of updates and of the result's file, and can open nothing itself.

Late updates (Nguyen et al. 2022, FedBuff) count by what they have changed, for the weight that the caller gives them.

Source: McMahan et al. 2017, Algorithm 1, server update (updates are parameters after local training).
"""

import argparse
import os
from collections.abc import Callable, Mapping
from math import frexp

import numpy as np
from numpy.typing import NDArray

from agent.drivers.channel import BlockingChannel, exit_with_parent
from agent.foundation.errors import Malformed, UsageError
from agent.training.contract import (
    FROM_AGGREGATION,
    TO_AGGREGATION,
    Add,
    Averaged,
    Begin,
    Finish,
    Inspect,
    Inspected,
    Outer,
    TrainerReady,
)
from agent.workers.confine import confine
from agent.workers.conversation import converse
from agent.workers.outer import Stepper, state_outline
from agent.workers.parameters import (
    CHECK_ELEMENTS,
    Flat,
    Floats,
    Parameters,
    check_like,
    largest_of,
    make,
    not_finite,
    read,
    write,
)

SAMPLES_BITS_MAX = 36
SUM_BITS = 62
FLOAT_BLOCK_ELEMENTS = 1 << 15
"""A block and its copy are 256 KiB."""
BLOCK_ELEMENTS = 1 << 16
"""A block in float32, float64 and int64 is 1.3 MiB: it stays in the second-level cache."""


class Late:
    """The values of an update that started from older parameters: what it changed, on top of the round's."""

    def __init__(self, update: Floats, started_from: Floats, base: Floats) -> None:
        self._update, self._from = update.reshape(-1), started_from.reshape(-1)
        self._base = base.reshape(-1)
        self.size: int = self._update.size

    def __getitem__(self, at: slice) -> Floats:
        """A block, in float64 on the way: two roundings would favour one side."""
        change = self._update[at].astype(np.float64)
        change -= self._from[at]
        change += self._base[at]
        with np.errstate(over="ignore"):  # to infinity, which whoever looks at it refuses
            return change.astype(np.float32)


class Mean:
    """One weighted mean. ``inspect`` every update, then ``add`` every update, then ``result``."""

    def __init__(self, like: Parameters | None = None) -> None:
        """``like``: what all updates must resemble; None = the first one inspected."""
        self._like = like
        self._magnitudes: dict[str, float] = {}
        self._inspected = self._added = 0
        self._samples_inspected = self._samples_added = 0
        self._scales: dict[str, int] = {}
        self._sums: dict[str, NDArray[np.int64]] = {}
        self._real = np.empty(BLOCK_ELEMENTS, np.float64)
        self._whole = np.empty(BLOCK_ELEMENTS, np.int64)

    def inspect(
        self, update: Parameters, samples: int, started_from: Parameters | None = None
    ) -> None:
        """Admit an update to the set.

        Args:
            update: parameters after local training.
            samples: how many the site trained on, > 0: its weight in the mean.
            started_from: what they were before, if it was not the round's parameters. What the site has
                changed is counted then, on top of the round's parameters.

        Raises:
            Malformed: other names or shapes, NaN or infinity; the set is unchanged.
            UsageError: more than 2^36 samples together; the set is unchanged.
        """
        assert not self._added, "all updates are inspected before the first is added"
        if self._like is not None:
            check_like(update, self._like)
        magnitudes = self._magnitudes_of(self._values(update, started_from))
        if (self._samples_inspected + samples).bit_length() > SAMPLES_BITS_MAX:
            raise UsageError(
                f"more than 2^{SAMPLES_BITS_MAX} samples in one round",
                why="a fixed-point mean would lose precision",
                mend="aggregate by region first",
            )
        self._like = self._like or Parameters(update.label, dict(update.tensors))
        for name, most in magnitudes.items():
            self._magnitudes[name] = max(most, self._magnitudes.get(name, 0.0))
        self._inspected += 1
        self._samples_inspected += samples

    def add(self, update: Parameters, samples: int, started_from: Parameters | None = None) -> None:
        """Count an update of the set; the arguments are those of ``inspect``.

        Raises:
            Malformed: the update is not what was inspected. The mean cannot be finished.
        """
        assert self._like is not None, "an update is inspected before it is added"
        if not self._added:
            self._begin()
        check_like(update, self._like)
        self._added += 1
        self._samples_added += samples
        if self._samples_added > self._samples_inspected:
            raise Malformed("more samples than were inspected")
        for name, values in self._values(update, started_from).items():
            self._accumulate(name, values, samples)

    def _values(self, update: Parameters, started_from: Parameters | None) -> Mapping[str, Flat]:
        if started_from is None:
            return {name: tensor.reshape(-1) for name, tensor in update.tensors.items()}
        assert self._like is not None, "a late update counts on top of the round's parameters"
        check_like(started_from, self._like)
        return {
            name: Late(tensor, started_from.tensors[name], self._like.tensors[name])
            for name, tensor in update.tensors.items()
        }

    def result(self, step: Callable[[str, Floats], None] | None = None) -> Parameters:
        """The mean, float32.

        Args:
            step: turns a tensor's mean (flat) into what the round makes of it, in place.

        Raises:
            UsageError: no update, or not every inspected one was added.
        """
        if not self._added or self._like is None:
            raise UsageError("a round without updates has no mean")
        if (self._added, self._samples_added) != (self._inspected, self._samples_inspected):
            raise UsageError(
                f"{self._added} updates of {self._inspected} were added",
                why="the scale was chosen for the whole set",
            )
        tensors = {}
        for name, like in self._like.tensors.items():
            mean = self._mean(name)
            if step is not None:
                step(name, mean)
            tensors[name] = mean.reshape(like.shape)
        return Parameters(self._like.label, tensors)

    def stepped(self, outer: Outer, carried: int, before: list[int]) -> Parameters:
        """The parameters after the outer step; the descriptor ``carried`` takes what it carries on.

        Raises:
            Malformed: what the round before left (``before``, if there was one) is not this rule's.
        """
        assert self._like is not None, "an outer step starts from the round's parameters"
        kept = read(before[0]) if before else None
        after = make(state_outline(outer, self._like), carried)
        return self.result(Stepper(outer, self._like, kept, after).step)

    def _mean(self, name: str) -> NDArray[np.float32]:
        """One tensor, flat, in the memory of its sum: a mean is half as long, and written behind what is read."""
        total = self._sums.pop(name)
        mean = total.view(np.float32)[: total.size]
        for start in range(0, total.size, BLOCK_ELEMENTS):
            part = total[start : start + BLOCK_ELEMENTS] / self._samples_added
            mean[start : start + part.size] = np.ldexp(part, -self._scales[name])
        return mean

    def _magnitudes_of(self, values: Mapping[str, Flat]) -> dict[str, float]:
        return {name: largest_of(name, flat) for name, flat in values.items()}

    def _begin(self) -> None:
        """Everything is inspected: choose the scales."""
        assert self._like is not None, "something was inspected"
        weight_bits = self._samples_inspected.bit_length()
        for name, most in self._magnitudes.items():
            self._scales[name] = SUM_BITS - weight_bits - frexp(most)[1]
            self._sums[name] = np.zeros(self._like.tensors[name].size, np.int64)

    def _accumulate(self, name: str, values: Flat, samples: int) -> None:
        factor, most, total = (
            np.ldexp(1.0, self._scales[name]),
            self._magnitudes[name],
            self._sums[name],
        )
        for start in range(0, values.size, BLOCK_ELEMENTS):
            block = values[start : start + BLOCK_ELEMENTS]
            if not (block.max() <= most and block.min() >= -most):  # NaN fails both
                raise Malformed(f"tensor {name!r} changed since it was inspected")
            real, whole = self._real[: block.size], self._whole[: block.size]
            np.multiply(block, factor, out=real, dtype=np.float64)
            np.rint(real, out=real)
            np.copyto(whole, real, casting="unsafe")  # |value| <= 2^62: the conversion is exact
            np.multiply(whole, samples, out=whole)
            part = total[start : start + block.size]
            np.add(part, whole, out=part)


class FloatMean(Mean):
    """The same interface; sums in float32, so the order in which updates are added is part of the result."""

    def __init__(self, like: Parameters | None = None) -> None:
        """As ``Mean``."""
        super().__init__(like)
        self._floats: dict[str, Floats] = {}
        self._scaled = np.empty(FLOAT_BLOCK_ELEMENTS, np.float32)

    def _magnitudes_of(self, values: Mapping[str, Flat]) -> dict[str, float]:
        """None are needed; one pass finds what is not finite."""
        for name, flat in values.items():
            for start in range(0, flat.size, CHECK_ELEMENTS):
                block = flat[start : start + CHECK_ELEMENTS]
                # A sum of so many numbers below 2^100 is finite; larger ones diverge all the same.
                if not np.isfinite(np.add.reduce(block)):
                    raise not_finite(name)
        return {}

    def _begin(self) -> None:
        assert self._like is not None, "something was inspected"
        sizes = {name: tensor.size for name, tensor in self._like.tensors.items()}
        self._floats = {name: np.zeros(size, np.float32) for name, size in sizes.items()}

    def _accumulate(self, name: str, values: Flat, samples: int) -> None:
        weight, total = np.float32(samples / self._samples_inspected), self._floats[name]
        for start in range(0, values.size, FLOAT_BLOCK_ELEMENTS):
            block = values[start : start + FLOAT_BLOCK_ELEMENTS]
            scaled = self._scaled[: block.size]
            np.multiply(block, weight, out=scaled)
            part = total[start : start + block.size]
            np.add(part, scaled, out=part)

    def _mean(self, name: str) -> Floats:
        total = self._floats.pop(name)
        if not np.isfinite(np.add.reduce(total)):
            raise not_finite(name)  # it changed since it was inspected
        return total


class Aggregation:
    """Answers one message after the other."""

    def __init__(self) -> None:
        self._mean: Mean | None = None

    def answer(self, message: object, descriptors: list[int]) -> object:
        """The reply to ``message``.

        Raises:
            AtollError: it cannot be done; an update that was being inspected is not counted.
        """
        match message, descriptors:
            case Begin(is_float=is_float), []:
                self._mean = FloatMean() if is_float else Mean()
            case Begin(is_float=is_float), [like]:
                self._mean = FloatMean(read(like)) if is_float else Mean(read(like))
            case Inspect(samples=samples), [update, *older]:
                self._current().inspect(read(update, is_read_whole=True), samples, _base(older))
            case Add(samples=samples), [update, *older]:
                self._current().add(read(update, is_read_whole=True), samples, _base(older))
            case Finish(outer=None), [out]:
                mean, self._mean = self._current(), None
                with os.fdopen(os.dup(out), "wb") as file:
                    return Averaged(write(mean.result(), file))
            case Finish(outer=Outer() as outer), [out, carried, *before]:
                mean, self._mean = self._current(), None
                with os.fdopen(os.dup(out), "wb") as file:
                    return Averaged(write(mean.stepped(outer, carried, before), file))
            case _:
                raise AssertionError(
                    f"{type(message).__name__} with {len(descriptors)} descriptors"
                )
        return Inspected()

    def _current(self) -> Mean:
        if self._mean is None:
            raise UsageError("no mean was begun")
        return self._mean


def _base(descriptors: list[int]) -> Parameters | None:
    return read(descriptors[0], is_read_whole=True) if descriptors else None


def main() -> None:
    """Serve the channel until it closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channel-fd", type=int, required=True)
    parser.add_argument("--memory-bytes", type=int)
    arguments = parser.parse_args()
    exit_with_parent()
    channel = BlockingChannel.from_descriptor(arguments.channel_fd)
    sandbox = confine(read=(), memory_bytes=arguments.memory_bytes)
    channel.send(FROM_AGGREGATION.pack(TrainerReady(f"numpy {np.__version__}", sandbox)))
    converse(channel, TO_AGGREGATION, FROM_AGGREGATION, Aggregation().answer)


if __name__ == "__main__":
    main()
