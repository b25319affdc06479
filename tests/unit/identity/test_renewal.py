"""Renewal: the same site, the same claims, another fourteen days."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cluster_of_keys import NOW, Cluster
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.errors import Refused
from agent.identity.certificates import EXPIRED_GRACE, SITE_LIFE, make_issuer, verify_passport
from agent.identity.renewal import RenewalRequest, make_renewal, renew
from agent.identity.trust import sign_revocation
from agent.wire.records import Passport
from agent.wire.schema import pack, unpack

CLUSTER = Cluster()
HUB, EDGE = CLUSTER.site("hub"), CLUSTER.site("edge")
LOG = CLUSTER.log()
ROOT = CLUSTER.root.certificate


def asked(days: float = 5.0) -> RenewalRequest:
    return make_renewal(
        HUB.site, EDGE.passport, EDGE.private, EDGE.gossip, NOW + timedelta(days=days)
    )


def test_any_issuer_renews_with_the_same_claims() -> None:
    second, now = make_issuer(CLUSTER.root, CLUSTER.entropy, NOW), NOW + timedelta(days=5)
    reply = renew(second, HUB.site, unpack(RenewalRequest, pack(asked())), LOG, now)
    identity = verify_passport(Passport(reply.chain), ROOT, now, ())
    assert (identity.site, identity.claims) == (EDGE.site, EDGE.claims)
    assert identity.not_after == now + SITE_LIFE


def test_the_gossip_key_can_be_exchanged() -> None:
    fresh = X25519PrivateKey.from_private_bytes(CLUSTER.entropy(32))
    request = make_renewal(HUB.site, EDGE.passport, EDGE.private, fresh, NOW)
    reply = renew(CLUSTER.issuer, HUB.site, request, LOG, NOW)
    identity = verify_passport(Passport(reply.chain), ROOT, NOW, ())
    assert identity.claims.gossip_key == fresh.public_key().public_bytes_raw()


def test_an_expired_site_heals_itself_within_the_grace_and_not_after() -> None:
    for days, is_renewed in ((20.0, True), (14 + EXPIRED_GRACE.days + 1.0, False)):
        now = NOW + timedelta(days=days)
        if is_renewed:
            renew(CLUSTER.issuer, HUB.site, asked(days), LOG, now)
        else:
            with pytest.raises(Refused, match="has expired"):
                renew(CLUSTER.issuer, HUB.site, asked(days), LOG, now)


def test_a_revoked_site_is_not_renewed() -> None:
    log = CLUSTER.log()
    log.append(sign_revocation(log, EDGE.site, "", CLUSTER.admin, NOW))
    with pytest.raises(Refused, match="revoked"):
        renew(CLUSTER.issuer, HUB.site, asked(), log, NOW + timedelta(days=5))


def test_a_request_counts_for_the_asked_issuer_now_and_from_the_holder_of_the_key() -> None:
    now = NOW + timedelta(days=5)
    with pytest.raises(Refused, match="another issuer"):
        renew(CLUSTER.issuer, EDGE.site, asked(), LOG, now)
    with pytest.raises(Refused, match="too old"):
        renew(CLUSTER.issuer, HUB.site, asked(), LOG, now + timedelta(hours=2))
    for forged in (
        replace(asked(), signature=bytes(64)),
        replace(asked(), gossip_public_key=bytes(32)),
        replace(asked(), passport=HUB.passport),
    ):
        with pytest.raises(Refused, match="not signed"):
            renew(CLUSTER.issuer, HUB.site, forged, LOG, now)
