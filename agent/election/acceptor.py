"""The acceptor: one committee member's memory of one job's register.

Rule: memory may be ahead of the disk, a reply never is. Each step gives the writes that its reply
stands on; the driver makes them durable (``synchronous=FULL``) and only then sends the reply. A
step whose answer rests on an *earlier* step that is not known to be durable (``saved``) carries the
same row again, so that a Read can never disclose what a power cut may still undo.

After a failed commit nothing is lost or wrong: the reply is not sent, and the row travels again with
the next step. Hand the writes of successive steps to the store in the order of the steps.

Source: Rystsov 2018, section 2.2 (acceptor); pitfall "amnesia": research/membership.md section 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from agent.election.ballots import LOWEST, NUMBER_JUMP_MAX, owner
from agent.foundation.errors import Corruption
from agent.foundation.ids import JobId, SiteId
from agent.foundation.writes import Put, Scalar, Write
from agent.wire.limits import REGISTER_VALUE_BYTES_MAX
from agent.wire.mesh import (
    Accept,
    Accepted,
    Ballot,
    Conflict,
    Declined,
    Prepare,
    Promise,
    Read,
    ReadReply,
)

TABLE = "register"

RegisterCall = Prepare | Accept | Read
RegisterReply = Promise | Accepted | Conflict | ReadReply | Declined


@dataclass(frozen=True, slots=True)
class AcceptorState:
    """What must survive a power cut."""

    promised: Ballot = LOWEST
    """No lower ballot is answered any more."""
    accepted: Ballot | None = None
    """The ballot of ``value``; never above ``promised``."""
    value: bytes | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Make ``writes`` durable, then send ``reply``, in this order."""

    writes: tuple[Write, ...]
    reply: RegisterReply


class Acceptor:
    """One job's acceptor at one site."""

    def __init__(self, job: JobId, state: AcceptorState | None = None) -> None:
        """Start from ``state`` as read from disk; None only if this site never held the register."""
        self.job = job
        self._state = state if state is not None else AcceptorState()
        self._durable = self._state

    @classmethod
    def restored(cls, row: Mapping[str, Scalar]) -> "Acceptor":
        """Continue from a row of table ``register``.

        Raises:
            Corruption: the row does not hold an acceptor's state; this site must not vote with it.
        """
        job, state = state_of(row)
        return cls(job, state)

    @property
    def state(self) -> AcceptorState:
        """The present state, perhaps not yet durable; ``promised.number`` is a hint for proposers."""
        return self._state

    def step(self, call: RegisterCall, caller: SiteId | None = None) -> Answer:
        """Answer one call; ``caller`` (from its certificate) may use its own ballots only."""
        match call:
            case Read():
                return self._answer(ReadReply(self._state.accepted, self._state.value))
            case Prepare() | Accept():
                if (reason := self._objection(call.ballot, caller)) is not None:
                    return Answer((), Declined(reason))
                if isinstance(call, Prepare):
                    return self._answer(self._prepare(call.ballot))
                return self._answer(self._accept(call.ballot, call.value))
            case _:
                assert_never(call)

    def saved(self, answer: Answer) -> None:
        """The writes of ``answer`` are durable: later answers need not carry that row again."""
        for write in answer.writes:
            if isinstance(write, Put) and write == _row(self.job, self._state):
                self._durable = self._state

    def _objection(self, ballot: Ballot, caller: SiteId | None) -> str | None:
        site = owner(ballot)
        if site is None:
            return "the ballot names no proposer"
        if caller is not None and site != caller:
            return "the ballot belongs to another site"
        if ballot.number > self._state.promised.number + NUMBER_JUMP_MAX:
            return f"the ballot is more than {NUMBER_JUMP_MAX} above the highest one seen here"
        return None

    def _prepare(self, ballot: Ballot) -> Promise | Conflict:
        # An equal ballot is refused too: it is a duplicate, or an identity used twice.
        if ballot <= self._state.promised:
            return Conflict(self._state.promised)
        self._state = AcceptorState(ballot, self._state.accepted, self._state.value)
        return Promise(ballot, self._state.accepted, self._state.value)

    def _accept(self, ballot: Ballot, value: bytes) -> Accepted | Conflict | Declined:
        if len(value) > REGISTER_VALUE_BYTES_MAX:
            return Declined(f"the value has {len(value)} bytes; at most {REGISTER_VALUE_BYTES_MAX}")
        if ballot < self._state.promised:
            return Conflict(self._state.promised)
        if ballot == self._state.accepted:
            # A repeated message gets the same answer; another value under one ballot never does.
            if value == self._state.value:
                return Accepted(ballot)
            return Declined(
                "another value was accepted under this ballot: a proposer id was reused"
            )
        self._state = AcceptorState(ballot, ballot, value)
        return Accepted(ballot)

    def _answer(self, reply: RegisterReply) -> Answer:
        if self._state == self._durable:
            return Answer((), reply)
        return Answer((_row(self.job, self._state),), reply)


def _row(job: JobId, state: AcceptorState) -> Put:
    return Put(
        TABLE,
        {
            "job": job,
            "promised_number": state.promised.number,
            "promised_proposer": state.promised.proposer,
            "accepted_number": None if state.accepted is None else state.accepted.number,
            "accepted_proposer": None if state.accepted is None else state.accepted.proposer,
            "value": state.value,
        },
    )


def state_of(row: Mapping[str, Scalar]) -> tuple[JobId, AcceptorState]:
    """Read a row of table ``register``.

    Raises:
        Corruption: a column is missing, has another type, or the columns contradict each other.
    """
    job = row.get("job")
    promised = _ballot(row, "promised")
    accepted = _ballot(row, "accepted")
    value = row.get("value")
    if not isinstance(job, str) or promised is None:
        raise _damaged(job, "it names no job or no promise")
    if value is not None and not isinstance(value, bytes):
        raise _damaged(job, "the value is not bytes")
    if (accepted is None) != (value is None):
        raise _damaged(job, "a value and its ballot are there together or not at all")
    if accepted is not None and accepted > promised:
        raise _damaged(job, "it accepted above its promise")
    return JobId(job), AcceptorState(promised, accepted, value)


def _ballot(row: Mapping[str, Scalar], prefix: str) -> Ballot | None:
    number, proposer = row.get(f"{prefix}_number"), row.get(f"{prefix}_proposer")
    if number is None and proposer is None:
        return None
    if not isinstance(number, int) or not isinstance(proposer, bytes):
        raise _damaged(row.get("job"), f"{prefix} is not a ballot")
    return Ballot(number, proposer)


def _damaged(job: Scalar, why: str) -> Corruption:
    return Corruption(
        f"the register row of job {job!r} is damaged",
        why=why,
        mend="this site must not vote for the job again under its present identity",
    )
