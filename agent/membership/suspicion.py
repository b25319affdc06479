"""How accusations become a death: enough distinct accusers, and enough time to refute.

Rule: no single site can kill another while three can still speak. Lifeguard (section 4.2,
'LHA-Suspicion') lets the time shrink as confirmations arrive. Here confirmations are a condition,
so the shrinking is a step: with too few accusers no time is long enough, and the site looks for
itself instead; with enough of them the time is Lifeguard's minimum.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from agent.foundation.ids import SiteId
from agent.membership.settings import Settings
from agent.wire.records import Accusation, Signed

ACCUSERS_KEPT = 6
"""More evidence than any quorum needs; bounds what a flood of accusers makes us hold."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One accuser's signed statement."""

    signed: Signed
    is_refused: bool


@dataclass(slots=True)
class Suspicion:
    """The accusations against one incarnation of one member."""

    incarnation: int
    started_at: float
    held_until: float = 0.0
    """No verdict before this time (we stalled, or heard the suspect ourselves)."""
    accusers: dict[SiteId, Evidence] = field(default_factory=dict)
    refused: int = 0
    """How many of them saw the member's port refused."""

    def add(self, accusation: Accusation, signed: Signed) -> bool:
        """Count one accusation; False if its accuser is counted already or the bound is reached."""
        if accusation.accuser in self.accusers or len(self.accusers) >= ACCUSERS_KEPT:
            return False
        self.accusers[accusation.accuser] = Evidence(signed, accusation.is_refused)
        self.refused += accusation.is_refused
        return True

    def refusals(self) -> int:
        """How many accusers saw the member's port refused."""
        return self.refused

    def discount(self, accusers: Iterable[SiteId]) -> None:
        """Count no longer what these said."""
        for accuser in accusers:
            if (evidence := self.accusers.pop(accuser, None)) is not None:
                self.refused -= evidence.is_refused

    def deadline(self, settings: Settings, needed: int, floor_s: float) -> float:
        """When the suspect is dead unless it refutes; with too few accusers, when to look again.

        Args:
            settings: the times.
            needed: accusers that make a verdict here, at least 1.
            floor_s: ``settings.suspicion_floor_s`` of the cluster's size.
        """
        if len(self.accusers) < needed:
            timeout_s = settings.confirm_after_s
        elif self.refused >= min(2, needed):
            timeout_s = settings.refused_suspicion_s
        else:
            timeout_s = floor_s
        return max(self.started_at + timeout_s, self.held_until)
