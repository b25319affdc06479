"""Which requests are let in: the queue is bounded by time, not by count.

A request waits for the work in front of it. That work is known: each admitted request counts with
the typical run time of its model until it is answered. When the wait would be longer than the site
allows, or than the request's own deadline leaves, it is refused at once with the time after which
trying again makes sense; work that cannot end in time is never begun.
"""

from dataclasses import dataclass

from agent.foundation.errors import Busy

SERVICE_US_UNKNOWN = 10_000
"""Assumed for a model that has not run yet: refusing all or queueing all would both be wrong."""
SMOOTHING = 0.1
"""Weight of a new measurement in the moving average of a model's run time."""
RETRY_AFTER_S_MIN = 0.05


@dataclass(frozen=True, slots=True)
class Ticket:
    """An admitted request; handed back when it is answered, however it ends."""

    key: bytes
    service_us: int


class Admission:
    """The admitted work of one site and the run times it is judged by."""

    def __init__(self, *, queue_max_s: float, waiting_max: int) -> None:
        """Admit while the wait is at most ``queue_max_s`` and ``waiting_max`` requests are in."""
        self._queue_max_s = queue_max_s
        self._waiting_max = waiting_max
        self._work_us = 0
        self._in_flight = 0
        self._service_us: dict[bytes, float] = {}
        self._only_warmed_up: set[bytes] = set()

    @property
    def in_flight(self) -> int:
        """Requests that are admitted and not answered."""
        return self._in_flight

    def wait_s(self, runners: int) -> float:
        """How long a request that comes now waits, seconds, with ``runners`` working at once."""
        return self._work_us / max(runners, 1) / 1e6

    def service_us(self, key: bytes) -> int:
        """Typical run time of a model, microseconds."""
        return max(1, round(self._service_us.get(key, SERVICE_US_UNKNOWN)))

    def known_services(self) -> dict[bytes, int]:
        """Typical run times of the models that have run, microseconds."""
        return {key: max(1, round(value)) for key, value in self._service_us.items()}

    def seed(self, key: bytes, service_us: int) -> None:
        """Take the warm-up's run time for want of better: the first real one replaces it."""
        if service_us > 0 and key not in self._service_us:
            self._service_us[key] = float(service_us)
            self._only_warmed_up.add(key)

    def forget(self, keys: set[bytes]) -> None:
        """Keep run times of ``keys`` only: the rest is not served here any more."""
        self._service_us = {k: v for k, v in self._service_us.items() if k in keys}
        self._only_warmed_up &= keys

    def admit(self, key: bytes, *, runners: int, left_s: float) -> Ticket:
        """Let a request in that has ``left_s`` seconds to its deadline.

        Raises:
            Busy: it would wait too long; ``retry_after_s`` is when it would not.
        """
        wait_s = self.wait_s(runners)
        service_us = self.service_us(key)
        limit_s = min(self._queue_max_s, left_s - service_us / 1e6)
        if self._in_flight >= self._waiting_max or (self._in_flight and wait_s > limit_s):
            raise Busy(
                "the site is busy",
                why=f"a request would wait {wait_s:.2f} s, the limit is {max(limit_s, 0.0):.2f} s",
                mend="try again later",
                retry_after_s=max(wait_s - self._queue_max_s / 2, RETRY_AFTER_S_MIN),
            )
        self._work_us += service_us
        self._in_flight += 1
        return Ticket(key, service_us)

    def release(self, ticket: Ticket, run_us: int | None = None) -> None:
        """The request has ended; ``run_us`` is its measured run time if the model ran."""
        self._work_us -= ticket.service_us
        self._in_flight -= 1
        if run_us:
            known = self._service_us.get(ticket.key)
            if known is None or ticket.key in self._only_warmed_up:
                known = float(run_us)
                self._only_warmed_up.discard(ticket.key)
            self._service_us[ticket.key] = known + SMOOTHING * (run_us - known)
