"""The proposer: carries one change of one job's register to a majority, or says why not.

Theory of operation (Rystsov 2018, section 2.2). A *try* takes a new ballot to the committee in two
round trips: Prepare learns the newest accepted value from a majority; the change is applied to it;
Accept writes the result. A try that is pre-empted by a higher ballot is repeated above it after a
full-jitter back-off, so that duelling proposers part; the number of tries is bounded.

Rules that the checker of ``simulation.register_world`` and its mutants watch:

- One ballot carries one value. Each try has a new number; the proposer's name is unique for ever.
- A change is applied to what a majority promised, never to what this site remembers.
- A refusal is an answer *about a committed value*. When the value read is not known to be committed
  it is written back first; else the reason given might never have been true for anybody. The same
  holds when an own earlier try could still surface above it.
- Once Accept was sent for a changed value, "it failed" is never said again: ``OutcomeUnknown``.
  The caller retries with the same operation id, which the change recognises in the value.

The change must therefore be idempotent: it may see a value that already contains it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, assert_never

from agent.election.ballots import LOWEST, proposer_id
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
from agent.wire.limits import REGISTER_VALUE_BYTES_MAX
from agent.wire.mesh import Accept, Accepted, Ballot, Conflict, Prepare, Promise, Read, Reply

TRIES_MAX = 8
"""Eight tries with doubling back-off outlast any duel of a five-member committee's candidates."""
BACKOFF_ROUND_TRIPS = 2
"""The first back-off is drawn from as long as a whole undisturbed try takes."""
BACKOFF_FLOOR_S = 0.02
"""On a loopback a round trip is shorter than the scheduling noise that must be outrun."""
BACKOFF_CEILING_S = 2.0
"""A committee that cannot be reached is not asked more often than this."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The change does not apply to ``value``, which is committed (None: nothing ever was)."""

    reason: str
    value: bytes | None = None


class Change(Protocol):
    """A pure, idempotent function from the committed value to the next one, or a refusal."""

    def __call__(self, value: bytes | None, /) -> bytes | Refusal:
        """The value to write; equal to ``value`` if the change is already in it."""
        ...


# --- events and effects --------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Replied:
    """What ``site`` answered to an ``Ask``; None if it could not be reached or timed out."""

    site: SiteId
    reply: Reply | None


@dataclass(frozen=True, slots=True)
class Ask:
    """Send ``call`` to ``site`` (perhaps this very site) and step with ``Replied``."""

    site: SiteId
    call: Prepare | Accept | Read


@dataclass(frozen=True, slots=True)
class Decided:
    """``value`` is committed (None, from a Reader only: nothing ever was)."""

    value: bytes | None
    ballot: Ballot | None
    """Highest ballot this took part in; its number is the next proposer's ``after``."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The change refused a committed value; nothing was changed."""

    refusal: Refusal


@dataclass(frozen=True, slots=True)
class NoQuorum:
    """No majority answered, or it was always pre-empted; this proposer certainly changed nothing."""

    reason: str


@dataclass(frozen=True, slots=True)
class OutcomeUnknown:
    """The changed value was sent and may or may not be, or become, committed."""

    reason: str


RegisterEvent = Replied | Woke
Outcome = Decided | Declined | NoQuorum | OutcomeUnknown
RegisterEffect = Ask | Outcome
Phase = Literal["idle", "preparing", "accepting", "waiting", "ended"]


