"""Leases: how long an aggregator may assume that nobody else has claimed. They save duplicate work only.

Rule: correctness never looks here. A holder whose lease has lapsed stops and reads the register; one
that does not notice (it was stopped, its clock is wrong) loses its commit to the epoch, nothing else.

Only monotonic clocks are compared, each with itself. The holder counts from the moment it *sent* the
change that renewed the lease; an observer counts from the moment it *learned* of progress, and waits a
margin longer. So an observer lets go later than the holder, whatever the network delay.

Source: Gray and Cheriton 1989, section 3; research/membership.md section 7, pitfall 9.
"""

from dataclasses import dataclass

from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER
from agent.wire.limits import DOCUMENTS_MAX

CLOCK_MARGIN = 0.1
"""Monotonic clocks of cheap boards differ by less than 200 ppm; the rest covers a busy loop."""
LEASES_MAX = DOCUMENTS_MAX
"""One for each job document."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one epoch of a job, as seen by one site."""

    epoch: int
    holder: SiteId
    progress: int
    """Rounds committed when it was last renewed: a commit renews the lease."""
    started_at: float
    """This site's monotonic time: the holder's sending, an observer's learning."""
    length_s: float

    def is_held(self, now: float) -> bool:
        """Whether the holder itself may still act."""
        return now < self.started_at + self.length_s

    @property
    def lapses_at(self) -> float:
        """When an observer may try to claim the next epoch."""
        return self.started_at + self.length_s * (1 + CLOCK_MARGIN)


class Leases:
    """What one site knows of the leases of all jobs; kept in memory only."""

    def __init__(self) -> None:
        self._leases: dict[JobId, Lease] = {}

    def renewed(self, job: JobId, lease: Lease) -> bool:
        """Take news of ``job``; False if it is not newer (an old epoch, or no progress in this one)."""
        known = self._leases.get(job)
        if known is not None and (lease.epoch, lease.progress) <= (known.epoch, known.progress):
            return False
        if known is None and len(self._leases) >= LEASES_MAX:
            return False
        self._leases[job] = lease
        return True

    def get(self, job: JobId) -> Lease | None:
        """The present lease; None if nothing was heard since this site started."""
        return self._leases.get(job)

    def lapses_at(self, job: JobId) -> float:
        """When a claim by somebody else makes sense; ``NEVER`` if no lease is known."""
        lease = self._leases.get(job)
        return NEVER if lease is None else lease.lapses_at

    def ended(self, job: JobId) -> None:
        """The job is over."""
        self._leases.pop(job, None)
