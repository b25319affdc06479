"""Network coordinates: the round trip to a member that was never measured, from where both lie.

Theory of operation. Each measured round trip is a spring between two sites; a site moves itself a
little along each spring until the springs disagree least. A place has ``DIMENSIONS`` Euclidean
coordinates for the wide network and a height for the access link, which every packet climbs
whatever its direction, so that

    distance = |place - place'| + height + height' + adjustment + adjustment'

Sources: Dabek, Cox, Kaashoek, Morris 2004 (Vivaldi), section 3.5 and figure 3 (adaptive timestep),
section 5.4 (height); Ledlie, Gardner, Seltzer 2007, sections 4.1 (latency filter, see
``round_trip``) and 4.2 (gravity); Lee et al. 2010 (adjustment term). hashicorp/serf's package
``coordinate`` combines the same parts; where this differs, the reason is beside it.

Trust: a coordinate is what its owner says of itself, and it may lie. Nothing it says can be
infinite or beyond a few seconds, and one sample moves us by at most ``STEP_S_MAX`` and by at most
``GAIN`` of the round trip that we measured ourselves.
"""

import math
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

from agent.foundation.randomness import Rng

DIMENSIONS: Final = 4
"""With a height beside them; in simulated networks of 5 and 50 sites, 3 and 5 were no better."""
GAIN: Final = 0.25
"""'c_c' of figure 3: the share of a disagreement that one sample may correct."""
ERROR_GAIN: Final = 0.25
"""'c_e' of figure 3: how fast the confidence follows the samples."""
ERROR_MAX: Final = 1.5
"""Relative error of a site that knows nothing, and the worst that is believed."""
ERROR_VAGUE: Final = 0.5
"""Whoever is so unsure of its place will soon be elsewhere: worth asking again."""
ERROR_MIN: Final = 0.02
"""No place is better than the clock and the scheduler; keeps the weights finite."""
HEIGHT_S_MIN: Final = 10e-6
FIRST_HEIGHT: Final = 0.01
"""Height after the first sample, as a share of its round trip. Heights move in proportion to
themselves (section 5.4), so one that starts at nearly nothing would take minutes to grow."""
NOISE_S: Final = 0.001
"""A disagreement within this is none: it is the schedulers' (Ledlie section 4.3 uses 3 ms). Without it
the sites of a LAN would chase each other's jitter for ever."""
GRAVITY_S: Final = 0.001
GRAVITY_RHO_S: Final = 0.256
"""Pull to the origin of one sample, ``GRAVITY_S * (|place| / GRAVITY_RHO_S)^2`` (Ledlie 4.2, rho =
2^8 ms): keeps the whole cluster from drifting, and is below the noise near the origin."""
ADJUSTMENT_WINDOW: Final = 20
"""Samples in the mean of what the geometry cannot explain (serf: 20)."""
ADJUSTMENT_SAMPLES_MIN: Final = 8
"""Before, the place itself is still moving and explains the difference."""
STEP_S_MAX: Final = 0.1
"""Furthest move for one sample, whoever sent it."""
ROUND_TRIP_S_MAX: Final = 10.0
"""A longer one is a stall, not a distance."""
BOUND_S: Final = 8.0
"""Each part of a coordinate; 24 bits of microseconds hold 8.38 s."""
RELAXED_MAX: Final = 8
"""Remembered measurements that are weighed again at each new one: see ``Position.observe``."""
RELAXED_SAMPLES: Final = 100
RELAXED_ERROR: Final = 0.03
"""For so many samples after a start, and above this error; a place that is found is kept by one
spring at a time."""

COORDINATE_BYTES: Final = 3 * (DIMENSIONS + 2) + 1
_MICRO: Final = 1e6
_ERROR_UNITS: Final = 100


