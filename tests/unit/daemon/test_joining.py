"""An issuer's tokens: durable before they are shown, spent before a certificate leaves."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.api.operations import TokenRequest
from agent.daemon import joining as joining_module
from agent.daemon.joining import Joining
from agent.drivers.keystore import SiteKeys, found_cluster, prepare_join
from agent.drivers.store import Store
from agent.foundation.errors import Malformed, Refused
from agent.foundation.writes import Put
from agent.identity.certificates import site_id
from agent.identity.registry import Roll
from agent.identity.tokens import JoinReply, TokenRow, decode_token, make_request
from agent.identity.trust import TrustLog
from agent.wire.schema import pack, unpack

REQUEST = TokenRequest("paris", "eu", "edge", "FR", (), 600.0)


class Issuer:
    def __init__(self, folder: Path, keys: SiteKeys, store: Store) -> None:
        self.folder, self.keys, self.store = folder, keys, store
        self.trust = TrustLog(keys.cluster)
        for entry in keys.trust:
            self.trust.append(entry)
        self.roll = Roll(keys.root, self.trust)
        self.joining = Joining(keys, self.trust, self.roll, store, (("127.0.0.1", 7411),))
        self.count = 0

    async def request(self, token: str) -> bytes:
        """A new machine's packed request."""
        self.count += 1
        own = prepare_join(self.folder / f"joiner-{self.count}")
        made = make_request(decode_token(token), own.site_private, own.gossip_private)
        assert site_id(own.site_private.public_key()) != self.keys.site
        return pack(made)


@pytest.fixture
async def issuer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Issuer]:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)
    keys = found_cluster(
        tmp_path / "hub", name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=datetime.now(UTC),
    ).keys  # fmt: skip
    store = await Store.open(tmp_path / "atoll.db")
    yield Issuer(tmp_path, keys, store)
    await store.close()


async def test_a_token_admits_one_site_once_even_if_two_ask_at_once(issuer: Issuer) -> None:
    token = await issuer.joining.create_token(REQUEST)
    both = [await issuer.request(token), await issuer.request(token)]
    outcomes = await asyncio.gather(*map(issuer.joining.join, both), return_exceptions=True)
    granted = [one for one in outcomes if isinstance(one, bytes)]
    refused = [one for one in outcomes if isinstance(one, Refused)]
    assert (len(granted), len(refused)) == (1, 1)
    reply = unpack(JoinReply, granted[0])
    assert reply.root == issuer.keys.root
    rows = await issuer.store.read(lambda db: [dict(row) for row in db["tokens"].rows])
    assert [unpack(TokenRow, row["row"]).state for row in rows] == ["spent"]


async def test_the_same_machine_may_ask_again_when_the_answer_was_lost(issuer: Issuer) -> None:
    token = await issuer.joining.create_token(REQUEST)
    request = await issuer.request(token)
    await issuer.joining.join(request)
    assert unpack(JoinReply, await issuer.joining.join(request)).chain


async def test_noise_is_malformed(issuer: Issuer) -> None:
    with pytest.raises(Malformed):
        await issuer.joining.join(b"noise")
    with pytest.raises(Malformed):
        await issuer.joining.join(bytes(5000))


async def test_a_site_without_an_issuer_key_sends_the_operator_to_one_that_has_it(
    issuer: Issuer,
) -> None:
    keys = replace(issuer.keys, issuer=None)
    other = Joining(keys, issuer.trust, issuer.roll, issuer.store, ())
    with pytest.raises(Refused, match="on an issuer"):
        await other.create_token(REQUEST)
    with pytest.raises(Refused):
        await other.join(await issuer.request(await issuer.joining.create_token(REQUEST)))


async def test_open_tokens_are_bounded_and_old_ones_make_room(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining_module, "TOKENS_MAX", 1)
    await issuer.joining.create_token(REQUEST)
    with pytest.raises(Refused, match="tokens are open"):
        await issuer.joining.create_token(REQUEST)
    rows = await issuer.store.read(lambda db: [dict(row) for row in db["tokens"].rows])
    aged = {"id": rows[0]["id"], "row": rows[0]["row"], "expires_at": 1.0}
    await issuer.store.commit([Put("tokens", aged)])
    await issuer.joining.create_token(REQUEST)
    left = await issuer.store.read(lambda db: [dict(row) for row in db["tokens"].rows])
    assert len(left) == 1
    assert left[0]["id"] != rows[0]["id"]
