"""What membership is told, and what it asks for.

Effects are carried out in list order. None of them must be durable before the next one: what
membership believes is evidence, never a promise.
"""

from dataclasses import dataclass, field
from typing import Literal

from agent.foundation.ids import SiteId
from agent.foundation.machine import Woke
from agent.membership.member import State
from agent.wire.gossip import GossipMessage
from agent.wire.records import Endpoint, Served, Signed, SiteRecord, Trial


# --- events --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Heard:
    """An authenticated gossip packet came from ``sender``."""

    sender: SiteId
    message: GossipMessage


@dataclass(frozen=True, slots=True)
class Introduced:
    """Statements came by join, state sync or from the peer book; the notary knows their keys."""

    signed: tuple[Signed, ...]
    is_from_book: bool = False
    """They are what this site knew when it stopped; who they describe may be starting just now."""
    is_by_sync: bool = False
    """They came by a sync that is under way, and its end will be told if this site began it."""
    is_caller: bool = False
    """It is the record of a member that began a sync with this site: news to others too, even while
    this site has not joined itself (it may be the seed of all)."""


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The operating system refused to send to ``target`` (no route, no permission): our own fault."""

    target: SiteId


@dataclass(frozen=True, slots=True)
class PortRefused:
    """ICMP says that nobody listens at ``target``'s port: its host lives, its process does not."""

    target: SiteId


@dataclass(frozen=True, slots=True)
class Doubted:
    """Somebody waits for ``target``: probe it now instead of when its turn comes."""

    target: SiteId


@dataclass(frozen=True, slots=True)
class LoopLagged:
    """This process stood still for ``lag_s`` seconds; what it missed is no evidence."""

    lag_s: float


@dataclass(frozen=True, slots=True)
class LocalChanged:
    """This site changed; None means unchanged."""

    status: Literal["alive", "draining"] | None = None
    endpoint: Endpoint | None = None
    load: float | None = None
    capacity: float | None = None
    serving: tuple[Served, ...] | None = None
    catalog: bytes | None = None
    trials: tuple[Trial, ...] | None = None


@dataclass(frozen=True, slots=True)
class SyncEnded:
    """A state sync asked for with ``SyncWith`` is over (its ``Introduced`` came before)."""

    target: SiteId
    succeeded: bool


@dataclass(frozen=True, slots=True)
class Revoked:
    """These keys are refused from now on: forget the members that held them."""

    sites: tuple[SiteId, ...]


@dataclass(frozen=True, slots=True)
class Leave:
    """This site goes for good; step once, send what is asked, then stop."""


SwimEvent = (
    Heard
    | Introduced
    | SendFailed
    | PortRefused
    | Doubted
    | LoopLagged
    | LocalChanged
    | SyncEnded
    | Revoked
    | Leave
    | Woke
)


# --- effects -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class SendGossip:
    """Seal ``message`` for ``target`` and send it to ``endpoint``'s mesh port; fits one packet."""

    target: SiteId
    endpoint: Endpoint
    message: GossipMessage


@dataclass(frozen=True, slots=True)
class MemberChanged:
    """A member is new (``before`` None) or changed state."""

    site: SiteId
    before: State | None
    after: State


@dataclass(frozen=True, slots=True)
class RecordChanged:
    """There is a newer record of ``site`` (this site included)."""

    site: SiteId
    record: SiteRecord


@dataclass(frozen=True, slots=True)
class RememberPeer:
    """Write the peer book: address, boot epoch or departure of ``site`` changed."""

    site: SiteId
    signed: Signed


@dataclass(frozen=True, slots=True)
class RememberPlace:
    """Write this site's coordinate, so that it starts from there after a restart; once a minute at most."""

    coordinate: bytes


CATALOG_DIFFERS = "catalog differs"
"""Reason of a sync for the sake of documents alone."""


@dataclass(frozen=True, slots=True)
class SyncWith:
    """Run one state sync over TLS and report its end with ``SyncEnded``."""

    site: SiteId
    endpoint: Endpoint
    reason: str


@dataclass(frozen=True, slots=True)
class IsolationChanged:
    """This site hears nobody (or somebody again)."""

    is_isolated: bool


@dataclass(frozen=True, slots=True)
class IdentityCloned:
    """Alarm: a record signed by our own key is newer than ours: a second copy runs, or state was rolled back."""

    sequence: int
    record: SiteRecord | None = field(default=None, compare=False)


SwimEffect = (
    SendGossip
    | MemberChanged
    | RecordChanged
    | RememberPeer
    | RememberPlace
    | SyncWith
    | IsolationChanged
    | IdentityCloned
)
