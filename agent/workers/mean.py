"""The weighted mean of a round's updates: the same bytes for any order of updates, and any part of it alone.

Theory of operation. Updates of one round are files of one layout, so their mean can be made block by block, a
block being what lies in one chunk of the file (``CHUNK_BYTES``). All updates' values of a block are summed
before the next block is looked at: memory does not grow with the number of updates nor with the model, blocks
can be made in several threads, and each range of blocks on another site.

Floating-point sums depend on their order, so two aggregators of one round would commit different parameters
and nobody could check either. Here each value u becomes the integer rint(u * 2^s), is multiplied by the
update's weight and added to a 64-bit sum; integer addition has no order. The scale s is a function of the
set and of the block alone: with the weights' sum W < 2^b, and the block's largest magnitude over all
updates m < 2^e, s = 62 - b - e, so that abs(sum) <= W * 2^(s+e) < 2^62 can never overflow, whatever the updates
are. u * 2^s is exact in float64 (24 significant bits, a power of two), so the mean errs by at most 2^-(s+1),
that is 2^-(63-b) of 2^e: 2^-46 for 100,000 samples, and at the bound of W < 2^36 still 2^-27, finer than
float32 itself. A round with more samples is refused.

A job may choose float32 sums instead (``FloatMean``): several times as fast, and the same bytes only if the same
updates are added in the same order, which is that of their digests.

Late updates (Nguyen et al. 2022, FedBuff) count by what they have changed, for the weight that the caller gives them.

Source: McMahan et al. 2017, Algorithm 1, server update (updates are parameters after local training).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import frexp
from typing import Protocol

import numpy as np

from agent.foundation.errors import Malformed, UsageError
from agent.training.ranges import cut
from agent.wire.limits import CHUNK_BYTES
from agent.workers.parameters import (
    VALUE_MAX,
    Floats,
    Parameters,
    Row,
    Stored,
    check_like,
    head_of,
    largest_of,
    make_bytes,
    name_at,
    not_finite,
)

SAMPLES_BITS_MAX = 36
SUM_BITS = 62
BLOCK_VALUES = CHUNK_BYTES // 4
"""At most, in one block: 256 KiB of each update, which stay in the second-level cache with their sum."""
BLOCKS_AT_ONCE = 4
"""For one thread: their pages are asked for together."""
THREADS_MAX = 4
"""Beyond that memory is the bound, not arithmetic."""


class Spoiled(Malformed):
    """Some of the updates hold what is no number."""

    def __init__(self, fault: Malformed, updates: tuple[int, ...]) -> None:
        """``updates``: which, in the order in which they were included."""
        super().__init__(fault.what, why=fault.why)
        self.updates = updates


class Room:
    """One thread's memory: 2.0 MiB."""

    def __init__(self) -> None:
        self.real = np.empty(BLOCK_VALUES, np.float64)
        self.whole = np.empty(BLOCK_VALUES, np.int64)
        self.total = np.empty(BLOCK_VALUES, np.int64)
        self.share = np.empty(BLOCK_VALUES, np.float32)
        self.mean = np.empty(BLOCK_VALUES, np.float32)


class Blocks(Protocol):
    """What a round's mean is made of, block by block."""

    @property
    def like(self) -> Parameters:
        """Label, names and shapes of the mean."""
        ...

    def mean(self, at: slice, out: Floats, room: Room) -> None:
        """Write the mean of the values ``at`` (a block) to ``out``."""
        ...

    def expect(self, at: slice) -> None:
        """These values are wanted next."""
        ...

    def blamed(self, at: slice, fault: Malformed) -> Malformed:
        """``fault``, which what was made of the block ``at`` came to, and whose it is if that is known."""
        ...


@dataclass(frozen=True, slots=True)
class _Counted:
    update: Row
    weight: int
    started_from: Row | None
    base: Row | None

    def values(self, at: slice) -> Floats:
        """A block; of a late update what it changed, on top of the round's parameters."""
        if self.started_from is None or self.base is None:
            return self.update.block(at)
        # In float64 on the way: two roundings would favour one side.
        change = self.update.block(at).astype(np.float64)
        change -= self.started_from.block(at)
        change += self.base.block(at)
        with np.errstate(over="ignore"):  # to infinity, which whoever looks at it refuses
            return change.astype(np.float32)

    def expect(self, at: slice) -> None:
        for one in (self.update, self.started_from):
            if one is not None:
                one.expect(at)


