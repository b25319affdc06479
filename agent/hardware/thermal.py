"""The thermal ladder: from a temperature to what the site may still do.

It climbs at once and comes down one crossing at a time, only after the temperature has fallen
``hysteresis_c`` below the threshold it climbed over; so a temperature that hovers at a threshold
changes nothing more than once. A sensor that stops answering leaves the level as it is.
"""

from enum import IntEnum
from fnmatch import fnmatchcase

from agent.hardware.profile import ThermalPart


class Heat(IntEnum):
    """What the site may still do."""

    NORMAL = 0
    WARM = 1
    """No work from other sites."""
    HOT = 2
    """Local requests only, no training."""
    STOP = 3
    """No inference at all, alarm."""


class ThermalLadder:
    """The level of one machine over time."""

    def __init__(self, settings: ThermalPart) -> None:
        """Start at ``NORMAL``."""
        self._zones = settings.zones
        self._thresholds = (settings.warn_c, settings.throttle_c, settings.stop_c)
        self._hysteresis_c = settings.hysteresis_c
        self.level = Heat.NORMAL

    def hottest(self, zones: dict[str, float]) -> float | None:
        """The highest temperature of the profile's zones; None if none of them answers."""
        counted = [
            celsius
            for zone, celsius in zones.items()
            if any(fnmatchcase(zone, pattern) for pattern in self._zones)
        ]
        return max(counted, default=None)

    def step(self, zones: dict[str, float]) -> Heat:
        """Take one reading (degrees Celsius by zone type) and tell the level."""
        celsius = self.hottest(zones)
        if celsius is None:
            return self.level
        while self.level < Heat.STOP and celsius >= self._thresholds[self.level]:
            self.level = Heat(self.level + 1)
        while (
            self.level > Heat.NORMAL
            and celsius < self._thresholds[self.level - 1] - self._hysteresis_c
        ):
            self.level = Heat(self.level - 1)
        return self.level
