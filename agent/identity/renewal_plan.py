"""When a site renews its certificate, and whom it asks: a pure machine.

Theory of operation. The certificate is due after a third of its life plus a jitter, by the wall
clock. Then one site after the other is asked: known issuers first, living ones before others, then a
few other addresses, because any member can say where the issuers are and a seed may be one. A round
that nobody has granted is tried again with back-off, for ever: hours apart while there is time, a
minute apart once the certificate has ended. A site that holds an issuer key certifies itself.

The machine knows instants of two clocks: ``now`` is monotonic and decides about waiting; the wall
clock (``now`` plus an offset that the driver keeps up to date) decides about validity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import assert_never

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER, Woke
from agent.identity.certificates import Identity
from agent.identity.renewal import REFERRALS_MAX
from agent.wire.records import Endpoint

JITTER_SHARE = 1 / 12
"""Of the life: sites that were founded together do not renew together."""
RETRY_MIN_S = 5.0
RETRY_MAX_S = 3600.0
RETRY_ENDED_MAX_S = 60.0
"""Without a certificate the site is out of the mesh: an issuer that comes back is found soon."""
LEFT_SHARE = 8
"""Waiting takes at most one part in this many of the time that is left."""
ASKED_MAX = 64
"""Addresses asked in one round, issuers first."""
OTHERS_MAX = 8
"""Addresses of no known issuer in one round: each member knows where the issuers are."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address to ask."""

    endpoint: Endpoint
    site: SiteId | None
    """Who should be there, if that is known."""
    is_issuer: bool = False
    """The trust log says that it holds an issuer key."""
    is_alive: bool = False


# --- events --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ClockMoved:
    """Unix time is ``now + offset_s``."""

    offset_s: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """The operator wants it now."""


@dataclass(frozen=True, slots=True)
class Granted:
    """The new certificate is proven and on disk."""

    identity: Identity
    by: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """The asked site did not renew; ``issuers`` may know better."""

    candidate: Candidate | None
    """None: this site itself."""
    reason: str
    issuers: tuple[Candidate, ...] = ()


PlanEvent = ClockMoved | Wanted | Granted | Refusal | Woke


# --- effects -------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class AskIssuer:
    """Ask for renewal there; ends in ``Granted`` or ``Refusal``."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class CertifyMyself:
    """Use this site's own issuer key; ends in ``Granted`` or ``Refusal``."""


@dataclass(frozen=True, slots=True)
class RoundEnded:
    """Everybody was asked, or one has granted it (``error`` is empty)."""

    error: str


