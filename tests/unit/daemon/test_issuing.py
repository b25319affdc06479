"""A running site becomes an issuer when the trust log says so, and stops being one."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.daemon.issuing import Issuing
from agent.drivers import keystore
from agent.drivers.keystore import (
    SiteKeys,
    complete_join,
    found_cluster,
    load,
    load_root,
    prepare_join,
)
from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId
from agent.identity.certificates import IssuerKey, issue_site, key_id
from agent.identity.issuing import IssuerRequest, certify_request
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import RemoveIssuer
from agent.identity.trust_signing import sign_entry, sign_revocation
from agent.wire.mesh import Call, Declined, Done, Have, IssuerKeyOffer, IssuerKeyWanted, Reply
from agent.wire.schema import unpack

NOW = datetime.now(UTC)


class Site:
    """A site with its folder, its log, and who uses its keys."""

    def __init__(self, hub: SiteKeys, keys: SiteKeys) -> None:
        self.hub = hub
        self.log = TrustLog(keys.cluster)
        for entry in keys.trust:
            self.log.append(entry)
        self.keys = keys
        self.told: list[SiteKeys] = []
        self.root = load_root(hub.directory / "operator/root.key", "correct horse")
        self.issuing = Issuing(
            self.log, cast("Any", self), cast("Any", SimpleNamespace(recertified=self.told.append))
        )

    async def certify(self) -> None:
        request = unpack(IssuerRequest, await self.issuing.request())
        self.log.submit(certify_request(request, self.log, self.root, NOW)[1])

    def remove(self, key: bytes) -> None:
        self.log.submit(sign_entry(self.log, RemoveIssuer(key), self.root.private_key, NOW))


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Site]:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)

    def made() -> Site:
        hub = found_cluster(
            tmp_path / "hub", name="hub", region="north", tier="core", jurisdiction="DE",
            roles=(), passphrase="correct horse", now=NOW,
        ).keys  # fmt: skip
        own = prepare_join(tmp_path / "paris")
        gossip = own.gossip_private.public_key().public_bytes_raw()
        claims = replace(hub.identity.claims, name="paris", gossip_key=gossip)
        assert hub.issuer is not None
        leaf = issue_site(hub.issuer, own.site_private.public_key(), claims, NOW)
        chain = (leaf, hub.issuer.certificate)
        keys = complete_join(own.directory, chain=chain, root=hub.root, trust=hub.trust)
        return Site(hub, keys)

    return made


async def test_the_key_is_used_when_the_log_brings_its_certificate(
    make: Callable[[], Site],
) -> None:
    site = make()
    await site.issuing.look()
    assert (site.issuing.issuer, site.told) == (None, [])
    await site.certify()
    held = site.keys.directory
    assert (held / "issuer.new.key").stat().st_mode & 0o777 == 0o600
    assert await site.issuing.request() != b""
    await site.issuing.look()
    identifier = site.issuing.issuer
    assert identifier is not None
    assert not (held / "issuer.new.key").exists()
    (told,) = site.told
    assert told.issuer == site.keys.issuer
    on_disk = load(held).issuer
    assert on_disk is not None
    assert key_id(on_disk.private_key.public_key()) == identifier
    await site.issuing.look()
    assert len(site.told) == 1, "nothing new, nothing told"


async def test_a_request_repeated_is_for_the_same_key_until_that_is_removed(
    make: Callable[[], Site],
) -> None:
    site = make()

    async def asked() -> bytes:
        return unpack(IssuerRequest, await site.issuing.request()).issuer_key

    first = await asked()
    assert first == await asked()
    await site.certify()
    await site.issuing.look()
    assert await asked() == first, "to be certified again before it ends"
    own = site.issuing.issuer
    assert own is not None
    site.remove(own)
    fresh = await asked()
    assert fresh != first
    await site.certify()
    await site.issuing.look()
    assert site.issuing.issuer not in (None, own)


async def test_members_are_offered_a_request_and_others_are_answered_as_before(
    make: Callable[[], Site],
) -> None:
    site = make()

    async def others(_: SiteId, message: Call) -> Reply:
        assert isinstance(message, Have)
        return Done()

    handle = site.issuing.handling(others)
    offer = await handle(SiteId(bytes(32)), IssuerKeyWanted())
    assert isinstance(offer, IssuerKeyOffer)
    assert unpack(IssuerRequest, offer.request).passport == site.keys.passport
    assert await handle(SiteId(bytes(32)), Have(())) == Done()
    assert site.hub.admin is not None
    site.log.submit(sign_revocation(site.log, site.keys.site, "", site.hub.admin, NOW))
    assert isinstance(await handle(SiteId(bytes(32)), IssuerKeyWanted()), Declined)
    with pytest.raises(Refused, match="is revoked"):
        await site.issuing.request()


async def test_a_power_cut_between_the_two_files_is_mended_at_the_next_start(
    make: Callable[[], Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make()
    await site.certify()
    written = keystore._write

    def cut(path: Path, data: bytes) -> None:
        if path.name == "issuer.pem":
            raise OSError("the power went")
        written(path, data)

    monkeypatch.setattr(keystore, "_write", cut)
    await site.issuing.look()
    assert "power went" in site.issuing.trouble
    monkeypatch.setattr(keystore, "_write", written)
    again = Site.__new__(Site)
    again.log, again.told, again.root = site.log, [], site.root
    again.keys = load(site.keys.directory)
    assert again.keys.issuer is None
    again.issuing = Issuing(
        again.log, cast("Any", again), cast("Any", SimpleNamespace(recertified=again.told.append))
    )
    await again.issuing.look()
    assert again.issuing.issuer is not None
    assert isinstance(load(site.keys.directory).issuer, IssuerKey)
