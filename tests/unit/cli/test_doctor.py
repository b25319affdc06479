"""``agent.cli.doctor``: the whole examination, agent up or down."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite


def checks(out: str) -> dict[str, bool]:
    return {row["check"]: row["ok"] for row in json.loads(out)["checks"]}


def test_with_the_agent_up_its_own_checks_are_added(atoll: "Atoll", founded: Path) -> None:
    found = atoll("doctor", "--json", "--config", founded)
    rows = checks(found.out)
    assert (found.code, rows["agent"], rows["gossip"], rows["settings"]) == (0, True, True, True)
    assert len(rows) >= 22


def test_with_the_agent_down_everything_else_is_checked(
    bare: "Atoll", founded: Path, tmp_path: Path
) -> None:
    found = bare("doctor", "--config", founded, "--socket", tmp_path / "none.sock")
    assert "advice   agent: no agent answers" in found.out
    assert "ok       certificate: berlin" in found.out


def test_a_site_that_is_not_well_is_a_problem(
    canned: "CannedSite", atoll: "Atoll", founded: Path
) -> None:
    canned.state, canned.reasons = "isolated", ["no other site is heard"]
    found = atoll("doctor", "--config", founded)
    assert found.code == 1
    assert "PROBLEM  agent: isolated, version 0.1.0; no other site is heard" in found.out


def test_wrong_settings_are_a_finding_not_the_end(bare: "Atoll", tmp_path: Path) -> None:
    config = tmp_path / "atoll.toml"
    config.write_text("[sight]\n")
    found = bare("doctor", "--config", config)
    assert found.code == 1
    assert "PROBLEM  settings" in found.out
    assert "sight" in found.out
    assert "python" in found.out


def test_only_what_is_not_in_order_on_request(atoll: "Atoll", founded: Path) -> None:
    found = atoll("doctor", "--problems", "--config", founded)
    assert "ok  " not in found.out
    assert "advice   root key" in found.out


def test_missing_packages_do_not_stop_the_doctor(
    atoll: "Atoll", founded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("agent.cli.checks_site", "agent.config.addresses", "agent.drivers.interfaces"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "psutil", None)
    found = atoll("doctor", "--config", founded)
    assert found.code == 1
    assert "PROBLEM  installation" in found.out
    assert "psutil" in found.out
    assert "ok       gossip" in found.out