@dataclass(frozen=True, slots=True)
class Coordinate:
    """Where one site lies; lengths in seconds. Every part is finite and within ``BOUND_S``."""

    place: tuple[float, ...]
    height_s: float
    adjustment_s: float
    error: float
    """Its owner's estimate of its own relative error, 0 to ``ERROR_MAX``."""

    @property
    def is_sound(self) -> bool:
        """Whether it is finite, within the bounds, and of this geometry."""
        return (
            len(self.place) == DIMENSIONS
            and all(abs(part) <= BOUND_S for part in (*self.place, self.adjustment_s))
            and 0 < self.height_s <= BOUND_S
            and 0 <= self.error <= ERROR_MAX
        )

    @staticmethod
    def is_vague(data: bytes) -> bool:
        """Whether packed bytes are no coordinate, or one whose owner does not know its place yet."""
        return len(data) != COORDINATE_BYTES or data[-1] > ERROR_VAGUE * _ERROR_UNITS

    def distance_s(self, other: Self) -> float:
        """The estimated round trip between two sites, > 0."""
        plain_s = self.plain_distance_s(other)
        adjusted_s = plain_s + self.adjustment_s + other.adjustment_s
        return adjusted_s if adjusted_s > 0 else plain_s

    def plain_distance_s(self, other: Self) -> float:
        """The distance without the adjustments (Vivaldi section 5.4)."""
        return math.dist(self.place, other.place) + self.height_s + other.height_s

    def moved_s(self, other: Self) -> float:
        """How far two coordinates of one site are apart: the most that any distance changed."""
        return (
            math.dist(self.place, other.place)
            + abs(self.height_s + self.adjustment_s - other.height_s - other.adjustment_s)
        )  # fmt: skip

    def pack(self) -> bytes:
        """``COORDINATE_BYTES`` bytes: microseconds in 24 bits each, the error in hundredths."""
        parts = (*self.place, self.adjustment_s, self.height_s)
        micros = b"".join(round(part * _MICRO).to_bytes(3, "big", signed=True) for part in parts)
        return micros + bytes((round(self.error * _ERROR_UNITS),))

    @classmethod
    def unpack(cls, data: bytes) -> Self | None:
        """The inverse of ``pack``; None for anything else (also for a later geometry)."""
        if len(data) != COORDINATE_BYTES:
            return None
        bounds = range(0, COORDINATE_BYTES, 3)
        *place, adjustment_s, height_s = (
            int.from_bytes(data[low:high], "big", signed=True) / _MICRO
            for low, high in pairwise(bounds)
        )
        found = cls(
            tuple(place), max(height_s, HEIGHT_S_MIN), adjustment_s, data[-1] / _ERROR_UNITS
        )
        return found if height_s >= 0 and found.is_sound else None


UNKNOWN: Final = Coordinate((0.0,) * DIMENSIONS, HEIGHT_S_MIN, 0.0, ERROR_MAX)
"""Where a site is before its first sample."""


