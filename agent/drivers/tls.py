"""TLS between sites: 1.3 only, mutual, and the identity is the key, not the host name.

Rule: a connection is anonymous until ``peer_identity`` has said who it is. OpenSSL proves that the
peer holds the key and that its chain ends at our root, now; the claims, the cluster and revocation
are read from the certificate afterwards, and the caller compares the site id with the one it meant.

A server lets a peer without certificate finish the handshake, because joining and renewing an
expired certificate begin there; ``peer_identity`` is then None and every other route is refused.
Tickets are off, so each connection is checked against the revocations of its moment. Certificates
are read from the identity folder because Python's ``ssl`` takes them from files only.
"""

import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Collection
from datetime import datetime

from agent.drivers.keystore import SiteKeys
from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import SiteId, short
from agent.identity.certificates import Identity, check_standing, read_verified_leaf

ALPN = "atoll/1"
NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which Python does not name."""

READ_BYTES = 64 << 10
"""Four TLS records at a time, instead of asyncio's sixteen: each connection has a buffer of this size, and the data
decrypted from it once more. A site that collects a round's updates has some forty connections."""

Verify = Callable[[bytes], Identity]
"""Reads a leaf certificate (DER) that TLS has verified; raises Refused or Malformed."""
Connection = ssl.SSLObject | ssl.SSLSocket


def hold_little() -> None:
    """Have asyncio's TLS connections of this process keep small buffers."""
    SSLProtocol.max_size = READ_BYTES


def server_context(keys: SiteKeys) -> ssl.SSLContext:
    """For both mesh listeners: shows this site, asks for the peer's certificate, does not insist."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    _trust(context, keys)
    return context


def client_context(keys: SiteKeys) -> ssl.SSLContext:
    """For calls to members: shows this site and accepts only this cluster's sites."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # addresses move; the site id in the certificate does not
    context.verify_mode = ssl.CERT_REQUIRED
    _harden(context)
    _trust(context, keys)
    return context


def join_context() -> ssl.SSLContext:
    """For a site that has a token and no certificate: verifies **nothing** by itself.

    The joiner compares ``peer_leaf`` and the shown chain with its token
    (``agent.identity.tokens.check_issuer``) before it sends a byte of its request.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _harden(context)
    return context


def renew_context(keys: SiteKeys) -> ssl.SSLContext:
    """For renewal: verifies that a site of this cluster answers, and shows no certificate.

    Dates are not looked at: where one clock is wrong the asked site says by how much. Nothing secret
    is sent, and what comes back proves itself (``agent.identity.renewal.check_renewed``).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    _harden(context)
    context.verify_flags |= ssl.VerifyFlags(NO_CHECK_TIME)
    context.load_verify_locations(cadata=keys.root)
    return context


def reload_certificate(context: ssl.SSLContext, keys: SiteKeys) -> None:
    """Let new connections of a live context show the renewed certificate of the same key."""
    context.load_cert_chain(keys.directory / "chain.pem", keys.directory / "site.key")


def verifier(
    keys: SiteKeys,
    revoked: Callable[[], Collection[bytes]],
    clock: Callable[[], datetime],
    require_current: Callable[[Identity], None] = lambda _: None,
) -> Verify:
    """The ``verify`` of ``peer_identity``: this cluster, not revoked, in its time, not replaced.

    Args:
        keys: whose root decides.
        revoked: ids of revoked sites and removed issuers as of now (``TrustLog.revoked``).
        clock: wall-clock time, with time zone.
        require_current: refuses identities whose place another has taken (``Roll.require_current``).
    """

    def verify(leaf: bytes) -> Identity:
        identity = read_verified_leaf(leaf, keys.root)
        require_current(identity)
        check_standing(identity, clock(), revoked())
        return identity

    return verify


def peer_identity(connection: Connection | None, verify: Verify) -> Identity | None:
    """Who is at the other end of a finished handshake; None if it shows no certificate.

    Raises:
        Refused: revoked, expired, another cluster's, or another protocol than ``ALPN``.
        Malformed: its certificate is no site certificate.
    """
    if connection is None:
        raise Refused("the connection is not encrypted", mend="use the mesh port with TLS")
    assert connection.context.verify_mode is not ssl.CERT_NONE  # else nobody verified the chain
    if connection.selected_alpn_protocol() != ALPN:
        raise Refused("the peer does not speak this protocol", why=f"ALPN {ALPN} was not agreed")
    leaf = connection.getpeercert(binary_form=True)
    return None if leaf is None else verify(leaf)


def require_peer(connection: Connection | None, verify: Verify, target: SiteId) -> Identity:
    """As ``peer_identity``, and it is the site that was meant: call before sending anything.

    Raises:
        Refused: another site answers at this address, or as ``peer_identity``.
        Malformed: as ``peer_identity``.
    """
    identity = peer_identity(connection, verify)
    if identity is None or identity.site != target:
        raise Refused(
            f"another site than {short(target)} answers at this address",
            why="nobody" if identity is None else f"it is {short(identity.site)}",
            mend="wait for its record with the new address",
        )
    return identity


def peer_leaf(connection: Connection | None) -> bytes:
    """The leaf certificate (DER) that the server showed; with ``join_context`` it is unverified.

    Raises:
        Malformed: there is none.
    """
    leaf = None if connection is None else connection.getpeercert(binary_form=True)
    if leaf is None:
        raise Malformed("the peer shows no certificate")
    return leaf


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    context.set_alpn_protocols([ALPN])


def _trust(context: ssl.SSLContext, keys: SiteKeys) -> None:
    context.load_verify_locations(cadata=keys.root)
    context.load_cert_chain(keys.directory / "chain.pem", keys.directory / "site.key")
