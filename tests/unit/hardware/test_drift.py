from types import MappingProxyType

import pytest

from agent.hardware.drift import drift, version_key
from agent.hardware.facts import Fact, Facts
from agent.hardware.profile import BaselinePart, Profile


@pytest.mark.parametrize(
    ("lower", "higher"),
    [
        ("5.15.9", "5.15.136-tegra"),
        ("36.3", "36.4.3"),
        ("470.82.01", "525.60.13"),
        ("v9", "v10"),
        ("2.1", "2.1a1.9"),
    ],
)
def test_versions_compare_by_number(lower: str, higher: str) -> None:
    assert version_key(lower) <= version_key(higher)
    assert not version_key(higher) < version_key(lower)


def test_a_zero_at_the_end_does_not_count() -> None:
    assert version_key("36") == version_key("36.0") == version_key("R36.0.0")


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ("36.3", "ok"),
        ("36.5", "ok"),
        ("36.2.9", "older"),
        ("36.4.3", "blocked"),
        ("none", "unknown"),
        (None, "unknown"),
    ],
)
def test_a_version_is_judged_against_its_baseline(found: str | None, state: str) -> None:
    entry = BaselinePart(fact="dmi.bios_version", min="36.3", blocked=("36.4.*",))
    profile = Profile(schema=1, name="p", title="", baseline=MappingProxyType({"bios": entry}))
    facts = Facts.of([Fact("dmi.bios_version", found, "dmi")] if found else [])
    (judged,) = drift(profile, facts)
    assert (judged.name, judged.state) == ("bios", state)
