"""Which profile describes this machine.

All criteria of a profile must hold; the most specific profile wins. A criterion weighs what it tells:
a board's own name more than a GPU, a GPU more than a vendor, a vendor more than an amount of memory.
Two profiles that hold with equal weight are an operator's error, told with both names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from agent.foundation.errors import ConfigError
from agent.hardware.facts import Facts
from agent.hardware.profile import GENERIC, MatchPart, Profile

GIB = float(1 << 30)

_PATTERNS = (  # (key of [match], fact, weight)
    ("dt_compatible", "dt.compatible", 1000),
    ("dmi_product_name", "dmi.product_name", 500),
    ("dmi_board_name", "dmi.board_name", 500),
    ("gpu_names", "gpu.names", 200),
    ("pci_ids", "pci.ids", 200),
    ("cpu_model", "cpu.model", 100),
    ("dmi_sys_vendor", "dmi.sys_vendor", 50),
    ("cpu_architecture", "cpu.architecture", 5),
)
_GPUS_WEIGHT = 20
_FLAGS_WEIGHT = 10
_MEMORY_WEIGHT = 1


@dataclass(frozen=True, slots=True)
class Criterion:
    """One condition of a profile, judged."""

    told: str
    """For a person: ``gpu_names "NVIDIA L4"``."""
    weight: int
    holds: bool


@dataclass(frozen=True, slots=True)
class Recognition:
    """The profile that describes this machine, and why."""

    profile: Profile
    why: str
    others: tuple[str, ...]
    """Profiles that do not, each with the first condition that failed."""


def recognise(facts: Facts, profiles: Sequence[Profile], wanted: str = "auto") -> Recognition:
    """The profile for these facts; ``wanted`` names one, or is ``auto``.

    Raises:
        ConfigError: no profile is named ``wanted``, or two match equally well.
    """
    by_name = {profile.name: profile for profile in profiles}
    if wanted != "auto":
        if wanted not in by_name:
            raise ConfigError(
                f"there is no hardware profile {wanted!r}",
                why=f"known: {', '.join(sorted(by_name))}",
                mend="change hardware.profile or add the profile to hardware.profiles_dir",
            )
        return Recognition(by_name[wanted], "hardware.profile names it", ())
    holding: list[tuple[int, Profile, str]] = []
    others: list[str] = []
    for profile in profiles:
        judged = judge(profile.match, facts)
        failed = [criterion for criterion in judged if not criterion.holds]
        if failed:
            others.append(f"{profile.name}: {failed[0].told} does not hold")
            continue
        why = ", ".join(criterion.told for criterion in judged)
        holding.append((sum(criterion.weight for criterion in judged), profile, why))
    if not holding:
        return Recognition(_unprofiled(), "no profile matches", tuple(others))
    best = max(weight for weight, _, _ in holding)
    winners = [(profile, why) for weight, profile, why in holding if weight == best]
    if len(winners) > 1:
        both = " and ".join(f"{profile.name} ({why})" for profile, why in winners)
        raise ConfigError(
            "several hardware profiles describe this machine equally well",
            why=both,
            mend="set hardware.profile to the right one, or give one of them a further condition",
        )
    profile, why = winners[0]
    return Recognition(profile, why or "no other profile matches", tuple(others))


def judge(match: MatchPart, facts: Facts) -> list[Criterion]:
    """Every condition that ``match`` gives, the weightiest first."""
    judged: list[Criterion] = []
    for key, fact, weight in _PATTERNS:
        patterns: tuple[str, ...] = getattr(match, key)
        if patterns:
            hit = _hit(patterns, facts.texts(fact))
            told = f"{key} {hit!r}" if hit else f"{key} {' or '.join(map(repr, patterns))}"
            judged.append(Criterion(told, weight, hit is not None))
    if match.gpus_min:
        count = facts.number("gpu.count") or 0
        told = f"gpus_min {match.gpus_min} (there are {count:g})"
        judged.append(Criterion(told, _GPUS_WEIGHT, count >= match.gpus_min))
    if match.cpu_flags:
        holds = set(match.cpu_flags) <= set(facts.texts("cpu.flags"))
        judged.append(Criterion(f"cpu_flags {' '.join(match.cpu_flags)}", _FLAGS_WEIGHT, holds))
    memory_gib = (facts.number("memory.bytes") or 0.0) / GIB
    if match.memory_min_gib:
        told = f"memory_min_gib {match.memory_min_gib:g} (it is {memory_gib:.1f})"
        judged.append(Criterion(told, _MEMORY_WEIGHT, memory_gib >= match.memory_min_gib))
    if match.memory_max_gib:
        told = f"memory_max_gib {match.memory_max_gib:g} (it is {memory_gib:.1f})"
        judged.append(Criterion(told, _MEMORY_WEIGHT, 0 < memory_gib <= match.memory_max_gib))
    return judged


def _hit(patterns: tuple[str, ...], values: tuple[str, ...]) -> str | None:
    """The first value that one of the patterns matches, without case."""
    for value in values:
        if any(fnmatchcase(value.lower(), pattern.lower()) for pattern in patterns):
            return value
    return None


def _unprofiled() -> Profile:
    """What holds where not even the file of the generic profile is there."""
    return Profile(schema=1, name=GENERIC, title="Any machine")
