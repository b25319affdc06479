"""TLS between sites, with real handshakes on loopback: who gets in, and as whom."""

import asyncio
import inspect
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from agent.drivers import tls
from agent.drivers.keystore import (
    SiteKeys,
    complete_join,
    found_cluster,
    load,
    prepare_join,
    store_chain,
)
from agent.drivers.tls import (
    ALPN,
    client_context,
    join_context,
    peer_identity,
    peer_leaf,
    reload_certificate,
    renew_context,
    require_peer,
    server_context,
    verifier,
)
from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import SiteId
from agent.identity.certificates import Identity, issue_site

NOW = datetime.now(UTC)


@pytest.fixture(autouse=True)
def _quick_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guessing a passphrase is cheap here, so that the tests are quick."""
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)


def found(directory: Path, now: datetime = NOW) -> SiteKeys:
    return found_cluster(
        directory,
        name="hub",
        region="north",
        tier="core",
        jurisdiction="DE",
        roles=(),
        passphrase="correct horse",
        now=now,
    ).keys


def member(hub: SiteKeys, directory: Path, now: datetime = NOW) -> SiteKeys:
    """A second site of the hub's cluster, certified at ``now``."""
    own = prepare_join(directory)
    gossip = own.gossip_private.public_key().public_bytes_raw()
    claims = replace(hub.identity.claims, name=directory.name, gossip_key=gossip)
    assert hub.issuer is not None
    leaf = issue_site(hub.issuer, own.site_private.public_key(), claims, now)
    chain = (leaf, hub.issuer.certificate)
    return complete_join(directory, chain=chain, root=hub.root, trust=hub.trust)


def verify_with(keys: SiteKeys, revoked: Collection[bytes] = ()) -> Callable[[bytes], Identity]:
    return verifier(keys, lambda: revoked, lambda: datetime.now(UTC))


class Meeting:
    """What the two ends of one connection made of each other."""

    def __init__(self) -> None:
        self.server_saw: Identity | Exception | None = None
        self.client_saw: Identity | Exception | None = None
        self.leaf = b""
        self.version: str | None = None
        self.is_refused = False
        """TLS itself let no byte through."""


async def meet(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    server_verify: Callable[[bytes], Identity],
    client_verify: Callable[[bytes], Identity] | None,
    target: SiteId | None = None,
) -> Meeting:
    meeting = Meeting()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            meeting.server_saw = peer_identity(writer.get_extra_info("ssl_object"), server_verify)
        except (Refused, Malformed) as error:
            meeting.server_saw = error
        else:
            writer.write(await reader.readexactly(5))
            await writer.drain()
        writer.close()

    listener = await asyncio.start_server(
        answer, "127.0.0.1", 0, ssl=server, ssl_handshake_timeout=5
    )
    async with listener:
        host, port = listener.sockets[0].getsockname()
        try:
            reader, writer = await asyncio.open_connection(host, port, ssl=client)
        except (ssl.SSLError, ConnectionError):
            meeting.is_refused = True
            return meeting
        try:
            connection = writer.get_extra_info("ssl_object")
            meeting.leaf, meeting.version = peer_leaf(connection), connection.version()
            try:
                if client_verify and target:
                    meeting.client_saw = require_peer(connection, client_verify, target)
                elif client_verify:
                    meeting.client_saw = peer_identity(connection, client_verify)
            except (Refused, Malformed) as error:
                meeting.client_saw = error
            writer.write(b"hello")
            # In TLS 1.3 the client hears of a refused certificate at its first read.
            meeting.is_refused = await reader.readexactly(5) != b"hello"
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            meeting.is_refused = True
        finally:
            writer.close()
    return meeting