class Mean:
    """One weighted mean, exact in integers. ``include`` every update, then ask for blocks."""

    def __init__(self, base: Stored | None = None, like: Parameters | None = None) -> None:
        """Nothing is counted yet.

        Args:
            base: the round's parameters; None where no late update is to be counted.
            like: what all updates must resemble; None = ``base``, or else the first update.
        """
        self._base = base
        self._like = base if like is None else like
        self._counted: list[_Counted] = []
        self._weight = 0

    @property
    def like(self) -> Parameters:
        """What all updates resemble.

        Raises:
            UsageError: there is no update.
        """
        if self._like is None or not self._counted:
            raise UsageError("a round without updates has no mean")
        return self._like

    def include(self, update: Stored, samples: int, started_from: Stored | None = None) -> None:
        """Count an update.

        Args:
            update: parameters after local training.
            samples: how many the site trained on, > 0: its weight in the mean.
            started_from: what they were before, if it was not the round's parameters. What the site has
                changed is counted then, on top of the round's parameters.

        Raises:
            Malformed: other names or shapes; the set is unchanged.
            UsageError: more than 2^36 samples together; the set is unchanged.
        """
        if self._like is not None:
            _check_layout(update, self._like)
        self._include(update.row, samples, started_from)
        self._like = self._like or update

    def include_part(
        self, update: memoryview, chunks: range, samples: int, started_from: Stored | None = None
    ) -> None:
        """As ``include``, of an update of which only these chunks are here; no others can be asked for then.

        Raises:
            Malformed: as ``include``; or that is not what these chunks hold.
        """
        head, size = head_of(self._like) if self._like is not None else (b"", 0)
        first, stop = chunks.start * CHUNK_BYTES, chunks.stop * CHUNK_BYTES
        before = head[first:stop]
        if len(update) != min(stop, len(head) + size) - first or update[: len(before)] != before:
            raise Malformed(
                "part of other parameters", why=f"{len(update)} bytes of chunks {chunks}"
            )
        values = np.frombuffer(update[len(before) :], "<f4")
        row = Row(values, update, max(0, first - len(head)) // 4)
        self._include(row, samples, started_from)

    def _include(self, update: Row, samples: int, started_from: Stored | None) -> None:
        if started_from is not None and self._like is not None:
            _check_layout(started_from, self._like)
        if (self._weight + samples).bit_length() > SAMPLES_BITS_MAX:
            raise UsageError(
                f"more than 2^{SAMPLES_BITS_MAX} samples in one round",
                why="a fixed-point mean would lose precision",
                mend="aggregate by region first",
            )
        older = None if started_from is None else started_from.row
        base = None if self._base is None else self._base.row
        self._counted.append(_Counted(update, samples, older, base))
        self._weight += samples

    def expect(self, at: slice) -> None:
        """These values are wanted next."""
        for one in self._counted:
            one.expect(at)

    def mean(self, at: slice, out: Floats, room: Room) -> None:
        """Write the mean of the values ``at`` (a block) to ``out``.

        Raises:
            Spoiled: NaN or infinity in some updates; nothing can be made of this set.
        """
        blocks = [one.values(at) for one in self._counted]
        sizes = [largest_of(block) for block in blocks]
        most = max(sizes)
        if not np.isfinite(most):
            raise self._spoiled(at, [size == np.inf for size in sizes])
        size = at.stop - at.start
        scale = SUM_BITS - self._weight.bit_length() - frexp(most)[1]
        real, whole, total = room.real[:size], room.whole[:size], room.total[:size]
        factor = np.ldexp(1.0, scale)
        total[:] = 0
        for one, block in zip(self._counted, blocks, strict=True):
            np.multiply(block, factor, out=real, dtype=np.float64)
            np.rint(real, out=real)
            np.copyto(whole, real, casting="unsafe")  # |value| <= 2^62: the conversion is exact
            np.multiply(whole, one.weight, out=whole)
            np.add(total, whole, out=total)
        np.divide(total, self._weight, out=real)
        np.ldexp(real, -scale, out=real)
        np.copyto(out, real, casting="same_kind")

    def blamed(self, at: slice, fault: Malformed) -> Malformed:
        """Whoever is furthest from the others pulled the mean there."""
        middle = np.median([one.values(at) for one in self._counted], axis=0)
        far = [float(np.abs(one.values(at) - middle).max()) for one in self._counted]
        return Spoiled(fault, (int(np.argmax(far)),))

    def _spoiled(self, at: slice, are_bad: Sequence[bool]) -> Malformed:
        guilty = tuple(number for number, is_bad in enumerate(are_bad) if is_bad)
        if not guilty:
            return not_finite(name_at(self.like, at.start))
        block = self._counted[guilty[0]].values(at)
        first = at.start + int(np.argmax(~(np.abs(block) <= VALUE_MAX)))
        return Spoiled(not_finite(name_at(self.like, first)), guilty)


class FloatMean(Mean):
    """The same interface; sums in float32, so the order in which updates are included is part of the result."""

    def mean(self, at: slice, out: Floats, room: Room) -> None:
        """As ``Mean.mean``."""
        out[:] = 0
        share = room.share[: out.size]
        # The whole block at once: threads take turns with the interpreter at each step.
        for one in self._counted:
            np.multiply(one.values(at), np.float32(one.weight / self._weight), out=share)
            np.add(out, share, out=out)
        # Shares are rounded: beyond the bound by a little.
        if not float(np.abs(out).max()) <= 2 * VALUE_MAX:
            found = [largest_of(one.values(at)) for one in self._counted]
            raise self._spoiled(at, [one == np.inf for one in found])


class Ranges:
    """A mean that was made elsewhere, in ranges of blocks."""

    def __init__(self, like: Parameters, ranges: Sequence[memoryview]) -> None:
        """``ranges``: the mean's file, cut at borders of blocks, in order.

        Raises:
            Malformed: together they are no parameters such as ``like``.
        """
        self.like = like
        head, size = head_of(like)
        given = sum(len(one) for one in ranges)
        if given != len(head) + size or any(len(one) % CHUNK_BYTES for one in ranges[:-1]):
            raise Malformed(
                f"ranges of {given} bytes", why=f"they make a mean of {len(head) + size}"
            )
        self._head, self._blocks = len(head), [
            one[at : at + CHUNK_BYTES] for one in ranges for at in range(0, len(one), CHUNK_BYTES)
        ]  # fmt: skip
        found = b"".join(bytes(self._blocks[n]) for n in range(-(-len(head) // CHUNK_BYTES)))
        if found[: len(head)] != head:
            raise Malformed("the first range has another head")

    def expect(self, at: slice) -> None:
        """Each value is read once."""

    def blamed(self, at: slice, fault: Malformed) -> Malformed:  # noqa: ARG002 - as all of them
        """Nobody knows here."""
        return fault

    def mean(self, at: slice, out: Floats, room: Room) -> None:  # noqa: ARG002 - as all of them
        """Write the values ``at`` (a block) to ``out``.

        Raises:
            Malformed: one of them is no number.
        """
        block = self._blocks[(self._head + 4 * at.start) // CHUNK_BYTES]
        values = np.frombuffer(block[len(block) - 4 * (at.stop - at.start) :], "<f4")
        if not np.isfinite(values).all():
            raise not_finite(name_at(self.like, at.start))
        out[:] = values


def _check_layout(given: Stored, wanted: Parameters) -> None:
    check_like(given, wanted)
    if given.head != head_of(wanted)[0]:
        raise Malformed("the parameters have another layout", why="no trainer has written them")


def blocks(like: Parameters, chunks: range | None = None) -> Iterator[slice]:
    """The values of each of these chunks (None: all) of a file such as ``like``."""
    head, size = head_of(like)
    (wanted,) = cut(len(head) + size, 1) if chunks is None else (chunks,)
    borders = [
        min(max(0, number * CHUNK_BYTES - len(head)), size) // 4
        for number in range(wanted.start, wanted.stop + 1)
    ]
    return (slice(start, stop) for start, stop in pairwise(borders) if start < stop)


Taker = Callable[[slice, Floats], None]
"""Takes the mean of a block; in memory that is used again, unless it has a place."""
Place = Callable[[slice], Floats]
"""Where the mean of a block is to be."""


def make_all(
    of: Blocks, wanted: Iterator[slice], threads: int, *, place: Place | None = None,
    take: Taker | None = None,
) -> None:  # fmt: skip
    """Have every block of ``wanted``, in several threads.

    Args:
        of: makes them.
        wanted: as ``blocks`` tells.
        threads: at once.
        place: where each is to be; None: in memory of this function's own.
        take: called with each block, in no order.

    Raises:
        Malformed: what one of them raised first.
    """
    rooms = [Room() for _ in range(max(1, min(threads, THREADS_MAX)))]

    def work(some: Sequence[slice]) -> None:
        room = rooms.pop()
        try:
            of.expect(slice(some[0].start, some[-1].stop))
            for at in some:
                block = room.mean[: at.stop - at.start] if place is None else place(at)
                of.mean(at, block, room)
                if take is not None:
                    _given(of, take, at, block)
        finally:
            rooms.append(room)

    all_wanted = list(wanted)
    some = [all_wanted[n : n + BLOCKS_AT_ONCE] for n in range(0, len(all_wanted), BLOCKS_AT_ONCE)]
    with ThreadPoolExecutor(len(rooms)) as pool:
        for _ in pool.map(work, some):
            pass


def _given(of: Blocks, take: Taker, at: slice, block: Floats) -> None:
    try:
        take(at, block)
    except Malformed as fault:
        raise of.blamed(at, fault) from None


def within(values: Floats, start: int = 0) -> Place:
    """Blocks are to be in ``values``, whose first is value ``start``."""
    return lambda at: values[at.start - start : at.stop - start]


def make_range(of: Blocks, chunks: range, descriptor: int, threads: int) -> int:
    """Write these chunks of the mean's file; how many bytes that is.

    Raises:
        Malformed: as ``make_all``; or there are not so many chunks.
    """
    head, size = head_of(of.like)
    start, stop = chunks.start * CHUNK_BYTES, min(chunks.stop * CHUNK_BYTES, len(head) + size)
    if not start < stop or chunks.stop * CHUNK_BYTES >= len(head) + size + CHUNK_BYTES:
        raise Malformed(f"{chunks} of the chunks of parameters of {len(head) + size} bytes")
    content = make_bytes(descriptor, stop - start)
    before = head[start:stop]
    content[: len(before)] = before
    values = np.frombuffer(content[len(before) :], "<f4")
    place = within(values, max(0, start - len(head)) // 4)
    make_all(of, blocks(of.like, chunks), threads, place=place)
    return stop - start
