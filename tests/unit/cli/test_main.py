"""``agent.cli.main``: exit codes, errors as people and scripts read them, and the cold start."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cli import main as entry
from agent.foundation.errors import Busy

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite

HEAVY = ("torch", "onnxruntime", "numpy", "aiohttp", "asyncio", "rich", "cryptography", "sqlite3")


def test_an_error_says_what_why_and_how_to_mend_it(canned: "CannedSite", atoll: "Atoll") -> None:
    canned.error = Busy("the site is busy", why="it starts", mend="wait a moment")
    found = atoll("status")
    assert (found.code, found.out) == (1, "")
    assert found.err == "atoll: the site is busy\n  why: it starts\n  try: wait a moment\n"


def test_a_script_gets_the_error_as_json(canned: "CannedSite", atoll: "Atoll") -> None:
    canned.error = Busy("busy", why="y", mend="m")
    found = atoll("status", "--json")
    assert (found.code, found.out) == (1, "")
    assert json.loads(found.err) == {"error": {"what": "busy", "why": "y", "mend": "m"}}


def test_wrong_usage_is_2(atoll: "Atoll") -> None:
    assert atoll("members", "--nonsense").code == 2


def test_an_interrupt_is_130(atoll: "Atoll", monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(entry, "verb_of", lambda _: interrupted)
    assert atoll("status").code == 130


def test_a_defect_is_not_hidden(atoll: "Atoll", monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(entry, "verb_of", lambda _: broken)
    with pytest.raises(ZeroDivisionError):
        atoll("status")


def test_a_reader_that_has_seen_enough_is_no_error(socket_path: Path) -> None:
    command = f"{sys.executable} -m agent.cli --socket {socket_path} members --json | head -c 1"
    found = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "{", "")


def test_status_is_quick_and_loads_nothing_heavy(socket_path: Path) -> None:
    code = (
        "import sys; from agent.cli.main import main;"
        f"code = main(['status', '--socket', {str(socket_path)!r}]);"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr);"
        "sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (found.returncode, found.stderr) == (0, "[]\n")
    # Processor time, not time: other work on the machine must not fail this test.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
