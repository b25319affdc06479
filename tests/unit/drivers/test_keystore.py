"""The identity folder: whole or not there, private, and every damage explained."""

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest

from agent.drivers import keystore
from agent.drivers.keystore import (
    FoundingResult,
    complete_join,
    found_cluster,
    load,
    load_admin,
    load_root,
    prepare_join,
    reload_chain,
    store_chain,
    store_issuer,
)
from agent.foundation.errors import AtollError, ConfigError, Refused, UsageError
from agent.identity.certificates import issue_site, make_issuer, read_issuer, site_id
from agent.identity.tokens import (
    JoinReply,
    accept_reply,
    certify,
    decode_token,
    make_request,
    mint,
    redeem,
)
from agent.identity.trust import TrustLog

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
PASSPHRASE = "correct horse"


@pytest.fixture(autouse=True)
def _quick_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a passphrase is cheap here, so that the tests are quick."""
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)


def found(directory: Path, seed: int = 1, passphrase: str = PASSPHRASE) -> FoundingResult:
    return found_cluster(
        directory,
        name="hub",
        region="north",
        tier="core",
        jurisdiction="DE",
        roles=("member",),
        passphrase=passphrase,
        now=NOW,
        entropy=Random(seed).randbytes,
    )


def files(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_founded_cluster_loads_as_it_was_made(tmp_path: Path) -> None:
    result = found(tmp_path / "identity")
    keys = load(tmp_path / "identity")
    assert keys.identity == result.keys.identity
    assert keys.site == site_id(keys.site_private.public_key())
    assert keys.identity.claims.name == "hub"
    assert keys.passport.chain == keys.chain
    assert keys.trust == (result.genesis,)
    assert keys.admin is not None
    assert keys.issuer is not None
    log = TrustLog.restore(keys.cluster, enumerate(keys.trust, start=1))
    assert list(log.admins().values()) == [keys.admin.public_key()]
    assert list(log.issuers()) == [read_issuer(keys.issuer.certificate, keys.root)]
    assert load_admin(result.admin_key).public_key() == keys.admin.public_key()


def test_every_file_and_folder_is_for_the_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        found(tmp_path / "identity")
    finally:
        os.umask(before)
    for path in ((tmp_path / "identity"), *(tmp_path / "identity").rglob("*")):
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_the_root_key_opens_with_its_passphrase_only(tmp_path: Path) -> None:
    result = found(tmp_path / "identity")
    root = load_root(result.root_key, PASSPHRASE)
    issuer = make_issuer(root, Random(2).randbytes, NOW)
    assert store_issuer(result.keys, issuer).issuer is not None
    assert b"ENCRYPTED" in result.root_key.read_bytes()
    for wrong in ("correct horsE", ""):
        with pytest.raises(ConfigError, match="passphrase is wrong"):
            load_root(result.root_key, wrong)


def test_no_secret_shows_in_the_printed_form(tmp_path: Path) -> None:
    keys = found(tmp_path / "identity").keys
    printed = repr(keys) + repr(keys.issuer)
    for private in (keys.site_private, keys.gossip_private, keys.admin):
        assert private is not None
        assert repr(private.private_bytes_raw()) not in printed


def test_a_folder_in_use_is_never_overwritten(tmp_path: Path) -> None:
    found(tmp_path / "identity")
    before = files(tmp_path / "identity")
    with pytest.raises(ConfigError, match="already holds an identity"):
        found(tmp_path / "identity", seed=2)
    with pytest.raises(ConfigError, match="already holds an identity"):
        prepare_join(tmp_path / "identity")
    assert files(tmp_path / "identity") == before


def test_a_founding_that_was_cut_off_leaves_no_identity_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = keystore._write
    for writes in range(10):
        left = [writes]

        def cut(path: Path, data: bytes, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            whole(path, data)

        with monkeypatch.context() as power_cut:
            power_cut.setattr(keystore, "_write", cut)
            with pytest.raises(KeyboardInterrupt):
                found(tmp_path / "identity")
        assert not (tmp_path / "identity").exists()
    found(tmp_path / "identity")
    assert [path.name for path in tmp_path.iterdir()] == ["identity"]


def test_what_an_operator_typed_wrong_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="passphrase of the root key is too short"):
        found(tmp_path / "identity", passphrase="short")
    with pytest.raises(UsageError, match="the name 'Hub'"):
        found_cluster(
            tmp_path / "identity",
            name="Hub",
            region="north",
            tier="core",
            jurisdiction="DE",
            roles=(),
            passphrase=PASSPHRASE,
            now=NOW,
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", ["site.key", "gossip.key", "chain.pem", "root.pem", "trust.log"])
def test_a_missing_or_damaged_file_is_named_with_what_to_do(tmp_path: Path, file: str) -> None:
    found(tmp_path / "identity")
    path = tmp_path / "identity" / file
    good = path.read_bytes()
    for damage in (b"", good[: len(good) // 2], b"\0" * len(good)):
        path.write_bytes(damage)
        with pytest.raises(ConfigError, match=file.replace(".", r"\.")) as caught:
            load(tmp_path / "identity")
        assert caught.value.mend
    path.unlink()
    with pytest.raises(ConfigError, match=file.replace(".", r"\.")):
        load(tmp_path / "identity")


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("site.key", "not the key that chain.pem certifies"),
        ("gossip.key", "not the key that chain.pem certifies"),
        ("issuer.key", "not the key that issuer.pem certifies"),
        ("chain.pem", "names another issuer|not signed by|another cluster"),
        ("root.pem", "names another issuer|not signed by|another cluster"),
        ("trust.log", "another cluster"),
    ],
)
def test_a_file_of_another_site_does_not_fit(tmp_path: Path, file: str, reason: str) -> None:
    found(tmp_path / "identity")
    found(tmp_path / "other", seed=2)
    (tmp_path / "identity" / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(ConfigError, match=reason):
        load(tmp_path / "identity")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    found(tmp_path / "identity")
    (tmp_path / "identity" / "site.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"mode is 0640.*chmod 600"):
        load(tmp_path / "identity")


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    found(tmp_path / "identity")
    key = tmp_path / "identity" / "site.key"
    key.rename(tmp_path / "elsewhere.key")
    key.symlink_to(tmp_path / "elsewhere.key")
    with pytest.raises(ConfigError, match=r"site\.key"):
        load(tmp_path / "identity")


def test_a_folder_without_identity_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="atoll init, or atoll join"):
        load(tmp_path / "identity")


def test_an_expired_certificate_still_loads(tmp_path: Path) -> None:
    assert found(tmp_path / "identity").keys.identity.not_after < NOW + timedelta(days=15)
    load(tmp_path / "identity")  # the clock of this machine is not asked


def joined(hub: FoundingResult, directory: Path) -> Callable[[], keystore.SiteKeys]:
    """Join with a token as the command line does, up to the last step."""
    keys = hub.keys
    text, row = mint(
        cluster=keys.cluster,
        issuer=keys.site,
        name="edge",
        region="south",
        tier="edge",
        jurisdiction="FR",
        roles=(),
        seeds=(("127.0.0.1", 7411),),
        entropy=Random(9).randbytes,
        now=NOW,
    )
    own = prepare_join(directory)
    request = make_request(decode_token(text), own.site_private, own.gossip_private)
    _, claims = redeem(row, request, NOW)
    assert keys.issuer is not None
    assert not isinstance(claims, Refused)
    reply = JoinReply(
        certify(keys.issuer, request, claims, NOW), keys.root, (("127.0.0.1", 7411),), keys.trust
    )
    accept_reply(decode_token(text), request, reply, NOW)
    return lambda: complete_join(directory, chain=reply.chain, root=reply.root, trust=reply.trust)


def test_a_join_ends_with_an_identity_without_issuer_or_admin_key(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub")
    keys = joined(hub, tmp_path / "state" / "identity")()
    assert (keys.issuer, keys.admin) == (None, None)
    assert keys.cluster == hub.keys.cluster
    assert keys.identity.claims.name == "edge"
    assert keys.trust == hub.keys.trust
    assert load(tmp_path / "state" / "identity").identity == keys.identity


def test_a_join_that_was_cut_off_is_repeated_with_the_same_keys(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub")
    joined(hub, tmp_path / "edge")
    before = files(tmp_path / "edge")
    with pytest.raises(ConfigError, match="neither founded nor joined"):
        load(tmp_path / "edge")
    joined(hub, tmp_path / "edge")()
    assert before.items() <= files(tmp_path / "edge").items()


def test_a_renewed_certificate_replaces_the_old_one_and_a_wrong_one_does_not(
    tmp_path: Path,
) -> None:
    keys = found(tmp_path / "identity").keys
    assert keys.issuer is not None
    later = NOW + timedelta(days=5)
    public, claims = keys.identity.public_key, keys.identity.claims
    leaf = issue_site(keys.issuer, public, claims, later)
    renewed = store_chain(keys, (leaf, keys.issuer.certificate))
    assert renewed.identity.not_after == later + timedelta(days=14)
    other = found(tmp_path / "other", seed=2).keys
    before = files(tmp_path / "identity")
    with pytest.raises(AtollError):
        store_chain(renewed, other.chain)
    stranger = prepare_join(tmp_path / "third").site_private.public_key()
    leaf = issue_site(keys.issuer, stranger, replace(claims, name="third"), later)
    with pytest.raises(ConfigError, match="for another key"):
        store_chain(renewed, (leaf, keys.issuer.certificate))
    assert files(tmp_path / "identity") == before


def renewed_chain(keys: keystore.SiteKeys) -> tuple[bytes, ...]:
    assert keys.issuer is not None
    claims, later = keys.identity.claims, NOW + timedelta(days=5)
    return issue_site(keys.issuer, keys.identity.public_key, claims, later), keys.chain[1]


@pytest.mark.parametrize("call", ["open", "fsync", "rename", "fsync of the folder"])
def test_a_renewal_that_is_cut_off_anywhere_leaves_a_usable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    keys = found(tmp_path / "identity").keys
    chain = renewed_chain(keys)
    real_fsync, count = os.fsync, 0

    def cut_off(*_: object, **__: object) -> None:
        raise OSError(5, "the power went")

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == (2 if call == "fsync of the folder" else 1):
            cut_off()
        real_fsync(descriptor)

    with monkeypatch.context() as broken:
        if call == "open":
            broken.setattr(os, "open", cut_off)
        elif call == "rename":
            broken.setattr(Path, "rename", cut_off)
        else:
            broken.setattr(os, "fsync", fsync)
        with pytest.raises(ConfigError, match="the power went"):
            store_chain(keys, chain)
    is_renewed = call == "fsync of the folder"
    assert load(keys.directory).chain == (chain if is_renewed else keys.chain)
    assert store_chain(keys, chain).chain == load(keys.directory).chain == chain


def test_a_chain_for_another_gossip_key_is_not_stored(tmp_path: Path) -> None:
    keys = found(tmp_path / "identity").keys
    assert keys.issuer is not None
    claims = replace(keys.identity.claims, gossip_key=bytes(32))
    leaf = issue_site(keys.issuer, keys.identity.public_key, claims, NOW)
    with pytest.raises(ConfigError, match="for another key"):
        store_chain(keys, (leaf, keys.issuer.certificate))
    assert load(keys.directory).chain == keys.chain


def test_another_process_reads_the_renewed_chain(tmp_path: Path) -> None:
    keys = found(tmp_path / "identity").keys
    renewed = store_chain(keys, renewed_chain(keys))
    read = reload_chain(keys)
    assert (read.chain, read.identity) == (renewed.chain, renewed.identity)
    assert read.site_private is keys.site_private
    path = tmp_path / "identity" / "chain.pem"
    path.write_bytes((found(tmp_path / "other", seed=2).keys.directory / "chain.pem").read_bytes())
    with pytest.raises(ConfigError, match=r"chain\.pem cannot be used"):
        reload_chain(keys)
    path.write_bytes(b"noise")
    with pytest.raises(ConfigError, match=r"chain\.pem cannot be used"):
        reload_chain(keys)


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot write the identity folder .*/file/identity"):
        found(tmp_path / "file" / "identity")
