"""What ships besides the code: pins, unit file, scripts."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd/atoll.service"
EXPOSURE_MAX = 20
"""Tenths; GOALS: exposure of the unit <= 2.0."""


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project() -> dict[str, object]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = table["project"]
    assert isinstance(found, dict)
    return found


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_every_dependency_is_pinned() -> None:
    table = project()
    extras = table["optional-dependencies"]
    dependencies = table["dependencies"]
    assert isinstance(extras, dict)
    assert isinstance(dependencies, list)
    wanted = [
        *dependencies,
        *(one for extra in extras.values() for one in extra),
        "magika",
        "rapidocr-onnxruntime",
        "hatchling",
    ]
    assert {name_of(one) for one in wanted} - pins().keys() == set()


def test_both_onnxruntimes_are_pinned_to_one_version() -> None:
    assert pins()["onnxruntime"] == pins()["onnxruntime-gpu"]


def test_the_control_process_needs_no_torch() -> None:
    dependencies = project()["dependencies"]
    assert isinstance(dependencies, list)
    assert "torch" not in {name_of(one) for one in dependencies}


@pytest.mark.parametrize("script", ["packaging/setup.sh", ".ci/run"])
def test_scripts_are_strict_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", path], check=True)


def test_ci_runs_what_a_person_runs() -> None:
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("exec make test")


def test_the_unit_turns_telemetry_off_and_keeps_what_models_need() -> None:
    unit = directives(UNIT.read_text())
    assert "ORT_DISABLE_TELEMETRY=1" in unit["Environment"]
    assert unit["Type"] == ["notify"]
    # Lines that were seen to cost function: see FLEET, "Lines that hurt".
    for harmful in ("ProcSubset", "MemoryDenyWriteExecute", "PrivateUsers"):
        assert harmful not in unit, harmful
    calls = " ".join(unit["SystemCallFilter"])
    assert "~@resources" not in calls
    for needed in ("landlock_create_ruleset", "landlock_restrict_self", "seccomp"):
        assert needed in calls


@pytest.mark.parametrize("drop_in", [None, "gpu.conf"])
def test_the_unit_is_valid_and_little_exposed(tmp_path: Path, drop_in: str | None) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-analyze is missing; packaging/setup.sh installs it"
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    shutil.copy(UNIT, units)
    for target in ("network.target", "sysinit.target", "basic.target", "shutdown.target"):
        (units / target).write_text("[Unit]\nDescription=stand-in\n")
    program = tmp_path / "opt/atoll/bin/atoll"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    if drop_in:
        (units / "atoll.service.d").mkdir()
        shutil.copy(ROOT / "systemd" / drop_in, units / "atoll.service.d")
    for command in (
        [analyze, "verify", "--man=no", f"--root={tmp_path}", "atoll.service"],
        [analyze, "security", "--offline=true", f"--root={tmp_path}", f"--threshold={EXPOSURE_MAX}", "atoll.service"],
    ):  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
