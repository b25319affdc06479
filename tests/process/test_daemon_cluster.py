"""What the tests' own sites promise the tests."""

import subprocess
from pathlib import Path

import psutil
import pytest
from daemon_cluster import Daemon


def test_a_crash_passes_over_a_worker_that_ended_with_its_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Daemon(tmp_path, "berlin")
    site.process = subprocess.Popen(["sleep", "60"])
    early, late = subprocess.Popen(["sleep", "60"]), subprocess.Popen(["sleep", "60"])
    children = [psutil.Process(early.pid), psutil.Process(late.pid)]
    monkeypatch.setattr(site, "children", lambda: children)
    early.kill()
    early.wait()
    site.crash()
    assert late.wait(5) < 0
