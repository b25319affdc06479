"""Which chunk to ask of which source: a pure machine that turns many slow sources into one blob.

Rules:

- Each site wants the chunks in its own random order, so that sites that fetch the same blob at the
  same time soon hold different chunks and serve each other; the origin's egress does not grow with
  the number of sites (the idea of BitTorrent's random-first policy, Cohen 2003, section 2.4).
- A source that sends a wrong chunk is never asked again for this blob. One that does not answer is
  asked again later, and after ``FAILURES_MAX`` failures in a row no more. One that merely lacks a
  chunk (it is fetching too) is asked for others meanwhile.
- When every missing chunk is under way, an idle source is given a second copy of the oldest request,
  so that the last chunk does not wait for the slowest source (endgame mode, same section).
- No progress for ``stall_s`` ends the fetch as failed; what is on disk stays for the next one.

The driver checks and stores each chunk before it reports ``ChunkArrived``; the machine holds no data.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Final, Literal, assert_never

from agent.foundation.machine import Woke
from agent.foundation.randomness import Rng

FAILURES_MAX: Final = 4
"""Failures in a row after which a source counts as gone; about 4 s of back-off."""

COPIES_MAX: Final = 2
"""Requests of one chunk under way at a time, the endgame's copy included."""

SOURCES_MAX: Final = 32
"""More sources than this do not make a fetch faster, only its book-keeping slower."""

MISSES_MAX: Final = 6
"""Chunks in a row that a source turned out to lack before it is left alone for a while."""

BACK_OFF_S: Final = 0.25
BACK_OFF_S_MAX: Final = 4.0


@dataclass(frozen=True, slots=True)
class SourceAdded:
    """One more source may be asked. Adding a known one forgives it nothing."""

    source: str


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """The chunk was checked and is in the file."""

    source: str
    index: int


@dataclass(frozen=True, slots=True)
class ChunkFailed:
    """The request brought nothing: ``missing`` there, ``bad`` bytes, or no answer (``failed``)."""

    source: str
    index: int
    kind: Literal["missing", "bad", "failed"]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RequestChunk:
    """Ask ``source`` for chunk ``index`` and report ``ChunkArrived`` or ``ChunkFailed``."""

    source: str
    index: int


@dataclass(frozen=True, slots=True)
class Complete:
    """Every chunk is in the file."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The fetch cannot go on; ``reason`` says what became of each source."""

    reason: str


FetchEvent = SourceAdded | ChunkArrived | ChunkFailed | Woke
FetchEffect = RequestChunk | Complete | Failed


@dataclass(slots=True)
class _Source:
    name: str
    in_flight: set[int] = field(default_factory=set)
    lacks: set[int] = field(default_factory=set)
    misses: int = 0
    """Rests for lacking chunks since it last sent one."""
    failures: int = 0
    rests_until: float = -inf
    gone: str = ""
    """Why it is not asked any more."""


