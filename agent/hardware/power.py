"""How much power a machine draws, and how much of its supply is free: for models that ask for some.

Draw is read from what the machine has: a meter of the whole machine (ACPI ``power_meter``, the input rail of a
Jetson's INA3221), else the energy counters of the processors (RAPL), which leave out disks and fans. What is
free is the supply that the operator has told, less the draw; without either nothing is known, and a deployment
that asks for power is not served.

Sources: Linux Documentation/hwmon/sysfs-interface.rst, Documentation/power/powercap/powercap.rst.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agent.hardware.sysfs import children, number, text_of

RAIL: Final = "VDD_IN"
"""The input of a Jetson module (NVIDIA's guide, "Electrical power")."""
DRAW_W_MAX: Final = 100_000.0
"""A meter that says more is broken."""
RISE_S: Final = 60.0
RISE_S_MAX: Final = 3600.0
UNKNOWN_S: Final = 30.0
"""A reading that fails, or a counter that wraps round, is no reason to stop anything."""
STEP: Final = 0.05
"""Smaller changes of what is free are not told."""


class PowerReader:
    """Reads one machine's draw; energy counters need a reading before."""

    def __init__(self, root: Path = Path("/")) -> None:
        """``root``: of the file system; a recorded tree in tests."""
        self._root = root
        self._counters: dict[str, int] = {}
        self._read_at = 0.0

    def draw_w(self, now: float) -> float | None:
        """Watts drawn now (meters) or on average since the last call (counters); None if nothing tells."""
        metered = [*_meters(self._root)]
        if metered:
            drawn = max(metered)  # of several the one that sees the most
        else:
            counters, took_s = dict(_counters(self._root)), now - self._read_at
            used_uj = [
                counters[name] - former
                for name, former in self._counters.items()
                if counters.get(name, -1) >= former  # one that wrapped round is left out
            ]
            self._counters, self._read_at = counters, now
            if not used_uj or took_s <= 0.0:
                return None
            drawn = sum(used_uj) / 1e6 / took_s
        return drawn if 0.0 <= drawn <= DRAW_W_MAX else None


class FreePower:
    """What of the supply is free, steadied: it falls at once, and rises when it has been more for a while.

    A model that is let go because power is short sets power free. So that it does not come and go,
    each fall soon after a rise doubles the time that the next rise takes.
    """

    def __init__(self, supply_w: float) -> None:
        """``supply_w``: what the machine may draw; 0 = not told."""
        self._supply_w = supply_w
        self.free_w: float | None = None
        self._least_w: float | None = None
        """Of the readings since it could have risen."""
        self._more_since = 0.0
        self._known_at = float("-inf")
        self._rise_s = RISE_S
        self._rose_at = float("-inf")

    def drawn(self, draw_w: float | None, now: float) -> bool:
        """Take a reading; whether ``free_w`` has changed."""
        if not self._supply_w or draw_w is None:
            return now - self._known_at > UNKNOWN_S and self._set(None)
        self._known_at = now
        free_w = max(0.0, self._supply_w - draw_w)
        told = self.free_w
        if told is None:
            return self._set(free_w)
        if free_w < told - STEP * self._supply_w:
            is_soon = now - self._rose_at < 10 * self._rise_s
            self._rise_s = min(RISE_S_MAX, 2 * self._rise_s) if is_soon else RISE_S
            return self._set(free_w)
        if free_w <= told + STEP * self._supply_w:
            self._least_w = None
            return False
        if self._least_w is None:
            self._least_w, self._more_since = free_w, now
        self._least_w = min(self._least_w, free_w)
        if now - self._more_since < self._rise_s:
            return False
        self._rose_at = now
        return self._set(self._least_w)

    def _set(self, free_w: float | None) -> bool:
        has_changed, self.free_w, self._least_w = free_w != self.free_w, free_w, None
        return has_changed


def _meters(root: Path) -> Iterator[float]:
    for device in children(root / "sys/class/hwmon", "hwmon*"):
        for name in ("power1_average", "power1_input"):  # microwatts
            if (microwatts := number(device / name)) is not None:
                yield microwatts / 1e6
                break
        for label in children(device, "in*_label"):
            channel = label.name.removeprefix("in").removesuffix("_label")
            if not channel.isdecimal() or text_of(label) != RAIL:
                continue
            millivolts = number(device / f"in{channel}_input")
            milliamperes = number(device / f"curr{channel}_input")
            if millivolts is not None and milliamperes is not None:
                yield millivolts * milliamperes / 1e6


def _counters(root: Path) -> Iterator[tuple[str, int]]:
    for zone in children(root / "sys/class/powercap", "intel-rapl:*"):
        if zone.name.count(":") == 1 and (used_uj := number(zone / "energy_uj")) is not None:
            yield zone.name, used_uj  # of packages; their parts are counted in them
