"""Whether a history of operations could have happened one at a time: a search, after Wing and Gong.

Knows the register's specification (three numbers, two changes) and what each client saw of them, and
nothing of ledgers, ballots or messages. An operation takes effect at one instant between its begin and
its end; one of unknown outcome at any later time, or never. The search tries the orders that real time
allows and remembers where it has been (Wing and Gong 1993; the memory is Lowe's, 2017).

``agent.simulation.register_checker`` decides the same from the ledger; two judges that agree are worth more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from agent.simulation.register_checker import History, Operation

STATES_MAX = 200_000
"""A search that needs more is not answered: it counts as neither."""

State = tuple[int, int, int]
"""Epoch, holder, round."""


class Undecided(Exception):
    """The search was given up."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One instant to be placed: an effect, or what somebody saw."""

    began_at: float
    ended_at: float
    effect: Operation | None
    seen: State | None
    after: int | None = None
    """The step that must come before: nobody sees its own effect before it happens."""
    not_epoch: int | None = None
    """Of a declined commit: it was declined because the epoch was another."""

    def applied(self, state: State) -> State | None:
        """The state after it; None if it cannot happen in ``state``."""
        epoch, holder, round_ = state
        if self.effect is None:
            is_seen = self.seen == state and self.not_epoch != epoch
            return state if is_seen else None
        if self.effect.kind == "claim":
            return epoch + 1, self.effect.site, round_
        return (epoch, holder, round_ + 1) if self.effect.epoch == epoch else None


def is_linearizable(history: History) -> bool:
    """Whether one order of all effects explains everything that was seen.

    Raises:
        Undecided: more than ``STATES_MAX`` states were looked at.
    """
    steps = sorted(_steps(history.operations), key=lambda step: step.began_at)
    search = _Search(_numbered(steps))
    return search.run()


def _steps(operations: Iterable[Operation]) -> Iterable[_Step]:
    for operation in operations:
        began, ended, outcome = operation.began_at, operation.ended_at, operation.outcome
        ledger = operation.observed
        seen = (0, 0, 0) if ledger is None else (ledger.epoch, ledger.holder, ledger.round)
        if operation.kind == "swap":
            if outcome in {"decided", "declined"}:
                yield _Step(began, ended, None, seen)
        elif operation.kind == "read":
            if outcome == "decided":
                yield _Step(began, ended, None, seen)
        elif outcome == "decided":
            yield _Step(began, ended, operation, None)
            yield _Step(began, ended, None, seen, after=operation.id)
        elif outcome == "declined":
            yield _Step(began, ended, None, seen, not_epoch=operation.epoch)
        elif outcome in {"unknown", "pending"}:
            yield _Step(began, inf, operation, None)


def _numbered(steps: list[_Step]) -> list[_Step]:
    """``after`` as the index of a step instead of an operation's id."""
    place = {step.effect.id: n for n, step in enumerate(steps) if step.effect is not None}
    return [
        step
        if step.after is None
        else _Step(step.began_at, step.ended_at, None, step.seen, place[step.after], step.not_epoch)
        for step in steps
    ]


class _Search:
    def __init__(self, steps: list[_Step]) -> None:
        self._steps = steps
        self._by_end = sorted(range(len(steps)), key=lambda n: steps[n].ended_at)
        self._wanted = sum(1 << n for n, step in enumerate(steps) if step.ended_at < inf)
        self._known: set[tuple[int, State]] = set()

    def run(self) -> bool:
        pending: list[tuple[int, State]] = [(0, (0, 0, 0))]
        while pending:
            done, state = pending.pop()
            done = self._with_sights(done, state)
            if done & self._wanted == self._wanted:
                return True
            if (done, state) in self._known or self._is_too_late(done, state):
                continue
            self._known.add((done, state))
            if len(self._known) > STATES_MAX:
                raise Undecided
            nexts = self._nexts(done, state)
            # What has an end comes first; what may never have happened is tried last.
            nexts.sort(key=lambda item: self._steps[item[0]].ended_at)
            pending += [(done | 1 << n, after) for n, after in reversed(nexts)]
        return False

    def _nexts(self, done: int, state: State) -> list[tuple[int, State]]:
        """Effects that may come now, and the states after them."""
        found, alike = [], set()
        for n in self._open(done):
            effect = self._steps[n].effect
            after = self._steps[n].applied(state)
            if effect is None or after is None:
                continue
            if self._steps[n].ended_at == inf:
                # Of those that are alike and have no end, the one that began first is as good as any.
                if after in alike:
                    continue
                alike.add(after)
            found.append((n, after))
        return found

    def _is_too_late(self, done: int, state: State) -> bool:
        """Whether something that must still come needs a smaller epoch or round: neither ever falls."""
        epoch, _, round_ = state
        for n, step in enumerate(self._steps):
            if done >> n & 1 or step.ended_at == inf:
                continue
            if step.seen is not None and (step.seen[0] < epoch or step.seen[2] < round_):
                return True
            effect = step.effect
            if effect is not None and effect.kind == "commit" and effect.epoch < epoch:
                return True
        return False

    def _open(self, done: int) -> list[int]:
        """Steps not placed yet that began before every such step's end."""
        first_end = next((self._steps[n].ended_at for n in self._by_end if not done >> n & 1), inf)
        found = []
        for n, step in enumerate(self._steps):
            if step.began_at > first_end:
                break
            if not done >> n & 1 and (step.after is None or done >> step.after & 1):
                found.append(n)
        return found

    def _with_sights(self, done: int, state: State) -> int:
        """Place every sight that ``state`` explains: none of them changes anything, so at once is best."""
        while True:
            more = [
                n
                for n in self._open(done)
                if self._steps[n].effect is None and self._steps[n].applied(state) is not None
            ]
            if not more:
                return done
            for n in more:
                done |= 1 << n
