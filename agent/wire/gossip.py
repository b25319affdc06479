"""Bodies of gossip packets (encrypted and authenticated by the envelope)."""

from dataclasses import dataclass
from typing import Annotated

from agent.wire.records import Counter, PackedCoordinate, Signed, Site
from agent.wire.schema import AtMost, Tagged, omitted

Rumors = Annotated[tuple[Signed, ...], AtMost(16)]


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? (SWIM section 3.1). ``rumors`` are piggybacked (section 4.1)."""

    number: Counter
    rumors: Rumors = ()
    is_place_wanted: bool = omitted(False)
    """The sender does not know where the receiver lies: the ack should tell."""


@dataclass(frozen=True, slots=True)
class Ack:
    """I am, answering ``number``; ``subject`` is the probed site (another one after a PingRequest)."""

    number: Counter
    subject: Site
    rumors: Rumors = ()
    coordinate: PackedCoordinate = omitted(b"")
    """Where the sender lies, if it was asked or its record does not say so; never of another subject."""


@dataclass(frozen=True, slots=True)
class Nack:
    """I heard your PingRequest and have no ack from the subject yet (Lifeguard section 4.1)."""

    number: Counter
    rumors: Rumors = ()


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Please probe ``subject`` for me (SWIM section 3.1, ping-req)."""

    number: Counter
    subject: Site
    rumors: Rumors = ()


@dataclass(frozen=True, slots=True)
class Gossip:
    """Rumors only, sent when there is news between probes."""

    rumors: Rumors = ()


GossipMessage = Ping | Ack | Nack | PingRequest | Gossip
GOSSIP = Tagged({1: Ping, 2: Ack, 3: Nack, 4: PingRequest, 5: Gossip})
