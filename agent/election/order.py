"""Who should try to run a job first, so that normally one proposer does and none duels.

A hint: sites may disagree on it (their views of members differ) and the register still lets one
claim win. Weighted rendezvous hashing (Thaler and Ravishankar 1998; weights by -w / ln(h), Schindelhauer
and Schomaker 2005): each site has its own place for each (job, epoch), stronger sites come first more
often, and a site that leaves changes the place of nobody else relative to each other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from agent.foundation.ids import JobId, SiteId

STAGGER_ROUND_TRIPS = 3
"""A claim takes up to three round trips (learn the ballot, prepare, accept) before others can see it."""
STAGGER_FLOOR_S = 0.1
"""Two commits to disk on slow flash and the loop's own noise are inside this."""
STAGGER_CEILING_S = 10.0
"""Even the last of a thousand candidates tries within this: liveness needs only one that lives."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A site that may aggregate; ``capacity`` is its record's weight, > 0 if it takes work."""

    site: SiteId
    capacity: float


def claim_order(job: JobId, epoch: int, candidates: Sequence[Candidate]) -> list[SiteId]:
    """The candidates in the order in which they should claim ``epoch`` of ``job``.

    Args:
        job: whose aggregator is to be chosen.
        epoch: the epoch that would be claimed; a new one reshuffles, so a site that failed once is
            not first again by its hash alone.
        candidates: sites believed alive, each once. Those without capacity come last, not never.

    Returns:
        Every candidate's site; the same for every caller with the same arguments in any order.
    """
    return [
        candidate.site for candidate in sorted(candidates, key=lambda one: _place(job, epoch, one))
    ]


def _place(job: JobId, epoch: int, candidate: Candidate) -> tuple[float, bytes]:
    digest = sha256(
        b"atoll claim\0" + job.encode() + b"\0" + epoch.to_bytes(8, "big") + candidate.site
    ).digest()
    # 53 bits and a half step keep h strictly between 0 and 1, where the logarithm is finite.
    h = ((int.from_bytes(digest[:8], "big") >> 11) + 0.5) / 2**53
    wait = -math.log(h) / candidate.capacity if candidate.capacity > 0 else math.inf
    return wait, digest


def stagger_s(rank: int, rtt_s: float) -> float:
    """How long the candidate at ``rank`` (0 = first) waits before it claims, in seconds.

    Args:
        rank: place in ``claim_order``.
        rtt_s: a high percentile of the round trip to the committee, seconds.
    """
    step_s = max(STAGGER_ROUND_TRIPS * rtt_s, STAGGER_FLOOR_S)
    return min(rank * step_s, STAGGER_CEILING_S)
