"""Local health: the suspicion that the fault is mine (Lifeguard section 4.1, 'LHA-Probe').

A score of 0 is healthy. Failed probes whose relays did not even send a nack, refutations of
accusations against us, send errors and a stalled process raise it; successful probes lower it.
Probe intervals and timeouts are multiplied by ``scale``, so a slow site accuses slowly.
"""


class LocalHealth:
    """A counter between 0 and ``most``."""

    def __init__(self, most: int) -> None:
        """``most`` is Lifeguard's S."""
        self.score = 0
        self._most = most

    @property
    def scale(self) -> int:
        """Factor for probe intervals and timeouts: 1 when healthy."""
        return 1 + self.score

    def note(self, delta: int) -> None:
        """Raise (worse) or lower (better) the score within its bounds."""
        self.score = min(self._most, max(0, self.score + delta))
