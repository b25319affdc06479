"""The reader: the committed value of one job's register, in one round trip when nothing is moving.

A majority that reports one accepted ballot holds a committed value, and no newer one was committed
before the read began (any two majorities meet). A majority that reports nothing proves that nothing
was committed. Anything between (a change is under way, or was abandoned) is settled by writing the
newest value back: the identity change of Rystsov 2018, section 2.2.
"""

from collections import Counter
from collections.abc import Sequence

from agent.election.ballots import quorum_of
from agent.election.proposer import (
    Ask,
    Decided,
    Declined,
    NoQuorum,
    OutcomeUnknown,
    Proposer,
    Refusal,
    RegisterEffect,
    RegisterEvent,
    Replied,
)
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.randomness import Rng
from agent.wire.mesh import Read, ReadReply

NOTHING = Refusal("nothing was ever written")


def _identity(value: bytes | None) -> bytes | Refusal:
    return NOTHING if value is None else value


class Reader:
    """One linearizable read; ends with exactly one ``Decided`` or ``NoQuorum``."""

    def __init__(
        self,
        *,
        job: JobId,
        committee: tuple[SiteId, ...],
        me: SiteId,
        boot_epoch: int,
        rng: Rng,
        now: float,
        timeout_s: float = 2.0,
    ) -> None:
        """Get ready; arguments as for ``Proposer``."""
        assert committee, "a register has a committee"
        self._job, self._timeout_s = job, timeout_s
        self._committee = tuple(sorted(committee, key=lambda site: site != me))
        self._quorum = quorum_of(len(committee))
        self._me, self._boot_epoch, self._rng = me, boot_epoch, rng
        self._began_at, self._wake_at = now, NEVER
        self._replies: dict[SiteId, ReadReply] = {}
        self._out: set[SiteId] = set()
        self._settling: Proposer | None = None
        self._has_ended = False

    def start(self) -> list[RegisterEffect]:
        """Ask every member of the committee."""
        self._wake_at = self._began_at + self._timeout_s
        return [Ask(site, Read(self._job)) for site in self._committee]

    def wake_at(self) -> float:
        """When the read gives up waiting; ``NEVER`` once ended."""
        if self._has_ended:
            return NEVER
        return self._wake_at if self._settling is None else self._settling.wake_at()

    def step(self, event: RegisterEvent, now: float) -> Sequence[RegisterEffect]:
        """Take a reply or the wake-up; late and foreign replies change nothing."""
        if self._has_ended:
            return []
        if self._settling is not None:
            if isinstance(event, Replied) and isinstance(event.reply, ReadReply):
                return []  # of the quick read, too late
            return self._translated(self._settling.step(event, now))
        if isinstance(event, Woke):
            return self._give_up_waiting(now) if now >= self._wake_at else []
        if event.site not in self._committee:
            return []
        if isinstance(event.reply, ReadReply):
            self._replies[event.site] = event.reply
            self._out.discard(event.site)
        elif event.site not in self._replies:
            self._out.add(event.site)
        return self._looked(now)

    def _looked(self, now: float) -> list[RegisterEffect]:
        votes = Counter(reply.accepted for reply in self._replies.values())
        ballot, most = votes.most_common(1)[0] if votes else (None, 0)
        if most >= self._quorum:
            value = next(r.value for r in self._replies.values() if r.accepted == ballot)
            return self._end(Decided(value, ballot))
        unheard = len(self._committee) - len(self._replies) - len(self._out)
        if most + unheard >= self._quorum:
            return []
        return self._give_up_waiting(now)

    def _give_up_waiting(self, now: float) -> list[RegisterEffect]:
        if len(self._replies) < self._quorum:
            return self._end(
                NoQuorum(f"{len(self._replies)} of {len(self._committee)} members answered")
            )
        seen = max(reply.accepted.number for reply in self._replies.values() if reply.accepted)
        self._settling = Proposer(
            job=self._job,
            committee=self._committee,
            me=self._me,
            boot_epoch=self._boot_epoch,
            rng=self._rng,
            now=now,
            change=_identity,
            timeout_s=self._timeout_s,
            after=seen,
        )
        return self._translated(self._settling.start())

    def _translated(self, effects: Sequence[RegisterEffect]) -> list[RegisterEffect]:
        result: list[RegisterEffect] = []
        for effect in effects:
            match effect:
                case Declined():
                    result += self._end(Decided(None, None))
                case OutcomeUnknown(reason):
                    result += self._end(NoQuorum(reason))  # a read changes nothing
                case Decided() | NoQuorum():
                    result += self._end(effect)
                case Ask():
                    result.append(effect)
        return result

    def _end(self, outcome: Decided | NoQuorum) -> list[RegisterEffect]:
        self._has_ended = True
        return [outcome]
