"""``agent.cli.founding`` and ``agent.cli.new_site``: a cluster comes into being."""

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.read import load
from agent.drivers import keystore
from agent.identity.trust import TrustLog

if TYPE_CHECKING:
    from conftest import Atoll

CLAIMS = ("--name", "rome", "--region", "eu-south", "--tier", "edge", "--jurisdiction", "IT")


def test_founding_writes_keys_and_settings_that_load(founded: Path) -> None:
    settings = load(founded)
    assert settings.site.name == "berlin"
    assert settings.state_dir == founded.parent / "state"
    keys = keystore.load(settings.identity_dir)
    claims = keys.identity.claims
    assert (claims.name, claims.region, claims.tier, claims.jurisdiction) == (
        "berlin",
        "eu-central",
        "core",
        "DE",
    )
    assert keys.issuer is not None
    assert keys.admin is not None
    assert keys.identity.not_before < datetime.now(UTC) < keys.identity.not_after
    assert TrustLog.restore(keys.cluster, enumerate(keys.trust, start=1)).height == 1
    for folder in (settings.state_dir, settings.identity_dir):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_root_key_opens_with_the_passphrase_of_the_file(founded: Path) -> None:
    path = load(founded).identity_dir / "operator" / "root.key"
    root = keystore.load_root(path, "correct horse battery")
    assert root.certificate == keystore.load(load(founded).identity_dir).root


def test_founding_twice_is_refused_and_changes_nothing(
    bare: "Atoll", founded: Path, tmp_path: Path
) -> None:
    (tmp_path / "pass").write_text("another one\n")
    before = (founded.read_bytes(), (load(founded).identity_dir / "site.key").read_bytes())
    found = bare("init", "--config", founded, *CLAIMS, "--passphrase-file", tmp_path / "pass")
    assert found.code == 1
    assert "already holds an identity" in found.err
    assert before == (founded.read_bytes(), (load(founded).identity_dir / "site.key").read_bytes())


def test_settings_that_are_there_are_kept_and_followed(bare: "Atoll", tmp_path: Path) -> None:
    config, state = tmp_path / "atoll.toml", tmp_path / "elsewhere"
    text = f'[site]\nstate_dir = "{state}"\n# mine\n'
    config.write_text(text)
    (tmp_path / "pass").write_text("long enough\n")
    words = ("init", "--config", config, *CLAIMS, "--passphrase-file", tmp_path / "pass")
    contradicting = bare(*words, "--state-dir", tmp_path / "other")
    assert contradicting.code == 1
    assert "contradicts" in contradicting.err
    found = bare(*words, "--json", "--jurisdictions", "IT,DE")
    assert found.code == 0
    answer = json.loads(found.out)
    assert config.read_text() == text
    keys = keystore.load(state / "identity")
    assert answer["site"] == keys.site.hex()
    assert answer["cluster"] == keys.cluster.hex()
    log = TrustLog.restore(keys.cluster, enumerate(keys.trust, start=1))
    assert log.jurisdictions == ("IT", "DE")


def test_a_state_folder_that_cannot_be_made_is_told(bare: "Atoll", tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("long enough\n")
    words = ("--config", tmp_path / "c.toml", "--state-dir", tmp_path / "pass" / "state")
    found = bare("init", *words, *CLAIMS, "--passphrase-file", tmp_path / "pass")
    assert (found.code, "Not a directory" in found.err) == (1, True)


def test_wrong_settings_stop_the_founding(bare: "Atoll", tmp_path: Path) -> None:
    config = tmp_path / "atoll.toml"
    config.write_text("[site]\nstate_dirr = 1\n")
    (tmp_path / "pass").write_text("long enough\n")
    found = bare("init", "--config", config, *CLAIMS, "--passphrase-file", tmp_path / "pass")
    assert found.code == 1
    assert "state_dir" in found.err


def test_the_first_site_must_fit_the_vocabulary(bare: "Atoll", tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("long enough\n")
    words = ("--config", tmp_path / "c.toml", "--state-dir", tmp_path / "s")
    found = bare(
        "init", *words, *CLAIMS, "--passphrase-file", tmp_path / "pass", "--jurisdictions", "DE"
    )
    assert found.code == 1
    assert not (tmp_path / "s").exists()
