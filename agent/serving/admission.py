"""Which requests are let in: the queue is bounded by time, not by count, for each application.

A request waits for the work that goes before it. That work is known: each admitted request counts with
the typical run time of its model until it is answered, and whose turn comes first follows from
``serving.fair``. When the wait would be longer than the site allows, or than the request's own
deadline leaves, it is refused at once with the time after which trying again makes sense; work that
cannot end in time is never begun.

So whoever asks for more than its part is refused first: the work of an application counts against
another one only as far as it goes before it. One that has nothing waiting is let in however much the
others send.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from agent.foundation.errors import Busy
from agent.serving.fair import APPLICATIONS_MAX, NOBODYS_WEIGHT, PARTS, Priority, Turn

SERVICE_US_UNKNOWN = 10_000
"""Assumed for a model that has not run yet: refusing all or queueing all would both be wrong."""
SMOOTHING = 0.1
"""Weight of a new measurement in the moving average of a model's run time."""
RETRY_AFTER_S_MIN = 0.05
OTHERS = "others"
"""Whose name stands for all that are beyond ``APPLICATIONS_MAX``."""
KEPT_PART = 8
"""One in so many of the requests let in at once is kept from each flow, so that no flow holds all."""


class Ticket(NamedTuple):
    """An admitted request; handed back when it is answered, however it ends."""

    key: bytes
    application: str
    """As it is counted: its own name, or ``OTHERS``."""
    turn: Turn
    is_alone: bool = False
    """Nothing else was in."""


@dataclass(slots=True)
class _Share:
    """The admitted work of one application."""

    number: int
    weight: int
    requests: list[int] = field(default_factory=lambda: [0] * len(PARTS))
    """By priority."""
    work_us: list[int] = field(default_factory=lambda: [0] * len(PARTS))
    """By priority."""
    in_flight: int = 0
    total_us: int = 0

    def ahead_us(self, priority: Priority) -> float:
        """Of its own work, what goes before a request of ``priority`` that comes now."""
        mine = self.work_us[priority]
        if mine == self.total_us:
            return mine
        each = mine / PARTS[priority]
        return sum(map(min, self.work_us, (each * part for part in PARTS)))


