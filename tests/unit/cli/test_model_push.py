"""``agent.cli.model_push``: upload, sign, wait."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.cli import model_push
from agent.wire.documents import Deployment, ModelVersion, Stamp
from agent.wire.limits import BLOB_BYTES_MAX

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite

Push = Callable[..., "Outcome"]
if TYPE_CHECKING:
    from conftest import Outcome


@pytest.fixture
def push(atoll: "Atoll", founded: Path, admin_of: Callable[[Path], None], tmp_path: Path) -> Push:
    admin_of(founded)
    model = tmp_path / "m.onnx"
    model.write_bytes(b"\x08\x09model")
    return lambda *more: atoll(
        *("model", "push", model, "--name", "magika", "--version", "1", "--config", founded), *more
    )


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_push, "POLL_S", 0.0)


def test_a_model_is_uploaded_signed_and_awaited_here_by_default(
    canned: "CannedSite", push: Push
) -> None:
    found = push("--residency", "DE,FR")
    assert (found.code, found.err) == (0, "")
    assert canned.blob == b"\x08\x09model"
    version, deployment = canned.bodies
    assert isinstance(version, ModelVersion)
    assert version == ModelVersion(
        "magika", "1", version.manifest, 7, "onnx", ("DE", "FR"), "m.onnx"
    )
    assert version.manifest.hex() == "34" * 32
    assert deployment == Deployment("magika", "1", ("berlin",))
    assert canned.stamps == [Stamp(1_700_000_000_000, 4), Stamp(1_700_000_000_000, 5)]
    assert "published magika:1 (7 B) for berlin" in found.out
    assert "ready after" in found.out


def test_everywhere_is_every_living_site_that_the_label_allows(
    canned: "CannedSite", push: Push
) -> None:
    found = push("--everywhere", "--json")
    assert found.code == 0
    assert canned.bodies[1] == Deployment("magika", "1", ())
    assert json.loads(found.out)["ready"] is True


def test_everywhere_is_nowhere_if_no_site_may_hold_it(push: Push) -> None:
    found = push("--everywhere", "--residency", "JP")
    assert found.code == 0
    assert "no living site may hold it yet" in found.err


def test_a_refusal_is_told_with_its_reason_at_once(canned: "CannedSite", push: Push) -> None:
    canned.model_states = [("refused", "opset 99 is not supported")]
    found = push("--sites", "berlin,unknown-site", "--timeout", "60")
    assert found.code == 1
    assert "berlin refuses magika:1" in found.err
    assert "why: opset 99 is not supported" in found.err
    assert "no site 'unknown-site' is known" in found.err


def test_waiting_ends_and_says_where_it_is_not_ready(canned: "CannedSite", push: Push) -> None:
    canned.model_states = [("fetching", "")]
    found = push("--timeout", "0")
    assert found.code == 1
    assert "not ready everywhere after 0 s" in found.err
    assert "berlin fetching" in found.err


def test_waiting_is_optional_and_useless_for_sites_that_are_not_there(
    canned: "CannedSite", push: Push
) -> None:
    canned.model_states = [("fetching", "")]
    assert push("--no-wait").code == 0
    assert push("--sites", "later").code == 0


def test_what_the_site_does_not_take_is_an_error(canned: "CannedSite", push: Push) -> None:
    canned.acceptance = "a newer document is here"
    found = push()
    assert found.code == 1
    assert "why: a newer document is here" in found.err


def test_a_signature_of_another_admin_is_refused_by_the_site(
    canned: "CannedSite", push: Push
) -> None:
    canned.admin_keys.clear()
    found = push()
    assert found.code == 1
    assert "is not an admin of this cluster" in found.err
    assert canned.bodies == []


def a_link(path: Path) -> None:
    target = path.with_name("target.onnx")
    target.write_bytes(b"model")
    path.symlink_to(target)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def too_large(path: Path) -> None:
    path.touch()
    os.truncate(path, BLOB_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda _: None, "No such file"),
        (Path.touch, "it has 0 bytes, and a model has 1 to"),
        (too_large, f"it has {BLOB_BYTES_MAX + 1:,} bytes"),
        (a_link, "target.onnx"),
        (lambda path: path.symlink_to("nowhere"), "it is a symbolic link"),
        (Path.mkdir, "it is a folder, and a model is a file"),
        (os.mkfifo, "it is a FIFO, and a model is a file"),
        (a_socket, "it is a socket"),
        (lambda path: path.symlink_to(path), "it is a symbolic link"),
    ],
)
def test_what_is_no_model_is_told_before_anything_is_sent(
    canned: "CannedSite", atoll: "Atoll", founded: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    make(Path("x.onnx"))
    words = ("--name", "a", "--version", "1", "--config", founded)
    found = atoll("model", "push", "x.onnx", *words)
    assert found.code == 1
    assert told in found.err
    assert "x.onnx" in found.err
    assert canned.blob == b""


def test_a_device_is_not_read(canned: "CannedSite", atoll: "Atoll", founded: Path) -> None:
    words = ("--name", "a", "--version", "1", "--config", founded)
    assert "it is a device" in atoll("model", "push", "/dev/zero", *words).err
    assert canned.blob == b""


def test_a_file_that_becomes_another_kind_meanwhile_is_refused(
    canned: "CannedSite", push: Push, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = (tmp_path / "m.onnx").lstat()
    (tmp_path / "m.onnx").unlink()
    os.mkfifo(tmp_path / "m.onnx")
    monkeypatch.setattr(Path, "lstat", lambda _: plain)
    assert "it is a FIFO" in push().err
    assert canned.blob == b""


def test_a_site_where_the_model_is_unloaded_is_told_at_once(
    canned: "CannedSite", push: Push
) -> None:
    canned.model_states = [("unloaded", "unloaded by the operator at 2026-01-01 00:00:00 UTC")]
    found = push()
    assert found.code == 1
    assert "unloaded by the operator" in found.err
    assert "atoll model load magika" in found.err


def test_settled_means_ready_everywhere_asked_for_or_refused_somewhere() -> None:
    ready = {"name": "a", "state": "ready", "reason": ""}
    loading = {"name": "b", "state": "loading", "reason": ""}
    refused = {"name": "b", "state": "refused", "reason": "x"}
    assert not model_push.Readiness((), ()).is_settled
    assert model_push.Readiness((ready,), ()).is_settled
    assert not model_push.Readiness((ready,), ("b",)).is_settled
    assert not model_push.Readiness((ready, loading), ()).is_settled
    assert model_push.Readiness((ready, refused), ("c",)).is_settled
