"""The roll: who is known, and whose signatures count."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cluster_of_keys import NOW, Cluster, Member
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import SiteId
from agent.identity import registry
from agent.identity.certificates import SITE_LIFE, issue_site, make_issuer
from agent.identity.registry import Roll, SiteNotary
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import RemoveIssuer
from agent.identity.trust_signing import sign_entry, sign_revocation
from agent.wire.records import Passport


def roll_of(cluster: Cluster) -> tuple[Roll, TrustLog]:
    log = cluster.log()
    return Roll(cluster.root.certificate, log), log


def renewed(cluster: Cluster, member: Member, days: int) -> Passport:
    gossip = X25519PrivateKey.from_private_bytes(cluster.entropy(32)).public_key()
    claims = replace(member.claims, gossip_key=gossip.public_bytes_raw())
    leaf = issue_site(
        cluster.issuer, member.private.public_key(), claims, NOW + timedelta(days=days)
    )
    return Passport((leaf, cluster.issuer.certificate))


def revoke(cluster: Cluster, log: TrustLog, site: SiteId) -> None:
    log.append(sign_revocation(log, site, "lost", cluster.admin, NOW))


def test_an_admitted_site_is_known_by_id_short_id_and_name() -> None:
    cluster = Cluster()
    roll, _ = roll_of(cluster)
    site = cluster.site("edge-1")
    assert roll.get(site.site) is None
    assert roll.admit(site.passport, NOW).site == site.site
    assert roll.passport(site.site) == site.passport
    assert roll.resolve(site.site[:8]) == site.site
    assert roll.resolve(bytes(8)) is None
    assert roll.named("edge-1") == (site.site,)
    assert roll.gossip_key(site.site) == site.claims.gossip_key
    assert (list(roll), len(roll)) == ([site.site], 1)


def test_a_reinstalled_site_is_another_site_of_the_same_name() -> None:
    cluster = Cluster()
    roll, _ = roll_of(cluster)
    members = [cluster.site("edge-1") for _ in range(2)]
    for member in members:
        roll.admit(member.passport, NOW)
    assert set(roll.named("edge-1")) == {member.site for member in members}


def test_a_renewed_passport_replaces_the_old_one_and_is_never_rolled_back() -> None:
    cluster = Cluster()
    roll, _ = roll_of(cluster)
    member = cluster.site()
    newer, later = renewed(cluster, member, 5), NOW + timedelta(days=5)
    roll.admit(member.passport, NOW)
    fresh = roll.admit(newer, later)
    assert roll.gossip_key(member.site) == fresh.claims.gossip_key != member.claims.gossip_key
    assert roll.admit(member.passport, later) == fresh
    assert roll.passport(member.site) == newer


def test_the_newer_passport_wins_in_either_order() -> None:
    cluster = Cluster()
    member = cluster.site()
    newer, later = renewed(cluster, member, 0), NOW + timedelta(seconds=5)
    kept = set()
    for order in ((member.passport, newer), (newer, member.passport)):
        roll, _ = roll_of(cluster)
        for passport in order:
            roll.admit(passport, later)
        kept.add(roll.passport(member.site))
    assert len(kept) == 1


def test_an_expired_passport_does_not_enter_but_a_known_member_stays() -> None:
    cluster = Cluster()
    roll, _ = roll_of(cluster)
    member, late = cluster.site(), NOW + SITE_LIFE + timedelta(days=1)
    with pytest.raises(Refused, match="has expired"):
        roll.admit(member.passport, late)
    assert roll.get(member.site) is None
    roll.admit(member.passport, NOW)
    with pytest.raises(Refused, match="has expired"):
        roll.admit(member.passport, late)
    assert roll.get(member.site) is not None


def test_a_revoked_site_is_gone_at_once_and_its_passport_no_longer_enters() -> None:
    cluster = Cluster()
    roll, log = roll_of(cluster)
    member = cluster.site()
    roll.admit(member.passport, NOW)
    assert not roll.is_gone(member.site)
    revoke(cluster, log, member.site)
    assert roll.is_gone(member.site)
    assert roll.get(member.site) is None
    assert roll.passport(member.site) is None
    assert roll.gossip_key(member.site) is None
    assert roll.named("edge-1") == ()
    with pytest.raises(Refused, match="revoked"):
        roll.admit(member.passport, NOW)


def test_removing_an_issuer_removes_its_sites_and_a_passport_of_another_issuer_restores_one() -> (
    None
):
    cluster = Cluster()
    roll, log = roll_of(cluster)
    second = make_issuer(cluster.root, cluster.entropy, NOW)
    member = cluster.site(issuer=second)
    identity = roll.admit(member.passport, NOW)
    log.append(sign_entry(log, RemoveIssuer(identity.issuer), cluster.root.private_key, NOW))
    assert roll.get(member.site) is None
    roll.admit(renewed(cluster, member, 0), NOW)
    assert roll.get(member.site) is not None


def test_a_full_roll_makes_room_by_forgetting_a_revoked_site_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "MEMBERS_MAX", 2)
    cluster = Cluster()
    roll, log = roll_of(cluster)
    first, second, third = (cluster.site(f"edge-{i}") for i in range(3))
    roll.admit(first.passport, NOW)
    roll.admit(second.passport, NOW)
    with pytest.raises(Refused, match="roll is full"):
        roll.admit(third.passport, NOW)
    revoke(cluster, log, first.site)
    roll.admit(third.passport, NOW)
    assert set(roll) == {second.site, third.site}
    assert roll.resolve(first.site[:8]) is None


def test_an_empty_passport_is_malformed() -> None:
    roll, _ = roll_of(Cluster())
    with pytest.raises(Malformed):
        roll.admit(Passport(()), NOW)


def test_the_notary_knows_its_own_signature_and_those_of_sites_on_the_roll() -> None:
    cluster = Cluster()
    roll, log = roll_of(cluster)
    me, other, stranger = (cluster.site(name) for name in ("me", "other", "stranger"))
    notary = SiteNotary(me.private, roll)
    roll.admit(other.passport, NOW)
    assert notary.is_signed_by(me.site, b"body", notary.sign(b"body"))
    assert not notary.is_signed_by(me.site, b"other body", notary.sign(b"body"))
    assert notary.is_signed_by(other.site, b"body", other.private.sign(b"body"))
    assert not notary.is_signed_by(other.site, b"body", me.private.sign(b"body"))
    assert not notary.is_signed_by(stranger.site, b"body", stranger.private.sign(b"body"))
    for signature in (b"", bytes(63), bytes(64), bytes(65)):
        assert not notary.is_signed_by(other.site, b"body", signature)
    revoke(cluster, log, other.site)
    assert not notary.is_signed_by(other.site, b"body", other.private.sign(b"body"))
