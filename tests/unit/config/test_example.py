from dataclasses import replace
from pathlib import Path

import pytest

import agent.config
from agent.config import SiteSettings, parse
from agent.config.example import documented_keys, render
from agent.foundation.errors import ConfigError, UsageError

ROOT = Path(agent.config.__file__).parent


def test_the_shipped_example_is_what_the_settings_say() -> None:
    assert (ROOT / "example.toml").read_text() == render(), (
        "run: python -m agent.config.example > agent/config/example.toml"
    )


def test_the_example_is_the_defaults_and_stays_valid_uncommented() -> None:
    assert parse(render()) == SiteSettings()
    uncommented = "\n".join(
        line[1:] if line.startswith("#") and not line.startswith("# ") else line
        for line in render().splitlines()
    )
    settings = parse(uncommented)
    assert settings.site.name == "berlin-1"
    assert settings.listen.http_certificate == Path("/etc/atoll/tls/fullchain.pem")
    assert replace(settings.listen, http_certificate=None, http_key=None) == SiteSettings().listen
    assert set(settings.datasets) == {"mnist"}


def test_every_key_stands_in_the_example() -> None:
    keys = documented_keys()
    assert len(keys) > 25
    for key in keys:
        assert f"#{key.rsplit('.', 1)[1]} = " in render()


def test_given_values_are_written_so_that_they_read_back() -> None:
    odd = Path('/srv/a "b"\\c\x7fé')
    text = render(
        {
            "site.name": "a",
            "site.state_dir": odd,
            "listen.http_port": 8100,
            "discovery.mdns": False,
            "discovery.seeds": ["127.0.0.1:7411"],
        },
        datasets={"mnist": (Path("/data"), ("*",))},
    )
    settings = parse(text)
    assert settings.site.state_dir == odd
    assert settings.listen.http_port == 8100
    assert not settings.discovery.mdns
    assert settings.seeds == (("127.0.0.1", 7411),)
    assert settings.datasets["mnist"].path == Path("/data")


def test_unknown_keys_and_bad_values_are_refused_before_a_file_exists() -> None:
    with pytest.raises(UsageError, match=r"site\.nme"):
        render({"site.nme": "a"})
    with pytest.raises(ConfigError, match="http_port"):
        render({"listen.http_port": 0})
