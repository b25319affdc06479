"""The demo, whole: what ``make demo`` runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.process
@pytest.mark.timeout(300)
def test_the_demo_shows_what_it_claims(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "agent", "demo", "--rounds", "4", "--figures", str(figures)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "no update was counted twice" in done.stdout
    measured = json.loads(figures.read_text())
    assert measured["accuracy"] > 0.6
    assert {"control", "gateway", "model-worker"} <= set(measured["memory_mib"])
