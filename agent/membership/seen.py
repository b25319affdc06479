"""Statements that were dealt with: a duplicate costs one look-up, no decoding and no signature check.

Only statements that can never become news again are remembered: those that were believed and those
that are older than what is known.
"""


class Seen:
    """A bounded set in two generations: it remembers between ``most`` and twice ``most`` entries."""

    def __init__(self, most: int) -> None:
        """``most`` entries per generation."""
        self._most = most
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, body: bytes) -> bool:
        """Whether this statement was dealt with lately."""
        return body in self._young or body in self._old

    def add(self, body: bytes) -> None:
        """Remember it."""
        if len(self._young) >= self._most:
            self._old, self._young = self._young, set()
        self._young.add(body)
