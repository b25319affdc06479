"""Blobs and work of simulated sites: fetches that fail, attempts that fail, means that are hashes."""

from ast import literal_eval
from collections.abc import Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from agent.federation import events as job_events
from agent.federation.events import JobEvent
from agent.foundation.ids import Digest, SiteId
from agent.simulation.job_checks import carried_of, mean_of, named
from agent.training.ranges import parts_of
from agent.wire.documents import Job
from agent.wire.mesh import Cut
from agent.wire.schema import pack, unpack

if TYPE_CHECKING:
    from agent.simulation.job_fleet import Fleet
    from agent.simulation.job_site import SimulatedSite

Work = (
    job_events.Initialise | job_events.Aggregate | job_events.AggregateRange | job_events.Join
    | job_events.Export
)  # fmt: skip
PART = b"part\0"
RANGE = b"range\0"


def carries(job: Job) -> bool:
    """Whether its rounds leave something to the next beside parameters."""
    return job.outer != "none" or job.correction != "none"


def parts_named(data: bytes) -> tuple[Digest, ...]:
    """What the blob of a cut update names; nothing, if it is whole."""
    return () if data.startswith(b"update\0") else unpack(Cut, data).parts


class Around:
    """``Surroundings`` of one site."""

    def __init__(self, world: "Fleet", site: "SimulatedSite") -> None:
        self._world, self._site = world, site

    def alive(self) -> Mapping[SiteId, float]:
        """Who is seen, this site included."""
        seen = self._site.view | {self._site.index}
        return {self._world.sites[index].id: 1.0 for index in self._world.by_id if index in seen}

    def is_held(self, digest: Digest) -> bool:
        """Whether the blob is on the disk."""
        return digest in self._site.blobs and digest not in self._site.forgotten

    def refusal(self, job: Job) -> str:  # noqa: ARG002 - the protocol's shape
        """Idle sites take no part."""
        return "no data set here" if self._site.is_idle else ""

    def can_aggregate(self) -> bool:
        """Idle sites do not."""
        return not self._site.is_idle

    def unix_s(self, now: float) -> float:
        """Virtual time."""
        return now + self._site.wall_offset_s

    def may_hold(self, job: Job, site: SiteId) -> bool:  # noqa: ARG002 - the protocol's shape
        """Everybody may."""
        return True

    def region(self, site: SiteId) -> str:
        """As its number says."""
        return self._world.region(self._world.index[site])

    def is_gone(self, site: SiteId) -> bool:
        """Whether the site was revoked."""
        return site in self._world.revoked

    def substitute(self, job: Job, members: tuple[SiteId, ...], gone: SiteId) -> SiteId | None:  # noqa: ARG002 - the protocol's shape
        """Any living site will do."""
        return next((site for site in self.alive() if site not in members), None)


