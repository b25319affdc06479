"""Asking for renewal over real TLS: what is believed before the request, and what is told."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sites_with_keys import founded, joined

from agent.drivers import tls
from agent.drivers.clock import wall
from agent.drivers.keystore import SiteKeys
from agent.drivers.mesh import MeshServer
from agent.drivers.renewal_call import ANSWER_BYTES_MAX, RenewalCalls
from agent.foundation.errors import Malformed, Refused, Unreachable
from agent.identity.certificates import read_passport
from agent.identity.renewal import RenewalRequest, renew
from agent.identity.tokens import IssuerProof
from agent.identity.trust import TrustLog
from agent.wire.records import Endpoint, Passport
from agent.wire.schema import pack, unpack

Answer = Callable[[bytes], Awaitable[bytes]]


@pytest.fixture(autouse=True)
def _quick_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)


class Issuer:
    """A listening issuer; ``answer`` may be replaced."""

    def __init__(self, keys: SiteKeys) -> None:
        self.keys = keys
        self.log = TrustLog(keys.cluster)
        for entry in keys.trust:
            self.log.append(entry)
        self.answer: Answer = self.renew
        self.where = Endpoint("127.0.0.1", 9, 9)

    async def renew(self, body: bytes) -> bytes:
        assert self.keys.issuer is not None
        request = unpack(RenewalRequest, body)
        return pack(renew(self.keys.issuer, self.keys.site, request, self.log, wall()))

    async def reply(self, body: bytes) -> bytes:
        return await self.answer(body)

    async def nobody(self, *_: object) -> None:
        raise AssertionError


@pytest.fixture
async def issuer(tmp_path: Path) -> AsyncIterator[Issuer]:
    found = Issuer(founded(tmp_path / "hub"))
    keys = found.keys
    proof = pack(IssuerProof(keys.chain, keys.root))
    server = MeshServer(
        keys, tls.verifier(keys, frozenset, wall), found.nobody, proof, found.nobody,  # type: ignore[arg-type]
        renew=found.reply,
    )  # fmt: skip
    await server.start("127.0.0.1", 0)
    assert server.door is not None
    found.where = Endpoint("127.0.0.1", server.door.port, 9)
    yield found
    await server.stop()


async def test_a_certificate_that_has_ended_is_renewed(issuer: Issuer, tmp_path: Path) -> None:
    keys = joined(issuer.keys, tmp_path / "edge", ago=timedelta(minutes=30), life_s=60)
    reply = await RenewalCalls(lambda: keys).ask(issuer.where)
    identity = read_passport(Passport(reply.chain), keys.root)
    assert identity.site == keys.site
    assert identity.not_after > wall()


async def test_another_clusters_site_gets_no_request(issuer: Issuer, tmp_path: Path) -> None:
    issuer.answer = issuer.nobody  # type: ignore[assignment]
    stranger = founded(tmp_path / "stranger")
    with pytest.raises(Unreachable, match="TLS failed"):
        await RenewalCalls(lambda: stranger).ask(issuer.where)


async def test_this_sites_own_address_is_told(issuer: Issuer) -> None:
    with pytest.raises(Unreachable, match="this site itself answers"):
        await RenewalCalls(lambda: issuer.keys).ask(issuer.where)


async def test_nobody_there_and_what_an_issuer_says_are_told(
    issuer: Issuer, tmp_path: Path
) -> None:
    keys = joined(issuer.keys, tmp_path / "edge")
    calls = RenewalCalls(lambda: keys)
    with pytest.raises(Unreachable, match="does not answer"):
        await calls.ask(replace(issuer.where, mesh_port=1))

    async def refuse(_: bytes) -> bytes:
        raise Refused("certificate of edge is revoked")

    issuer.answer = refuse
    with pytest.raises(Refused, match="is revoked"):
        await calls.ask(issuer.where)


@pytest.mark.parametrize("answer", [b"noise", bytes(ANSWER_BYTES_MAX + 1)])
async def test_nonsense_is_malformed(issuer: Issuer, tmp_path: Path, answer: bytes) -> None:
    async def nonsense(_: bytes) -> bytes:
        return answer

    issuer.answer = nonsense
    keys = joined(issuer.keys, tmp_path / "edge")
    with pytest.raises(Malformed):
        await RenewalCalls(lambda: keys).ask(issuer.where)
