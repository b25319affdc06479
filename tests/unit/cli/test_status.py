"""``agent.cli.status``: one screen."""

import json
from typing import TYPE_CHECKING, Any

from agent.cli import status

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite


def test_the_screen_says_what_an_operator_asks_first(atoll: "Atoll") -> None:
    found = atoll("status")
    assert found.code == 0
    lines = found.out.splitlines()
    assert lines[0] == "berlin is ready (up 67 min, Atoll 0.1.0)"
    assert "3 alive, 0 suspect, 1 dead, 0 left" in found.out
    assert "model down  pid -, 0 B, 2 restarts" in found.out
    assert "digits-00000001 running  round 1/3, epoch 1, aggregator berlin" in found.out


def test_each_model_worker_is_shown_with_what_it_runs_on(atoll: "Atoll") -> None:
    assert (
        "worker    1 running  pid 9, 80.0 MiB, 4 restarts, 3 models; 1 being loaded; GPU 2;"
        " CUDAExecutionProvider; landlock 7, seccomp"
    ) in atoll("status").out


def test_the_reason_stands_right_below_the_state(canned: "CannedSite", atoll: "Atoll") -> None:
    canned.state, canned.reasons = "isolated", ["no other site is heard"]
    assert atoll("status").out.splitlines()[1] == "  because  no other site is heard"


def test_however_much_there_is_it_fits_a_screen(canned: "CannedSite", atoll: "Atoll") -> None:
    answer = _plenty(canned.status())
    assert len(status.lines(answer)) <= 24
    assert "and 7 more" in atoll("status").out


def _plenty(answer: dict[str, Any]) -> dict[str, Any]:
    for key in ("reasons", "store"):
        answer[key] = ["x"] * 50
    for key in ("processes", "models", "jobs"):
        answer[key] *= 50
    return answer


def test_scripts_get_every_key(canned: "CannedSite", atoll: "Atoll") -> None:
    assert json.loads(atoll("status", "--json").out) == canned.status()


def test_text_of_others_cannot_steer_the_terminal(canned: "CannedSite", atoll: "Atoll") -> None:
    canned.reasons = ["\x1b[2Jowned\nready"]
    assert "\x1b" not in atoll("status").out
    assert atoll("status").out.count("\n") == len(status.lines(canned.status()))