class Admission:
    """The admitted work of one site and the run times it is judged by."""

    def __init__(
        self,
        *,
        queue_max_s: float,
        waiting_max: int,
        weights: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Admit while the wait is at most ``queue_max_s`` and ``waiting_max`` requests are in.

        ``weights`` of applications by name, at most ``APPLICATIONS_MAX``; any other has
        ``NOBODYS_WEIGHT``.
        """
        self._queue_max_s = queue_max_s
        self._waiting_max = waiting_max
        self._flow_max = most_of_one(waiting_max)
        self._work_us = 0
        self._in_flight = 0
        self._fixed = frozenset(weights)
        self._shares = {
            name: _Share(number, weight) for number, (name, weight) in enumerate(weights.items())
        }
        self._others = _Share(APPLICATIONS_MAX, NOBODYS_WEIGHT)
        self._service_us: dict[bytes, float] = {}
        self._alone_us: dict[bytes, float] = {}
        """Of the runs that met nothing else."""
        self._only_warmed_up: set[bytes] = set()

    @property
    def in_flight(self) -> int:
        """Requests that are admitted and not answered."""
        return self._in_flight

    def name_of(self, application: str) -> str:
        """Under which name an application is counted now."""
        return application if application in self._shares else OTHERS

    def wait_s(self, runners: int) -> float:
        """How long all admitted work takes, seconds, with ``runners`` working at once."""
        return self._work_us / max(runners, 1) / 1e6

    def service_us(self, key: bytes) -> int:
        """Typical run time of a model, microseconds."""
        return max(1, round(self._service_us.get(key, SERVICE_US_UNKNOWN)))

    def known_services(self) -> dict[bytes, int]:
        """Typical run times of the models that have run, microseconds: what a run that came now would take.

        Runs beside others take longer. A site where nothing is under way tells what they take alone: else
        nobody would send it anything after a rush, and it would never find out that it is as fast as before.
        """
        times_us = self._service_us if self._in_flight else self._service_us | self._alone_us
        return {key: max(1, round(value)) for key, value in times_us.items()}

    def seed(self, key: bytes, service_us: int) -> None:
        """Take the warm-up's run time for want of better: the first real one replaces it."""
        if service_us > 0 and key not in self._service_us:
            self._service_us[key] = float(service_us)
            self._only_warmed_up.add(key)

    def forget(self, keys: set[bytes]) -> None:
        """Keep run times of ``keys`` only: the rest is not served here any more."""
        self._service_us = {k: v for k, v in self._service_us.items() if k in keys}
        self._alone_us = {k: v for k, v in self._alone_us.items() if k in keys}
        self._only_warmed_up &= keys

    def admit(
        self, key: bytes, application: str, priority: Priority, *, runners: int, left_s: float
    ) -> Ticket:
        """Let a request in that has ``left_s`` seconds to its deadline.

        Whose turn it is next waits for the first of the ``runners`` to end its run. That is not held
        against it, or those who run would keep it out for ever; but its deadline has to allow it.

        Raises:
            Busy: it would wait too long; ``retry_after_s`` is when it would not.
        """
        name, share = self._share(application)
        service_us = self.service_us(key)
        wait_s = rest_s = 0.0
        if self._in_flight >= max(runners, 1):  # else one is free
            wait_s = self._ahead_us(share, priority) / max(runners, 1) / 1e6
            rest_s = self._work_us / self._in_flight / (runners + 1) / 1e6
        spare_s = left_s - service_us / 1e6
        limit_s = min(self._queue_max_s, spare_s)
        is_full = self._in_flight >= self._waiting_max or share.requests[priority] >= self._flow_max
        if is_full or (self._in_flight and (wait_s > limit_s or rest_s > spare_s)):
            raise Busy(
                "the site is busy",
                why=f"{share.requests[priority]} such requests of {name} are in already"
                if is_full
                else f"a request would wait {max(wait_s, rest_s):.2f} s,"
                f" the limit is {max(limit_s, 0.0):.2f} s",
                mend="try again later",
                retry_after_s=max(wait_s - self._queue_max_s / 2, RETRY_AFTER_S_MIN),
            )
        self._count(share, priority, 1, service_us)
        turn = Turn(share.number, share.weight, priority, service_us)
        return Ticket(key, name, turn, self._in_flight == 1)

    def release(self, ticket: Ticket, run_us: int | None = None) -> None:
        """The request has ended; ``run_us`` is its measured run time if the model ran."""
        turn = ticket.turn
        share = self._others if ticket.application == OTHERS else self._shares[ticket.application]
        self._count(share, turn.priority, -1, -turn.cost_us)
        if run_us:
            known = self._service_us.get(ticket.key)
            if known is None or ticket.key in self._only_warmed_up:
                known = float(run_us)
                self._only_warmed_up.discard(ticket.key)
            self._service_us[ticket.key] = known + SMOOTHING * (run_us - known)
            if ticket.is_alone:
                alone = self._alone_us.get(ticket.key, float(run_us))
                self._alone_us[ticket.key] = alone + SMOOTHING * (run_us - alone)

    def _ahead_us(self, share: _Share, priority: Priority) -> float:
        """The work that goes before a request that comes now.

        Until the application's own is done, each other one gets at most its part beside it.
        """
        own_us = share.ahead_us(priority)
        ahead_us = own_us
        if share.in_flight == self._in_flight:
            return ahead_us
        for other in (*self._shares.values(), self._others):
            if other is not share and other.in_flight:
                ahead_us += min(other.total_us, own_us * other.weight / share.weight)
        return ahead_us

    def _share(self, application: str) -> tuple[str, _Share]:
        """Where an application is counted, and under which name."""
        share = self._shares.get(application)
        if share is not None:
            return application, share
        if application == OTHERS:
            return OTHERS, self._others
        number = len(self._shares)
        if number >= APPLICATIONS_MAX:
            idle = (
                name
                for name, one in self._shares.items()
                if not one.in_flight and name not in self._fixed
            )
            if (former := next(idle, None)) is None:
                return OTHERS, self._others
            number = self._shares.pop(former).number
        share = self._shares[application] = _Share(number, NOBODYS_WEIGHT)
        return application, share

    def _count(self, share: _Share, priority: Priority, requests: int, work_us: int) -> None:
        share.requests[priority] += requests
        share.work_us[priority] += work_us
        share.in_flight += requests
        share.total_us += work_us
        self._in_flight += requests
        self._work_us += work_us


def most_of_one(places: int) -> int:
    """How many of ``places`` one flow (an application's requests of one priority) may hold."""
    return max(1, places - max(1, places // KEPT_PART))
