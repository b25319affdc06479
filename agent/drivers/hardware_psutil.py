"""Facts that the operating system tells through psutil."""

import platform
from collections.abc import Callable, Iterator

import psutil

from agent.hardware.facts import Fact, FactValue

SOURCE = "psutil"


def read_psutil() -> Iterator[Fact]:
    """Cores, memory and power source; what the platform does not tell is left out."""
    for name, source, ask in (
        ("cpu.architecture", "uname", platform.machine),
        ("kernel.release", "uname", platform.release),
        ("cpu.usable", SOURCE, lambda: len(psutil.Process().cpu_affinity())),
        ("cpu.cores", SOURCE, lambda: psutil.cpu_count(logical=False)),
        ("memory.bytes", SOURCE, lambda: psutil.virtual_memory().total),
        ("power.source", SOURCE, _power_source),
    ):
        value = _asked(ask)
        if value:
            yield Fact(name, value, source)


def _asked(ask: Callable[[], FactValue | None]) -> FactValue | None:
    """The answer, or None: psutil parses files that odd kernels and containers cut short."""
    try:
        return ask()
    except (OSError, ValueError, LookupError, AttributeError, RuntimeError, psutil.Error):
        return None


def _power_source() -> str | None:
    battery = psutil.sensors_battery()
    if battery is None or battery.power_plugged is None:
        return None
    return "mains" if battery.power_plugged else "battery"
