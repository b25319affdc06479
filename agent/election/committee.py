"""Which sites hold a job's register: chosen once, pinned in the job, never recomputed from gossip.

Rule: no failure domain holds a majority where that can be had. Regions are the domains (sites of one
region share an uplink, a circuit, a landlord); within a region the steadier tier comes first. A larger
committee survives more, so five sites are taken if no region then holds three, else three, else one.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from agent.election.ballots import quorum_of
from agent.foundation.errors import UsageError
from agent.foundation.ids import JobId, SiteId
from agent.wire.documents import Region

SIZES = (5, 3)
"""Seven would add round-trip tail and disk commits for a third simultaneous loss; two or four tolerate no more than one or three."""
STEADINESS = {"core": 0, "regional": 1, "edge": 2}
"""Lower is steadier: mains power, wired uplink, staff nearby."""

EVERY_REGION = "*"
REGIONS_MAX = 64
"""As ``Job.regions``: more would not fit a document of 32 KiB with their committees."""
REGION_COMMITTEE_MAX = 3
"""One landlord and one uplink are one domain, however many sites stand there."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A site that may hold registers; region and tier are from its certificate."""

    site: SiteId
    region: str
    tier: str


def choose_committee(job: JobId, seats: Sequence[Seat], size_max: int = 5) -> tuple[SiteId, ...]:
    """Five, three or one of ``seats``; the same for every caller with the same seats in any order.

    Args:
        job: spreads the committees of different jobs over the sites.
        seats: live sites that may hold the job, each once; at least one.
        size_max: largest committee wanted.

    Returns:
        The committee, in a stable order that means nothing.
    """
    assert seats, "somebody must hold the register"
    ranked = _spread(job, seats)
    sizes = [size for size in SIZES if size <= min(size_max, len(ranked))]
    for size in sizes:
        if _largest_domain(ranked[:size]) < quorum_of(size):
            return tuple(seat.site for seat in ranked[:size])
    # Too few regions for that: the largest committee still survives the most single failures.
    return tuple(seat.site for seat in ranked[: sizes[0] if sizes else 1])


def choose_regions(job: JobId, wanted: Sequence[str], seats: Sequence[Seat]) -> tuple[Region, ...]:
    """The regions of a job, each with the committee that holds its register.

    Args:
        job: spreads the committees of different jobs over the sites.
        wanted: names of regions; ``*``: every one with two sites.
        seats: live sites that may hold the job.

    Raises:
        UsageError: a region has no such site, ``*`` is none, or there are more regions than a job may have.
    """
    by_name: dict[str, list[Seat]] = defaultdict(list)
    for seat in seats:
        by_name[seat.region].append(seat)
    names = set(wanted) - {EVERY_REGION}
    if EVERY_REGION in wanted:
        names |= {name for name, there in by_name.items() if len(there) > 1}
        if not names:
            raise UsageError(
                "no region has two living sites that may hold the job",
                why=f"regions = [{EVERY_REGION!r}] is every region that has",
                mend="name regions, or submit the job without any",
            )
    if missing := sorted(names - by_name.keys()):
        raise UsageError(
            f"no living site that may hold the job is in region {missing[0]!r}",
            mend=f"living sites are in {', '.join(sorted(by_name))}",
        )
    if len(names) > REGIONS_MAX:
        raise UsageError(f"{len(names)} regions", why=f"a job may have {REGIONS_MAX}")
    return tuple(
        Region(name, choose_committee(job, by_name[name], REGION_COMMITTEE_MAX))
        for name in sorted(names)
    )


def choose_substitute(job: JobId, kept: Sequence[Seat], seats: Sequence[Seat]) -> SiteId | None:
    """Of ``seats`` the one that had best join ``kept``: from another region first, then the steadiest."""
    regions = [seat.region for seat in kept]
    ranked = sorted(seats, key=lambda seat: (regions.count(seat.region), *_preference(job, seat)))
    return ranked[0].site if ranked else None


def _preference(job: JobId, seat: Seat) -> tuple[int, bytes]:
    steadiness = STEADINESS.get(seat.tier, len(STEADINESS))
    return steadiness, sha256(b"atoll seat\0" + job.encode() + b"\0" + seat.site).digest()


def _spread(job: JobId, seats: Sequence[Seat]) -> list[Seat]:
    """All seats, so that every prefix stands in as many regions, as evenly, as can be."""
    taken: dict[str, int] = defaultdict(int)
    rounds: list[tuple[int, tuple[int, bytes], Seat]] = []
    for seat in sorted(seats, key=lambda one: _preference(job, one)):
        rounds.append((taken[seat.region], _preference(job, seat), seat))
        taken[seat.region] += 1
    return [seat for *_, seat in sorted(rounds, key=lambda entry: entry[:2])]


def _largest_domain(seats: Sequence[Seat]) -> int:
    held: dict[str, int] = defaultdict(int)
    for seat in seats:
        held[seat.region] += 1
    return max(held.values())
