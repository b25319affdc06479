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
from agent.identity.certificates import (
    EXPIRED_GRACE,
    Identity,
    IssuerKey,
    issue_site,
    verify_passport,
)
from agent.identity.trust import TrustLog
from agent.wire.limits import TRUST_ENTRY_BYTES_MAX
from agent.wire.mesh import TrustHeads
from agent.wire.records import Counter, Endpoint, Identifier, Passport, Site
from agent.wire.schema import AtMost, Length, omitted, pack

SKEW = timedelta(hours=1)
"""How old a request may be, and how far the clocks may differ: as the back-dating of certificates."""

REFERRALS_MAX = 8
"""A cluster has two issuers or a few more."""

TRUST_ENTRIES_TOLD_MAX = 128
TRUST_BYTES_TOLD_MAX = 128 << 10
"""Of the trust log in one answer; an entry is 250 bytes as a rule."""
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
    """By the site's key; without ``trust_head``, which older versions do not know."""
    trust_head: Annotated[bytes, AtMost(32)] = omitted(b"")
    """Hash of the last entry of the trust log here. A site whose certificate has ended may make no
    other call, so it learns of revocations by this one."""


@dataclass(frozen=True, slots=True)
class Referral:
    """Where an issuer is, as far as a member knows: a hint."""

    site: Site
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class RenewalReply:
    """The new chain: leaf, then issuer; DER. Or where to ask."""

    chain: Annotated[tuple[Annotated[bytes, AtMost(2048)], ...], AtMost(3)]
    """Empty if the asked site is no issuer: then it names some."""
    issuers: Annotated[tuple[Referral, ...], AtMost(REFERRALS_MAX)] = ()
    trust_entries: Annotated[
        tuple[Annotated[bytes, AtMost(TRUST_ENTRY_BYTES_MAX)], ...], AtMost(TRUST_ENTRIES_TOLD_MAX)
    ] = omitted(())
    """What the asker's trust log lacks, from the first on; the rest comes with the next answer."""


def make_renewal(
    issuer: SiteId,
    passport: Passport,
    site_private: Ed25519PrivateKey,
    gossip_private: X25519PrivateKey,
    now: datetime,
    trust_head: bytes = b"",
) -> RenewalRequest:
    """The request of the site that holds these keys, of use to ``issuer`` only."""
    gossip = gossip_private.public_key().public_bytes_raw()
    unsigned = RenewalRequest(issuer, passport, gossip, int(now.timestamp() * 1000), b"")
    signature = site_private.sign(_DOMAIN + pack(unsigned))
    return replace(unsigned, signature=signature, trust_head=trust_head)


def with_trust(reply: RenewalReply, request: RenewalRequest, log: TrustLog) -> RenewalReply:
    """The reply, with what the asker lacks of the trust log."""
    if not request.trust_head:
        return reply
    theirs = TrustHeads(0, request.trust_head)
    entries, _ = log.lacking(theirs, TRUST_ENTRIES_TOLD_MAX, TRUST_BYTES_TOLD_MAX)
    return replace(reply, trust_entries=entries)


def check_renewal(me: SiteId, request: RenewalRequest, log: TrustLog, now: datetime) -> Identity:
    """Who asks for renewal, proven by the request alone.

    Args:
        me: this site.
        request: as received; nobody else vouches for it.
        log: names the root and who is revoked.
        now: wall-clock time, with time zone.

    Raises:
        Refused: revoked, expired for longer than the grace, not signed by the certified key, meant
            for another issuer, or a clock is wrong.
        Malformed: the passport holds no certificates of this protocol.
    """
    if request.issuer != me:
        raise Refused("the renewal was meant for another issuer")
    apart_s = now.timestamp() - request.at_ms / 1000
    if abs(apart_s) > SKEW.total_seconds():
        raise Refused(
            "the clocks of the two sites differ too much",
            why=f"the issuer's says {now:%Y-%m-%d %H:%M} UTC, the other is"
            f" {_span(abs(apart_s))} {'behind' if apart_s > 0 else 'ahead'}",
            mend="set the clock that is wrong; the renewal is tried again by itself",
        )
    identity = verify_passport(request.passport, log.root, now, log.reasons(), grace=EXPIRED_GRACE)
    try:
        identity.public_key.verify(
            request.signature, _DOMAIN + pack(replace(request, signature=b"", trust_head=b""))
        )
    except (InvalidSignature, ValueError):
        raise Refused(f"the renewal is not signed by {short(identity.site)}") from None
    return identity


def renew(
    issuer: IssuerKey, me: SiteId, request: RenewalRequest, log: TrustLog, now: datetime
) -> RenewalReply:
    """Certify a member again, for as long as its certificates live.

    Raises:
        Refused, Malformed: as ``check_renewal``; or the issuer's own certificate has ended.
    """
    identity = check_renewal(me, request, log, now)
    claims = replace(identity.claims, gossip_key=request.gossip_public_key)
    leaf = issue_site(issuer, identity.public_key, claims, now)
    return RenewalReply((leaf, issuer.certificate))


def renew_myself(issuer: IssuerKey, identity: Identity, now: datetime) -> tuple[bytes, ...]:
    """The new chain of an issuer's own site.

    Raises:
        Refused: the issuer's own certificate has ended.
    """
    return issue_site(issuer, identity.public_key, identity.claims, now), issuer.certificate


def check_renewed(
    former: Identity, chain: tuple[bytes, ...], log: TrustLog, now: datetime
) -> Identity:
    """Prove that ``chain`` may take the place of this site's present one, before it is stored.

    Raises:
        Refused: of another site, for another gossip key, revoked, older than the present one or
            not good for longer, or not valid by this clock. One of the same second is as good: the
            operator may ask just after the site itself has.
        Malformed: not certificates of this protocol.
    """
    identity = verify_passport(Passport(chain), log.root, now, log.revoked())
    if (identity.site, identity.claims.gossip_key) != (former.site, former.claims.gossip_key):
        raise Refused("the issuer certified another key than asked for")
    dates, present = ((one.not_before, one.not_after) for one in (identity, former))
    if dates != present and (dates[0] < present[0] or dates[1] <= present[1]):
        raise Refused(
            "the new certificate is no newer than the present one",
            why=f"it begins {identity.not_before.isoformat()}, the present one"
            f" {former.not_before.isoformat()}",
            mend="the issuer's clock is behind, or its own certificate ends (atoll doctor there)",
        )
    return identity


def _span(seconds: float) -> str:
    days, hours = divmod(seconds / 3600, 24)
    return f"{days:.0f} days" if days >= 2 else f"{hours + 24 * days:.1f} hours"  # noqa: PLR2004 - days are too coarse below