class Position:
    """This site's own coordinate, moved by its measurements."""

    _place: list[float]
    _height_s: float
    _adjustment_s: float
    _error: float
    coordinate: Coordinate
    """Where this site lies now."""

    def __init__(self, rng: Rng, start: Coordinate | None = None) -> None:
        """``start`` is where this site was before a restart; it is believed half.

        Args:
            rng: the direction in which two sites at one place leave each other.
            start: a sound coordinate, or None.
        """
        self._rng = rng
        self._residues: deque[float] = deque(maxlen=ADJUSTMENT_WINDOW)
        self._measured: dict[bytes, tuple[Coordinate, float]] = {}
        self.samples = 0
        """Measurements taken in this life."""
        self._become(UNKNOWN if start is None or not start.is_sound else start)
        self._error = max(self._error, ERROR_MAX / 2)
        self._tell()

    def observe(self, site: bytes, other: Coordinate, round_trip_s: float) -> bool:
        """Take one filtered round trip to ``site`` at ``other``; False if it is refused.

        While this site is new, the last measurements of up to ``RELAXED_MAX`` other sites are
        weighed once more: probes are seconds apart, and finding a place would else take minutes.
        """
        if not other.is_sound or not 0 < round_trip_s <= ROUND_TRIP_S_MAX:
            return False
        self.samples += 1
        if self.coordinate == UNKNOWN:
            self._height_s = max(FIRST_HEIGHT * round_trip_s, HEIGHT_S_MIN)
        if self._error > RELAXED_ERROR:
            for remembered, measured_s in self._measured.values():
                self._pull(remembered, measured_s)
        self._pull(other, round_trip_s)
        self._remember(site, other, round_trip_s)
        self._adjust(other, round_trip_s)
        self._tell()
        return True

    def _become(self, coordinate: Coordinate) -> None:
        self._place = list(coordinate.place)
        self._height_s, self._error = coordinate.height_s, coordinate.error
        self._adjustment_s = coordinate.adjustment_s

    def _tell(self) -> None:
        self.coordinate = Coordinate(
            tuple(self._place), self._height_s, self._adjustment_s, self._error
        )

    def _remember(self, site: bytes, other: Coordinate, round_trip_s: float) -> None:
        self._measured.pop(site, None)
        if self.samples >= RELAXED_SAMPLES:
            self._measured.clear()
            return
        self._measured[site] = (other, round_trip_s)
        if len(self._measured) > RELAXED_MAX:
            del self._measured[next(iter(self._measured))]

    def _pull(self, other: Coordinate, round_trip_s: float) -> None:
        """One spring: figure 3 of the Vivaldi paper, with the height vectors of section 5.4."""
        place = self._place
        flat_s, up_s = math.dist(place, other.place), self._height_s + other.height_s
        amiss_s = round_trip_s - flat_s - up_s
        if abs(amiss_s) < NOISE_S:
            amiss_s = 0.0
        mine, theirs = max(self._error, ERROR_MIN), max(other.error, ERROR_MIN)
        weight = mine / (mine + theirs)
        share = ERROR_GAIN * weight
        sample_error = min(abs(amiss_s) / round_trip_s, ERROR_MAX)
        self._error = min(sample_error * share + self._error * (1 - share), ERROR_MAX)
        if amiss_s:
            most_s = min(GAIN * round_trip_s, STEP_S_MAX)
            self._push(other, flat_s, up_s, _bounded(GAIN * weight * amiss_s, most_s))
        far_s = math.hypot(*place)
        gravity = GRAVITY_S * far_s / (GRAVITY_RHO_S * GRAVITY_RHO_S)
        if gravity > 0:
            keep = 1.0 - min(gravity, GAIN)
            for axis, at in enumerate(place):
                place[axis] = at * keep

    def _push(self, other: Coordinate, flat_s: float, up_s: float, force_s: float) -> None:
        """Move by ``force_s`` along the unit vector from ``other`` to here; back if negative."""
        place = self._place
        if flat_s > HEIGHT_S_MIN:
            stride = force_s / (flat_s + up_s)
            for axis, there in enumerate(other.place):
                at = place[axis]
                place[axis] = _bounded(at + stride * (at - there), BOUND_S)
            self._height_s = min(max(self._height_s + stride * up_s, HEIGHT_S_MIN), BOUND_S)
            return
        anywhere = [self._rng.uniform(-1.0, 1.0) for _ in place]
        stride = force_s / (math.hypot(*anywhere) or 1.0)
        for axis, along in enumerate(anywhere):
            place[axis] = _bounded(place[axis] + stride * along, BOUND_S)

    def _adjust(self, other: Coordinate, round_trip_s: float) -> None:
        """Half of what the geometry leaves unexplained, on average (Lee et al. 2010)."""
        plain_s = math.dist(self._place, other.place) + self._height_s + other.height_s
        self._residues.append(round_trip_s - plain_s)
        if len(self._residues) >= ADJUSTMENT_SAMPLES_MIN:
            mean_s = sum(self._residues) / len(self._residues)
            self._adjustment_s = _bounded(mean_s / 2, STEP_S_MAX)


def _bounded(value: float, most: float) -> float:
    return min(max(value, -most), most)
