"""The reader: the committed value of one job's register, in one round trip when nothing is moving.

A majority that reports one accepted ballot holds a committed value, and no newer one was committed
before the read began (any two majorities meet). A majority that reports nothing proves that nothing
was committed. Anything between (a change is under way, or was abandoned) is settled by writing the
newest value back: the identity change of Rystsov 2018, section 2.2.
"""

from collections import Counter
from collections.abc import Sequence

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
from agent.election.roster import (
    FOLLOWED_MAX,
    Known,
    Roster,
    RosterOf,
    Voters,
    is_behind,
    newer_in,
    pinned,
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
        known: Known | None = None,
        roster_of: RosterOf | None = None,
    ) -> None:
        """Get ready; arguments as for ``Proposer``."""
        self._job, self._timeout_s = job, timeout_s
        self._known = pinned(committee) if known is None else known
        self._committee, self._roster_of = committee, roster_of
        self._follows_left = FOLLOWED_MAX
        self._voters = Voters(self._known.parts, me)
        self._me, self._boot_epoch, self._rng = me, boot_epoch, rng
        self._began_at, self._wake_at = now, NEVER
        self._replies: dict[SiteId, ReadReply] = {}
        self._out: set[SiteId] = set()
        self._settling: Proposer | None = None
        self._has_ended = False

    def start(self) -> list[RegisterEffect]:
        """Ask every member of the committee."""
        self._wake_at = self._began_at + self._timeout_s
        return [Ask(site, Read(self._job)) for site in self._voters.everyone]

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
        return self._took(event, now) if event.site in self._voters.everyone else []

    def _took(self, event: Replied, now: float) -> list[RegisterEffect]:
        if isinstance(event.reply, ReadReply):
            self._replies[event.site] = event.reply
            self._out.discard(event.site)
            newer = newer_in(event.reply.value, self._known, self._roster_of)
            if newer is not None and self._follows_left > 0:
                return self._follow(newer, now)
        elif event.site not in self._replies:
            self._out.add(event.site)
        return self._looked(now)

    def _follow(self, roster: Roster, now: float) -> list[RegisterEffect]:
        """Ask also whom the newer value names; what was answered stays answered."""
        self._follows_left -= 1
        asked = set(self._voters.everyone)
        self._known = Known(roster, is_committed=False)
        self._voters = Voters(self._known.parts, self._me)
        more = [site for site in self._voters.everyone if site not in asked]
        asks: list[RegisterEffect] = [Ask(site, Read(self._job)) for site in more]
        return [*asks, *self._looked(now)]

    def _looked(self, now: float) -> list[RegisterEffect]:
        replies = {s: r for s, r in self._replies.items() if s in self._voters.everyone}
        votes = Counter(reply.accepted for reply in replies.values())
        unheard = [s for s in self._voters.everyone if s not in replies and s not in self._out]
        for ballot, _ in votes.most_common():
            holders = [site for site, reply in replies.items() if reply.accepted == ballot]
            if self._voters.have(holders):
                value = replies[holders[0]].value
                if is_behind(value, self._known, self._roster_of):
                    return self._end(NoQuorum("the holders do not hold the register yet"))
                return self._end(Decided(value, ballot))
            if self._voters.have([*holders, *unheard]):
                return []
        if not votes and self._voters.have(unheard):
            return []
        return self._give_up_waiting(now)

    def _give_up_waiting(self, now: float) -> list[RegisterEffect]:
        replies = [site for site in self._replies if site in self._voters.everyone]
        if not self._voters.have(replies):
            everyone = len(self._voters.everyone)
            return self._end(NoQuorum(f"{len(replies)} of {everyone} members answered"))
        seen = max(
            (reply.accepted.number for reply in self._replies.values() if reply.accepted), default=0
        )
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
            known=self._known,
            roster_of=self._roster_of,
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
