"""Whom to probe next, and the probes and relays that are under way (SWIM sections 3.1 and 4.3).

Every second probe goes to the ring successor (the next SiteId among reachable members), the others
round-robin through a shuffled list as in SWIM. The ring bounds the time to a first failed probe to
two periods instead of an exponential tail; the shuffled half keeps SWIM's guarantees when
neighbours fail together.
"""

from dataclasses import dataclass, field
from typing import Literal

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.foundation.randomness import Rng


@dataclass(slots=True)
class Probe:
    """One question whether ``target`` is there."""

    number: int
    target: SiteId
    sent_at: float
    due_at: float
    stage: Literal["direct", "indirect"] = "direct"
    relays: set[SiteId] = field(default_factory=set)
    nacks: set[SiteId] = field(default_factory=set)
    refused_at: float | None = None
    repeat_at: float = NEVER
    """When to ping again after a first refusal."""
    has_send_failed: bool = False


@dataclass(slots=True)
class Relay:
    """A probe made for ``asker``, who knows it as ``asked_number``."""

    number: int
    asker: SiteId
    asked_number: int
    subject: SiteId
    nack_at: float
    drop_at: float
    is_nacked: bool = False


class ProbeOrder:
    """Chooses the target of each protocol period."""

    def __init__(self, me: SiteId, rng: Rng) -> None:
        """``me`` fixes the place on the ring."""
        self._me, self._rng = me, rng
        self._queue: list[SiteId] = []
        self._ring_for: tuple[SiteId, ...] = ()
        self._successor: SiteId | None = None
        self._beyond: SiteId | None = None
        """The last of the successors that were silent one after the other, or the first after them."""
        self._is_ring_turn = False

    def next(self, reachable: tuple[SiteId, ...]) -> SiteId | None:
        """The next target among ``reachable``; None if there is none."""
        if not reachable:
            return None
        self._is_ring_turn = not self._is_ring_turn
        if self._is_ring_turn:
            if reachable is not self._ring_for:
                above = [site for site in reachable if site > self._me]
                self._successor = min(above or reachable)
                self._ring_for = reachable
            return self._successor
        if not self._queue:
            self._queue = list(reachable)
            self._rng.shuffle(self._queue)
        return self._queue.pop()

    def beyond(self, silent: SiteId, reachable: tuple[SiteId, ...]) -> SiteId | None:
        """Who comes after a silent successor: its own watcher may be gone with it.

        None for members that are not ours to watch, and once the ring is through.
        """
        if silent not in (self._successor, self._beyond):
            return None
        above = [site for site in reachable if site > silent]
        following = min(above or reachable)
        self._beyond = None if following in (silent, self._successor) else following
        return self._beyond

    def insert(self, site: SiteId) -> None:
        """A new member enters the present round at a random place (SWIM section 4.3)."""
        self._queue.insert(self._rng.randint(0, len(self._queue)), site)


class OpenProbes:
    """Probes that wait for an ack, and probes made for others; both bounded."""

    def __init__(self, most: int) -> None:
        """At most ``most`` of each kind."""
        self._most = most
        self._number = 0
        self._probes: dict[int, Probe] = {}
        self._by_target: dict[SiteId, int] = {}
        self._relays: dict[int, Relay] = {}
        self._wake_at = NEVER
        """Never later than the earliest deadline; an earlier wake-up finds nothing due and looks anew."""

    def number(self) -> int:
        """The next message number."""
        self._number += 1
        return self._number

    def open(self, target: SiteId, now: float, due_at: float) -> Probe | None:
        """Begin a probe; None if one of this target is open or there are too many."""
        if target in self._by_target or len(self._probes) >= self._most:
            return None
        probe = Probe(self.number(), target, now, due_at)
        self._probes[probe.number] = probe
        self._by_target[target] = probe.number
        self.want(due_at)
        return probe

    def relay(
        self, asker: SiteId, asked: int, subject: SiteId, nack_at: float, drop_at: float
    ) -> Relay | None:
        """Begin a probe for another; None if there are too many."""
        if len(self._relays) >= self._most:
            return None
        relay = Relay(self.number(), asker, asked, subject, nack_at, drop_at)
        self._relays[relay.number] = relay
        self.want(nack_at)
        return relay

    def want(self, at: float) -> None:
        """A probe or relay has a deadline of its own."""
        self._wake_at = min(self._wake_at, at)

    def get(self, number: int) -> Probe | None:
        """The open probe with this number."""
        return self._probes.get(number)

    def of(self, target: SiteId) -> Probe | None:
        """The open probe of this target."""
        number = self._by_target.get(target)
        return None if number is None else self._probes[number]

    def relay_of(self, number: int) -> Relay | None:
        """The open relay with this number."""
        return self._relays.get(number)

    def close(self, probe: Probe) -> None:
        """A probe is over."""
        del self._probes[probe.number]
        del self._by_target[probe.target]
        self._rest()

    def clear(self) -> None:
        """All probes of our own are over."""
        self._probes.clear()
        self._by_target.clear()
        self._rest()

    def close_relay(self, relay: Relay) -> None:
        """A relay is over."""
        del self._relays[relay.number]
        self._rest()

    def _rest(self) -> None:
        """With nothing open nobody is woken: the idle case, where each wake-up counts."""
        if not self._probes and not self._relays:
            self._wake_at = NEVER

    def due(self, now: float) -> list[Probe]:
        """Probes that want attention."""
        return [p for p in self._probes.values() if p.due_at <= now or p.repeat_at <= now]

    def relays_due(self, now: float) -> list[Relay]:
        """Relays that want a nack or are over."""
        return [
            relay
            for relay in self._relays.values()
            if relay.drop_at <= now or (not relay.is_nacked and relay.nack_at <= now)
        ]

    def hold(self, until: float) -> None:
        """We stood still: no probe ends before ``until``."""
        for probe in self._probes.values():
            probe.due_at = max(probe.due_at, until)

    def wake_at(self) -> float:
        """When to look for what is due."""
        return self._wake_at

    def looked(self) -> None:
        """What was due is done: find the next deadline."""
        at = NEVER
        for probe in self._probes.values():
            at = min(at, probe.due_at, probe.repeat_at)
        for relay in self._relays.values():
            at = min(at, relay.drop_at if relay.is_nacked else relay.nack_at)
        self._wake_at = at
