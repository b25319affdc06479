"""All registers that one site holds a copy of.

Rule: a site that forgot what it promised never votes under that identity again. A database that was
moved aside, or a damaged row, bars the site (or the one job); wiped and re-joined it is a new site.
Registers are never deleted (job ids are never reused), so that no old value can be revived.

Source: research/membership.md section 7, pitfalls 1 (deletion) and 3 (amnesia).
"""

from collections.abc import Iterable, Mapping

from agent.election.acceptor import (
    TABLE,
    Acceptor,
    Answer,
    RegisterCall,
)
from agent.foundation.errors import Corruption
from agent.foundation.ids import JobId, SiteId
from agent.foundation.writes import Put, Scalar
from agent.wire.limits import DOCUMENTS_MAX
from agent.wire.mesh import Declined, Read

REGISTERS_MAX = DOCUMENTS_MAX
"""One for each job document; at most 4 KiB each, so 40 MiB in the worst case."""


class Acceptors:
    """The acceptors of one site, by job."""

    def __init__(
        self, rows: Iterable[Mapping[str, Scalar]], *, barred_because: str | None = None
    ) -> None:
        """Restore from the rows of table ``register``.

        Args:
            rows: everything in the table.
            barred_because: why this site must not vote at all (its database was lost), or None.
        """
        self._barred_because = barred_because
        self._acceptors: dict[JobId, Acceptor] = {}
        self._damaged: dict[JobId, str] = {}
        for row in rows:
            try:
                acceptor = Acceptor.restored(row)
            except Corruption as fault:
                job = row.get("job")
                self._damaged[JobId(job if isinstance(job, str) else "")] = str(fault)
            else:
                self._acceptors[acceptor.job] = acceptor

    @property
    def findings(self) -> tuple[str, ...]:
        """Why this site does not vote, or not for some jobs; for the doctor."""
        site = () if self._barred_because is None else (self._barred_because,)
        return site + tuple(self._damaged.values())

    def step(self, call: RegisterCall, caller: SiteId | None = None) -> Answer:
        """As ``Acceptor.step``; a new register is opened by its first Prepare or Accept."""
        job = JobId(call.job)
        acceptor = self._acceptors.get(job)
        reason = self._barred_because or self._damaged.get(job)
        if reason is None and acceptor is None and "" in self._damaged:
            reason = "a register row here is unreadable and may be of this job"
        if reason is not None:
            return Answer((), Declined(reason[:400]))
        if acceptor is None:
            acceptor = Acceptor(job)
            if not isinstance(call, Read):
                if len(self._acceptors) >= REGISTERS_MAX:
                    return Answer((), Declined(f"this site holds {REGISTERS_MAX} registers"))
                self._acceptors[job] = acceptor
        return acceptor.step(call, caller)

    def saved(self, answer: Answer) -> None:
        """The writes of ``answer`` are durable; call it before sending the reply."""
        for write in answer.writes:
            if isinstance(write, Put) and write.table == TABLE:
                acceptor = self._acceptors.get(JobId(str(write.row["job"])))
                if acceptor is not None:
                    acceptor.saved(answer)

    def highest(self, job: JobId) -> int:
        """Highest ballot number promised here: the ``after`` hint for a local proposer."""
        acceptor = self._acceptors.get(job)
        return 0 if acceptor is None else acceptor.state.promised.number
