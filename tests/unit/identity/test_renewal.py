"""Renewal: the same site, the same claims, another fourteen days."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cluster_of_keys import NOW, Cluster
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.errors import Refused
from agent.identity.certificates import EXPIRED_GRACE, SITE_LIFE, make_issuer, verify_passport
from agent.identity.renewal import (
    RenewalReply,
    RenewalRequest,
    check_renewal,
    check_renewed,
    make_renewal,
    renew,
    renew_myself,
    with_trust,
)
from agent.identity.trust_signing import sign_revocation
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
    with pytest.raises(Refused, match="clocks"):
        renew(CLUSTER.issuer, HUB.site, asked(), LOG, now + timedelta(hours=2))
    for forged in (
        replace(asked(), signature=bytes(64)),
        replace(asked(), gossip_public_key=bytes(32)),
        replace(asked(), passport=HUB.passport),
    ):
        with pytest.raises(Refused, match="not signed"):
            renew(CLUSTER.issuer, HUB.site, forged, LOG, now)


def test_the_life_that_was_granted_is_kept() -> None:
    claims = replace(EDGE.claims, life_s=3600)
    passport = CLUSTER.certified(EDGE, claims)
    now = NOW + timedelta(minutes=20)
    request = make_renewal(HUB.site, passport, EDGE.private, EDGE.gossip, now)
    reply = renew(CLUSTER.issuer, HUB.site, request, LOG, now)
    identity = verify_passport(Passport(reply.chain), ROOT, now, ())
    assert identity.not_after == now + timedelta(hours=1)
    assert identity.renew_at() == now + timedelta(minutes=20)


def test_a_clock_that_is_wrong_is_named_with_its_distance() -> None:
    for days, words in ((400.0, "400 days ahead"), (-400.0, "400 days behind")):
        with pytest.raises(Refused, match="clocks of the two sites differ") as caught:
            renew(CLUSTER.issuer, HUB.site, asked(days), LOG, NOW)
        assert words in caught.value.why
        assert "2026-05-01 12:00 UTC" in caught.value.why


def test_an_issuer_certifies_itself() -> None:
    former = verify_passport(HUB.passport, ROOT, NOW, ())
    now = NOW + timedelta(days=5)
    renewed = check_renewed(former, renew_myself(CLUSTER.issuer, former, now), LOG, now)
    assert (renewed.claims, renewed.not_after) == (former.claims, now + SITE_LIFE)


def test_what_comes_back_is_proven_before_it_takes_the_present_ones_place() -> None:
    former = verify_passport(EDGE.passport, ROOT, NOW, ())
    now = NOW + timedelta(days=5)
    reply = renew(CLUSTER.issuer, HUB.site, asked(), LOG, now)
    assert check_renewed(former, reply.chain, LOG, now).site == EDGE.site
    with pytest.raises(Refused, match="another key than asked for"):
        check_renewed(former, HUB.passport.chain, LOG, NOW)
    renewed = check_renewed(former, reply.chain, LOG, now)
    with pytest.raises(Refused, match="no newer than the present one"):
        check_renewed(renewed, EDGE.passport.chain, LOG, NOW)
    with pytest.raises(Refused, match="is not valid yet"):
        check_renewed(former, reply.chain, LOG, NOW - timedelta(days=30))
    stranger = Cluster(2).site("edge")
    with pytest.raises(Refused):
        check_renewed(former, stranger.passport.chain, LOG, now)
    log = CLUSTER.log()
    log.append(sign_revocation(log, EDGE.site, "", CLUSTER.admin, NOW))
    with pytest.raises(Refused, match="revoked"):
        check_renewed(former, reply.chain, log, now)


def test_a_renewal_within_the_second_of_the_last_one_is_as_good() -> None:
    now = NOW + timedelta(days=5)
    chain = renew(CLUSTER.issuer, HUB.site, asked(), LOG, now).chain
    present = check_renewed(verify_passport(EDGE.passport, ROOT, NOW, ()), chain, LOG, now)
    assert check_renewed(present, chain, LOG, now) == present


def test_a_reply_may_name_issuers_instead() -> None:
    assert unpack(RenewalReply, pack(RenewalReply(()))) == RenewalReply((), ())


def test_a_site_that_may_only_renew_learns_of_revocations_by_doing_so() -> None:
    log = CLUSTER.log()
    head = log.head
    log.append(sign_revocation(log, HUB.site, "", CLUSTER.admin, NOW))
    request = make_renewal(HUB.site, EDGE.passport, EDGE.private, EDGE.gossip, NOW, head)
    assert check_renewal(HUB.site, request, log, NOW).site == EDGE.site
    reply = with_trust(RenewalReply(()), request, log)
    assert reply.trust_entries == log.entries(after=1)
    assert unpack(RenewalReply, pack(reply)) == reply
    silent = replace(request, trust_head=b"")
    assert check_renewal(HUB.site, silent, log, NOW).site == EDGE.site, "as of an older version"
    assert with_trust(RenewalReply(()), silent, log) == RenewalReply(())
    unknown = replace(request, trust_head=bytes(32))
    assert with_trust(RenewalReply(()), unknown, log).trust_entries == log.entries()
