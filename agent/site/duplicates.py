"""Duplicate identities: one key used by two processes, because a state folder was copied.

Rule: whoever finds a record of its own key that it did not make is barred from voting and from
aggregating for good: the other process may have promised what this one does not know, and this one's
promises may be older than the folder it was copied from. Of two copies that have met, the one that
was started earlier (at the same start count, the one with the smaller mark) leaves the mesh and goes
on serving local applications; the other stays a member.

Every start has a random *mark* in its records. So a third site can tell, too: two marks at one start
count (boot epoch), or a caller whose start count lies behind one that was seen before.

A folder restored from an old backup looks alike at first (newer records of its own key are about) and
is barred alike; but no other process answers for it, so it stays a member.
"""

from dataclasses import dataclass
from typing import Literal

from agent.foundation.ids import SiteId, short
from agent.wire.limits import MEMBERS_MAX
from agent.wire.records import Endpoint, SiteRecord

MARK_BYTES = 8
COPIED = "copied"
"""Why an identity is barred from voting, in the row of ``VOTING_BARRED_KEY``."""
DUPLICATE = "duplicate identity"
"""Starts every text about it, so that scripts find it."""
FORGET_S = 600.0
"""A third site goes on saying what it saw for this long after it saw it last."""
REPORTED_MAX = 16
CALL_AGAIN_S = 10.0
"""Least time between two calls to the other copy: it must learn of this one, and once is enough."""
MEND = (
    "stop one of the two copies and empty its state folder, then join it again with a new token; join"
    " the other again too before it is to vote in jobs' registers"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a record of this site's key that this process did not make."""

    text: str
    is_news: bool
    must_leave: bool
    """This copy leaves the mesh."""
    call: Endpoint | None
    """Where the other copy is, if it should hear of this one now."""


@dataclass(slots=True)
class _Seen:
    boot_epoch: int
    mark: bytes
    where: Endpoint


@dataclass(slots=True)
class _Report:
    text: str
    at: float


class Duplicates:
    """What one site knows of keys in double use, its own included."""

    def __init__(self, me: SiteId, boot_epoch: int, mark: bytes) -> None:
        """``mark``: random, new at each start; empty in simulations that have no use for it."""
        self._me, self._boot_epoch, self._mark = me, boot_epoch, mark
        self._seen: dict[SiteId, _Seen] = {}
        self._reports: dict[SiteId, _Report] = {}
        self._called_at = float("-inf")
        self.state: Literal["", "suspected", "left"] = ""
        """Of this site's own key."""
        self.text = ""
        """What was found about it last."""

    # --- this site's own key ---------------------------------------------------------------------
    def own(
        self, record: SiteRecord, now: float, here: Endpoint, *, is_live: bool
    ) -> Verdict | None:
        """Judge a record signed by this site's key; None if this process made it.

        Args:
            record: as heard, newer than any of this process, or of a caller with this site's key.
            now: monotonic seconds.
            here: where this process listens.
            is_live: it came in a call just now: its maker runs.
        """
        if record.mark == self._mark and record.boot_epoch == self._boot_epoch:
            return None
        where, former = _shown(record.endpoint), self.text
        if is_live:
            must_leave = (record.boot_epoch, record.mark) > (self._boot_epoch, self._mark)
            stays = "this one has left the mesh and serves local applications only"
            leaves = "that one has to leave the mesh"
            self.text = (
                f"{DUPLICATE}: a copy of this site's state folder runs at {where};"
                f" {stays if must_leave else leaves}, and neither votes any more"
            )
        else:
            must_leave = False
            self.text = self.text or (
                f"{DUPLICATE}: records newer than this process's are signed by this site's key (last"
                f" at {where}): its state folder was copied, or restored from an old copy; it does"
                " not vote any more"
            )
        self.state = "left" if must_leave or self.state == "left" else "suspected"
        is_elsewhere = record.endpoint != here
        call = None
        if is_elsewhere and now - self._called_at >= CALL_AGAIN_S:
            self._called_at, call = now, record.endpoint
        return Verdict(self.text, self.text != former, must_leave, call)

    # --- others' keys ----------------------------------------------------------------------------
    def saw(self, record: SiteRecord, now: float) -> str:
        """Note another site's record; the finding if it proves a second process, once a while.

        ``record`` is newer than the one known before, or its owner just showed it as its present one:
        either way a start count behind a known one cannot come from the process that was known.
        """
        if not record.mark or record.site == self._me:
            return ""
        known = self._seen.get(record.site)
        if known is None or record.boot_epoch > known.boot_epoch:
            if known is None and len(self._seen) >= MEMBERS_MAX:
                del self._seen[next(iter(self._seen))]
            self._seen[record.site] = _Seen(record.boot_epoch, record.mark, record.endpoint)
            return ""
        if (record.boot_epoch, record.mark) == (known.boot_epoch, known.mark):
            known.where = record.endpoint
            return ""
        text = (
            f"{DUPLICATE}: two processes use the key of {short(record.site)}, at"
            f" {_shown(known.where)} and at {_shown(record.endpoint)} (or it was restored from an old"
            " copy)"
        )
        report = self._reports.pop(record.site, None)
        is_news = report is None or now - report.at > FORGET_S
        if len(self._reports) >= REPORTED_MAX:
            del self._reports[next(iter(self._reports))]
        self._reports[record.site] = _Report(text, now)
        return text if is_news else ""

    def reports(self, now: float) -> list[str]:
        """What was found of this key and others', for ``atoll status`` and ``atoll doctor``."""
        found = [self.text] if self.text else []
        return found + [one.text for one in self._reports.values() if now - one.at <= FORGET_S]

    def check(self, now: float) -> tuple[str, bool, str, str]:
        """Of ``atoll doctor``: check, ok, evidence, mend."""
        found = self.reports(now)
        return "identity", not found, "; ".join(found) or "no key is in double use", MEND


def _shown(where: Endpoint) -> str:
    return f"{where.host}:{where.mesh_port}"
