"""Judges a history of register operations; knows nothing of ballots' meaning, quorums or messages.

The value under test is a ledger: the list of operation ids that took effect, beside the (epoch, holder,
round) that they made. An append-only list that every observation shows whole makes linearizability easy
to decide exactly (as in Kingsbury and Alvaro 2020, "Elle", list-append): all observed lists are prefixes
of one another, and none is shorter than what was observed before it began. A dumb second
implementation replays the list and must arrive at the same epoch, holder and round.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from agent.election.roster import Roster
from agent.wire.records import Counter
from agent.wire.schema import AtMost, Range, omitted, pack, unpack

OPERATIONS_MAX = 900
"""At three bytes each, and two committees, the ledger stays within a register's 4,096 bytes."""


Kind = Literal["claim", "commit", "read", "swap"]
"""``swap``: the holders of the register change, or the change is completed; nothing else does."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """The register's value in the simulation."""

    epoch: Counter
    holder: Counter
    round: Counter
    operations: Annotated[tuple[Annotated[int, Range(1, 65_535)], ...], AtMost(OPERATIONS_MAX)]
    roster: Roster | None = omitted(None)


def written(ledger: Ledger) -> bytes:
    """The ledger as a register value."""
    return pack(ledger)


def read(value: bytes) -> Ledger:
    """The inverse of ``written``."""
    return unpack(Ledger, value)


@dataclass(slots=True)
class Operation:
    """One operation as its client saw it."""

    id: int
    kind: Kind
    site: int
    epoch: int
    """Of a commit: the epoch it was made for (its fencing token)."""
    began_at: float
    ended_at: float = inf
    outcome: Literal["pending", "decided", "declined", "failed", "unknown"] = "pending"
    observed: Ledger | None = None
    """The committed value that the outcome showed; None: nothing was committed (or no outcome)."""


@dataclass(slots=True)
class History:
    """What the world recorded."""

    operations: list[Operation] = field(default_factory=list)
    ballots: dict[tuple[int, bytes], set[int]] = field(default_factory=dict)
    """Which proposers (run numbers) prepared a ballot."""
    proposals: dict[tuple[int, bytes], set[bytes]] = field(default_factory=dict)
    """Which values were put forward under a ballot."""


def violations(history: History) -> list[str]:
    """Every broken rule, as sentences; empty if the history is that of one register."""
    observations = [
        operation
        for operation in history.operations
        if operation.outcome in {"decided", "declined"}
    ]
    return [
        *_ballot_rules(history),
        *_order_rules(observations),
        *_real_time_rules(history.operations, observations),
        *_effect_rules(history.operations, observations),
        *_replay_rules(history.operations, observations),
    ]


def _ledger(operation: Operation) -> tuple[int, ...]:
    return () if operation.observed is None else operation.observed.operations


def _longest(observations: Iterable[Operation]) -> tuple[int, ...]:
    return max((_ledger(operation) for operation in observations), key=len, default=())


def _ballot_rules(history: History) -> list[str]:
    return [
        f"ballot {ballot[0]} was used by {len(runs)} proposers"
        for ballot, runs in history.ballots.items()
        if len(runs) > 1
    ] + [
        f"ballot {ballot[0]} carried {len(values)} values"
        for ballot, values in history.proposals.items()
        if len(values) > 1
    ]


def _order_rules(observations: Sequence[Operation]) -> list[str]:
    longest = _longest(observations)
    return [
        f"operation {operation.id} saw a value that is not on the one history"
        for operation in observations
        if _ledger(operation) != longest[: len(_ledger(operation))]
    ]


def _real_time_rules(
    operations: Sequence[Operation], observations: Sequence[Operation]
) -> list[str]:
    found = []
    longest = _longest(observations)
    place = {number: index for index, number in enumerate(longest)}
    ended = sorted(observations, key=lambda operation: operation.ended_at)
    began = {operation.id: operation.began_at for operation in operations}
    floor, taken = 0, 0
    for operation in sorted(operations, key=lambda one: one.began_at):
        while taken < len(ended) and ended[taken].ended_at < operation.began_at:
            floor = max(floor, len(_ledger(ended[taken])))
            taken += 1
        if operation.outcome in {"decided", "declined"} and len(_ledger(operation)) < floor:
            found.append(f"operation {operation.id} saw less than was seen before it began")
        if place.get(operation.id, floor) < floor:
            found.append(f"operation {operation.id} took effect before it began")
    found += [
        f"operation {operation.id} saw the effect of {other}, which had not begun"
        for operation in observations
        for other in _ledger(operation)[-3:]
        if began.get(other, inf) > operation.ended_at
    ]
    return found


def _effect_rules(operations: Sequence[Operation], observations: Sequence[Operation]) -> list[str]:
    longest = _longest(observations)
    took_effect = set(longest)
    found = []
    if len(took_effect) != len(longest):
        found.append("an operation took effect twice")
    for operation in operations:
        if operation.kind == "read":
            continue
        if operation.outcome == "decided" and operation.id not in _ledger(operation):
            found.append(f"operation {operation.id} was decided without its effect")
        if operation.outcome in {"declined", "failed"} and operation.id in took_effect:
            found.append(f"operation {operation.id} was {operation.outcome} and took effect")
    return found


def _replay_rules(operations: Sequence[Operation], observations: Sequence[Operation]) -> list[str]:
    by_id = {operation.id: operation for operation in operations}
    epoch, holder, rounds = 0, 0, 0
    states = [(epoch, holder, rounds)]
    found = []
    for number in _longest(observations):
        operation = by_id.get(number)
        if operation is None:
            found.append(f"operation {number} was never asked for")
        elif operation.kind == "claim":
            epoch, holder = epoch + 1, operation.site
        elif operation.kind == "swap":
            pass
        elif operation.epoch == epoch:
            rounds += 1
        else:
            found.append(f"operation {number} committed for epoch {operation.epoch} in {epoch}")
        states.append((epoch, holder, rounds))
    for operation in observations:
        seen = operation.observed
        state = (0, 0, 0) if seen is None else (seen.epoch, seen.holder, seen.round)
        if state != states[min(len(_ledger(operation)), len(states) - 1)]:
            found.append(f"operation {operation.id} saw {state}, which the ledger does not make")
        is_fenced = operation.kind != "swap"
        if is_fenced and operation.outcome == "declined" and operation.epoch == state[0]:
            found.append(f"operation {operation.id} was declined without reason")
    return found
