"""Ballots: numbers that are never used twice, by anybody, for ever.

Rule: a ballot names its proposer, and a proposer's name is never reused. It is the whole SiteId (so
two sites cannot collide and an acceptor can check who may use it), the boot epoch (persisted, raised
at every start) and a nonce (several proposers in one boot). One UUID across two leaderships gave
palantir/atlasdb duplicate timestamps (#1937); the simulator keeps that as a mutant.
"""

from agent.foundation.ids import ID_BYTES, SiteId
from agent.foundation.randomness import Rng
from agent.wire.mesh import Ballot

BOOT_EPOCH_BYTES = 4
NONCE_BYTES = 12
PROPOSER_BYTES = ID_BYTES + BOOT_EPOCH_BYTES + NONCE_BYTES
"""48: the bound of ``Ballot.proposer`` on the wire."""

NUMBER_JUMP_MAX = 2**32
"""An acceptor refuses a ballot so far above its own: the numbers (below 2**62) outlive any fault."""

LOWEST = Ballot(0, b"")
"""Below every ballot that a proposer makes."""


def proposer_id(site: SiteId, boot_epoch: int, rng: Rng) -> bytes:
    """A name for one proposer: ``site``, ``boot_epoch`` (4 bytes, big-endian), 12 random bytes."""
    return site + boot_epoch.to_bytes(BOOT_EPOCH_BYTES, "big") + rng.randbytes(NONCE_BYTES)


def owner(ballot: Ballot) -> SiteId | None:
    """The only site that may use ``ballot``; None if its proposer is not such a name."""
    if len(ballot.proposer) != PROPOSER_BYTES or ballot.number < 1:
        return None
    return SiteId(ballot.proposer[:ID_BYTES])


def quorum_of(committee_size: int) -> int:
    """Members of a majority: any two share at least one."""
    return committee_size // 2 + 1
