"""Conversations of one job's machine: effects to carry out, calls waiting for their replies.

A machine's parts share one desk. ``ask`` names the continuation that takes the reply; it runs when
the driver brings it back, in the same single-threaded step as everything else.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from agent.federation.events import Ask, JobEffect
from agent.foundation.ids import Digest, SiteId
from agent.wire.documents import Job
from agent.wire.mesh import Call, Reply

SOURCES_MAX = 16
"""More than a fetch can use at a time."""
Then = Callable[[Reply | None, float], None]
CALLS_WAITING_MAX = 20_000
"""Two conversations with every member of the largest mesh; reached only through a defect."""


class Surroundings(Protocol):
    """What a job's machine may look at: hints and local facts, never anything that decides safety."""

    def alive(self) -> Mapping[SiteId, float]:
        """Capacity of each site that seems alive, this one included, in the order of their ids."""
        ...

    def is_held(self, digest: Digest) -> bool:
        """Whether the blob is complete on this site's disk."""
        ...

    def refusal(self, job: Job) -> str:
        """Why this site takes no part in the job's training; empty if it does."""
        ...

    def can_aggregate(self) -> bool:
        """Whether this site has what an aggregator needs (PyTorch)."""
        ...

    def unix_s(self, now: float) -> float:
        """Unix time at ``now``; for people only."""
        ...

    def may_hold(self, job: Job, site: SiteId) -> bool:
        """Whether the job's residency label lets its parameters and updates go to ``site``."""
        ...

    def region(self, site: SiteId) -> str:
        """The region in the certificate of ``site``; empty if the site is not known."""
        ...

    def is_gone(self, site: SiteId) -> bool:
        """Whether the trust log has revoked or retired the site: it never comes back."""
        ...

    def substitute(self, job: Job, members: tuple[SiteId, ...], gone: SiteId) -> SiteId | None:
        """The living site that had best take the place of ``gone``; None: there is none."""
        ...


class BlobTaker(Protocol):
    """A part of a machine that waits for blobs."""

    def blob_arrived(self, digest: Digest, now: float, /) -> None:
        """It is here."""
        ...

    def blob_missing(self, digest: Digest, now: float, /) -> None:
        """It cannot be had just now."""
        ...


def sources(
    first: Iterable[SiteId], alive: Mapping[SiteId, float], me: SiteId
) -> tuple[SiteId, ...]:
    """Where a job's blobs may be had: ``first``, then everyone alive; none that seems dead."""
    order = dict.fromkeys((*first, *alive))
    return tuple(site for site in order if site != me and site in alive)[:SOURCES_MAX]


class Desk:
    """The outbox and the pending calls."""

    def __init__(self, next_call: Callable[[], int], prefix: bytes) -> None:
        """``next_call`` gives numbers unique in this process, ``prefix`` names site and boot epoch."""
        self._next_call, self._prefix = next_call, prefix
        self._waiting: dict[int, Then] = {}
        self._outbox: list[JobEffect] = []

    def number(self) -> int:
        """A number for a call or a piece of work."""
        return self._next_call()

    def operation(self) -> bytes:
        """An operation id that no other site, process or call ever uses (20 bytes)."""
        return self._prefix + self._next_call().to_bytes(8, "big")

    def emit(self, *effects: JobEffect) -> None:
        """Append to the effects of this step."""
        self._outbox.extend(effects)

    def ask(self, site: SiteId, message: Call, timeout_s: float, then: Then) -> None:
        """Call ``site``; ``then(reply or None, now)`` takes what comes of it."""
        assert len(self._waiting) < CALLS_WAITING_MAX
        call = self._next_call()
        self._waiting[call] = then
        self._outbox.append(Ask(call, site, message, timeout_s))

    def replied(self, call: int, reply: Reply | None, now: float) -> None:
        """Hand a reply to the part that asked; unknown calls are ignored (the part is gone)."""
        if (then := self._waiting.pop(call, None)) is not None:
            then(reply, now)

    @property
    def is_empty(self) -> bool:
        """Whether no effect waits to be taken."""
        return not self._outbox

    def take(self) -> list[JobEffect]:
        """The effects of this step, in order; empties the outbox."""
        effects, self._outbox = self._outbox, []
        return effects
