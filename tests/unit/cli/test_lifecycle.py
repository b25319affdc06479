"""``agent.cli.lifecycle``: the verbs of a site's life, and the passphrase."""

import getpass
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import agent
from agent.api.operations import TokenRequest
from agent.cli.lifecycle import passphrase
from agent.drivers.keystore import PASSPHRASE_CHARS_MIN as KEYSTORE_MIN
from agent.foundation.errors import UsageError

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite

CLAIMS = ("--name", "paris", "--region", "eu-west", "--tier", "edge", "--jurisdiction", "FR")


def test_a_token_is_all_that_is_printed(canned: "CannedSite", atoll: "Atoll") -> None:
    found = atoll("token", "create", *CLAIMS, "--role", "issuer", "--ttl", "10m")
    assert (found.code, found.out, found.err) == (0, "atoll1.canned\n", "")
    assert canned.asked == [TokenRequest("paris", "eu-west", "edge", "FR", ("issuer",), 600.0)]
    assert json.loads(atoll("token", "create", *CLAIMS, "--json").out) == {"token": "atoll1.canned"}


def test_a_token_may_shorten_the_life_of_certificates(canned: "CannedSite", atoll: "Atoll") -> None:
    assert atoll("token", "create", *CLAIMS, "--life", "1d").code == 0
    (request,) = canned.asked
    assert isinstance(request, TokenRequest)
    assert request.life_s == 86_400
    found = atoll("token", "create", *CLAIMS, "--life", "15d")
    assert (found.code, len(canned.asked)) == (1, 1)
    assert "1209600" in found.err


def test_a_token_for_the_name_of_a_living_site_says_whom_it_retires(atoll: "Atoll") -> None:
    found = atoll("token", "create", *CLAIMS[2:], "--name", "berlin")
    assert (found.code, found.out) == (0, "atoll1.canned\n")
    assert "berlin (abababab) is alive now" in found.err


def test_a_token_that_lives_too_long_is_refused(canned: "CannedSite", atoll: "Atoll") -> None:
    found = atoll("token", "create", *CLAIMS, "--ttl", "8d")
    assert (found.code, canned.asked) == (1, [])
    assert "604800" in found.err


def test_a_model_is_loaded_and_unloaded(atoll: "Atoll", canned: "CannedSite") -> None:
    assert "m is ready here" in atoll("model", "load", "m").out
    unloaded = atoll("model", "unload", "m:1").out
    assert "m:1 is not served here any more, until atoll model load m:1" in unloaded
    assert json.loads(atoll("model", "load", "m:1", "--json").out) == {}
    assert canned.asked == [("load", "m"), ("unload", "m:1"), ("load", "m:1")]
    assert atoll("model", "load", "m:").code == 2


def test_a_model_is_released_and_what_held_it_back_is_told(
    canned: "CannedSite", atoll: "Atoll"
) -> None:
    assert "it was refused: it crashed" in atoll("model", "release", "bad:1").out
    assert "nothing held it back" in atoll("model", "release", "good:2").out
    assert json.loads(atoll("model", "release", "good:2", "--json").out)["state"] == "ready"
    assert canned.asked == [("release", f"{model}") for model in ("bad:1", "good:2", "good:2")]
    refused = atoll("model", "release", "good")
    assert refused.code == 2
    assert "NAME:VERSION" in refused.err


def test_draining_leaving_and_stopping_reach_the_agent(
    canned: "CannedSite", atoll: "Atoll"
) -> None:
    assert "no new work" in atoll("drain").out
    assert json.loads(atoll("undrain", "--json").out) == {"draining": False}
    assert atoll("leave").code == 0
    assert atoll("stop").code == 0
    assert canned.asked == [("draining", True), ("draining", False), "leave", "stop"]


def test_the_version_needs_no_agent(bare: "Atoll") -> None:
    assert bare("version").out == f"atoll {agent.__version__}\n"
    assert json.loads(bare("version", "--json").out) == {"version": agent.__version__}


def test_the_passphrase_is_the_first_line_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "pass"
    path.write_bytes("pässwörter \r\nsecond line\n".encode())
    assert passphrase(path) == "pässwörter "


@pytest.mark.parametrize("content", [b"short\n", b"", b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe\n"])
def test_a_weak_or_unreadable_passphrase_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "pass"
    path.write_bytes(content)
    with pytest.raises(UsageError):
        passphrase(path)
    with pytest.raises(UsageError, match="cannot be read"):
        passphrase(tmp_path / "none")


def test_on_a_terminal_the_passphrase_is_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["long enough", "long enough", "long enough", "differs"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda _: next(answers))
    assert passphrase(None) == "long enough"
    with pytest.raises(UsageError, match="differ"):
        passphrase(None)


def test_without_a_terminal_a_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    with pytest.raises(UsageError) as caught:
        passphrase(None)
    assert "--passphrase-file" in caught.value.mend


def test_the_least_length_is_the_keystores() -> None:
    from agent.cli.lifecycle import PASSPHRASE_CHARS_MIN  # noqa: PLC0415

    assert PASSPHRASE_CHARS_MIN == KEYSTORE_MIN
