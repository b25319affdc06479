"""Models under which a worker has ended: they may be why, and must not take the other workers along.

A worker ends for many reasons (the kernel's memory killer, a person), so what ran in it is run again by
another, once. If the model then ends that one too, or loses the next before it has answered anybody, it
is the likelier reason: what loses its worker under it is refused at once, and all other models go on
being served. The control process counts crashes for itself and quarantines (``agent.site.shelf``).
"""

SUSPECTS_MAX = 256
"""More models than a site runs at once; beyond it the oldest is forgotten."""


class Suspects:
    """Models that have lost a worker and have not answered since; pure."""

    def __init__(self) -> None:
        self._keys: dict[bytes, None] = {}

    def lost(self, key: bytes) -> bool:
        """A worker has ended while it ran the model; whether it is suspected of that already."""
        is_suspect = key in self._keys
        if not is_suspect and len(self._keys) >= SUSPECTS_MAX:
            del self._keys[next(iter(self._keys))]
        self._keys[key] = None
        return is_suspect

    def answered(self, key: bytes) -> None:
        """The model has run to its end."""
        if self._keys:
            self._keys.pop(key, None)