class Outside:
    """Carries out what machines ask of the blob store and of their children."""

    blob_bytes = 1_000_000
    """Of each, where a link has a rate."""

    def __init__(self, fleet: "Fleet") -> None:
        """``fleet`` gives the time, the dice and the other sites."""
        self._fleet = fleet
        self._nonces = count(1)
        self._poisoned: dict[int, Digest] = {}
        self._whole: dict[Digest, Digest] = {}
        """The update of each part."""
        self._link_free_at: dict[int, float] = {}

    def hold(self, site: "SimulatedSite", digest: Digest, data: bytes) -> None:
        """The blob is on the disk of ``site``."""
        self._fleet.evidence.blobs[digest] = data
        site.blobs.add(digest)

    def fetch(self, site: "SimulatedSite", digest: Digest, sources: Sequence[SiteId]) -> None:
        """From any source that can be reached, holds the blob and may give it."""
        takes_s = self._takes_s(site, digest)
        boot = site.boot_epoch
        fails = (
            self._fleet.rng.random() < self._fleet.scenario.fetch_failure
            and not self._fleet.is_calm
        )

        def end() -> None:
            if not self._fleet.lives(site, boot):
                return
            has_source = any(
                other.is_up
                and digest in other.blobs
                and digest in other.labels
                and self._fleet.network.is_connected(site.index, other.index)
                and not self._fleet.network.paused_until(other.index)
                for other in (self._fleet.sites[self._fleet.index[source]] for source in sources)
            )
            if digest in site.blobs or (has_source and not fails):
                site.blobs.add(digest)
                self._fleet.later(site, self._fleet.network.now, job_events.BlobArrived(digest))
            else:
                missing = job_events.BlobMissing(digest, "no source")
                self._fleet.later(site, self._fleet.network.now, missing)

        self._fleet.network.call_at(self._fleet.network.now + takes_s, end)

    def size(self, digest: Digest) -> float:  # noqa: ARG002 - a measurement looks at it
        """Bytes of a blob, where a link has a rate."""
        return self.blob_bytes

    def _takes_s(self, site: "SimulatedSite", digest: Digest) -> float:
        """A blob's way here; on a link with a rate it queues behind those before it."""
        rate = self._fleet.scenario.link_bytes_per_s
        if not rate:
            return self._fleet.rng.expovariate(1 / 0.1)
        now = self._fleet.network.now
        begins_at = max(now, self._link_free_at.get(site.index, 0.0))
        self._link_free_at[site.index] = begins_at + self.size(digest) / rate
        return self._link_free_at[site.index] - now + 2 * self._fleet.faults.delay_mean_s

    def read(self, site: "SimulatedSite", digest: Digest) -> None:
        """A small blob, if it is held."""
        event: JobEvent = job_events.BlobMissing(digest, "not held")
        if digest in site.blobs:
            event = job_events.BlobRead(digest, self._fleet.evidence.blobs[digest])
        self._fleet.later(site, self._fleet.network.now + 0.001, event)

    def train(self, site: "SimulatedSite", effect: job_events.Train) -> None:
        """An attempt: random time; it may fail, or give an update that no mean can be made of."""
        takes_s = self._fleet.rng.expovariate(1 / self._fleet.scenario.train_mean_s)
        if self._fleet.rng.random() < 0.03:  # noqa: PLR2004 - now and then a straggler
            takes_s *= 10
        boot = site.boot_epoch
        has_failed = (
            self._fleet.rng.random() < self._fleet.scenario.attempt_failure
            and not self._fleet.is_calm
        )
        has_failed = self._is_wrong_start(site, effect) or has_failed

        def end() -> None:
            if not self._fleet.lives(site, boot):
                return
            if until := self._fleet.network.paused_until(site.index):
                self._fleet.network.call_at(until, end)
                return
            if has_failed:
                self._fleet.feed(
                    site, job_events.AttemptEnded(effect.round, "it failed"), effect.job.id
                )
                return
            data = b"update\0%d %d %d" % (site.index, effect.round, next(self._nonces))
            parts = self._cut(site, data, effect.job)
            if not self._fleet.lives(site, boot):
                return
            data = pack(Cut(parts)) if parts else data
            digest, samples = named(data), self._fleet.rng.randint(1, 1000)
            self._whole.update(dict.fromkeys(parts, digest))
            origin = (site.id, effect.round, effect.base, samples)
            self._fleet.books[effect.job.id].updates[digest] = origin
            if self._fleet.rng.random() < self._fleet.scenario.poison and not self._fleet.is_calm:
                self._poisoned.setdefault(effect.round, digest)  # one a round: enough are left
            self.hold(site, digest, data)
            self._fleet.feed(site, job_events.BlobArrived(digest))
            if self._fleet.lives(site, boot):
                trained = job_events.Trained(effect.round, effect.base, digest, samples, (), parts)
                self._fleet.feed(site, trained, effect.job.id)

        self._fleet.network.call_at(self._fleet.network.now + takes_s, end)

    def _is_wrong_start(self, site: "SimulatedSite", effect: job_events.Train) -> bool:
        """Whether an attempt starts from what is not here, or not of one round; that is noted."""
        evidence = self._fleet.evidence
        left = {
            choice.value.carried
            for choice in self._fleet.books[effect.job.id].chosen
            if choice.value.parameters == effect.base
        }
        if effect.job.correction != "none" and effect.carried not in left:
            evidence.unheld.append(f"site {site.index} corrects its steps by another round's")
        is_here = {effect.base, effect.carried or effect.base} <= site.blobs
        if not is_here:
            evidence.unheld.append(f"site {site.index} trains on parameters it does not hold")
        return not is_here

    def _cut(self, site: "SimulatedSite", update: bytes, job: Job) -> tuple[Digest, ...]:
        """Where the job cuts updates, the parts of this one, which are on the disk then."""
        count = parts_of(job)
        pieces = [PART + b"%d " % n + named(update) for n in range(count)] if count > 1 else []
        for piece in pieces:
            self.hold(site, named(piece), piece)
            self._fleet.feed(site, job_events.BlobArrived(named(piece)))
        return tuple(named(piece) for piece in pieces)

    def work(
        self,
        site: "SimulatedSite",
        effect: Work,
    ) -> None:
        """Initialise, Aggregate or Export: the result names exactly what went into it."""
        data, culprits = self._result(effect)
        unheld = [digest for digest in _inputs(effect) if digest not in site.blobs]
        if unheld:
            kind = type(effect).__name__
            self._fleet.evidence.unheld.append(
                f"site {site.index}: {kind} of what it does not hold"
            )
        digest = named(data)
        fails = (
            self._fleet.rng.random() < self._fleet.scenario.work_failure and not self._fleet.is_calm
        )
        boot = site.boot_epoch

        def end() -> None:
            if not self._fleet.lives(site, boot):
                return
            if until := self._fleet.network.paused_until(site.index):
                self._fleet.network.call_at(until, end)
                return
            if culprits or fails or unheld:
                failed = job_events.WorkFailed(effect.token, "it failed", culprits)
                self._fleet.feed(site, failed, effect.job.id)
                return
            self.hold(site, digest, data)
            self._fleet.feed(site, job_events.BlobArrived(digest))
            left = None
            makes_round = isinstance(effect, (job_events.Aggregate, job_events.Join))
            if makes_round and carries(effect.job):
                left = named(carried_of(data))
                self.hold(site, left, carried_of(data))
                self._fleet.feed(site, job_events.BlobArrived(left))
            if self._fleet.lives(site, boot):
                done = job_events.WorkDone(effect.token, digest, len(data), left)
                self._fleet.feed(site, done, effect.job.id)

        self._fleet.network.call_at(self._fleet.network.now + self.work_takes_s(effect), end)

    def work_takes_s(self, effect: Work) -> float:  # noqa: ARG002 - a measurement looks at it
        """How long it takes."""
        return self._fleet.rng.uniform(*self._fleet.scenario.work_s)

    def _result(self, effect: Work) -> tuple[bytes, tuple[Digest, ...]]:
        match effect:
            case job_events.Initialise(_, job):
                return b"initial\0" + job.id.encode(), ()
            case job_events.Aggregate():
                bad = set(self._poisoned.values())
                culprits = tuple(one.update for one in effect.updates if one.update in bad)
                weighed = [(one.update, one.weight, one.started_from) for one in effect.updates]
                return mean_of(effect.base, weighed, effect.carried), culprits
            case job_events.AggregateRange():
                bad = set(self._poisoned.values())
                whole = [self._whole[one.update] for one in effect.updates]
                culprits = tuple(
                    one.update
                    for one, update in zip(effect.updates, whole, strict=True)
                    if update in bad
                )
                weighed = [
                    (update, one.weight, one.started_from)
                    for one, update in zip(effect.updates, whole, strict=True)
                ]
                part = f"{effect.part} "
                numbers = {self._number(one.update) for one in effect.updates}
                assert numbers == {effect.part[0]}, "every update's part of that number"
                return RANGE + part.encode() + repr(
                    (effect.base, sorted(weighed, key=repr))
                ).encode(), culprits
            case job_events.Join():
                blobs = [self._fleet.evidence.blobs[one] for one in effect.ranges]
                told = [blob.removeprefix(RANGE).decode().split(") ", 1) for blob in blobs]
                count = len(blobs)
                if [part for part, _ in told] != [f"({n}, {count}" for n in range(count)]:
                    self._fleet.evidence.unheld.append(
                        "other ranges were joined than those of a mean"
                    )
                if len({counted for _, counted in told}) != 1:
                    self._fleet.evidence.unheld.append("ranges of several means were joined")
                base, weighed = literal_eval(told[0][1])
                return mean_of(base, weighed, effect.carried), ()
            case job_events.Export():
                return b"onnx\0" + effect.parameters, ()

    def _number(self, part: Digest) -> int:
        return int(self._fleet.evidence.blobs[part].removeprefix(PART).split(b" ")[0])


def _inputs(effect: Work) -> list[Digest]:
    match effect:
        case job_events.Initialise():
            return []
        case job_events.Join():
            joined = (effect.base, *effect.ranges, effect.carried)
            return [blob for blob in joined if blob is not None]
        case job_events.AggregateRange():
            counted = [blob for one in effect.updates for blob in (one.update, one.started_from)]
            return [blob for blob in (effect.base, *counted) if blob is not None]
        case job_events.Aggregate():
            counted = [blob for one in effect.updates for blob in (one.update, one.started_from)]
            return [blob for blob in (effect.base, *counted, effect.carried) if blob is not None]
        case job_events.Export():
            return [effect.parameters]
