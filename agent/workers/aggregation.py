"""The process that makes a round's mean (``agent.workers.mean``) and what the outer optimizer makes of it.

A confined process, forked by the nursery, that is given descriptors of updates and of the result's file, and can
open nothing itself.
"""

import numpy as np

from agent.drivers.channel import BlockingChannel
from agent.foundation.errors import UsageError
from agent.training.contract import (
    FROM_AGGREGATION,
    TO_AGGREGATION,
    Averaged,
    Begin,
    Finish,
    FinishRange,
    Fork,
    Include,
    Included,
    Join,
    Outer,
    Part,
    TrainerReady,
)
from agent.training.ranges import cut
from agent.wire.documents import RANGES_MAX
from agent.workers.confine import confine
from agent.workers.conversation import converse
from agent.workers.mean import (
    Blocks,
    FloatMean,
    Mean,
    Place,
    Ranges,
    Spoiled,
    Taker,
    blocks,
    make_all,
    make_range,
    within,
)
from agent.workers.outer import Stepper, state_outline
from agent.workers.parameters import (
    Floats,
    Parameters,
    Stored,
    head_of,
    make,
    mapped,
    read,
    with_controls,
)


class Ending:
    """What becomes of a mean that is more than the next parameters."""

    def __init__(self, made: Stored, after: Stored, stepper: Stepper | None) -> None:
        """``made`` takes the parameters, ``after`` what is carried on; both are writable."""
        self._made, self._after, self._stepper = made, after, stepper

    def take(self, at: slice, block: Floats) -> None:
        """Parameters take the outer step; the mean control variate is carried on as it is."""
        end = self._made.values.size
        ours = block[: max(0, end - at.start)]
        if ours.size:
            here = slice(at.start, at.start + ours.size)
            if self._stepper is not None:
                self._stepper.step(here, ours)
            self._made.values[here] = ours
        if (controls := block[ours.size :]).size:
            # They are the end of what is carried on, as they are of the updates.
            first = self._after.values.size - 2 * end + at.start + ours.size
            self._after.values[first : first + controls.size] = controls


class Aggregation:
    """Answers one message after the other."""

    def __init__(self, threads: int = 1) -> None:
        """``threads``: at once, for the arithmetic."""
        self._threads = threads
        self._mean: Mean | None = None
        self._base: Stored | None = None
        self._has_controls = False
        self._chunks: range | None = None
        """Of which part the mean is; None: of all."""
        self._ranges: list[memoryview] = []

    def answer(self, message: object, descriptors: list[int]) -> object:
        """The reply to ``message``.

        Raises:
            AtollError: it cannot be done; an update that was being included is not counted.
        """
        try:
            return self._answer(message, descriptors)
        except Spoiled as error:
            return Averaged(0, error.updates, str(error)[:1000])

    def _answer(self, message: object, descriptors: list[int]) -> object:
        match message, descriptors:
            case Begin() as begin, base:
                self._base, self._ranges = read(base[0]) if base else None, []
                self._has_controls = begin.has_controls
                self._chunks = self._chunks_of(begin) if begin.parts else None
                self._mean = (FloatMean if begin.is_float else Mean)(self._base, self._like())
            case Include(samples=samples), [update, *older]:
                mean, started_from = self._current(), read(older[0]) if older else None
                if self._chunks is None:
                    mean.include(read(update), samples, started_from)
                else:
                    mean.include_part(mapped(update), self._chunks, samples, started_from)
            case Part(), [part]:
                self._current()
                if len(self._ranges) >= RANGES_MAX:
                    raise UsageError(f"more than {RANGES_MAX} ranges")
                self._ranges.append(mapped(part))
            case Finish(outer=outer), [out, *state]:
                return self._finish(self._taken(), outer, out, state)
            case FinishRange(), [out] if self._chunks is not None:
                return Averaged(make_range(self._taken(), self._chunks, out, self._threads))
            case Join(outer=outer), [out, *state]:
                self._taken()
                like = self._like()
                assert like is not None, "ranges are of the base's layout"
                return self._finish(Ranges(like, self._ranges), outer, out, state)
            case _:
                raise AssertionError(
                    f"{type(message).__name__} with {len(descriptors)} descriptors"
                )
        return Included()

    def _like(self) -> Parameters | None:
        """What updates resemble, and their mean; None: the first of them."""
        if self._base is None or not self._has_controls:
            return self._base
        return with_controls(self._base)

    def _finish(self, mean: Blocks, outer: Outer | None, out: int, state: list[int]) -> Averaged:
        base = self._base
        made = make(mean.like if base is None else base, out)
        place: Place | None = within(made.values)
        take: Taker | None = None
        if outer is not None or self._has_controls:
            assert base is not None, "a step starts from the round's parameters"
            outline = state_outline(outer, base, has_controls=self._has_controls)
            carried, *before = state
            after = make(outline, carried)
            left = read(before[0]) if before else None
            stepper = None if outer is None else Stepper(outer, base, left, after)
            if self._has_controls:  # blocks of both have no place in one file
                place, take = None, Ending(made, after, stepper).take
            elif stepper is not None:
                take = stepper.step
        make_all(mean, blocks(mean.like), self._threads, place=place, take=take)
        return Averaged(len(made.content))

    def _chunks_of(self, begin: Begin) -> range:
        like = self._like()
        assert like is not None, "parts are of the base's layout"
        head, size = head_of(like)
        parts = cut(len(head) + size, begin.parts)
        if not begin.part < len(parts) == begin.parts:
            raise UsageError(f"part {begin.part} of {begin.parts}", why=f"there are {len(parts)}")
        return parts[begin.part]

    def _current(self) -> Mean:
        if self._mean is None:
            raise UsageError("no mean was begun")
        return self._mean

    def _taken(self) -> Mean:
        mean, self._mean = self._current(), None
        return mean


def run(channel: BlockingChannel, wanted: Fork) -> None:
    """Confine the process, then serve ``channel`` until it closes; called by the nursery's child.

    No folder of ``wanted`` is open to it: what it works on comes as descriptors.
    """
    sandbox = confine(read=(), memory_bytes=wanted.memory_bytes or None)
    channel.send(FROM_AGGREGATION.pack(TrainerReady(f"numpy {np.__version__}", sandbox)))
    converse(channel, TO_AGGREGATION, FROM_AGGREGATION, Aggregation(wanted.threads).answer)
