"""Watching the aggregator: one held call a site, answered when the register has moved.

Rule: a watch is a hint to go and read the register, and a broken one is a reason to doubt. Whatever the
other side answers, and however fast, this side asks again after a pause that doubles until something
has really changed: two sites of different opinions must not keep each other busy.
"""

from collections.abc import Callable

from agent.federation.desk import Desk
from agent.federation.events import Answer
from agent.federation.value import ENDED, JobValue
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Job
from agent.wire.mesh import Declined, Done, Reply, Watch

WATCH_HOLD_S = 20.0
WATCH_TIMEOUT_S = 30.0
"""A watch is answered after 20 s at the latest, so one unanswered for 30 s is broken."""
WATCHERS_MAX = 20_000
"""Twice the largest mesh: each site watches once, and once more after it was cut off."""
HELD_LEAST_S = 1.0
"""Who answers sooner that nothing has changed holds too many watches, or does not hold them."""
PAUSE_S = 0.5
PAUSE_MAX_S = 10.0
NO_CHANGE = "no change yet"
RESIGNED = "resigned"
ENDED_HERE = "the job has ended here"
NOT_THE_AGGREGATOR = "not the aggregator"

Progress = tuple[int, ...]


def answer(
    watch: Watch, value: JobValue | None, resigned: str | None, *, is_over: bool
) -> Reply | None:
    """What to tell a watcher at once; None: nothing has moved yet.

    ``resigned``: why another site had better aggregate; None: this one does not.
    """
    if is_over:
        is_final = value is not None and value.state in ENDED
        return Done() if is_final else Declined(ENDED_HERE)
    if value is None or resigned is None:
        return Declined(NOT_THE_AGGREGATOR)
    if resigned:
        return Declined(f"{RESIGNED}: {resigned}"[:400])
    return Done() if (value.epoch, value.round) > (watch.epoch, watch.round) else None


class Watching:
    """This site's watch of the present aggregator."""

    def __init__(
        self,
        job: Job,
        desk: Desk,
        value: Callable[[], JobValue | None],
        look: Callable[[float, float], None],
        doubt: Callable[[float, int], None],
        resigned: Callable[[float], None],
    ) -> None:
        """Build.

        Args:
            job: whose aggregator.
            desk: takes the calls.
            value: the newest committed value known here; None once the job is over.
            look: read the register at ``now + pause_s``: arguments ``now``, ``pause_s``.
            doubt: the aggregator may be gone: arguments ``now`` and how often in a row it seemed so.
            resigned: the aggregator says that another site had better take over.
        """
        self._job, self._desk, self._value = job, desk, value
        self._look, self._doubt, self._resigned = look, doubt, resigned
        self._target: tuple[SiteId, int] | None = None
        self._doubts = self._hasty = 0
        self._asked_at = 0.0
        self._told: Progress | None = None

    def watch(self, value: JobValue, now: float) -> None:
        """Watch the aggregator of ``value``, once."""
        target = (value.aggregator, value.epoch)
        if self._target == target:
            return
        if self._target is None or self._target[1] != value.epoch:
            self._target = target
        message = Watch(self._job.id, value.epoch, value.round)
        self._asked_at = now
        self._desk.ask(
            value.aggregator, message, WATCH_TIMEOUT_S,
            lambda reply, now: self._answered(target, reply, now),
        )  # fmt: skip

    def moved(self, *, is_other_epoch: bool) -> None:
        """The register has moved: what was doubted is settled."""
        if is_other_epoch:
            self._doubts = 0

    def _answered(self, target: tuple[SiteId, int], reply: Reply | None, now: float) -> None:
        if self._target != target:
            return
        self._target = None
        value = self._value()
        if value is None or (value.aggregator, value.epoch) != target:
            return
        if isinstance(reply, Declined) and reply.reason == NO_CHANGE:
            self._doubts = 0
            if now - self._asked_at >= HELD_LEAST_S:
                self._hasty = 0
                self.watch(value, now)
            else:
                self._look(now, min(PAUSE_S * 2**self._hasty, PAUSE_MAX_S))
                self._hasty = min(self._hasty + 1, 16)
        elif isinstance(reply, Done) and self._told != value.progress:
            # Told twice of the same state there is nothing new to read: fall through and pause.
            self._doubts, self._told = 0, value.progress
            self._look(now, 0.0)
        else:
            self._look(now, min(PAUSE_S * 2**self._doubts, PAUSE_MAX_S))
            self._doubts = min(self._doubts + 1, 16)
            if isinstance(reply, Declined) and reply.reason.startswith(RESIGNED):
                self._resigned(now)
            else:
                self._doubt(now, self._doubts)


class Watchers:
    """The watches that other sites hold here while this site aggregates."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._held: dict[int, float] = {}

    def hold(self, call: int, now: float) -> None:
        """Answer later: when something changes, or after a while."""
        if len(self._held) >= WATCHERS_MAX:
            self._desk.emit(Answer(call, Declined(NO_CHANGE)))
        else:
            self._held[call] = now + WATCH_HOLD_S

    def answer(self, reply: Reply) -> None:
        """Answer everyone now."""
        self._desk.emit(*(Answer(call, reply) for call in self._held))
        self._held.clear()

    def woke(self, now: float) -> None:
        """Answer those who have waited long enough."""
        for call in [call for call, at in self._held.items() if now >= at]:
            del self._held[call]
            self._desk.emit(Answer(call, Declined(NO_CHANGE)))

    def wake_at(self) -> float:
        """When the next has waited long enough."""
        return min(self._held.values(), default=NEVER)
