"""Before the register names blobs, a majority of its holders has them: on their disks, and they have said so."""

from collections.abc import Callable

from agent.federation.desk import Desk
from agent.federation.register import Register
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job
from agent.wire.mesh import Done, Keep, Reply

KEEP_TIMEOUT_S = 20.0
"""A member that needs longer goes on fetching; the next call joins that fetch."""
RETRY_S = 0.5
RETRY_MAX_S = 8.0
REFUSALS_COUNTED_MAX = 16


class Securing:
    """Asks the committee to keep what the next commit names."""

    def __init__(
        self, job: Job, me: SiteId, desk: Desk, register: Register, done: Callable[[float], None]
    ) -> None:
        """``done`` is called once for each ``begin``, when a majority has kept the blobs."""
        self._job, self._me, self._desk, self._register = job, me, desk, register
        self._done = done
        self.blobs: tuple[Digest, ...] = ()
        self._is_open = False
        self._number = 0
        """Counts what was begun: an answer to an earlier question changes nothing."""
        self._kept: set[SiteId] = set()
        self._asking: set[SiteId] = set()
        self._refusals = 0
        self._again_at = NEVER

    def begin(self, blobs: tuple[Digest, ...], now: float) -> None:
        """Have these kept, which are here."""
        self.stop()
        self.blobs, self._is_open = blobs, True
        self._kept, self._asking, self._refusals = {self._me}, set(), 0
        self.look_again(now)

    def stop(self) -> None:
        """Nothing more is wanted."""
        self._number += 1
        self._is_open, self._again_at = False, NEVER

    def look_again(self, now: float) -> None:
        """Ask whoever has not kept them and is not being asked, however dead it may seem; others may count by now."""
        if not self._is_open:
            return
        for site in self._register.voters().everyone:
            if site not in self._kept | self._asking:
                self._asking.add(site)
                self._ask(site)
        self._again_at = now + KEEP_TIMEOUT_S
        self._end_if_kept(now)

    def _ask(self, site: SiteId) -> None:
        number = self._number

        def answered(reply: Reply | None, now: float) -> None:
            if number != self._number or not self._is_open:
                return
            self._asking.discard(site)
            if isinstance(reply, Done):
                self._kept.add(site)
                self._end_if_kept(now)
                return
            self._refusals = min(self._refusals + 1, REFUSALS_COUNTED_MAX)
            pause_s = min(
                RETRY_S * 2 ** (self._refusals // len(self._register.members)), RETRY_MAX_S
            )
            self._again_at = min(self._again_at, now + pause_s)

        self._desk.ask(site, Keep(self._job.id, self.blobs), KEEP_TIMEOUT_S, answered)

    def _end_if_kept(self, now: float) -> None:
        if self._is_open and self._register.voters().have(self._kept):
            self.stop()
            self._done(now)

    def woke(self, now: float) -> None:
        """Ask again when due."""
        if now >= self._again_at:
            self.look_again(now)

    def wake_at(self) -> float:
        """When to ask again."""
        return self._again_at
