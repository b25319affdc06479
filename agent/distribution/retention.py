"""Which blobs a site may let go: a pure machine.

A blob that is *wanted* here (served, or needed by a job under way) stays. One that nothing names goes, after
``unnamed_s`` in which something may come to name it: a model is put before its document is signed. One that
the catalog or an ended job names, but nobody wants here, stays for others' sake, unless the room for blobs is
used up: then it goes if two other sites hold it.

That no two sites rely on each other follows from the order: a site first stops holding the blob, for all that
it tells others (``Leave``), and only then asks who else holds it. Of the sites that removed it, consider the
one that left last: those that confirmed it held the blob after it had left, so they have not left it since
that one was the last. So two copies remain, however the questions cross, whoever is dead and whatever clocks
say (``tests/properties/test_retention_copies.py``).

Times are monotonic seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, assert_never

from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER, Woke

UNNAMED_S: Final = 3600.0
"""Between the putting of a model and the signing of its document there may be a person's lunch."""

COPIES_MIN: Final = 2
"""At other sites, so that one broken disk loses nothing."""

LOOK_S: Final = 60.0
REST_S: Final = 300.0
"""Until a blob is tried again that too few others held."""


class Standing(IntEnum):
    """What a blob is to this site."""

    UNNAMED = 0
    """Neither the catalog nor a job names it."""
    NAMED = 1
    """Something names it, and nothing wants it here."""
    WANTED = 2


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob that is here."""

    standing: Standing
    is_whole: bool = True
    """A part of a blob is no copy: nobody relies on it."""


@dataclass(frozen=True, slots=True)
class Looked:
    """Every blob that is here, the one that is being left included, wanted at each ``Look``."""

    blobs: Mapping[Digest, Blob]


@dataclass(frozen=True, slots=True)
class Full:
    """Something did not fit."""


@dataclass(frozen=True, slots=True)
class Collect:
    """The operator wants what nothing names to go now."""


@dataclass(frozen=True, slots=True)
class Sought:
    """Another site has asked for the blob: its time begins anew."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Asked:
    """These are asked whether they hold the blob that is being left."""

    digest: Digest
    sites: frozenset[SiteId]


@dataclass(frozen=True, slots=True)
class Told:
    """What one of them has answered; no answer is ``is_held`` False."""

    digest: Digest
    site: SiteId
    is_held: bool


@dataclass(frozen=True, slots=True)
class Look:
    """Report ``Looked`` at once."""


