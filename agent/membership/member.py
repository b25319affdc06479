"""A member as this site sees it: the frozen view for others, and the working state behind it."""

from dataclasses import dataclass, field
from typing import Literal

from agent.foundation.ids import SiteId
from agent.membership.round_trip import RoundTrip
from agent.membership.suspicion import Suspicion
from agent.wire.records import Signed, SiteRecord

State = Literal["alive", "suspect", "dead", "left"]


@dataclass(frozen=True, slots=True)
class Member:
    """One other site, as believed here."""

    site: SiteId
    state: State
    record: SiteRecord
    """The newest record its owner signed and this site has seen."""
    signed: Signed
    """The same record as signed, to be passed on unchanged."""
    rtt_s: float | None
    """Smoothed round trip of direct probes; None before the first ack."""
    changed_at: float
    """Monotonic time of this site at which ``state`` last changed."""
    is_relayed: bool
    """Reached through others or over TCP only: direct datagrams do not come back."""


@dataclass(slots=True)
class Peer:
    """Working state of one member; never leaves the package."""

    site: SiteId
    record: SiteRecord
    signed: Signed
    state: State
    changed_at: float
    round_trip: RoundTrip = field(default_factory=RoundTrip)
    coordinate: bytes = b""
    """Where it lies, as it told last, by its record or an ack; empty if it never did."""
    suspicion: Suspicion | None = None
    """Evidence of a suspect, kept while dead: it is what the member must be shown to refute."""
    heard_at: float | None = None
    """Last authenticated message from it in this life of ours."""
    told_at: float = float("-inf")
    """When we last answered its outdated belief about us."""
    refreshed_at: float = float("-inf")
    """When we last repeated the evidence of its death."""
    is_relayed: bool = False
    called_at: float = float("-inf")
    """When a call over TCP last succeeded although datagrams did not come back."""
    excused_until: float = float("-inf")
    """Known from the peer book only: until then its silence is no evidence, unless it was heard."""
    retry_at: float = 0.0
    retry_delay_s: float = 0.0

    def view(self) -> Member:
        """The frozen view."""
        return Member(
            self.site,
            self.state,
            self.record,
            self.signed,
            self.round_trip.smoothed_s,
            self.changed_at,
            self.is_relayed,
        )
