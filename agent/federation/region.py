"""Jobs whose sites stand in regions: each region runs rounds of its own, the whole job counts their results.

Theory of operation. A region is a job within the job: its own id, register, committee, aggregator and rounds,
by the very machines that run the whole. Two things are different. Its rounds start from parameters of the
whole job, which its aggregator adopts into its register (``value.Above``); and what its rounds have made
since then is offered to the whole job as one update, by whoever aggregates the region: its *delegate*.

So no link carries more than one update a region, and the register of the whole job is asked by its committee and
by the delegates alone.

A region that is cut off goes on alone from its own results, if the job allows it, and counts late when it is
back (``lateness``). An update is counted once, because each names the region's rounds that it is made of:
(after, until]. Before the region goes on alone it writes down what it may have been counted with
(``Above.told``); nothing is offered until it is known whether it was.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256

from agent.federation.desk import Surroundings
from agent.federation.value import Contribution, Contributions
from agent.foundation.ids import Digest, JobId, SiteId
from agent.wire.documents import Job, Region
from agent.wire.mesh import Offer

ID_CHARS_MAX = 80
"""Of any job's id, in calls and in names of folders."""
ROUNDS_MAX = 10_000
"""Of a region: as many as any job may have. It ends with the whole job."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a job's machine is, where the job has regions."""

    region: str = ""
    """This site's; its rounds are the machine's that ``parent`` marks. Empty: it takes part by itself."""
    parent: JobId | None = None
    """This is the machine of the region; of this whole job."""
    is_over: bool = False
    """The whole job is."""


def region_of(job: Job, name: str) -> Region | None:
    """The region ``name`` of ``job``, if it has one."""
    return next((region for region in job.regions if region.name == name), None)


def regional(job: Job, region: Region) -> Job:
    """The job that ``region`` runs for ``job``; every site derives the same."""
    mark = sha256(region.name.encode()).hexdigest()[:8]
    name = f"{job.id}.{mark}"
    if len(name) > ID_CHARS_MAX:
        name = sha256(name.encode()).hexdigest()
    return replace(
        job, id=JobId(name), committee=region.committee, rounds=ROUNDS_MAX, regions=(),
        sites_min=job.region_sites_min, publish="", deploy_sites=(), outer="none",
    )  # fmt: skip


def party(region: str) -> SiteId:
    """What stands for a region where sites are told apart; no site's id, each of which is a hash of a key."""
    return SiteId(sha256(b"atoll region\0" + region.encode()).digest())


class Within:
    """``Surroundings`` of a region's job: nobody else is there."""

    def __init__(self, around: Surroundings, whole: Job, region: str) -> None:
        self._around, self._whole, self._region = around, whole, region

    def alive(self) -> Mapping[SiteId, float]:
        """Those of the region."""
        alive = self._around.alive().items()
        return {site: capacity for site, capacity in alive if self._is_within(site)}

    def is_held(self, digest: Digest) -> bool:
        """As outside."""
        return self._around.is_held(digest)

    def refusal(self, job: Job) -> str:  # noqa: ARG002 - the protocol's shape
        """What the operator allows, he allows to the whole job."""
        return self._around.refusal(self._whole)

    def can_aggregate(self) -> bool:
        """As outside."""
        return self._around.can_aggregate()

    def unix_s(self, now: float) -> float:
        """As outside."""
        return self._around.unix_s(now)

    def may_hold(self, job: Job, site: SiteId) -> bool:  # noqa: ARG002 - the protocol's shape
        """Of the region, and allowed by the residency of the whole job."""
        return self._is_within(site) and self._around.may_hold(self._whole, site)

    def is_gone(self, site: SiteId) -> bool:
        """As outside."""
        return self._around.is_gone(site)

    def region(self, site: SiteId) -> str:
        """As outside."""
        return self._around.region(site)

    def substitute(self, job: Job, members: tuple[SiteId, ...], gone: SiteId) -> SiteId | None:
        """The living site of the region that comes first by its id: all stand in one failure domain."""
        found = (site for site in self.alive() if site not in members and site != gone)
        return next((site for site in found if self.may_hold(job, site)), None)

    def _is_within(self, site: SiteId) -> bool:
        return self._around.region(site) == self._region


def overlaps(region: str, after: int, contents: Iterable[Contributions]) -> list[Contribution]:
    """What was counted of a region's rounds that came after ``after``."""
    return [
        entry
        for content in contents
        for entry in content.entries
        if entry.region == region and entry.until > after
    ]


def late_by(
    region: str, offer: Offer, open_round: int, staleness_max: int,
    known: Callable[[int], Contributions | None],
) -> int | None:  # fmt: skip
    """How many rounds late a region's update is; None: the open round may not count it.

    It may if every round that could have counted some of it is known here, none has, and it started
    from parameters of the whole job or from what was counted of the region before.
    """
    late = open_round - offer.round
    if not 0 < late <= staleness_max:
        return None
    rounds = known_rounds(range(offer.round, open_round), known)
    if rounds is None or overlaps(region, offer.after, rounds.values()):
        return None
    if offer.base == rounds[offer.round].base:
        return late
    counted = (
        entry
        for content in rounds.values()
        for entry in content.entries
        if entry.region == region and entry.until == offer.after and entry.update == offer.base
    )
    return late if any(counted) else None


def known_rounds(
    numbers: range, known: Callable[[int], Contributions | None]
) -> dict[int, Contributions] | None:
    """All of these rounds, or None."""
    found = {number: content for number in numbers if (content := known(number)) is not None}
    return found if len(found) == len(numbers) else None
