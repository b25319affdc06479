"""Drift: how the versions found differ from the baseline of the profile."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from agent.hardware.facts import Facts
from agent.hardware.profile import Profile

PART_DIGITS_MAX = 18
"""Longer runs of digits are dates or hashes, cut so that comparing stays cheap."""


@dataclass(frozen=True, slots=True)
class Drift:
    """One piece of firmware or software against its baseline."""

    name: str
    state: Literal["ok", "older", "blocked", "unknown"]
    found: str
    """The version found; empty if it is not known."""
    expected: str


def drift(profile: Profile, facts: Facts) -> tuple[Drift, ...]:
    """Every entry of the baseline, judged; blocked counts before older."""
    return tuple(
        Drift(
            name,
            _state(facts.text(entry.fact), entry.min, entry.blocked),
            facts.text(entry.fact) or "",
            f"at least {entry.min}" if entry.min else f"not {', '.join(entry.blocked)}",
        )
        for name, entry in sorted(profile.baseline.items())
    )


def version_key(version: str) -> tuple[int, ...]:
    """The runs of digits of a version, to compare: ``5.15.136-tegra`` is (5, 15, 136).

    Zeros at the end do not count: 36 equals 36.0.
    """
    leading = re.match(r"\D*((?:\d+[.\-_])*\d+)", version)
    parts = [
        int(run[:PART_DIGITS_MAX]) for run in re.findall(r"\d+", leading[1] if leading else "")
    ]
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _state(
    found: str | None, least: str, blocked: tuple[str, ...]
) -> Literal["ok", "older", "blocked", "unknown"]:
    if found is None:
        return "unknown"
    if any(fnmatchcase(found, pattern) for pattern in blocked):
        return "blocked"
    if least and not any(character.isdigit() for character in found):
        return "unknown"
    return "older" if least and version_key(found) < version_key(least) else "ok"
