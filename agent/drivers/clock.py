"""The only reader of clocks: monotonic for decisions, wall for display, stamps and certificates."""

import time
from datetime import UTC, datetime


def monotonic_s() -> float:
    """Seconds of the system's monotonic clock; the time of every machine."""
    return time.monotonic()


def wall_s() -> float:
    """Seconds of Unix time."""
    return time.time()  # noqa: TID251 - the one place


def wall() -> datetime:
    """Wall-clock time, UTC."""
    return datetime.now(UTC)
