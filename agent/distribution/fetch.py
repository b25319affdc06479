"""Which chunk to ask of which source: a pure machine that turns many slow sources into one blob.

Rules:

- Sources are looked at: each tells which chunks it has, and those that are fetching too are looked at
  again while the fetch goes on. The chunk that the fewest of them have is asked for first, at random
  among equals, so that sites that fetch at the same time soon hold different chunks and serve each
  other (rarest first, Cohen 2003, "Incentives Build Robustness in BitTorrent", section 2.4).
- A source that has the whole blob tells how many sites are reading it, and which of them this one is.
  They share it: each asks it for its own part, the n-th chunks, and has the rest from the others, so
  that the origin's egress does not grow with their number (after superseeding, Hoffman 2008, BEP 16).
  Whoever gets nothing from the others for ``HUNGRY_S`` asks it for anything.
- A source is asked for one chunk, then for more as it sends them. One that sends a wrong chunk is never
  asked again for this blob. One that does not answer is asked again later, and after
  ``FAILURES_MAX`` failures in a row no more.
- When every missing chunk is under way, an idle source is given a second copy of the oldest request,
  so that the last chunk does not wait for the slowest source (endgame mode, same section).
- No progress for ``stall_s`` ends the fetch as failed; what is on disk stays for the next one.

Sets of chunks are integers whose bit ``i`` is chunk ``i``: the largest blob has 65,536 chunks, and whole
sets are compared at each request. The driver checks and stores each chunk before it reports
``ChunkArrived``; the machine holds no data.
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

LOOKS_S: Final = (0.1, 0.2, 0.4, 1.0)
"""Time to the next look at a source that has not all, by the number of looks; then always the last. Soon
at first, because sites that are told to fetch a blob are told at the same time."""

EMPTY_LOOK_S_MAX: Final = 8.0
"""One that has nothing of the blob may never fetch it."""

SHARED_CHUNKS_MIN: Final = 17
"""A blob of 4 MiB at most is asked of whoever has it: waiting for others would take longer than it."""

HUNGRY_S: Final = 1.0
"""Ten times what a chunk takes on a slow network."""

BACK_OFF_S: Final = 0.25
BACK_OFF_S_MAX: Final = 4.0


@dataclass(frozen=True, slots=True)
class SourceAdded:
    """One more source may be asked. Adding a known one forgives it nothing."""

    source: str


@dataclass(frozen=True, slots=True)
class Looked:
    """A source has told which chunks it has, or that it has nothing of the blob (0)."""

    source: str
    chunks: int
    """Bit ``i``: it has chunk ``i``."""
    readers: int = 1
    """Sites that have asked it for parts of the blob lately, this one included."""
    place: int = 0
    """Of this site among them, from 0."""


@dataclass(frozen=True, slots=True)
class LookFailed:
    """A source has not told what it has."""

    source: str
    reason: str


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
class Look:
    """Ask ``source`` which chunks it has and report ``Looked`` or ``LookFailed``."""

    source: str


@dataclass(frozen=True, slots=True)
class RequestChunk:
    """Ask ``source`` for chunk ``index`` and report ``ChunkArrived`` or ``ChunkFailed``."""

    source: str
    index: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Nothing that is under way from ``source`` is wanted any more, and it is not asked again."""

    source: str


@dataclass(frozen=True, slots=True)
class Complete:
    """Every chunk is in the file."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The fetch cannot go on; ``reason`` says what became of each source."""

    reason: str


FetchEvent = SourceAdded | Looked | LookFailed | ChunkArrived | ChunkFailed | Woke
FetchEffect = Look | RequestChunk | Drop | Complete | Failed


