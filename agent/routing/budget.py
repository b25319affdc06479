"""A budget for extra work: so many for each request, so that trouble is not multiplied.

Source: the retry budget of Twitter's Finagle (``RetryBudget``): each request deposits a share of a
token, each extra one withdraws a whole token. Retries without a budget turn an overload into a storm.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class Budget:
    """At most ``share`` extra requests for each request, and ``saved_max`` at once after quiet."""

    share: float
    saved_max: float
    saved: float
    """Tokens at the start and now."""

    def deposit(self) -> None:
        """A request has come."""
        self.saved = min(self.saved + self.share, self.saved_max)

    def withdraw(self) -> bool:
        """Whether one more may be sent; it is counted if so."""
        if self.saved < 1.0:
            return False
        self.saved -= 1.0
        return True
