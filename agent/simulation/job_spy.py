"""Notes everything that matters to a judge of simulated jobs, as the sites do it."""

from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from agent.federation import events as job_events
from agent.federation.burial import TABLE
from agent.federation.events import JobEffect
from agent.federation.value import ENDED, JobValue, decode
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.writes import Put
from agent.simulation.job_checks import ASKS_PER_SECOND_MAX, Dropped
from agent.simulation.job_site import SimulatedSite
from agent.wire.schema import unpack

if TYPE_CHECKING:
    from agent.simulation.job_fleet import Fleet

ALL_ROUNDS = 1_000_000
"""As good as having read them: the job is over."""
Choice = tuple[JobId, int, bytes]
"""A job's register, and a ballot."""


def value_of(data: bytes) -> JobValue:
    """What was put forward."""
    value = decode(data)
    assert value is not None
    return value


def named_by(value: JobValue) -> set[Digest]:
    """Every blob that it names."""
    names = [value.parameters, value.contributions, value.exported, value.carried]
    if value.above is not None:
        names += [value.above.parameters, value.above.told]
    return {name for name in names if name is not None}


class Spy:
    """Looks over the shoulders of all sites of ``fleet``."""

    def __init__(self, fleet: "Fleet") -> None:
        self._fleet = fleet
        self.trace = sha256()
        """Of everything that happened, in order."""
        self.taken_at: dict[tuple[Choice, SiteId], float] = {}
        """When each acceptor took what, its disk may have been slower."""

    def log(self, site: SimulatedSite, what: str) -> None:
        """One more thing that happened."""
        self.trace.update(f"{self._fleet.network.now:.6f} {site.index} {what}\n".encode())

    def see(self, site: SimulatedSite, effect: JobEffect) -> None:  # noqa: C901 - one case an effect
        """What a site's machines have asked for."""
        self.log(site, type(effect).__name__)
        match effect:
            case job_events.Ask(call, target, message):
                kind = type(message).__name__
                self.log(site, f"{call} {kind} {self._fleet.index[target]}")
                self._count(site, self._fleet.index[target], kind)
                if site.is_over and site.machine is not None and site.machine.is_over:
                    self._fleet.evidence.after_the_end.append(
                        f"site {site.index} sends {kind} after the end"
                    )
            case job_events.Train() if site.is_over:
                self._fleet.evidence.after_the_end.append(f"site {site.index} trains after the end")
            case job_events.FetchBlob(digest):
                self._count(site, -1, f"fetch {digest.hex()[:8]}")
            case job_events.ForgetBlob(digest):
                site.forgotten.add(digest)
                for job, book in self._fleet.books.items():
                    origin = book.updates.get(digest)
                    if origin is not None and origin[0] == site.id:
                        self._drop(site, job, origin[1], origin[2])
            case job_events.Persist(writes):
                for write in writes:
                    if isinstance(write, Put):
                        self._see_row(site, write)
            case _:
                pass

    def _see_row(self, site: SimulatedSite, write: Put) -> None:
        row: Mapping[str, Any] = write.row
        if write.table == TABLE:
            site.read.update(dict.fromkeys(self._fleet.books, ALL_ROUNDS))
            return
        job: JobId = row["job"]
        book = self._fleet.books[job]
        if write.table == "jobs":
            value = unpack(JobValue, row["value"])
            told = book.told if row["note"] else book.believed
            told.append((site.index, value))
            if value.state in ENDED:
                site.read.update(dict.fromkeys(self._fleet.books, ALL_ROUNDS))  # its region's, too
            site.read[job] = max(site.read[job], value.round)
        elif write.table == "rounds":
            site.read[job] = max(site.read[job], row["round"])
        elif write.table == "register" and row["value"] is not None:
            book.proposed.append(value_of(row["value"]))
            ballot = (job, row["accepted_number"], row["accepted_proposer"])
            self.taken_at.setdefault((ballot, site.id), self._fleet.network.now)
        elif write.table == "updates" and row["state"] != "open":
            self._drop(site, job, row["round"], row["base"])

    def _drop(self, site: SimulatedSite, job: JobId, round_: int, base: Digest) -> None:
        if not self._fleet.scenario.cancel:
            self._fleet.books[job].dropped.append(Dropped(site.index, round_, site.read[job], base))

    def _count(self, site: SimulatedSite, target: int, kind: str) -> None:
        second = int(self._fleet.network.now)
        if site.second[0] != second:
            site.second = (second, Counter())
        site.second[1][target, kind] += 1
        if site.second[1][target, kind] == ASKS_PER_SECOND_MAX:
            self._fleet.evidence.loops.append(
                f"site {site.index} asks {target} for {kind} without end at {second} s"
            )
