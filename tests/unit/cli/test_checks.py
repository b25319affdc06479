"""``agent.cli.checks``: a check that cannot be made is a finding."""

import pytest

from agent.cli.checks import Finding, guarded
from agent.foundation.errors import ConfigError


def test_an_error_of_ours_keeps_its_words() -> None:
    def look() -> Finding:
        raise ConfigError("w", why="y", mend="m")

    assert guarded("x", look) == Finding("x", ok=False, evidence="w: y", mend="m")


def test_an_error_of_the_system_is_a_finding() -> None:
    def look() -> Finding:
        raise PermissionError(13, "Permission denied", "/secret")

    found = guarded("x", look)
    assert not found.ok
    assert "/secret" in found.evidence


def test_a_defect_of_a_check_is_not_hidden() -> None:
    def look() -> Finding:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        guarded("x", look)
