"""The one pattern: pure machine, thin driver, simulated world.

A machine decides; it never reads a clock, a socket, a file or global randomness. A driver calls
``step`` with what happened and carries out the effects **in list order**: a ``Persist`` that stands
before a ``Send`` is committed to disk before the send is looked at (the Ready rule of etcd-io/raft).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol, TypeVar

EventT_contra = TypeVar("EventT_contra", contravariant=True)
EffectT_co = TypeVar("EffectT_co", covariant=True)

NEVER = inf


@dataclass(frozen=True, slots=True)
class Woke:
    """The time named by ``wake_at`` has come."""


class Machine(Protocol[EventT_contra, EffectT_co]):
    """What the driver and the simulator both drive."""

    def step(self, event: EventT_contra, now: float) -> Sequence[EffectT_co]:
        """Take one event at monotonic time ``now`` (seconds) and say what must be done."""
        ...

    def wake_at(self) -> float:
        """When the machine next wants ``Woke`` (monotonic seconds; ``NEVER`` if it does not)."""
        ...
