"""How a member becomes an issuer: it makes a key, the root certifies it, and neither key moves.

The conversation has one step for the operator, because the trust log already goes to every site:

1. The site makes an issuer key and a request for it (``make_issuer_request``). The request can be
   handed out to anybody: it says what to certify, and is worth nothing without the root's signature.
2. Wherever the root key is, the operator checks the request against the trust log and signs an
   ``AddIssuer`` entry that carries the certificate (``certify_request``).
3. The entry goes into the log at any site. When it reaches the site that holds the key, that site is
   an issuer.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from agent.foundation.errors import Refused
from agent.foundation.ids import short
from agent.identity.certificates import (
    Identity,
    RootKey,
    certify_issuer,
    key_id,
    read_passport,
)
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import AddIssuer
from agent.identity.trust_signing import sign_entry
from agent.wire.records import Counter, Identifier, Passport
from agent.wire.schema import Length, pack

_DOMAIN = b"atoll issuer request 1\0"


@dataclass(frozen=True, slots=True)
class IssuerRequest:
    """Please let this site admit others, with this key."""

    passport: Passport
    issuer_key: Identifier
    """Raw Ed25519 public key; the private half stays at the site."""
    at_ms: Counter
    """Unix time, for a person."""
    signature: Annotated[bytes, Length(64)]
    """By the site's key."""
    proof: Annotated[bytes, Length(64)]
    """By the issuer key: the site holds it."""


def make_issuer_request(
    passport: Passport,
    site_private: Ed25519PrivateKey,
    issuer_private: Ed25519PrivateKey,
    now: datetime,
) -> IssuerRequest:
    """The request of the site that holds both keys."""
    raw = issuer_private.public_key().public_bytes_raw()
    unsigned = IssuerRequest(passport, raw, int(now.timestamp() * 1000), b"", b"")
    body = _DOMAIN + pack(unsigned)
    return replace(unsigned, signature=site_private.sign(body), proof=issuer_private.sign(body))


def check_issuer_request(request: IssuerRequest, log: TrustLog) -> Identity:
    """The member that asks.

    An expired certificate is good enough: the operator decides, and the site renews by itself.

    Raises:
        Refused: no member of this cluster, revoked, or it does not hold the keys.
        Malformed: the passport holds no certificates of this protocol.
    """
    identity = read_passport(request.passport, log.root)
    who = f"{identity.claims.name} ({short(identity.site)})"
    if identity.site in log.revoked() or identity.issuer in log.revoked():
        raise Refused(f"{who} is revoked", mend="choose another site as issuer")
    body = _DOMAIN + pack(replace(request, signature=b"", proof=b""))
    try:
        identity.public_key.verify(request.signature, body)
        issuer_key = Ed25519PublicKey.from_public_bytes(request.issuer_key)
        issuer_key.verify(request.proof, body)
    except (InvalidSignature, ValueError):
        raise Refused(
            f"the request is not signed by {who} and the key it asks to certify",
            mend="make it again: atoll issuer request",
        ) from None
    if key_id(issuer_key) in log.revoked():
        raise Refused(
            f"the issuer key {short(key_id(issuer_key))} of {who} was removed",
            why="a removed key never comes back",
            mend="start the site's agent again: it then makes a new key",
        )
    return identity


def certify_request(
    request: IssuerRequest, log: TrustLog, root: RootKey, now: datetime
) -> tuple[Identity, bytes]:
    """The member and the packed trust log entry that makes it an issuer; submit it at any site.

    Raises:
        Refused: as ``check_issuer_request`` and ``sign_entry``, or another cluster's root key.
        Malformed: as ``check_issuer_request``.
    """
    if root.certificate != log.root:
        raise Refused("this is the root key of another cluster", mend="use this cluster's")
    identity = check_issuer_request(request, log)
    public_key = Ed25519PublicKey.from_public_bytes(request.issuer_key)
    certificate = certify_issuer(root, public_key, now)
    action = AddIssuer(certificate, bytes(identity.site))
    return identity, sign_entry(log, action, root.private_key, now)