class Fetch:
    """The fetch of one blob. ``is_over`` after ``Complete`` or ``Failed``: then every event is ignored."""

    def __init__(
        self,
        *,
        chunks: int,
        held: Iterable[int],
        rng: Rng,
        now: float,
        in_flight_max: int = 4,
        stall_s: float = 30.0,
    ) -> None:
        """Plan to fetch what is missing.

        Args:
            chunks: how many the blob has.
            held: chunks that are already in the file.
            rng: gives this site its own order.
            now: monotonic seconds.
            in_flight_max: requests to one source at a time: enough to cover a round trip, few enough
                that a slow source does not hold many chunks back.
            stall_s: time without one arriving chunk after which the fetch fails.
        """
        have = set(held)
        order = [index for index in range(chunks) if index not in have]
        rng.shuffle(order)
        self._missing = set(order)
        self._unasked = dict.fromkeys(order)
        """Missing chunks that nobody is asked for, in the order in which they shall be."""
        self._asked: dict[int, int] = {}
        """Requests under way by chunk, in the order of the first request."""
        self._sources: dict[str, _Source] = {}
        self._in_flight_max = in_flight_max
        self._stall_s = stall_s
        self._fails_at = now + stall_s
        self._rng = rng
        self.is_over = False

    @property
    def missing(self) -> int:
        """How many chunks are not in the file yet."""
        return len(self._missing)

    def step(self, event: FetchEvent, now: float) -> list[FetchEffect]:
        """Take one event at monotonic time ``now`` (seconds) and say what to do."""
        if self.is_over:
            return []
        match event:
            case SourceAdded():
                if len(self._sources) < SOURCES_MAX:
                    self._sources.setdefault(event.source, _Source(event.source))
            case ChunkArrived():
                self._arrived(event, now)
            case ChunkFailed():
                self._failed(event, now)
            case Woke():
                pass
            case _:
                assert_never(event)
        return self._plan(now)

    def wake_at(self) -> float:
        """When ``Woke`` is wanted: the end of a source's rest, or of our patience."""
        if self.is_over:
            return inf
        rests = [
            source.rests_until
            for source in self._sources.values()
            if not source.gone and source.rests_until > -inf
        ]
        return min([self._fails_at, *rests])

    def _arrived(self, event: ChunkArrived, now: float) -> None:
        if event.index in self._missing:
            self._missing.discard(event.index)
            self._unasked.pop(event.index, None)
            self._fails_at = now + self._stall_s
        self._returned(event.source, event.index)
        if (source := self._sources.get(event.source)) is not None:
            source.failures = source.misses = 0
            source.lacks.clear()

    def _failed(self, event: ChunkFailed, now: float) -> None:
        self._returned(event.source, event.index)
        source = self._sources.get(event.source)
        if source is None:
            return
        match event.kind:
            case "bad":
                source.gone = f"sent a wrong chunk {event.index}"
            case "missing":
                source.lacks.add(event.index)
            case "failed":
                source.failures += 1
                rest_s = min(BACK_OFF_S_MAX, BACK_OFF_S * 2**source.failures)
                source.rests_until = now + rest_s * self._rng.uniform(0.5, 1.0)
                if source.failures >= FAILURES_MAX:
                    source.gone = event.reason or "does not answer"
            case _:
                assert_never(event.kind)

    def _returned(self, name: str, index: int) -> None:
        source = self._sources.get(name)
        if source is None or index not in source.in_flight:
            return
        source.in_flight.discard(index)
        left = self._asked.pop(index) - 1
        if left:
            self._asked[index] = left
        elif index in self._missing:
            self._unasked[index] = None

    def _plan(self, now: float) -> list[FetchEffect]:
        if not self._missing:
            self.is_over = True
            return [Complete()]
        usable = [source for source in self._sources.values() if not source.gone]
        if now >= self._fails_at or (self._sources and not usable):
            self.is_over = True
            return [Failed(self._why())]
        effects: list[FetchEffect] = []
        # Whoever has least to do is asked first, so that the sources share the work.
        for source in sorted(usable, key=lambda one: len(one.in_flight)):
            if source.rests_until <= now:
                source.rests_until = -inf
                self._ask(source, effects, now)
        return effects

    def _ask(self, source: _Source, effects: list[FetchEffect], now: float) -> None:
        # One that lacked something is asked for one chunk at a time, until it has sent one.
        width = 1 if source.lacks or source.misses else self._in_flight_max
        while len(source.in_flight) < width and len(source.lacks) < MISSES_MAX:
            index = self._next(source)
            if index is None:
                break
            source.in_flight.add(index)
            self._unasked.pop(index, None)
            self._asked[index] = self._asked.get(index, 0) + 1
            effects.append(RequestChunk(source.name, index))
        if source.lacks and not source.in_flight:
            # It has nothing for us now; it may be fetching too, so ask again in a while.
            source.lacks.clear()
            source.misses += 1
            rest_s = min(BACK_OFF_S_MAX, BACK_OFF_S * 2**source.misses)
            source.rests_until = now + rest_s * self._rng.uniform(0.5, 1.0)

    def _next(self, source: _Source) -> int | None:
        for index in self._unasked:
            if index not in source.lacks:
                return index
        if source.in_flight:
            return None  # an endgame copy is for the idle only
        for index, copies in self._asked.items():
            if copies < COPIES_MAX and index not in source.lacks and index in self._missing:
                return index
        return None

    def _why(self) -> str:
        if not self._sources:
            return "no source is known"
        reasons = [
            f"{source.name}: {source.gone or 'has not sent what is missing'}"
            for source in self._sources.values()
        ]
        return f"{len(self._missing)} chunks missing; " + "; ".join(sorted(reasons)[:8])
