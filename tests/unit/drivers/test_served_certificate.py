"""The operator's certificate for the applications' ports."""

import asyncio
import logging
import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.drivers import keystore, served_certificate
from agent.drivers.served_certificate import ServedCertificate
from agent.foundation.errors import ConfigError


def certificate(folder: Path, number: int = 1) -> tuple[Path, Path]:
    """Files of a certificate and its key; with another ``number`` others take their places."""
    keys = keystore.found_cluster(
        folder / f"site-{number}", name="berlin", region="eu", tier="edge", jurisdiction="DE",
        roles=(), passphrase="correct horse", now=datetime.now(UTC),
    ).keys  # fmt: skip
    chain, key = folder / "certificate.pem", folder / "key.pem"
    chain.write_bytes((keys.directory / "chain.pem").read_bytes())
    key.write_bytes((keys.directory / "site.key").read_bytes())
    return chain, key


def test_a_renewed_certificate_is_shown_and_an_equal_one_is_not_read_again(tmp_path: Path) -> None:
    shown = ServedCertificate(*certificate(tmp_path))
    former = shown.pair
    assert not shown.read()
    chain, key = certificate(tmp_path, number=2)
    assert shown.read()
    assert shown.pair == (key.read_bytes(), chain.read_bytes()) != former


def test_a_half_renewed_pair_changes_nothing(tmp_path: Path) -> None:
    chain, key = certificate(tmp_path)
    former = key.read_bytes()
    shown = ServedCertificate(chain, key)
    pair = shown.pair
    certificate(tmp_path, number=2)
    key.write_bytes(former)
    with pytest.raises(ConfigError, match="that belong together"):
        shown.read()
    assert shown.pair == pair


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_told_with_its_settings(tmp_path: Path, content: bytes) -> None:
    chain, key = certificate(tmp_path)
    chain.write_bytes(content)
    with pytest.raises(ConfigError, match="http_certificate and http_key") as refused:
        ServedCertificate(chain, key)
    assert str(chain) in refused.value.what


def test_a_file_that_is_not_there_or_too_long_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = certificate(tmp_path)
    with pytest.raises(ConfigError, match="No such file"):
        ServedCertificate(tmp_path / "none", key)
    monkeypatch.setattr(served_certificate, "FILE_BYTES_MAX", 100)
    with pytest.raises(ConfigError, match="more than 100 bytes"):
        ServedCertificate(chain, key)


def test_only_versions_of_tls_that_are_not_broken_are_spoken(tmp_path: Path) -> None:
    shown = ServedCertificate(*certificate(tmp_path))
    assert shown.context.minimum_version == ssl.TLSVersion.TLSv1_2


async def test_the_files_are_followed_and_a_wrong_one_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chain, key = certificate(tmp_path)
    shown = ServedCertificate(chain, key)
    chain.write_bytes(b"")
    looks = 0

    async def rest(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            certificate(tmp_path, number=2)
        if looks == 3:
            raise asyncio.CancelledError

    monkeypatch.setattr(asyncio, "sleep", rest)
    with caplog.at_level(logging.INFO), pytest.raises(asyncio.CancelledError):
        await shown.follow()
    assert "the former certificate is shown on" in caplog.records[0].getMessage()
    assert "show a renewed certificate" in caplog.records[1].getMessage()