class Proposer:
    """Drives one change; ends with exactly one ``Outcome`` and is then deaf."""

    def __init__(
        self,
        *,
        job: JobId,
        committee: tuple[SiteId, ...],
        me: SiteId,
        boot_epoch: int,
        rng: Rng,
        now: float,
        change: Change,
        timeout_s: float = 2.0,
        tries_max: int = TRIES_MAX,
        after: int = 0,
        is_retry: bool = False,
        known: Known | None = None,
        roster_of: RosterOf | None = None,
    ) -> None:
        """Get ready; nothing is sent before ``start``.

        Args:
            job: whose register.
            committee: the sites pinned in the job; a majority decides. ``me`` need not be one.
            me: this site.
            boot_epoch: this site's persisted start counter; with ``me`` makes the proposer unique.
            rng: nonce and jitter.
            now: monotonic time, seconds.
            change: see ``Change``.
            timeout_s: a phase without a majority after this long ends the try.
            tries_max: tries before giving up.
            after: highest ballot number seen for this job (from ``Decided.ballot`` or this site's
                own acceptor). If it is up to date a change takes two round trips, else three.
            is_retry: an earlier proposer of the same operation ended in ``OutcomeUnknown``. What
                it left behind is superseded before a refusal is reported, so that the refused
                operation cannot take effect later.
            known: who holds the register by now; None: ``committee``.
            roster_of: reads the holders from a value; None: they never change.
        """
        self._job, self._me, self._rng, self._change = job, me, rng, change
        self._known = pinned(committee) if known is None else known
        self._roster_of, self._follows_left = roster_of, FOLLOWED_MAX
        self._voters = Voters(self._known.parts, me)
        self._name = proposer_id(me, boot_epoch, rng)
        self._timeout_s, self._tries_left = timeout_s, tries_max
        self._highest = Ballot(after, b"") if after else LOWEST
        self._may_learn = True
        self._phase: Phase = "idle"
        self._now, self._wake_at = now, NEVER
        self._phase_began_at, self._rtt_s = now, BACKOFF_FLOOR_S
        self._backoffs = 0
        self._ballot = LOWEST
        self._promises: dict[SiteId, Promise] = {}
        self._accepts: set[SiteId] = set()
        self._out: set[SiteId] = set()
        self._is_preempted = False
        self._value: bytes = b""
        self._refusal: Refusal | None = None
        self._may_have_changed = is_retry
        self._sent_at = LOWEST
        self._is_retry = is_retry

    def start(self) -> list[RegisterEffect]:
        """Begin the first try."""
        assert self._phase == "idle", "a proposer drives one change"
        return self._prepare()

    def wake_at(self) -> float:
        """When the present phase times out or the back-off ends; ``NEVER`` once ended."""
        return self._wake_at

    def step(self, event: RegisterEvent, now: float) -> Sequence[RegisterEffect]:
        """Take a reply or the wake-up; late and foreign replies change nothing."""
        self._now = now
        if self._phase in {"idle", "ended"}:
            return []
        match event:
            case Woke():
                return self._woke()
            case Replied(site, reply):
                return self._replied(site, reply) if site in self._voters.everyone else []
            case _:
                assert_never(event)

    def _woke(self) -> list[RegisterEffect]:
        if self._now < self._wake_at:
            return []
        if self._phase == "waiting":
            return self._prepare()
        return self._next_try("no majority answered in time")

    def _replied(self, site: SiteId, reply: Reply | None) -> list[RegisterEffect]:
        match reply:
            case Promise(ballot) if ballot == self._ballot and self._phase == "preparing":
                self._out.discard(site)
                self._promises[site] = reply
                newer = newer_in(reply.value, self._known, self._roster_of)
                if newer is not None and self._follows_left > 0:
                    return self._follow(newer)
                return self._promised()
            case Accepted(ballot) if ballot == self._ballot and self._phase == "accepting":
                self._out.discard(site)
                self._accepts.add(site)
                return self._accepted()
            case Conflict(promised) if promised > self._ballot:
                # Of this try or of an earlier one: either way ``site`` will refuse this ballot.
                self._highest = max(self._highest, promised)
                self._is_preempted = True
                return self._lost(site)
            case Promise() | Accepted() | Conflict():
                return []  # of an earlier try, or a repeated delivery of this one
            case _:
                return self._lost(site)  # unreachable, or an answer that is none

    def _lost(self, site: SiteId) -> list[RegisterEffect]:
        if self._phase == "waiting" or site in self._accepts:
            return []
        if self._phase == "preparing" and site in self._promises:
            return []
        self._out.add(site)
        if self._voters.can_have(self._out):
            return []
        return self._next_try(
            "always pre-empted" if self._is_preempted else "a majority cannot be reached"
        )

    def _prepare(self) -> list[RegisterEffect]:
        self._tries_left -= 1
        self._ballot = Ballot(self._highest.number + 1, self._name)
        self._highest = self._ballot
        self._promises, self._refusal = {}, None
        self._begin("preparing")
        return [Ask(site, Prepare(self._job, self._ballot)) for site in self._voters.everyone]

    def _begin(self, phase: Phase) -> None:
        self._phase, self._phase_began_at = phase, self._now
        self._wake_at = self._now + self._timeout_s
        self._accepts, self._out, self._is_preempted = set(), set(), False

    def _promised(self) -> list[RegisterEffect]:
        if not self._voters.have(self._promises):
            return []
        self._rtt_s = max(self._now - self._phase_began_at, BACKOFF_FLOOR_S)
        newest = max(self._promises.values(), key=lambda promise: promise.accepted or LOWEST)
        value = newest.value
        if is_behind(value, self._known, self._roster_of):
            return self._next_try("the holders of the register do not hold it yet")
        changed = self._change(value)
        if isinstance(changed, bytes) and len(changed) > REGISTER_VALUE_BYTES_MAX:
            changed = Refusal(
                f"the value would have {len(changed)} bytes; at most {REGISTER_VALUE_BYTES_MAX}",
                value,
            )
        if isinstance(changed, Refusal):
            if self._is_settled(newest.accepted):
                return self._end(Declined(changed))
            if value is None:
                # What an earlier try sent may lie at a minority, and nothing can be put above it.
                return self._end(OutcomeUnknown("an earlier try may still take effect"))
            self._refusal, self._value = changed, value
        elif changed == value and self._is_settled(newest.accepted):
            return self._end(Decided(value, self._ballot))
        else:
            self._value, self._sent_at, self._may_have_changed = changed, self._ballot, True
        self._begin("accepting")
        return [
            Ask(site, Accept(self._job, self._ballot, self._value))
            for site in self._voters.everyone
        ]

    def _is_settled(self, accepted: Ballot | None) -> bool:
        """Whether the value read is committed and nothing we sent earlier can come after it."""
        if self._is_retry or (self._sent_at > (accepted or LOWEST)):
            return False
        return self._voters.have(
            [site for site, promise in self._promises.items() if promise.accepted == accepted]
        )

    def _follow(self, roster: Roster) -> list[RegisterEffect]:
        """Ask those whom somebody has accepted as the holders, and those before them."""
        self._follows_left -= 1
        self._tries_left += 1
        self._known = Known(roster, is_committed=False)
        self._voters = Voters(self._known.parts, self._me)
        return self._prepare()

    def _accepted(self) -> list[RegisterEffect]:
        if not self._voters.have(self._accepts):
            return []
        if self._refusal is not None:
            return self._end(Declined(self._refusal))
        return self._end(Decided(self._value, self._ballot))

    def _next_try(self, reason: str) -> list[RegisterEffect]:
        if self._tries_left <= 0:
            return self._end(OutcomeUnknown(reason) if self._may_have_changed else NoQuorum(reason))
        is_outdated = self._highest.number > self._ballot.number
        if self._may_learn and is_outdated and self._phase == "preparing":
            # Not a duel (those meet at one number): this site only did not know how high ballots are.
            self._may_learn = False
            return self._prepare()
        first_s = self._rtt_s * BACKOFF_ROUND_TRIPS
        longest_s = min(first_s * 2.0**self._backoffs, max(BACKOFF_CEILING_S, first_s))
        self._backoffs += 1
        self._phase = "waiting"
        self._wake_at = self._now + self._rng.uniform(0.0, longest_s)
        return []

    def _end(self, outcome: Outcome) -> list[RegisterEffect]:
        self._phase, self._wake_at = "ended", NEVER
        return [outcome]
