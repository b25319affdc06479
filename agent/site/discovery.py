"""Where members may be: every hint from every mechanism, tried with capped back-off, for ever.

A hint is an address, never a membership: a greeting over TLS decides who is there. What the operator
or this site's own past named (seeds, token, peer book) is *configured*. What was heard by multicast
DNS is *loose* until a member has answered there: anyone on the LAN can forge it, so loose hints are
few, few of one announcing host, tried a few at a time, and forgotten when they age.

Rule: a loose hint never displaces one that a member has answered, nor a configured one.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from random import Random

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.site.causes import GOOD, Cause
from agent.wire.records import Endpoint

LOOSE_MAX, PROVEN_MAX = 48, 16
"""Hints by multicast DNS: 64 in all. Who has answered is in the peer book too."""
PER_SENDER_MAX = 8
"""Loose hints of one announcing host: eight sites on it, or one with four addresses of each family."""
CONFIGURED_MAX = 160
"""64 seeds, a token's addresses, and as much of the peer book as a small cluster has."""
GREETINGS_MAX = 24
"""Loose hints greeted at once: those that do not exist hold a place until the time is over."""
LOOSE_TIMEOUT_S, TIMEOUT_S = 2.0, 10.0
"""A host on this link answers in milliseconds, a busy one later: each failure doubles the patience."""
REPLACED_SHARE = 0.1
"""Chance of a newcomer when every place is taken by what was not tried yet: who shouts most often must
not keep the others out for ever."""
RETRY_MIN_S, RETRY_MAX_S = 0.5, 30.0
AGAIN_MIN_S = 1.0
"""An announcement with news is followed at once, but not more often than this."""
AGE_MAX_S = 4500.0
"""An announcement is valid for 75 minutes (RFC 6762, section 10); then a loose hint is forgotten."""
CONFIGURED = frozenset({"seed", "token", "book"})


@dataclass(slots=True)
class Hint:
    """One address and what came of it; times in seconds of the site's clock."""

    endpoint: Endpoint
    mechanisms: set[str] = field(default_factory=set)
    """All that named this address."""
    site: SiteId | None = None
    """Who answered; else who is said to be there."""
    sender: str = ""
    """The host that announced it, if one did."""
    sequence: int = 0
    """The newest announced sequence."""
    learned_at: float = 0.0
    """When it was named last."""
    is_proven: bool = False
    """A member of this cluster has answered there."""
    attempts: int = 0
    failures: int = 0
    """In a row."""
    next_at: float = 0.0
    last_at: float | None = None
    cause: Cause = Cause.WAITING
    detail: str = ""
    """The exact words of the last failure."""
    is_under_way: bool = False

    @property
    def is_configured(self) -> bool:
        """Whether it stays for ever."""
        return not CONFIGURED.isdisjoint(self.mechanisms)

    @property
    def is_loose(self) -> bool:
        """Whether anybody may have made it up."""
        return not self.is_configured and not self.is_proven

    @property
    def is_its_own(self) -> bool:
        """Whether the host that announced the address has it: the usual, honest case."""
        return self.sender == self.endpoint.host

    @property
    def timeout_s(self) -> float:
        """How long its greeting may take."""
        if not self.is_loose:
            return TIMEOUT_S
        return min(TIMEOUT_S, LOOSE_TIMEOUT_S * 2.0 ** min(self.failures, 3))


