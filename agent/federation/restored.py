"""What a site's database gives a job's machine at start, and what the machine needs kept."""

from collections.abc import Iterable
from dataclasses import dataclass

from agent.federation.history import Counted, History, Outline
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
    rounds: tuple[Counted | Outline, ...] = ()
    barred_because: str = ""
    """Why this site may not vote; empty if it may."""


@dataclass(frozen=True, slots=True)
class References:
    """Blobs that matter to a job at one site."""

    needed: frozenset[Digest]
    """Here, whatever becomes of others' copies."""
    named: frozenset[Digest]
    """By the history of a job that is over: somebody may ask for them."""


def references(
    needed: set[Digest], values: Iterable[JobValue | None], history: History, *, is_over: bool
) -> References:
    """Which blobs a job is about, whether they are here or not.

    Args:
        needed: by the parts of its machine.
        values: of its register, as it was read and as it was accepted.
        history: its rounds.
        is_over: what only they name may then go.
    """
    named = {counted.contributions for counted in history.rounds.values()} | history.sought()
    for value in values:
        if value is not None:
            named |= value.blobs
    if is_over:
        return References(frozenset(needed), frozenset(named - needed))
    return References(frozenset(needed | named), frozenset())
