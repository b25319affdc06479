"""Renewal: an issuer certifies a known key again, with the same claims.

Rule: renewal changes the dates and, if asked, the gossip key; everything else an issuer says of a
site needs a new token. An expired certificate may be renewed for ``EXPIRED_GRACE``, a revoked one
never. The request is signed by the site's key, so it needs no TLS client certificate: that is how a
site whose certificate has expired comes back (``agent.drivers.tls.renew_context``).

A replayed request yields a certificate for the same key once more, which helps nobody else.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId, short
from agent.identity.certificates import EXPIRED_GRACE, IssuerKey, issue_site, verify_passport
from agent.identity.trust import TrustLog
from agent.wire.records import Counter, Identifier, Passport, Site
from agent.wire.schema import AtMost, Length, pack

SKEW = timedelta(hours=1)
"""How old a request may be, and how far the clocks may differ: as the back-dating of certificates."""

_DOMAIN = b"atoll renewal 1\0"


@dataclass(frozen=True, slots=True)
class RenewalRequest:
    """Please certify me again (``POST /renew/1``)."""

    issuer: Site
    """The site that is asked; another one refuses."""
    passport: Passport
    gossip_public_key: Identifier
    """Raw X25519: the same as before, or a new one."""
    at_ms: Counter
    """Unix time."""
    signature: Annotated[bytes, Length(64)]
    """By the site's key."""


@dataclass(frozen=True, slots=True)
class RenewalReply:
    """The new chain: leaf, then issuer; DER."""

    chain: Annotated[tuple[Annotated[bytes, AtMost(2048)], ...], AtMost(3)]


def make_renewal(
    issuer: SiteId,
    passport: Passport,
    site_private: Ed25519PrivateKey,
    gossip_private: X25519PrivateKey,
    now: datetime,
) -> RenewalRequest:
    """The request of the site that holds these keys, of use to ``issuer`` only."""
    gossip = gossip_private.public_key().public_bytes_raw()
    unsigned = RenewalRequest(issuer, passport, gossip, int(now.timestamp() * 1000), b"")
    return replace(unsigned, signature=site_private.sign(_DOMAIN + pack(unsigned)))


def renew(
    issuer: IssuerKey, me: SiteId, request: RenewalRequest, log: TrustLog, now: datetime
) -> RenewalReply:
    """Certify a member again for 14 days.

    Args:
        issuer: this site's issuer key.
        me: this site.
        request: as received; nobody else vouches for it.
        log: names the root and who is revoked.
        now: wall-clock time, with time zone.

    Raises:
        Refused: revoked, expired for longer than the grace, not signed by the certified key, meant
            for another issuer, or too old.
        Malformed: the passport holds no certificates of this protocol.
    """
    if request.issuer != me:
        raise Refused("the renewal was meant for another issuer")
    if abs(now.timestamp() * 1000 - request.at_ms) > SKEW.total_seconds() * 1000:
        raise Refused(
            "the renewal request is too old, or a clock is wrong",
            why=f"issuer and site differ by more than {SKEW}",
            mend="set both clocks and ask again",
        )
    identity = verify_passport(request.passport, log.root, now, log.revoked(), grace=EXPIRED_GRACE)
    try:
        identity.public_key.verify(
            request.signature, _DOMAIN + pack(replace(request, signature=b""))
        )
    except (InvalidSignature, ValueError):
        raise Refused(f"the renewal is not signed by {short(identity.site)}") from None
    claims = replace(identity.claims, gossip_key=request.gossip_public_key)
    leaf = issue_site(issuer, identity.public_key, claims, now)
    return RenewalReply((leaf, issuer.certificate))
