"""``agent.cli.site_files``: which agent is meant."""

import argparse
from pathlib import Path

import pytest

from agent.cli import parser, site_files
from agent.config import read
from agent.config.settings import SiteSettings
from agent.foundation.errors import ConfigError


def asked(config: Path | None = None, socket: Path | None = None) -> argparse.Namespace:
    return argparse.Namespace(config=config, socket=socket)


def test_the_defaults_are_those_of_the_settings() -> None:
    assert SiteSettings().admin_socket == site_files.DEFAULT_SOCKET
    assert parser.DEFAULT_CONFIG == read.DEFAULT_PATH


def test_a_socket_given_is_used_whatever_the_settings_say(tmp_path: Path) -> None:
    client = site_files.admin_client(asked(tmp_path / "none.toml", tmp_path / "a.sock"))
    assert client._path == tmp_path / "a.sock"


def test_settings_given_say_where_the_socket_is(tmp_path: Path) -> None:
    config = tmp_path / "atoll.toml"
    config.write_text(f'[site]\nruntime_dir = "{tmp_path}"\n')
    assert site_files.admin_client(asked(config))._path == tmp_path / "agent.sock"


def test_settings_given_must_be_there_and_right(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no configuration"):
        site_files.admin_client(asked(tmp_path / "none.toml"))
    config = tmp_path / "atoll.toml"
    config.write_text("[sight]\n")
    with pytest.raises(ConfigError, match="sight"):
        site_files.admin_client(asked(config))


def test_without_settings_the_packaged_socket_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site_files, "DEFAULT_CONFIG", tmp_path / "none.toml")
    assert site_files.admin_client(asked())._path == site_files.DEFAULT_SOCKET
