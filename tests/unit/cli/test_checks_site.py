"""``agent.cli.checks_site``: each check finds what it is for."""

import shutil
import socket
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.cli import checks_site
from agent.cli.checks import Finding
from agent.config.read import load
from agent.config.settings import DatasetPart, ListenPart, ServingPart, SiteSettings

Look = Callable[..., dict[str, Finding]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def settings(founded: Path, tmp_path: Path) -> SiteSettings:
    """Of a copy of the founded site that a test may spoil, on ports that are free."""
    found = load(founded)
    shutil.copytree(found.state_dir, tmp_path / "state")
    listen = ListenPart(
        http_port=free_port(),
        grpc_port=free_port(),
        metrics_port=free_port(),
        mesh_host="127.0.0.1",
        mesh_port=free_port(),
        data_port=free_port(),
    )
    return replace(found, site=replace(found.site, state_dir=tmp_path / "state"), listen=listen)


@pytest.fixture
def look() -> Look:
    def run(settings: SiteSettings, *, is_running: bool = False) -> dict[str, Finding]:
        return {
            finding.check: finding
            for finding in checks_site.site_findings(settings, is_running=is_running)
        }

    return run


def test_a_fresh_site_is_in_order(settings: SiteSettings, look: Look) -> None:
    found = look(settings)
    assert [finding for finding in found.values() if not finding.ok] == []
    assert "berlin (eu-central, core, DE)" in found["certificate"].evidence
    assert "offline media" in found["root key"].mend


def test_a_machine_that_is_no_site_yet_is_told_what_to_do(tmp_path: Path, look: Look) -> None:
    settings = SiteSettings()
    settings = replace(settings, site=replace(settings.site, state_dir=tmp_path / "none"))
    found = look(settings)
    for check in ("state folder", "identity files", "certificate"):
        assert not found[check].ok
        assert "init" in found[check].mend
    assert found["disk space"].ok
    assert found["database"].ok


def test_keys_that_others_may_read_are_a_problem(settings: SiteSettings, look: Look) -> None:
    path = settings.identity_dir / "site.key"
    path.chmod(0o640)
    found = look(settings)
    assert not found["identity files"].ok
    assert str(path) in found["identity files"].evidence
    assert not found["certificate"].ok


def test_a_damaged_key_is_named(settings: SiteSettings, look: Look) -> None:
    (settings.identity_dir / "site.key").write_text("rubbish")
    found = look(settings)["certificate"]
    assert not found.ok
    assert "site.key" in found.evidence


@pytest.mark.parametrize(
    ("days", "is_ok", "has_advice"),
    [(1, True, False), (12, True, True), (15, False, True), (-1, False, True)],
)
def test_certificates_are_judged_by_their_time(
    settings: SiteSettings,
    look: Look,
    monkeypatch: pytest.MonkeyPatch,
    *,
    days: int,
    is_ok: bool,
    has_advice: bool,
) -> None:
    monkeypatch.setattr(checks_site, "wall", lambda: datetime.now(UTC) + timedelta(days=days))
    found = look(settings)["certificate"]
    assert (found.ok, bool(found.mend)) == (is_ok, has_advice)


def test_a_full_disk_is_a_problem_and_one_that_fills_up_is_advice(
    settings: SiteSettings, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage.__class__(1 << 40, 0, 1 << 20))
    assert not look(settings)["disk space"].ok
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage.__class__(1 << 40, 0, 1 << 34))
    found = look(settings)["disk space"]
    assert (found.ok, found.mend) == (True, "it fills up: below 10 %")


def test_the_database_is_known_by_its_first_bytes_and_never_opened(
    settings: SiteSettings, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(settings.store_path) as database:
        database.execute("PRAGMA application_id = 0x41544F4C")
        database.execute("CREATE TABLE t (x)")
    database.close()
    monkeypatch.delattr(sqlite3, "connect")
    assert look(settings)["database"].ok
    (settings.state_dir / "atoll.db.damaged-1").write_text("x")
    assert "atoll.db.damaged-1" in look(settings)["database"].evidence
    settings.store_path.write_bytes(b"SQLite format 3\0" + b"\0" * 100)
    assert not look(settings)["database"].ok


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_that_is_taken_is_named(
    settings: SiteSettings, look: Look, kind: socket.SocketKind
) -> None:
    with socket.socket(type=kind) as taken:
        taken.bind(("127.0.0.1", settings.listen.mesh_port))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        found = look(settings)["ports"]
        assert not found.ok
        purpose = "mesh control" if kind == socket.SOCK_STREAM else "gossip"
        assert f"{purpose} 127.0.0.1:{settings.listen.mesh_port}" in found.evidence
        assert look(settings, is_running=True)["ports"].ok
    assert look(settings)["ports"].ok


def test_slots_larger_than_memory_are_a_problem(settings: SiteSettings, look: Look) -> None:
    greedy = replace(settings, serving=ServingPart(slots=256, request_bytes_max=256 << 20))
    found = look(greedy)["memory"]
    assert found.ok == ("64.0 GiB" not in found.evidence)


def test_datasets_are_looked_for(settings: SiteSettings, look: Look, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    bound = replace(
        settings,
        datasets={
            "mnist": DatasetPart(path=tmp_path / "data"),
            "gone": DatasetPart(path=tmp_path / "gone"),
        },
    )
    found = look(bound)
    assert found["dataset mnist"].ok
    assert not found["dataset gone"].ok


def test_an_unknown_hardware_profile_is_a_problem(settings: SiteSettings, look: Look) -> None:
    named = replace(settings, hardware=replace(settings.hardware, profile="no-such-machine"))
    assert not look(named)["hardware profile"].ok


def test_who_may_use_the_site_is_told_with_what_it_costs(
    settings: SiteSettings, look: Look
) -> None:
    def found(**changes: object) -> Finding:
        listen = replace(settings.listen, http_port=8000, **changes)  # type: ignore[arg-type]
        return look(replace(settings, listen=listen), is_running=True)["applications"]

    here = "at 127.0.0.1:8000"
    assert found().evidence == f"programs of this machine, without a token, {here}"
    strict = found(http_tokens="always")
    assert (strict.evidence, strict.mend) == (
        f"programs of this machine, with a token, {here}", "",
    )  # fmt: skip
    assert found(http_host="0.0.0.0").evidence == "whoever has a token, at 0.0.0.0:8000"
    chain, key = (settings.identity_dir / name for name in ("chain.pem", "site.key"))
    served = found(http_host="0.0.0.0", http_certificate=chain, http_key=key)
    expected = "whoever has a token, over TLS with a certificate for 13 days more, at 0.0.0.0:8000"
    assert served.evidence == expected
    assert served.mend == f"renew {chain}: it is read anew when it changes"
    assert "travel in clear" in found(http_host="0.0.0.0").mend
    open_to_all = found(http_host="0.0.0.0", http_tokens="never")
    assert open_to_all.evidence == "whoever reaches it, at 0.0.0.0:8000"
    assert 'http_tokens = "never"' in open_to_all.mend
