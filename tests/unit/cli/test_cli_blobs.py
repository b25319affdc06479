"""``agent.cli.blobs``: what a site keeps, and versions that nobody will want again."""

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
VERSION = ModelVersion("m", "1", Digest(bytes(32)), 1, "onnx", ("DE",), "m.onnx")


def row(**changes: Any) -> dict[str, Any]:
    return {
        "digest": "ab" * 32, "bytes": 3 << 20, "state": "whole", "standing": "wanted",
        "names": ["model m:1, ready here"], "residency": ["DE"], "goes_in_s": None, **changes,
    }  # fmt: skip


@pytest.fixture
def run(
    atoll: "Atoll", canned: "CannedSite", founded: Path, admin_of: Callable[[Path], None]
) -> Run:
    admin_of(founded)
    canned.known = [VERSION]
    return lambda *words: atoll(*words, "--config", founded)


def test_the_list_says_what_is_kept_why_and_how_much_room_there_is(
    run: Run, canned: "CannedSite"
) -> None:
    assert "No blobs here." in run("blobs", "list").out
    nobodys = row(
        digest="cd" * 32, standing="unnamed", state="partial", bytes=5, names=[], goes_in_s=3000
    )
    canned.blob_rows = [nobodys, row(names=[f"job j-{n}" for n in range(9)])]
    canned.blob_bytes_max = 10 << 20
    found = run("blobs", "list")
    assert found.code == 0
    lines = [" ".join(line.split()) for line in found.out.splitlines()]
    assert any(line.startswith("abababababababab 3.0 MiB whole wanted job j-0;") for line in lines)
    assert any("and 5 more" in line for line in lines)
    assert any("5 B partial unnamed nothing names it; goes in 50 min" in line for line in lines)
    assert lines[-1].startswith("2 blobs take 3.0 MiB of 10.0 MiB; 5.0 GiB of the disk are free")
    assert json.loads(run("blobs", "list", "--json").out)["blobs"] == canned.blob_rows


def test_collecting_says_what_went(run: Run, canned: "CannedSite") -> None:
    assert "nothing goes" in run("blobs", "collect").out
    canned.blob_rows = [row(standing="unnamed")]
    assert "1 blobs go: abababababababab" in run("blobs", "collect").out
    assert json.loads(run("blobs", "collect", "--json").out) == {"removed": ["ab" * 32]}


def test_a_version_is_retired_with_an_admins_key(run: Run, canned: "CannedSite") -> None:
    found = run("model", "retire", "m:1")
    assert found.code == 0
    assert "m:1 is retired" in found.out
    assert canned.bodies == [replace(VERSION, is_retired=True)]
    canned.known = [*canned.bodies]
    assert "retired already" in run("model", "retire", "m:1").out
    assert len(canned.bodies) == 1


@pytest.mark.parametrize(
    ("deployment", "said"),
    [
        (Deployment("m", "1", ()), "atoll: m:1 is deployed\n"),
        (
            Deployment("m", "2", (), rollout=Rollout("1", 7)),
            "m:1 is deployed until its successor has proved itself",
        ),
    ],
)
def test_what_is_deployed_is_not_retired(
    run: Run, canned: "CannedSite", deployment: Deployment, said: str
) -> None:
    canned.known = [VERSION, deployment]
    found = run("model", "retire", "m:1")
    assert found.code == 1
    assert said in found.err
    assert canned.bodies == []
    canned.known = [VERSION, replace(deployment, is_active=False)]
    assert run("model", "retire", "m:1").code == 0


def test_what_there_is_not_is_not_retired(run: Run) -> None:
    found = run("model", "retire", "m:9")
    assert found.code == 1
    assert "there is no model m:9" in found.err
    assert run("model", "retire", "m").code == 2


def test_a_version_that_a_job_has_made_can_be_retired_if_it_is_not_the_one_that_answers(
    run: Run, canned: "CannedSite"
) -> None:
    canned.known, canned.bodies = [], [VERSION]  # as ``models`` tells it, without a document
    found = run("model", "retire", "m:1")
    assert found.code == 1
    assert "m:1 is what answers for m" in found.err


def test_a_deployment_of_a_retired_version_is_refused(
    run: Run, canned: "CannedSite", tmp_path: Path
) -> None:
    canned.known = [replace(VERSION, is_retired=True)]
    file = tmp_path / "catalog.toml"
    file.write_text('[deployment.m]\nversion = "1"\n')
    found = run("apply", file)
    assert found.code == 1
    assert "m:1, which is retired" in found.err
    assert canned.bodies == []