PlanEffect = AskIssuer | CertifyMyself | RoundEnded


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of asking one site last; for ``atoll status``."""

    where: str
    reason: str
    at: float
    """Unix time."""


class RenewalPlan:
    """``Machine[PlanEvent, PlanEffect]``."""

    def __init__(
        self,
        identity: Identity,
        *,
        candidates: Callable[[], Sequence[Candidate]],
        may_certify: Callable[[], bool],
        rng: Random,
        now: float,
        wall_offset_s: float,
    ) -> None:
        """Plan for ``identity``.

        Args:
            identity: as the present certificate says; it may have ended.
            candidates: whom to ask, looked up anew for each round.
            may_certify: whether this site holds an issuer key that counts now.
            rng: jitter and order.
            now: monotonic seconds.
            wall_offset_s: see ``ClockMoved``.
        """
        self._candidates, self._may_certify, self._rng = candidates, may_certify, rng
        self._offset_s = wall_offset_s
        self._identity = identity
        self._due_wall = self._plan(identity)
        self._queue: list[Candidate] | None = None  # None: no round is under way
        self._asked: set[tuple[str, int]] = set()
        self._is_waiting = False
        self._failures = 0
        self._retry_at = now
        self.attempts: list[Attempt] = []
        """Of the round under way or the last one; empty after a success."""

    # --- what others may read --------------------------------------------------------------------
    @property
    def due_at(self) -> float:
        """Unix time of the planned renewal."""
        return self._due_wall

    def problem(self, now: float) -> str:
        """What is wrong with the certificate, for a person; empty if nothing is."""
        wall, identity = now + self._offset_s, self._identity
        clock = f"the clock here says {_shown(wall)}"
        last = (
            f"; last asked: {self.attempts[-1].where}: {self.attempts[-1].reason}"
            if self.attempts
            else ""
        )
        if wall < identity.not_before.timestamp():
            return (
                f"this site's certificate begins {_shown(identity.not_before.timestamp())} and {clock}:"
                " set the clock; until then other sites are not called"
            )
        if wall > identity.not_after.timestamp():
            return (
                f"this site's certificate ended {_shown(identity.not_after.timestamp())}, {clock}:"
                f" other sites refuse this one until an issuer has renewed it{last}"
            )
        if self._failures and self._left_s(now) < self._life_s() / 2:
            return (
                f"this site's certificate ends {_shown(identity.not_after.timestamp())} and"
                f" {self._failures} attempts to renew it have failed{last}"
            )
        return ""

    # --- the machine -----------------------------------------------------------------------------
    def step(self, event: PlanEvent, now: float) -> list[PlanEffect]:
        """Take one event; effects in order."""
        match event:
            case Woke():
                return self._begin(now) if self._is_due(now) else []
            case ClockMoved(offset_s):
                self._offset_s = offset_s
                return []
            case Wanted():
                return self._begin(now) if self._queue is None else []
            case Granted(identity, _):
                return self._granted(identity, now)
            case Refusal(candidate, reason, issuers):
                return self._refused(candidate, reason, issuers, now)
            case _:
                assert_never(event)

    def wake_at(self) -> float:
        """When ``Woke`` is wanted; moves with the wall clock."""
        if self._queue is not None:
            return NEVER
        return max(self._retry_at, self._due_wall - self._offset_s)

    def _is_due(self, now: float) -> bool:
        return now >= self.wake_at()

    def _begin(self, now: float) -> list[PlanEffect]:
        self.attempts, self._asked = [], set()
        if self._may_certify():
            self._queue, self._is_waiting = [], True
            return [CertifyMyself()]
        found = list(self._candidates())
        self._rng.shuffle(found)
        found.sort(key=lambda one: (not one.is_issuer, not one.is_alive))
        issuers = [one for one in found if one.is_issuer]
        others = [one for one in found if not one.is_issuer]
        self._queue = [*issuers, *others[:OTHERS_MAX]]
        return self._next(now)

    def _next(self, now: float) -> list[PlanEffect]:
        queue = self._queue
        assert queue is not None, "a round is under way"
        while queue and len(self._asked) < ASKED_MAX:
            candidate = queue.pop(0)
            key = _address(candidate)
            if key not in self._asked:
                self._asked.add(key)
                self._is_waiting = True
                return [AskIssuer(candidate)]
        return self._failed(now)

    def _granted(self, identity: Identity, now: float) -> list[PlanEffect]:
        self._identity, self._due_wall = identity, self._plan(identity)
        self._retry_at = now + RETRY_MIN_S  # should an issuer give what is due again at once
        self._queue, self._is_waiting, self._failures, self.attempts = None, False, 0, []
        return [RoundEnded("")]

    def _refused(
        self, candidate: Candidate | None, reason: str, issuers: Sequence[Candidate], now: float
    ) -> list[PlanEffect]:
        if self._queue is None or not self._is_waiting:
            return []
        self._is_waiting = False
        where = "this site itself" if candidate is None else "{}:{}".format(*_address(candidate))
        self.attempts.append(Attempt(where, reason, now + self._offset_s))
        if candidate is None:
            return self._failed(now)
        self._queue[:0] = issuers[:REFERRALS_MAX]
        return self._next(now)

    def _failed(self, now: float) -> list[PlanEffect]:
        self._queue, self._is_waiting = None, False
        self._failures += 1
        wait_s = min(RETRY_MIN_S * 2.0 ** min(self._failures - 1, 12), RETRY_MAX_S)
        left_s = self._left_s(now)
        longest_s = left_s / LEFT_SHARE if left_s > 0 else RETRY_ENDED_MAX_S
        wait_s = min(wait_s, max(longest_s, RETRY_MIN_S))
        self._retry_at = now + wait_s * self._rng.uniform(0.7, 1.0)
        said = "; ".join(f"{one.where}: {one.reason}" for one in self.attempts)
        return [RoundEnded(said or "no other site is known to ask")]

    # --- time ------------------------------------------------------------------------------------
    def _plan(self, identity: Identity) -> float:
        life_s = (identity.not_after - identity.begins_at).total_seconds()
        return identity.renew_at().timestamp() + life_s * JITTER_SHARE * self._rng.random()

    def _life_s(self) -> float:
        return (self._identity.not_after - self._identity.begins_at).total_seconds()

    def _left_s(self, now: float) -> float:
        return self._identity.not_after.timestamp() - (now + self._offset_s)


def _address(candidate: Candidate) -> tuple[str, int]:
    return candidate.endpoint.host, candidate.endpoint.mesh_port


def _shown(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M} UTC"