@dataclass(slots=True)
class _Source:
    name: str
    chunks: int
    """It has these, for all that is known; before the first look it may have any."""
    look_at: float
    """When to look at it (again); never while a look is under way."""
    is_known: bool = False
    is_whole: bool = False
    part: int = 0
    """Chunks that this site is to ask of it: not all if others are reading it too."""
    looks: int = 0
    width: int = 1
    """Requests under way at most."""
    in_flight: set[int] = field(default_factory=set)
    failures: int = 0
    rests_until: float = -inf
    gone: str = ""
    """Why it is not asked any more."""

    @property
    def is_partial(self) -> bool:
        """Whether it is fetching too."""
        return self.is_known and not self.is_whole and not self.gone


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
        self._chunks = chunks
        self._all = (1 << chunks) - 1
        self._missing = self._all
        for index in held:
            self._missing &= ~(1 << index)
        self._unasked = self._missing
        """Missing chunks that nobody is asked for."""
        self._asked: dict[int, int] = {}
        """Requests under way by chunk, in the order of the first request."""
        self._sources: dict[str, _Source] = {}
        self._held_by: list[int] | None = None
        """At ``k``: chunks that more than ``k`` partial sources have; None when it is to be counted."""
        self._in_flight_max = in_flight_max
        self._stall_s = stall_s
        self._arrived_at = self._fed_at = now
        """When the last chunk came, and the last one from a site that is fetching too."""
        self._stepped_at = now
        self._rng = rng
        self.is_over = False

    @property
    def missing(self) -> int:
        """How many chunks are not in the file yet."""
        return self._missing.bit_count()

    def step(self, event: FetchEvent, now: float) -> list[FetchEffect]:
        """Take one event at monotonic time ``now`` (seconds) and say what to do."""
        if self.is_over:
            return []
        self._stepped_at = now
        effects: list[FetchEffect] = []
        match event:
            case SourceAdded():
                if event.source not in self._sources and len(self._sources) < SOURCES_MAX:
                    self._sources[event.source] = _Source(event.source, self._all, now)
            case Looked():
                self._looked(event, now)
            case LookFailed():
                if (source := self._sources.get(event.source)) is not None:
                    self._failed(source, event.reason, now)
                    source.look_at = source.rests_until
            case ChunkArrived():
                self._arrived(event, now)
            case ChunkFailed():
                effects += self._chunk_failed(event, now)
            case Woke():
                pass
            case _:
                assert_never(event)
        return effects + self._plan(now)

    def wake_at(self) -> float:
        """When ``Woke`` is wanted: a look, the end of a rest, hunger, or the end of our patience."""
        if self.is_over:
            return inf
        at = [self._arrived_at + self._stall_s]
        if (hungry_at := self._fed_at + HUNGRY_S) > self._stepped_at:
            at.append(hungry_at)
        for source in self._sources.values():
            if not source.gone:
                at.append(max(source.look_at, source.rests_until))
                if source.rests_until > -inf:
                    at.append(source.rests_until)
        return min(at)

    # --- what happened ---------------------------------------------------------------------------
    def _looked(self, event: Looked, now: float) -> None:
        source = self._sources.get(event.source)
        if source is None:
            return
        self._held_by = None
        source.is_known, source.failures = True, 0
        source.chunks = event.chunks & self._all
        source.is_whole = source.chunks == self._all
        source.part = self._part(event.readers, event.place)
        pause_s = LOOKS_S[min(source.looks, len(LOOKS_S) - 1)]
        if not source.chunks:
            pause_s = min(EMPTY_LOOK_S_MAX, pause_s * 2 ** min(source.looks, 8))
        source.looks += 1
        source.look_at = now + pause_s * self._rng.uniform(0.5, 1.0)

    def _arrived(self, event: ChunkArrived, now: float) -> None:
        bit = 1 << event.index
        if self._missing & bit:
            self._missing &= ~bit
            self._unasked &= ~bit
            self._arrived_at = now
        self._returned(event.source, event.index)
        if (source := self._sources.get(event.source)) is not None:
            source.failures = 0
            if not source.is_whole:
                self._fed_at = now
            source.width = min(source.width + 1, self._in_flight_max)

    def _chunk_failed(self, event: ChunkFailed, now: float) -> list[FetchEffect]:
        self._returned(event.source, event.index)
        source = self._sources.get(event.source)
        if source is None:
            return []
        match event.kind:
            case "bad":
                source.gone = f"sent a wrong chunk {event.index}"
                for index in tuple(source.in_flight):
                    self._returned(source.name, index)
                self._held_by = None
                return [Drop(source.name)]
            case "missing":
                # One that is not known yet is not asked at random again.
                source.chunks &= ~(1 << event.index) if source.is_known else 0
                source.is_whole = False
                source.width = 1
                self._held_by = None
            case "failed":
                self._failed(source, event.reason, now)
            case _:
                assert_never(event.kind)
        return []

    def _failed(self, source: _Source, reason: str, now: float) -> None:
        source.failures += 1
        source.width = 1
        rest_s = min(BACK_OFF_S_MAX, BACK_OFF_S * 2**source.failures)
        source.rests_until = now + rest_s * self._rng.uniform(0.5, 1.0)
        if source.failures >= FAILURES_MAX:
            source.gone = reason or "does not answer"
            self._held_by = None

    def _returned(self, name: str, index: int) -> None:
        source = self._sources.get(name)
        if source is None or index not in source.in_flight:
            return
        source.in_flight.discard(index)
        left = self._asked.pop(index) - 1
        if left:
            self._asked[index] = left
        else:
            self._unasked |= self._missing & (1 << index)

    # --- what to do ------------------------------------------------------------------------------
    def _plan(self, now: float) -> list[FetchEffect]:
        if not self._missing:
            self.is_over = True
            return [Complete()]
        usable = [source for source in self._sources.values() if not source.gone]
        if now >= self._arrived_at + self._stall_s or (self._sources and not usable):
            self.is_over = True
            return [Failed(self._why())]
        effects: list[FetchEffect] = []
        # Whoever has less than all first: what it has need not come from those that have all. Among
        # equals, whoever has least to do, so that the sources share the work.
        for source in sorted(usable, key=lambda one: (one.is_whole, len(one.in_flight))):
            if source.rests_until <= now:
                source.rests_until = -inf
                if source.look_at <= now:
                    source.look_at = inf
                    effects.append(Look(source.name))
                self._ask(source, effects, now)
        return effects

    def _ask(self, source: _Source, effects: list[FetchEffect], now: float) -> None:
        while len(source.in_flight) < source.width:
            index = self._next(source, now)
            if index is None:
                break
            source.in_flight.add(index)
            self._unasked &= ~(1 << index)
            self._asked[index] = self._asked.get(index, 0) + 1
            effects.append(RequestChunk(source.name, index))

    def _next(self, source: _Source, now: float) -> int | None:
        wanted = self._unasked & source.chunks
        is_hungry = now >= self._fed_at + HUNGRY_S
        is_shared = source.is_whole and source.part != self._all and not is_hungry
        if is_shared:
            wanted &= source.part & ~self._availability()[0]
        for held_by_more in self._availability():
            if rarest := wanted & ~held_by_more:
                return self._any_of(rarest)
        if source.in_flight or is_shared:
            return None  # an endgame copy is for the idle only, and not for whom others need
        for index, copies in self._asked.items():
            if copies < COPIES_MAX and (source.chunks & self._missing) >> index & 1:
                return index
        return None

    def _availability(self) -> list[int]:
        """At ``k``: chunks that more than ``k`` partial sources have; the last is empty."""
        if self._held_by is None:
            counted: list[int] = []
            for source in self._sources.values():
                if not source.is_partial:
                    continue
                carried = source.chunks
                for level, chunks in enumerate(counted):
                    counted[level], carried = chunks | carried, chunks & carried
                if carried:
                    counted.append(carried)
            self._held_by = [*counted, 0]
        return self._held_by

    def _part(self, readers: int, place: int) -> int:
        """Every chunk whose number leaves ``place`` when divided by ``readers``."""
        if readers <= 1 or self._chunks < SHARED_CHUNKS_MIN:
            return self._all
        times = -(-self._chunks // readers)
        firsts = ((1 << (readers * times)) - 1) // ((1 << readers) - 1)
        return firsts << place & self._all

    def _any_of(self, chunks: int) -> int:
        """One of them: the first from a random place on."""
        begin = self._rng.randrange(self._chunks)
        if not (found := chunks >> begin):
            begin, found = 0, chunks
        return begin + (found & -found).bit_length() - 1

    def _why(self) -> str:
        if not self._sources:
            return "no source is known"
        reasons = [
            f"{source.name}: {source.gone or 'has not sent what is missing'}"
            for source in self._sources.values()
        ]
        return f"{self.missing} chunks missing; " + "; ".join(sorted(reasons)[:8])