async def test_two_members_know_each_other(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub")
    edge = member(hub, tmp_path / "edge")
    meeting = await meet(
        server_context(hub),
        client_context(edge),
        verify_with(hub),
        verify_with(edge),
        target=hub.site,
    )
    assert isinstance(meeting.server_saw, Identity)
    assert isinstance(meeting.client_saw, Identity)
    assert (meeting.server_saw.site, meeting.server_saw.claims.name) == (edge.site, "edge")
    assert (meeting.client_saw.site, meeting.client_saw.claims.name) == (hub.site, "hub")
    assert (meeting.version, meeting.is_refused) == ("TLSv1.3", False)


async def test_another_member_than_the_one_meant_is_noticed_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    hub = found(tmp_path / "hub")
    edge = member(hub, tmp_path / "edge")
    meeting = await meet(
        server_context(hub),
        client_context(edge),
        verify_with(hub),
        verify_with(edge),
        target=edge.site,
    )
    assert "another site than" in str(meeting.client_saw)


async def test_a_site_of_another_cluster_is_refused_by_either_side(tmp_path: Path) -> None:
    hub, stranger = found(tmp_path / "hub"), found(tmp_path / "stranger")
    for server, client in ((hub, stranger), (stranger, hub)):
        meeting = await meet(
            server_context(server),
            client_context(client),
            verify_with(server),
            verify_with(client),
        )
        assert meeting.is_refused
        assert meeting.server_saw is None
        assert meeting.client_saw is None


async def test_a_stranger_that_verifies_nothing_gets_in_by_no_certificate_of_its_own(
    tmp_path: Path,
) -> None:
    hub, stranger = found(tmp_path / "hub"), found(tmp_path / "stranger")
    careless = join_context()
    reload_certificate(careless, stranger)
    meeting = await meet(server_context(hub), careless, verify_with(hub), None)
    assert meeting.is_refused
    assert meeting.server_saw is None


async def test_a_revoked_peer_and_a_removed_issuer_are_refused_after_the_handshake(
    tmp_path: Path,
) -> None:
    hub = found(tmp_path / "hub")
    edge = member(hub, tmp_path / "edge")
    for revoked in (edge.site, edge.identity.issuer):
        meeting = await meet(
            server_context(hub),
            client_context(edge),
            verify_with(hub, {revoked}),
            verify_with(edge, {hub.site}),
        )
        assert "is revoked" in str(meeting.server_saw)
        assert "is revoked" in str(meeting.client_saw)


async def test_an_issuer_cannot_sign_under_the_name_of_another(tmp_path: Path) -> None:
    """What ``read_verified_leaf`` stands on: OpenSSL compares the two key identifiers."""
    hub = found(tmp_path / "hub")
    edge = member(hub, tmp_path / "edge")
    assert hub.issuer is not None
    honest = x509.load_der_x509_certificate(edge.chain[0])
    for identifier in (hub.identity.issuer, bytes(range(32))):
        builder = x509.CertificateBuilder(
            honest.issuer,
            honest.subject,
            honest.public_key(),
            honest.serial_number,
            honest.not_valid_before_utc,
            honest.not_valid_after_utc,
        )
        for extension in honest.extensions:
            value = extension.value
            if isinstance(value, x509.AuthorityKeyIdentifier):
                value = x509.AuthorityKeyIdentifier(identifier, None, None)
            builder = builder.add_extension(value, critical=extension.critical)
        leaf = builder.sign(hub.issuer.private_key, None)
        (edge.directory / "chain.pem").write_bytes(
            leaf.public_bytes(Encoding.PEM)
            + x509.load_der_x509_certificate(edge.chain[1]).public_bytes(Encoding.PEM)
        )
        meeting = await meet(
            server_context(hub), client_context(edge), verify_with(hub), verify_with(hub)
        )
        assert meeting.is_refused is (identifier != hub.identity.issuer)
        assert isinstance(meeting.server_saw, Identity) is not meeting.is_refused


async def test_an_expired_peer_is_refused_by_either_side(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub", NOW - timedelta(days=20))
    expired = member(hub, tmp_path / "expired", NOW - timedelta(days=15))
    edge = member(hub, tmp_path / "edge")
    for server, client in ((edge, expired), (expired, edge)):
        meeting = await meet(
            server_context(server), client_context(client), verify_with(server), verify_with(client)
        )
        assert meeting.is_refused
        assert not isinstance(meeting.server_saw, Identity)
        assert meeting.client_saw is None or client is expired


async def test_an_expired_site_can_still_reach_an_issuer_to_renew(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub", NOW - timedelta(days=20))
    expired = member(hub, tmp_path / "expired", NOW - timedelta(days=15))
    edge = member(hub, tmp_path / "edge")
    meeting = await meet(
        server_context(edge),
        renew_context(expired),
        verify_with(edge),
        verify_with(expired),
        target=edge.site,
    )
    assert isinstance(meeting.client_saw, Identity)
    assert (meeting.server_saw, meeting.is_refused) == (None, False)


async def test_a_joiner_without_certificate_is_nobody_and_sees_whose_key_it_talks_to(
    tmp_path: Path,
) -> None:
    hub = found(tmp_path / "hub")
    meeting = await meet(server_context(hub), join_context(), verify_with(hub), None)
    assert (meeting.server_saw, meeting.is_refused) == (None, False)
    assert meeting.leaf == hub.chain[0]


async def test_a_renewed_certificate_is_shown_by_the_running_listener(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub", NOW - timedelta(days=5))
    context = server_context(hub)
    assert hub.issuer is not None
    leaf = issue_site(hub.issuer, hub.identity.public_key, hub.identity.claims, NOW)
    reload_certificate(context, store_chain(hub, (leaf, hub.issuer.certificate)))
    meeting = await meet(context, join_context(), verify_with(hub), None)
    assert meeting.leaf == leaf != hub.chain[0]


async def test_older_tls_is_not_spoken(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_alpn_protocols([ALPN])
    meeting = await meet(server_context(hub), old, verify_with(hub), None)
    assert (meeting.is_refused, meeting.version) == (True, None)


async def test_a_peer_of_another_protocol_is_refused(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub")
    edge = member(hub, tmp_path / "edge")
    other = client_context(edge)
    other.set_alpn_protocols(["h2"])
    meeting = await meet(server_context(hub), other, verify_with(hub), None)
    assert f"ALPN {ALPN} was not agreed" in str(meeting.server_saw)


async def test_no_session_is_resumed_past_a_revocation(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub")
    edge = member(hub, tmp_path / "edge")
    context = client_context(edge)
    listener = await asyncio.start_server(
        lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=server_context(hub)
    )
    async with listener:
        host, port = listener.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(host, port, ssl=context)
        await reader.read()
        connection = writer.get_extra_info("ssl_object")
        assert connection.session is None or not connection.session.has_ticket
        writer.close()


def test_an_unverified_connection_never_yields_an_identity(tmp_path: Path) -> None:
    hub = found(tmp_path / "hub")
    unverified = join_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    with pytest.raises(AssertionError):
        peer_identity(unverified, verify_with(hub))
    with pytest.raises(Refused, match="not encrypted"):
        peer_identity(None, verify_with(hub))
    with pytest.raises(Malformed):
        peer_leaf(None)
    assert load(hub.directory).site == hub.site


def test_the_buffer_of_a_connection_has_the_name_in_asyncio_by_which_it_is_made_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert vars(SSLProtocol)["max_size"] > tls.READ_BYTES
    monkeypatch.setattr(SSLProtocol, "max_size", SSLProtocol.max_size)
    tls.hold_little()
    assert "self.max_size" in inspect.getsource(SSLProtocol.__init__)
    assert SSLProtocol.max_size == tls.READ_BYTES
