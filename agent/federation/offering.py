"""One site's offer of an update to whoever aggregates: said once, repeated until it is taken.

Rule: nothing is promised by ``collected``. An update is offered again to the next aggregator, and for the
next round, as long as it is not known to be counted. Every retry waits, longer each time, and starts
anew when the register has moved.
"""

from collections.abc import Callable
from dataclasses import dataclass

from agent.federation.desk import Desk
from agent.federation.value import JobValue
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.mesh import Offer, OfferReply, Reply

OFFER_TIMEOUT_S = 5.0
RETRY_AFTER_S = 0.5
RETRY_AFTER_MAX_S = 8.0


@dataclass(frozen=True, slots=True)
class Ears:
    """Who is to know what came of an offer."""

    collect: Callable[[SiteId, Offer, float], OfferReply]
    """This site's own aggregation, if it is the aggregator."""
    refresh: Callable[[float], None]
    """It did not take the update, or did not answer: the register may have moved. (A watch tells whether
    it is gone.)"""


class Offering:
    """The conversation about one job's updates of this site."""

    def __init__(
        self, me: SiteId, desk: Desk, ears: Ears, again: Callable[[JobValue, float], None]
    ) -> None:
        """``again``: look once more at what is to be offered."""
        self._me, self._desk, self._ears, self._again = me, desk, ears, again
        self._value: JobValue | None = None
        self._taken: tuple[int, int, Digest] | None = None
        self._refused: tuple[object, Digest] | None = None
        """Where the register stood when this update was not taken: no reason to offer it again at once."""
        self._is_asking = self.is_over = False
        self._again_at = NEVER
        self._pause_s = RETRY_AFTER_S

    def follow(self, value: JobValue) -> None:
        """The register is known to hold ``value``."""
        if self._value is None or self._value.progress != value.progress:
            self._pause_s = RETRY_AFTER_S
        self._value = value

    def end(self) -> None:
        """Nothing more is offered."""
        self.is_over, self._again_at = True, NEVER

    def is_taken(self, update: Digest, value: JobValue) -> bool:
        """Whether the aggregator has said, in this epoch and round, that it has the update."""
        return self._taken == (value.epoch, value.round, update)

    def retry(self, now: float) -> None:
        """Look again after a while."""
        self._again_at = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, RETRY_AFTER_MAX_S)

    def offer(self, offer: Offer, now: float) -> None:
        """Offer it to the present aggregator, unless that has it, is being asked, or just refused it."""
        value = self._value
        assert value is not None, "what is offered follows from the register"
        key = (value.progress, offer.update)
        was_just_refused = self._refused == key and now < self._again_at
        if self._is_asking or self.is_taken(offer.update, value) or was_just_refused:
            return
        if value.aggregator == self._me:
            # No reason to look: what this site aggregates it knows itself.
            if self._ears.collect(self._me, offer, now).outcome == "collected":
                self._taken = (value.epoch, value.round, offer.update)
            else:
                self._refused = key
                self.retry(now)
            return
        self._is_asking = True

        def answered(reply: Reply | None, at: float) -> None:
            self._is_asking = False
            if isinstance(reply, OfferReply) and reply.outcome == "collected":
                self._taken = (value.epoch, value.round, offer.update)
            if not self.is_over:
                self._answered(offer.update, value, at)

        self._desk.ask(value.aggregator, offer, OFFER_TIMEOUT_S, answered)

    def _answered(self, update: Digest, value: JobValue, at: float) -> None:
        if not self.is_taken(update, value):
            self._refused = (value.progress, update)
            self.retry(at)
            self._ears.refresh(at)
        elif self._value is not None and self._value.progress != value.progress:
            self._again(self._value, at)  # another aggregator by now, or another round

    def woke(self, now: float) -> None:
        """Look again when due."""
        if now >= self._again_at:
            self._again_at, self._refused = NEVER, None
            if self._value is not None:
                self._again(self._value, now)

    def wake_at(self) -> float:
        """When a retry is due."""
        return self._again_at
