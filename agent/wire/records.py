"""Signed statements: what a site says of itself and of others.

Rule: no site can speak for another. A ``SiteRecord`` is signed by the site it describes, an
``Accusation`` by the accuser; everybody passes them on unchanged. Jurisdiction, region, tier and
roles are not here: they are in the issuer-signed certificate (see ``Passport``).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Literal

from agent.foundation.ids import SiteId
from agent.wire.limits import (
    NAME_CHARS_MAX,
    RUMOR_BYTES_MAX,
    SERVING_PER_RECORD_MAX,
    TRIALS_PER_RECORD_MAX,
)
from agent.wire.schema import AtMost, Length, Range, Tagged, omitted

Identifier = Annotated[bytes, Length(32)]
Site = Annotated[SiteId, Length(32)]
Counter = Annotated[int, Range(0, 2**63 - 1)]
Port = Annotated[int, Range(1, 65_535)]
Name = Annotated[str, AtMost(NAME_CHARS_MAX)]
PackedCoordinate = Annotated[bytes, AtMost(32)]
"""Network coordinate, 19 bytes now; room for another geometry, which this version does not use."""
Jurisdictions = Annotated[tuple[Name, ...], AtMost(64)]
"""Allowed jurisdictions; empty means anywhere."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a site listens: ``mesh_port`` is UDP gossip and TCP control, ``data_port`` the gateway."""

    host: Annotated[str, AtMost(64)]
    mesh_port: Port
    data_port: Port


@dataclass(frozen=True, slots=True)
class Served:
    """One model version that answers at a site."""

    key: Annotated[bytes, Length(8)]
    """First 8 bytes of SHA-256 of ``name + ":" + version``."""
    service_us: Counter
    """Typical time of one run here, microseconds, queue not included."""
    is_refused: bool = False
    """The site has it and will not serve it (it says why itself); the pusher need not wait."""


class Stage(IntEnum):
    """How far one site is in a rollout; what a site does not mention, it waits for."""

    WAITING = 0
    TRYING = 1
    """It is to serve the new version, or does, and is being observed."""
    PASSED = 2
    ENDED = 3
    """Passed, and so had everybody alive: the previous version is not kept any more."""
    FAILED = 4
    """A gate did not hold: the previous version serves, here and everywhere."""
    STOPPED = 5
    """Another site failed: the previous version serves."""
    ALONE = 6
    """A gate did not hold after the rollout had ended elsewhere: only here the previous one serves."""
    UNABLE = 7
    """The site takes no part: it cannot serve the version, or its operator does not want it there."""


class Gate(IntEnum):
    """Which gate did not hold."""

    NONE = 0
    REFUSED = 1
    """It cannot be loaded, its golden question is answered wrongly, or its accuracy is too low."""
    CRASH = 2
    ERRORS = 3
    LATENCY = 4
    INVALID = 5
    """Many more requests do not fit it than did not fit the previous version."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a site says of its part in one rollout: the evidence by which others go on or go back."""

    rollout: Annotated[bytes, Length(8)]
    """``catalog.rollout.rollout_id``."""
    stage: Stage
    requests: Annotated[int, Range(0, 2**32 - 1)] = omitted(0)
    """Answered or failed by the new version here since it began, a power of two at most as large."""
    errors: Annotated[int, Range(0, 2**32 - 1)] = omitted(0)
    p99_ms: Annotated[int, Range(0, 2**32 - 1)] = omitted(0)
    """0: too few requests to say."""
    gate: Gate = omitted(Gate.NONE)


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """What a site says of itself.

    ``sequence`` rises with every record and survives restarts (high 32 bits: boot epoch);
    ``incarnation`` is the sequence at which the site last started or refuted an accusation: only
    the site itself raises it (SWIM section 4.2).
    """

    site: Site
    sequence: Counter
    boot_epoch: Annotated[int, Range(0, 2**32 - 1)]
    incarnation: Counter
    status: Literal["alive", "draining", "left"]
    endpoint: Endpoint
    load: Annotated[float, Range(0.0, 1e6)]
    """Busy share of the site's inference slots, 0 = idle, 1 = full, above = queueing."""
    capacity: Annotated[float, Range(0.0, 1e9)]
    """Relative strength of the site (hardware profile), used as a weight, > 0 if it takes work."""
    serving: Annotated[tuple[Served, ...], AtMost(SERVING_PER_RECORD_MAX)]
    catalog: Annotated[bytes, Length(8)]
    """First 8 bytes of the digest of the catalog's heads: differs -> worth a sync."""
    coordinate: PackedCoordinate = omitted(b"")
    """Where the site lies in the network (``membership/coordinates.py``); empty: not told."""
    mark: Annotated[bytes, AtMost(8)] = omitted(b"")
    """Random, new at each start: two marks at one boot epoch are two processes with one key."""
    trials: Annotated[tuple[Trial, ...], AtMost(TRIALS_PER_RECORD_MAX)] = omitted(())
    """Rollouts in which the site has a part."""


@dataclass(frozen=True, slots=True)
class Accusation:
    """One site's own finding that another does not answer (SWIM suspicion).

    It counts only against the named incarnation; a record with a higher one refutes it.
    """

    accuser: Site
    subject: Site
    incarnation: Counter
    is_refused: bool = False
    """The subject's host answered that nobody listens there (ICMP port unreachable), twice."""


STATEMENTS = Tagged({1: SiteRecord, 2: Accusation})


@dataclass(frozen=True, slots=True)
class Signed:
    """A statement as its bytes, so that every relay passes on exactly what was signed."""

    body: Annotated[bytes, AtMost(RUMOR_BYTES_MAX)]
    """``STATEMENTS.pack(SiteRecord | Accusation)``; never packed anew by a relay."""
    signature: Annotated[bytes, Length(64)]


@dataclass(frozen=True, slots=True)
class Passport:
    """A site's certificate chain, leaf first, DER; the root is not part of it."""

    chain: Annotated[tuple[Annotated[bytes, AtMost(2048)], ...], AtMost(3)]
