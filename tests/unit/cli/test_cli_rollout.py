"""``agent.cli.rollout`` and what ``apply``, ``rollback`` and ``model push`` do for rollouts."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent.foundation.ids import Digest
from agent.wire.documents import Deployment, ModelVersion, Rollout

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite, Outcome

Run = Callable[..., "Outcome"]
TERMS = Rollout("1", 77, (50.0,), observe_s=5.0)
TRIED = Deployment("m", "2", ("berlin",), rollout=TERMS)
OLD = Deployment("m", "1", ("berlin",))
VERSIONS = [ModelVersion("m", v, Digest(bytes(32)), 1, "onnx", ()) for v in "123"]
FILE = '[deployment.m]\nversion = "{}"\nsites = ["berlin"]\n\n[deployment.m.rollout]\nwaves = [50]\nobserve_s = 5\n'


def row(**changes: Any) -> dict[str, Any]:
    site = {
        "name": "berlin",
        "presence": "this site",
        "stage": "trying",
        "requests": 64,
        "errors": 0,
        "p99_ms": 16,
        "gate": "",
    }
    return {
        "model": "m", "version": "2", "previous": "1", "established": "1", "is_stopped": False,
        "terms": {
            "observe_s": 5.0, "error_rate_max": 0.01, "p99_ms_max": 50.0, "p99_ratio_max": 2.0,
            "requests_min": 10, "is_paused": False, "accuracy_min": 0.9, "holdout": "digits",
        },
        "waves": [[site], [{**site, "name": "paris", "presence": "alive", "stage": "waiting", "p99_ms": 0}]],
        "here": {"stage": "trying", "reason": "", "waiting": "", "requests": 70, "errors": 0, "p99_ms": 17.0},
        **changes,
    }  # fmt: skip


@pytest.fixture
def run(
    atoll: "Atoll", canned: "CannedSite", founded: Path, admin_of: Callable[[Path], None]
) -> Run:
    admin_of(founded)
    canned.known = [*VERSIONS, TRIED]
    canned.rollout_rows = [row()]
    return lambda *words: atoll(*words, "--config", founded)


def submitted(canned: "CannedSite") -> Deployment:
    (body,) = canned.bodies
    assert isinstance(body, Deployment)
    return body


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(version: str) -> Path:
        path = tmp_path / "catalog.toml"
        path.write_text(FILE.format(version))
        return path

    return write


def test_the_status_shows_waves_gates_and_what_each_site_tells(run: Run) -> None:
    found = run("rollout", "status", "m")
    assert found.code == 0
    assert "m: version 2 in place of 1" in found.out
    assert (
        "errors <= 1.00%, p99 <= 50 ms, p99 <= 2 x the previous version's, accuracy >= 0.9 on digits, 10 requests"
        in found.out
    )
    lines = [" ".join(line.split()) for line in found.out.splitlines()]
    assert "1 berlin this site trying 64 0 16 ms -" in lines
    assert "2 paris alive waiting 64 0 - -" in lines


def test_a_model_without_a_rollout_is_said_to_have_none(run: Run, canned: "CannedSite") -> None:
    canned.rollout_rows = []
    for words in (("status", "m"), ("pause", "m"), ("resume", "m")):
        found = run("rollout", *words)
        assert found.code == 1
        assert "no new version of 'm' comes in waves" in found.err
    assert run("rollout", "status").out == "No new version comes in waves.\n"


def test_a_pause_is_the_same_document_with_the_pause_in_it(run: Run, canned: "CannedSite") -> None:
    assert run("rollout", "pause", "m").out == "the rollout of m:2 is paused\n"
    assert submitted(canned) == replace(TRIED, rollout=replace(TERMS, is_paused=True))


def test_resuming_keeps_the_attempt(run: Run, canned: "CannedSite") -> None:
    canned.known[-1] = replace(TRIED, rollout=replace(TERMS, is_paused=True))
    assert run("rollout", "resume", "m").out == "the rollout of m:2 goes on\n"
    assert submitted(canned) == TRIED


def test_a_failed_rollout_goes_on_only_if_it_is_to_begin_again(
    run: Run, canned: "CannedSite"
) -> None:
    canned.rollout_rows = [row(is_stopped=True, here={"reason": "3 of 30 requests failed"})]
    refused = run("rollout", "resume", "m")
    assert refused.code == 1
    assert "why: 3 of 30 requests failed" in refused.err
    assert run("rollout", "resume", "m", "--again").out == "the rollout of m:2 begins anew\n"
    terms = submitted(canned).rollout
    assert terms is not None
    assert (terms.previous, terms.attempt != 77) == ("1", True)


def test_applying_the_next_version_takes_the_place_of_the_one_that_is_established(
    run: Run, canned: "CannedSite", file: Callable[[str], Path]
) -> None:
    for established in ("1", "2"):
        canned.bodies.clear()
        canned.rollout_rows = [row(established=established)]
        assert run("apply", file("3")).code == 0
        terms = submitted(canned).rollout
        assert terms is not None
        assert (terms.previous, terms.waves) == (established, (50.0,))
        assert terms.attempt not in (0, 77)


def test_applying_the_same_file_again_changes_nothing(
    run: Run, canned: "CannedSite", file: Callable[[str], Path]
) -> None:
    assert run("diff", file("2")).code == 0
    assert run("apply", file("2")).out == "deployment m is unchanged\n"
    assert canned.bodies == []


def test_waves_for_the_version_that_serves_already_begin_nothing(
    run: Run, canned: "CannedSite", file: Callable[[str], Path]
) -> None:
    canned.known, canned.rollout_rows = [*VERSIONS, OLD], []
    assert run("apply", file("1")).code == 0
    assert submitted(canned).rollout == Rollout("", 0, (50.0,), observe_s=5.0)
    canned.bodies.clear()
    canned.known = VERSIONS  # type: ignore[assignment]
    assert run("apply", file("1")).code == 0
    assert submitted(canned).rollout == Rollout("", 0, (50.0,), observe_s=5.0)


def test_a_rollback_is_at_once_whatever_waves_the_former_document_had(
    run: Run, canned: "CannedSite"
) -> None:
    older = Deployment("m", "2", ("berlin",), rollout=TERMS)
    canned.known = [replace(older, version="3"), older]
    assert run("rollback", "deployment", "m").code == 0
    assert submitted(canned) == replace(older, rollout=Rollout("", 0, (50.0,), observe_s=5.0))


def test_a_push_keeps_the_waves_of_the_deployment_and_carries_its_golden_question(
    run: Run, canned: "CannedSite", tmp_path: Path
) -> None:
    model, golden = tmp_path / "m.onnx", tmp_path / "golden.json"
    model.write_bytes(b"\x08\x09model")
    golden.write_text('{"inputs": [], "outputs": []}')
    words = ("model", "push", model, "--name", "m", "--version", "3")
    found = run(*words, "--golden", golden)
    assert (found.code, found.err) == (0, "")
    assert "atoll rollout status m shows how far it is" in found.out
    version, deployment = canned.bodies
    assert isinstance(version, ModelVersion)
    assert json.loads(version.golden) == {"inputs": [], "outputs": []}
    assert isinstance(deployment, Deployment)
    assert deployment.rollout is not None
    assert (deployment.rollout.previous, deployment.rollout.waves) == ("1", (50.0,))
    golden.write_text('{"inputs": []}')
    assert "is no golden question" in run(*words, "--golden", golden).err


def test_an_accuracy_without_a_hold_out_is_refused(run: Run, file: Callable[[str], Path]) -> None:
    path = file("3")
    path.write_text(path.read_text() + "accuracy_min = 0.9\n")
    found = run("apply", path)
    assert found.code == 1
    assert "only one of accuracy_min and holdout" in found.err
