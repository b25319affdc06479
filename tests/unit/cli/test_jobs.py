"""``agent.cli.jobs``: a job from the file to its last round."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.cli import jobs
from agent.wire.documents import Job, Stamp

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite

ID = "digits-00000001"
SPEC = """
name = "digits"
recipe = "mnist-2nn"
dataset = "mnist"
rounds = 3
residency = ["DE"]
"""


def change(state: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "id": ID,
        "state": state,
        "epoch": 1,
        "round": number,
        "rounds": 3,
        "aggregator": "berlin",
        "reason": "",
        "accuracy": None,
        "loss": None,
        "samples": None,
        "participants": None,
        **more,
    }


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(SPEC)
    return path


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "RECONNECT_PAUSE_S", 0.0)


def test_a_job_is_signed_by_the_admin_and_taken(
    canned: "CannedSite",
    atoll: "Atoll",
    founded: Path,
    admin_of: Callable[[Path], None],
    spec: Path,
) -> None:
    admin_of(founded)
    found = atoll("job", "submit", spec, "--config", founded)
    assert found.err == ""
    assert found.out == f"submitted {ID} (committee of 1)\n"
    (body,) = canned.bodies
    assert isinstance(body, Job)
    assert (body.rounds, body.residency) == (3, ("DE",))
    assert canned.stamps == [Stamp(1_700_000_000_000, 4)]


def test_a_wrong_job_is_told_whole_before_anything_is_asked(
    canned: "CannedSite", atoll: "Atoll", founded: Path, spec: Path
) -> None:
    spec.write_text(SPEC + 'rouns = 4\nbatch = "x"\n')
    found = atoll("job", "submit", spec, "--config", founded)
    assert found.code == 1
    assert "line 7: unknown key 'rouns': did you mean 'rounds'?" in found.err
    assert "line 8: batch = 'x'" in found.err
    assert canned.bodies == []


def test_a_file_that_is_no_text_or_no_toml_is_told(
    atoll: "Atoll", founded: Path, tmp_path: Path
) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(b"\xff\xfe")
    assert "is not UTF-8" in atoll("job", "submit", path, "--config", founded).err
    path.write_text("= 1")
    assert "is not TOML" in atoll("job", "submit", path, "--config", founded).err
    assert "cannot be read" in atoll("job", "submit", tmp_path, "--config", founded).err


def test_without_the_admin_key_nothing_is_submitted(
    canned: "CannedSite", atoll: "Atoll", founded: Path, spec: Path, tmp_path: Path
) -> None:
    found = atoll("job", "submit", spec, "--config", founded, "--admin-key", tmp_path / "none")
    assert found.code == 1
    assert "there is no admin key" in found.err
    assert canned.bodies == []


def test_watching_prints_a_line_for_each_change_and_ends_with_the_job(
    canned: "CannedSite", atoll: "Atoll"
) -> None:
    canned.changes = [
        change("waiting", 0),
        change("running", 1, accuracy=0.5, loss=1.25, samples=1200, participants=2),
        change("running", 1, accuracy=0.5, loss=1.25, samples=1200, participants=2),
        change("finished", 3),
    ]
    found = atoll("job", "watch", ID)
    assert found.code == 0
    lines = found.out.splitlines()
    assert len(lines) == 3
    assert "accuracy 0.5000  loss 1.2500  2 updates, 1200 samples  epoch 1 at berlin" in lines[1]


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_job_that_did_not_finish_is_exit_code_1(
    canned: "CannedSite", atoll: "Atoll", state: str
) -> None:
    canned.changes = [change(state, 1, reason="too few updates")]
    found = atoll("job", "watch", ID)
    assert (found.code, "too few updates" in found.out) == (1, True)


def test_a_stream_that_ends_early_is_taken_up_again_without_repetition(
    canned: "CannedSite", atoll: "Atoll", monkeypatch: pytest.MonkeyPatch
) -> None:
    canned.changes = [change("running", 1)]

    def later(_: float) -> None:
        canned.changes = [change("running", 1), change("finished", 3)]

    monkeypatch.setattr(time, "sleep", later)
    found = atoll("job", "watch", ID, "--json")
    assert found.code == 0
    assert [json.loads(line)["round"] for line in found.out.splitlines()] == [1, 3]


def test_an_agent_that_stays_away_is_told(
    canned: "CannedSite",
    atoll: "Atoll",
    socket_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canned.changes = [change("running", 1)]
    monkeypatch.setattr(jobs, "RECONNECT_S", 0.0)
    moved = socket_path.with_name("moved")

    def gone(_: float) -> None:
        if socket_path.exists():
            socket_path.rename(moved)

    monkeypatch.setattr(time, "sleep", gone)
    found = atoll("job", "watch", ID)
    moved.rename(socket_path)
    assert found.code == 1
    assert "no agent answers" in found.err


def test_an_unknown_job_is_told_at_once(atoll: "Atoll") -> None:
    found = atoll("job", "watch", "other-00000001")
    assert (found.code, "no job other-00000001" in found.err) == (1, True)
    assert atoll("job", "show", "other-00000001").code == 1


def test_jobs_are_listed_and_one_is_shown_with_who_was_counted(atoll: "Atoll") -> None:
    assert "1/3" in atoll("job", "list").out
    found = atoll("job", "show", ID).out
    assert "berlin (600)" in found
    assert "0.8750" in found
    assert "committee: berlin, paris, rome" in found
    assert json.loads(atoll("job", "list", "--json").out)["jobs"][0]["id"] == ID
    assert json.loads(atoll("job", "show", ID, "--json").out)["rounds_done"][0]["round"] == 1
