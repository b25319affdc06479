"""The lease: how long an aggregator takes it for granted that nobody else has claimed. It saves work only.

Rule: correctness never looks here. A holder whose lease has lapsed reads the register before it starts a piece
of work; one that does not notice (it was stopped, its clock is wrong) loses its commit to the epoch, nothing
else. Observers need no clock: a broken watch tells them, and the register decides.

Only the holder's own monotonic clock is used. It counts from the moment that it *asked* a majority that
confirmed the epoch, not from the moment that the answer came.

Source: Gray and Cheriton 1989, section 3; research/membership.md section 7, pitfall 9.
"""

from math import inf

LEASE_S = 15.0
"""Half as long again as an aggregator lets pass between two readings of its register."""


class Lease:
    """One site's own, of one register."""

    def __init__(self) -> None:
        """Not held."""
        self._asked_at = -inf

    def renewed(self, asked_at: float) -> None:
        """A majority has answered what was asked at ``asked_at`` (monotonic, seconds)."""
        self._asked_at = max(self._asked_at, asked_at)

    def is_held(self, now: float) -> bool:
        """Whether what that majority said may still be taken for granted."""
        return now < self._asked_at + LEASE_S
