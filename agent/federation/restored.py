"""What a site's database gives a job's machine at start, and what the machine needs kept."""

from dataclasses import dataclass

from agent.federation.history import Counted
from agent.federation.participant import Update
from agent.federation.register import RegisterRow
from agent.federation.value import JobValue
from agent.foundation.ids import Digest


@dataclass(frozen=True, slots=True)
class Restored:
    """What this site's database holds of a job."""

    value: JobValue | None = None
    register: RegisterRow | None = None
    update: Update | None = None
    rounds: tuple[Counted, ...] = ()
    barred_because: str = ""
    """Why this site may not vote; empty if it may."""


@dataclass(frozen=True, slots=True)
class References:
    """Blobs that matter to a job at one site."""

    needed: frozenset[Digest]
    """Here, whatever becomes of others' copies."""
    named: frozenset[Digest]
    """By the history of a job that is over: somebody may ask for them."""