@dataclass(frozen=True, slots=True)
class Remove:
    """Hold it no more and remove its file, if it is not wanted meanwhile."""

    digest: Digest
    why: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Tell everybody from now on that it is not here, ask who holds it, and report ``Asked``."""

    digest: Digest


@dataclass(frozen=True, slots=True)
class Stay:
    """Hold it again: too few others do."""

    digest: Digest


RetentionEvent = Looked | Full | Collect | Sought | Asked | Told | Woke
RetentionEffect = Look | Remove | Leave | Stay


@dataclass(slots=True)
class _Leaving:
    digest: Digest
    open: frozenset[SiteId] = frozenset()
    holders: set[SiteId] = field(default_factory=set)


class Retention:
    """Of one site."""

    def __init__(self, *, unnamed_s: float = UNNAMED_S, now: float) -> None:
        """``unnamed_s``: how long a blob stays that nothing names."""
        self._unnamed_s = unnamed_s
        self._since: dict[Digest, tuple[Standing, float]] = {}
        """Since when each blob is not wanted, and what it has been then."""
        self._rests_until: dict[Digest, float] = {}
        self._leaving: _Leaving | None = None
        self._is_pressed = self._collects = False
        self._look_at = now

    def step(self, event: RetentionEvent, now: float) -> list[RetentionEffect]:
        """Take one event; effects in order."""
        effects: list[RetentionEffect] = []
        match event:
            case Looked(blobs):
                effects = self._looked(blobs, now)
            case Full() if not self._is_pressed and self._leaving is None:
                self._is_pressed = True
                effects = [Look()]
            case Collect():
                self._collects = True
                effects = [Look()]
            case Sought(digest) if (known := self._since.get(digest)) is not None:
                self._since[digest] = known[0], now
            case Asked():
                effects = self._asked(event, now)
            case Told():
                effects = self._told(event, now)
            case Woke() if now >= self._look_at:
                effects = [Look()]
            case Full() | Sought() | Woke():
                pass
            case _:
                assert_never(event)
        return effects

    def wake_at(self) -> float:
        """When ``Woke`` is wanted."""
        return self._look_at

    @property
    def leaving(self) -> Digest | None:
        """The blob that is here and not told of."""
        return self._leaving.digest if self._leaving is not None else None

    def goes_at(self, digest: Digest) -> float:
        """When a blob that nothing names is to go; ``NEVER`` for any other."""
        standing, since = self._since.get(digest, (Standing.WANTED, 0.0))
        return since + self._unnamed_s if standing is Standing.UNNAMED else NEVER

    def _looked(self, blobs: Mapping[Digest, Blob], now: float) -> list[RetentionEffect]:
        self._look_at = now + LOOK_S
        self._note(blobs, now)
        collects, self._collects = self._collects, False
        effects: list[RetentionEffect] = []
        for digest, blob in blobs.items():
            if blob.standing is Standing.WANTED or digest == self.leaving:
                continue
            since = self._since[digest][1]
            is_named_part = blob.standing is Standing.NAMED and not blob.is_whole
            is_due = now >= since + self._unnamed_s
            if (blob.standing is Standing.UNNAMED and (is_due or collects)) or (
                is_named_part and (is_due or collects or self._is_pressed)
            ):
                why = "a part that nobody wants here" if is_named_part else "nothing names it"
                effects.append(Remove(digest, why))
        if effects:
            self._is_pressed = False  # there is room now, or there will be another ``Full``
        elif self._is_pressed and self._leaving is None:
            effects += self._leave(blobs, now)
        return effects

    def _note(self, blobs: Mapping[Digest, Blob], now: float) -> None:
        since: dict[Digest, tuple[Standing, float]] = {}
        for digest, blob in blobs.items():
            if blob.standing is not Standing.WANTED:
                known = self._since.get(digest)
                is_same = known is not None and known[0] is blob.standing
                since[digest] = known if known is not None and is_same else (blob.standing, now)
        self._since = since
        self._rests_until = {
            digest: until
            for digest, until in self._rests_until.items()
            if until > now and digest in blobs
        }

    def _leave(self, blobs: Mapping[Digest, Blob], now: float) -> list[RetentionEffect]:
        """Begin with what has not been wanted for the longest time."""
        candidates = [
            (self._since[digest][1], digest)
            for digest, blob in blobs.items()
            if blob.standing is Standing.NAMED and blob.is_whole
            and digest not in self._rests_until
        ]  # fmt: skip
        if not candidates:
            self._is_pressed = False
            return []
        _, digest = min(candidates)
        self._leaving = _Leaving(digest)
        self._rests_until[digest] = now + REST_S
        return [Leave(digest)]

    def _asked(self, asked: Asked, now: float) -> list[RetentionEffect]:
        leaving = self._leaving
        if leaving is None or leaving.digest != asked.digest:
            return []
        leaving.open = asked.sites
        return self._decide(leaving, now)

    def _told(self, told: Told, now: float) -> list[RetentionEffect]:
        leaving = self._leaving
        if leaving is None or leaving.digest != told.digest or told.site not in leaving.open:
            return []
        leaving.open -= {told.site}
        if told.is_held:
            leaving.holders.add(told.site)
        return self._decide(leaving, now)

    def _decide(self, leaving: _Leaving, now: float) -> list[RetentionEffect]:
        if len(leaving.holders) >= COPIES_MIN:
            self._leaving, self._is_pressed = None, False
            return [Remove(leaving.digest, f"room is needed, and {COPIES_MIN} other sites hold it")]
        if leaving.open:
            return []
        self._leaving = None
        self._look_at = now  # another one may be had
        return [Stay(leaving.digest)]
