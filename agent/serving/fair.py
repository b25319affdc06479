"""Whose request is next: applications share by weight, each one's own requests by priority.

Rule: while requests of an application wait, it gets at least its part of the work that is done, weight
by weight, whatever the others send; and within its part each priority gets at least its own. What an
application calls urgent goes before its own other requests and never costs another application
anything, so that calling everything urgent gains nothing. Nobody starves: the lowest priority has a
small part, not the leftovers.

This is start-time fair queueing in two levels (Goyal, Vin and Cheng 1996, "Start-time Fair Queueing",
sections 2 and 3). Everybody has a tag, in microseconds of work for each unit of weight: where its next
request stands. The smallest tag is served; its start moves the virtual time ``now``, and its tag goes
on by the cost over the weight. Who comes back after a rest stands at ``now``, so that rest is not
saved up; when all rest, ``now`` goes to the last tag, so that nobody owes anything either. Whatever
happens, two that both wait are apart by at most one largest request of each (theorem 1).

The cost of a request is known only when it has run. It is charged by the typical run time of its model
and settled afterwards, so that the parts are of the work that was really done.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, NamedTuple, TypeVar

from agent.foundation.errors import UsageError

APPLICATIONS_MAX = 64
"""Told apart at once; those beyond share one place. Choosing the next looks at each of them."""
WEIGHT_MAX = 1000
NOBODYS_WEIGHT = 1
"""Of an application that the operator says nothing about."""

APPLICATION_CHARS_MAX = 64
APPLICATION_PATTERN = rf"[A-Za-z0-9._-]{{1,{APPLICATION_CHARS_MAX}}}"

Item = TypeVar("Item")
_NAME = re.compile(APPLICATION_PATTERN)
_SHARE = re.compile(rf"((?:site )?{APPLICATION_PATTERN})=([1-9][0-9]{{0,3}})")


class Priority(IntEnum):
    """How urgent a request is among those of its application; numbered as Triton does.

    Source: triton-inference-server/server ``docs/protocol/extension_schedule_policy.md``: 1 is the
    highest, 0 asks for the default.
    """

    HIGH = 1
    NORMAL = 2
    LOW = 3


PARTS = (0, 16, 4, 1)
"""By priority, of its application's work where all three wait: 76, 19 and 5 %. A whole queue of normal
ones delays an urgent one by one request, and the low ones go on. (Lists that are indexed by priority
have an unused place 0: an ``Enum`` as a key of a dict is hashed by Python code, for each request.)"""
_WORDS = {
    "": Priority.NORMAL,
    "0": Priority.NORMAL,
    **{str(int(one)): one for one in Priority},
    **{one.name.lower(): one for one in Priority},
}


def read_priority(given: object) -> Priority:
    """The priority that a caller writes as a number or a word; 0 and the empty text mean normal.

    Raises:
        UsageError: it is none.
    """
    is_plain = isinstance(given, str | int) and not isinstance(given, bool)
    found = _WORDS.get(str(given).lower()) if is_plain else None
    if found is None:
        raise UsageError(
            f"priority {given!r:.40} is unknown", why="it may be 1 (high), 2 or 0 (normal), 3 (low)"
        )
    return found


def is_application_name(text: str) -> bool:
    """Whether an application may call itself so."""
    return _NAME.fullmatch(text) is not None


def read_share(text: str) -> tuple[str, int]:
    """Name and weight of an application, written ``NAME=WEIGHT``; ``site NAME`` is a member.

    Raises:
        UsageError: it is written otherwise, or the weight is beyond ``WEIGHT_MAX``.
    """
    found = _SHARE.fullmatch(text)
    if found is None or int(found[2]) > WEIGHT_MAX:
        raise UsageError(
            f"{text[:100]!r} is no share",
            why=f"it must be NAME=WEIGHT or 'site NAME=WEIGHT', the weight from 1 to {WEIGHT_MAX},"
            " for example camera=4",
        )
    return found[1], int(found[2])


class Turn(NamedTuple):
    """What decides when a request is served."""

    application: int
    """Its number, below ``APPLICATIONS_MAX`` or equal for all those beyond."""
    weight: int
    """Of the application: 1 to ``WEIGHT_MAX``."""
    priority: Priority
    cost_us: int
    """Typical run time of the model, microseconds."""


@dataclass(slots=True)
class _Line(Generic[Item]):
    """Requests of one application and one priority, in order of arrival."""

    tag: float = 0.0
    waiting: deque[tuple[Turn, Item]] = field(default_factory=deque)


@dataclass(slots=True)
class _Application(Generic[Item]):
    tag: float = 0.0
    now: float = 0.0
    """Virtual time among its lines."""
    lines: list[_Line[Item]] = field(default_factory=lambda: [_Line() for _ in PARTS])
    """By priority."""
    waiting: int = 0


class FairQueue(Generic[Item]):
    """Requests that wait for one place to be served; bounded by whoever puts them in.

    What it remembers of applications is bounded by the numbers that they have.
    """

    def __init__(self) -> None:
        self._now = 0.0
        self._applications: dict[int, _Application[Item]] = {}
        self._waiting = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._waiting

    def __iter__(self) -> Iterator[Item]:
        """Those that wait, the applications by their tags, each one's lines in order of priority."""
        for application in sorted(self._applications.values(), key=lambda one: one.tag):
            for line in application.lines:
                for _, item in line.waiting:
                    yield item

    def push(self, turn: Turn, item: Item) -> None:
        """Let ``item`` wait."""
        application, line = self._places(turn)
        if not application.waiting:
            application.tag = max(application.tag, self._now)
        if not line.waiting:
            line.tag = max(line.tag, application.now)
        line.waiting.append((turn, item))
        application.waiting += 1
        self._waiting += 1

    def pop(self, may: Callable[[int, Priority], bool] | None = None) -> tuple[Turn, Item] | None:
        """The next one, charged for its typical cost; None if nobody (that ``may``) waits.

        ``may(application, priority)``: whether requests of these are wanted now.
        """
        best: tuple[int, _Application[Item]] | None = None
        for number, application in self._applications.items():
            if (
                application.waiting
                and (best is None or application.tag < best[1].tag)
                and (may is None or _first(number, application, may))
            ):
                best = (number, application)
        if best is None:
            return None
        number, application = best
        line = _first(number, application, may)
        assert line is not None
        turn, item = line.waiting.popleft()
        self._served(turn, application, line)
        return turn, item

    def pass_by(self, turn: Turn) -> None:
        """One is served without having waited: charged as those that do."""
        application, line = self._places(turn)
        application.tag = max(application.tag, self._now)
        line.tag = max(line.tag, application.now)
        application.waiting += 1
        self._waiting += 1
        self._served(turn, application, line)

    def remove(self, turn: Turn, item: Item) -> bool:
        """Take one out that waits no more, at no charge; whether it was there."""
        application, line = self._places(turn)
        for place, (_, other) in enumerate(line.waiting):
            if other is item:
                del line.waiting[place]
                self._left(application)
                return True
        return False

    def fellows(
        self, priority: Priority, is_one: Callable[[Item], bool]
    ) -> list[tuple[Turn, Item]]:
        """Those of one priority that ``is_one``, those of the next application first."""
        return [
            (turn, item)
            for application in sorted(self._applications.values(), key=lambda one: one.tag)
            for turn, item in application.lines[priority].waiting
            if is_one(item)
        ]

    def take(self, turn: Turn, item: Item) -> None:
        """Serve one of the ``fellows`` out of its turn: charged, so that its next ones wait longer."""
        if self.remove(turn, item):
            _charge(*self._places(turn), turn, turn.cost_us)

    def settle(self, turn: Turn, ran_us: int) -> None:
        """The request has cost ``ran_us`` in truth; 0 if it did not run."""
        _charge(*self._places(turn), turn, ran_us - turn.cost_us)

    def rest(self) -> None:
        """Nobody waits and nothing runs: what was served in the past counts against nobody any more.

        Else one that has just used an idle site alone would wait for another one to catch up.
        """
        for application in self._applications.values():
            self._now = max(self._now, application.tag)
            application.now = max(application.now, *(line.tag for line in application.lines))

    def _places(self, turn: Turn) -> tuple[_Application[Item], _Line[Item]]:
        application = self._applications.get(turn.application)
        if application is None:
            application = self._applications[turn.application] = _Application(self._now)
        return application, application.lines[turn.priority]

    def _served(self, turn: Turn, application: _Application[Item], line: _Line[Item]) -> None:
        self._now = max(self._now, application.tag)
        application.now = max(application.now, line.tag)
        _charge(application, line, turn, turn.cost_us)
        self._left(application)

    def _left(self, application: _Application[Item]) -> None:
        application.waiting -= 1
        self._waiting -= 1


def _first(
    number: int, application: _Application[Item], may: Callable[[int, Priority], bool] | None
) -> _Line[Item] | None:
    """The line that is next of an application, among those that ``may``."""
    best: _Line[Item] | None = None
    for line in application.lines:
        if (
            line.waiting
            and (best is None or line.tag < best.tag)
            and (may is None or may(number, line.waiting[0][0].priority))
        ):
            best = line
    return best


def _charge(application: _Application[Item], line: _Line[Item], turn: Turn, cost_us: float) -> None:
    application.tag += cost_us / turn.weight
    line.tag += cost_us / PARTS[turn.priority]
