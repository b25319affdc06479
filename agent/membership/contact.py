"""Whether anybody answers this site: the difference between 'they are gone' and 'I am cut off'.

Only answers count (acks, nacks, finished syncs): a site whose uplink is dead still hears others. A
site without answers asks several members at once, over UDP and TCP, and then says that it is
isolated. While nobody answers it condemns nobody.
"""

from agent.foundation.machine import NEVER
from agent.membership.settings import Settings

ASK_AGAIN_S = 1.0


class Contact:
    """Time since anybody answered."""

    def __init__(self, settings: Settings, now: float) -> None:
        """The clock of silence starts when the first member is expected to answer."""
        self._settings = settings
        self._heard_at = now
        self._ask_at = NEVER
        self.is_isolated = False
        self._is_expected = False

    @property
    def wake_at(self) -> float:
        """When ``run`` wants to be called."""
        if not self._is_expected:
            return NEVER
        isolated_at = NEVER if self.is_isolated else self._heard_at + self._settings.isolation_s
        return min(self._ask_at, isolated_at)

    def expect(self, now: float, *, somebody: bool) -> None:
        """Whether there is anybody to answer; silence counts from the first moment on."""
        if somebody and not self._is_expected:
            self._heard_at = max(self._heard_at, now)
            self._ask_at = self._heard_at + self._settings.silence_s
        self._is_expected = somebody

    def heard(self, now: float) -> None:
        """Somebody answered: a silence and an isolation are over."""
        self._heard_at = now
        self._ask_at = now + self._settings.silence_s
        self.is_isolated = False

    def lagged(self, lag_s: float, now: float) -> None:
        """We stood still for ``lag_s``: nobody's answer could be heard."""
        self._heard_at = min(now, self._heard_at + lag_s)
        self._ask_at = max(self._ask_at, self._heard_at + self._settings.silence_s)

    def is_silent(self, now: float) -> bool:
        """Whether several were asked and nobody answered: no time to judge others."""
        return now >= self._heard_at + self._settings.silence_s + ASK_AGAIN_S

    def must_ask(self, now: float) -> bool:
        """Whether to ask several members at once now; rearms itself."""
        if not self._is_expected or self._ask_at > now:
            return False
        self._ask_at = now + ASK_AGAIN_S
        return True

    def became_isolated(self, now: float) -> bool:
        """Whether the silence has just become an isolation."""
        if (
            not self._is_expected
            or self.is_isolated
            or now < self._heard_at + self._settings.isolation_s
        ):
            return False
        self.is_isolated = True
        return True