class Discovery:
    """Candidates to greet."""

    def __init__(self, rng: Random) -> None:
        """``rng`` spreads retries."""
        self._rng = rng
        self._hints: dict[tuple[str, int], Hint] = {}
        self._wake_at: float | None = NEVER
        """When the next candidate is due; None if that has to be looked for."""
        self.turned_away = 0
        """Announcements for which there was no room."""
        self.outcomes: Counter[tuple[str, Cause]] = Counter()
        """Ended attempts, by mechanism and cause; for metrics."""

    @property
    def hints(self) -> list[Hint]:
        """All candidates, for ``atoll peers --why``."""
        return list(self._hints.values())

    def learn(
        self,
        endpoint: Endpoint,
        mechanism: str,
        site: SiteId | None,
        now: float,
        *,
        sender: str = "",
        sequence: int = 0,
    ) -> bool:
        """Take a hint; a repeated one is tried again soon if it says something new.

        Returns:
            Whether there may be somebody to greet now.
        """
        self._wake_at = None
        key = (endpoint.host, endpoint.mesh_port)
        known = self._hints.get(key)
        if known is None:
            hint = Hint(endpoint, {mechanism}, site, sender, sequence, now, next_at=now)
            if not self._make_room(hint, now):
                self.turned_away += 1
                return False
            self._hints[key] = hint
            return True
        known.mechanisms.add(mechanism)
        known.learned_at = now
        if site is None or (known.site == site and sequence <= known.sequence):
            return False
        if known.is_proven and known.site != site:
            return (
                False  # who answered is known; whoever is there now will answer the next greeting
            )
        known.site, known.sequence = site, sequence
        known.sender = sender or known.sender
        known.failures = 0
        known.next_at = now if known.last_at is None else max(now, known.last_at + AGAIN_MIN_S)
        return True

    # --- room ------------------------------------------------------------------------------------
    def _make_room(self, hint: Hint, now: float) -> bool:
        if hint.is_configured:
            return sum(1 for one in self._hints.values() if one.is_configured) < CONFIGURED_MAX
        self._age(now)
        loose = [one for one in self._hints.values() if one.is_loose]
        same = [one for one in loose if one.sender == hint.sender]
        if len(same) >= PER_SENDER_MAX:
            return self._drop([one for one in same if one.failures])
        if len(loose) < LOOSE_MAX:
            return True
        return any(self._drop(among) for among in self._lesser(hint, loose, len(same)))

    def _lesser(self, hint: Hint, loose: list[Hint], same: int) -> Iterator[list[Hint]]:
        """Groups of hints that give way to ``hint``, the first choice first."""
        yield [one for one in loose if one.failures]
        busiest, number = Counter(one.sender for one in loose).most_common(1)[0]
        if number > same + 1:
            yield [one for one in loose if one.sender == busiest]
        if hint.is_its_own:
            yield [one for one in loose if not one.is_its_own]
        if self._rng.uniform(0.0, 1.0) < REPLACED_SHARE:
            yield loose

    def _drop(self, among: list[Hint]) -> bool:
        """Forget the least promising one that is not being greeted."""
        idle = [one for one in among if not one.is_under_way]
        if not idle:
            return False
        self._rng.shuffle(idle)
        worst = max(idle, key=lambda one: (one.failures, not one.is_its_own))
        del self._hints[worst.endpoint.host, worst.endpoint.mesh_port]
        return True

    def _age(self, now: float) -> None:
        for key, hint in list(self._hints.items()):
            is_old = now - hint.learned_at > AGE_MAX_S
            if hint.is_loose and is_old and not hint.is_under_way:
                del self._hints[key]

    def _thin_out(self) -> None:
        proven = [
            key for key, hint in self._hints.items() if hint.is_proven and not hint.is_configured
        ]
        if len(proven) > PROVEN_MAX:
            proven.sort(key=lambda key: self._hints[key].learned_at)
            del self._hints[proven[0]]

    # --- trying ----------------------------------------------------------------------------------
    def due(
        self, now: float, met: set[tuple[str, int]], alive: Collection[SiteId] = ()
    ) -> list[Hint]:
        """Candidates to greet now.

        Args:
            now: the site's clock, seconds.
            met: addresses of members that are alive already, and this site's own.
            alive: those members and this site itself: a hint may be a host name, which is no
                member's address; who is behind it is known from the last greeting.
        """
        self._wake_at = None
        ready: list[Hint] = []
        loose: list[Hint] = []
        for key, hint in self._hints.items():
            if key in met or (hint.site in alive and hint.is_proven and hint.cause in GOOD):
                if hint.cause is not Cause.MYSELF:
                    hint.cause = Cause.MET
                hint.detail, hint.failures = "", 0
                hint.next_at = max(hint.next_at, now + RETRY_MAX_S)
            elif not hint.is_under_way and now >= hint.next_at:
                (loose if hint.is_loose else ready).append(hint)
        loose.sort(key=lambda hint: (hint.failures, not hint.is_its_own))
        ready += loose[: max(0, GREETINGS_MAX - self._loose_under_way())]
        for hint in ready:
            hint.is_under_way, hint.last_at = True, now
            hint.attempts += 1
        return ready

    def _loose_under_way(self) -> int:
        return sum(1 for hint in self._hints.values() if hint.is_loose and hint.is_under_way)

    def ended(
        self,
        endpoint: Endpoint,
        error: str,
        site: SiteId | None,
        now: float,
        *,
        cause: Cause = Cause.OTHER,
        is_me: bool = False,
    ) -> None:
        """A greeting ended; ``error`` empty: ``site`` answered."""
        self._wake_at = None
        hint = self._hints.get((endpoint.host, endpoint.mesh_port))
        if hint is None:
            return
        hint.is_under_way = False
        hint.failures = hint.failures + 1 if error else 0
        hint.cause = cause if error else Cause.MYSELF if is_me else Cause.ANSWERED
        hint.detail = error
        for mechanism in hint.mechanisms:
            self.outcomes[mechanism, hint.cause] += 1
        if error:
            hint.is_proven = False
        elif site is not None:
            hint.site, hint.is_proven = site, True
            self._thin_out()
        wait_s = min(RETRY_MIN_S * 2.0 ** min(hint.failures, 10), RETRY_MAX_S)
        hint.next_at = now + (wait_s if error else RETRY_MAX_S) * self._rng.uniform(0.7, 1.0)

    def hasten(self, now: float, *, is_alone: bool = False) -> None:
        """What failed before is tried again at once: the network has changed.

        ``is_alone``: nobody is heard any more, so those that were met are tried too, and say why.
        """
        self._wake_at = None
        for hint in self._hints.values():
            if hint.failures or (is_alone and hint.cause in {Cause.MET, Cause.ANSWERED}):
                hint.failures, hint.next_at = 0, now

    def wake_at(self) -> float:
        """When the next candidate is due."""
        if self._wake_at is None:
            is_full = self._loose_under_way() >= GREETINGS_MAX
            self._wake_at = min(
                (
                    hint.next_at
                    for hint in self._hints.values()
                    if not hint.is_under_way and not (is_full and hint.is_loose)
                ),
                default=NEVER,
            )
        return self._wake_at
