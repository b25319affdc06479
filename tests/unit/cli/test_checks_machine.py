"""``agent.cli.checks_machine``: each check can find something."""

import resource
import sqlite3
from importlib.metadata import PackageNotFoundError

import pytest

from agent.cli import checks_machine
from agent.cli.checks import Finding


def findings() -> dict[str, Finding]:
    return {finding.check: finding for finding in checks_machine.machine_findings()}


def test_this_machine_is_good_enough() -> None:
    found = findings()
    assert len(found) == 9
    assert [finding for finding in found.values() if not finding.ok] == []
    assert "aiohttp 3" in found["packages"].evidence


def test_an_old_sqlite_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    assert not findings()["sqlite"].ok


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name in ("orjson", "torch", "onnxruntime", "onnxruntime-gpu"):
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(checks_machine, "version", version)
    found = findings()
    assert not found["packages"].ok
    assert "missing: orjson" in found["packages"].evidence
    assert not found["onnxruntime"].ok
    assert found["training packages"].ok
    assert "cannot train" in found["training packages"].mend.replace("not train", "cannot train")


def test_both_runtimes_at_once_are_advised_against(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_machine, "version", lambda _: "1")
    found = findings()["onnxruntime"]
    assert found.ok
    assert "remove both" in found.mend


def test_few_open_files_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    found = findings()["open files"]
    assert not found.ok
    assert "4096" in found.mend
