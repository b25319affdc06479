"""Two kinds of randomness that are never mixed.

``Rng`` (a seeded ``random.Random``) is for jitter and choice and makes the simulator reproducible.
``Entropy`` is for keys, nonces and tokens and comes from the operating system in a real site.
"""

from collections.abc import Callable
from random import Random

Rng = Random
Entropy = Callable[[int], bytes]
"""``entropy(n)`` gives n unpredictable bytes."""
