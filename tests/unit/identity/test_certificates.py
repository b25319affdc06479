"""Certificates: what is proven, and what every deviation is answered with."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from cluster_of_keys import NOW, Cluster, Member
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from agent.foundation.errors import Malformed, Refused
from agent.identity.certificates import (
    BACKDATE,
    EXPIRED_GRACE,
    ISSUER_LIFE,
    SITE_LIFE,
    IssuerKey,
    certify_issuer,
    cluster_id,
    issue_site,
    key_id,
    make_issuer,
    make_root,
    read_issuer,
    read_verified_leaf,
    site_uri,
    verify_passport,
)
from agent.wire.records import Passport

CLUSTER = Cluster()
SITE = CLUSTER.site()
ROOT = CLUSTER.root.certificate


def verify(passport: Passport, now: datetime = NOW, revoked: tuple[bytes, ...] = ()) -> object:
    return verify_passport(passport, ROOT, now, revoked)


def rebuilt(member: Member, issuer: IssuerKey = CLUSTER.issuer, **changes: Any) -> Passport:
    """The member's leaf with parts exchanged, signed by a real issuer that does as it is told."""
    leaf = x509.load_der_x509_certificate(member.passport.chain[0])
    builder = (
        x509.CertificateBuilder()
        .subject_name(leaf.subject)
        .issuer_name(leaf.issuer)
        .public_key(member.private.public_key())
        .serial_number(leaf.serial_number)
        .not_valid_before(leaf.not_valid_before_utc)
        .not_valid_after(changes.get("not_after", leaf.not_valid_after_utc))
    )
    for extension in leaf.extensions:
        value = changes.get(type(extension.value).__name__, extension.value)
        if value is not None:
            builder = builder.add_extension(value, critical=extension.critical)
    der = builder.sign(issuer.private_key, None).public_bytes(Encoding.DER)
    return Passport((der, issuer.certificate))


def test_a_passport_proves_the_site_and_everything_the_issuer_said_of_it() -> None:
    identity = verify_passport(SITE.passport, ROOT, NOW, ())
    assert (identity.site, identity.claims) == (SITE.site, SITE.claims)
    assert identity.issuer == key_id(CLUSTER.issuer.private_key.public_key())
    assert identity.not_after - identity.not_before == SITE_LIFE + BACKDATE
    assert identity.renew_at() == NOW + SITE_LIFE / 3


def test_the_same_seed_gives_the_same_certificates() -> None:
    assert Cluster(5).site().passport == Cluster(5).site().passport
    assert Cluster(5).site().passport != Cluster(6).site().passport


def test_certificates_fit_well_into_a_passport() -> None:
    names = {"name": "n" * 64, "region": "r" * 64, "jurisdiction": "J" * 64}
    claims = CLUSTER.claims(**names, roles=tuple("abcdefgh"[i] * 64 for i in range(8)))
    assert len(issue_site(CLUSTER.issuer, SITE.private.public_key(), claims, NOW)) < 1600


def test_an_expired_passport_is_refused_by_name_and_accepted_within_the_renewal_grace() -> None:
    late = NOW + SITE_LIFE + timedelta(seconds=1)
    with pytest.raises(Refused, match=r"edge-1 .* has expired; it was valid until"):
        verify(SITE.passport, late)
    verify_passport(SITE.passport, ROOT, late, (), grace=EXPIRED_GRACE)
    with pytest.raises(Refused, match="has expired"):
        verify_passport(SITE.passport, ROOT, late + EXPIRED_GRACE, (), grace=EXPIRED_GRACE)


def test_a_clock_an_hour_behind_accepts_a_fresh_passport_and_two_hours_does_not() -> None:
    verify(SITE.passport, NOW - timedelta(minutes=59))
    with pytest.raises(Refused, match="not valid yet"):
        verify(SITE.passport, NOW - timedelta(hours=2))


def test_a_revoked_site_and_everything_of_a_removed_issuer_are_refused() -> None:
    with pytest.raises(Refused, match=r"edge-1.* is revoked"):
        verify(SITE.passport, revoked=(SITE.site,))
    issuer = read_issuer(CLUSTER.issuer.certificate, ROOT)
    with pytest.raises(Refused, match=r"its issuer .* was removed"):
        verify(SITE.passport, revoked=(issuer,))


def test_a_site_of_another_cluster_is_refused_even_with_our_issuer_beside_it() -> None:
    stranger = Cluster(2).site("edge-9")
    with pytest.raises(Refused, match=r"not signed by its issuer|names another issuer"):
        verify(stranger.passport)
    with pytest.raises(Refused, match="edge-9 belongs to another cluster"):
        verify(Passport((stranger.passport.chain[0], CLUSTER.issuer.certificate)))


def test_an_issuer_cannot_certify_for_another_cluster() -> None:
    claims = CLUSTER.claims(cluster=bytes(range(32)))
    leaf = issue_site(CLUSTER.issuer, SITE.private.public_key(), claims, NOW)
    with pytest.raises(Refused, match="belongs to another cluster"):
        verify(Passport((leaf, CLUSTER.issuer.certificate)))


def test_a_certificate_signed_by_a_site_instead_of_an_issuer_is_refused() -> None:
    forged = IssuerKey(SITE.private, SITE.passport.chain[0])
    leaf = issue_site(forged, CLUSTER.key().public_key(), CLUSTER.claims("evil"), NOW)
    with pytest.raises((Refused, Malformed)):
        verify(Passport((leaf, SITE.passport.chain[0])))


def test_a_leaf_shown_with_another_issuer_than_its_own_is_refused() -> None:
    second = make_issuer(CLUSTER.root, CLUSTER.entropy, NOW)
    with pytest.raises(Refused, match="from another issuer than shown"):
        verify(Passport((SITE.passport.chain[0], second.certificate)))


def test_an_issuer_that_lies_about_the_signature_is_found() -> None:
    second = make_issuer(CLUSTER.root, CLUSTER.entropy, NOW)
    passport = rebuilt(SITE, IssuerKey(second.private_key, CLUSTER.issuer.certificate))
    with pytest.raises(Refused, match="not signed by its issuer"):
        verify(passport)


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("BasicConstraints", x509.BasicConstraints(ca=True, path_length=0), "authority"),
        ("BasicConstraints", None, "lacks a part"),
        ("UnrecognizedExtension", None, "lacks a part"),
        ("AuthorityKeyIdentifier", None, "lacks a part"),
        ("SubjectAlternativeName", None, "lacks a part"),
        (
            "SubjectAlternativeName",
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(site_uri(CLUSTER.id, bytes(32)))]
            ),
            "names another site",
        ),
        ("not_after", NOW + SITE_LIFE + timedelta(days=1), "lives too long"),
    ],
)
def test_a_leaf_that_deviates_is_malformed_although_its_issuer_signed_it(
    part: str, value: Any, reason: str
) -> None:
    with pytest.raises(Malformed, match=reason):
        verify(rebuilt(SITE, **{part: value}))


def test_a_name_that_could_be_a_path_is_malformed_although_its_issuer_signed_it() -> None:
    claims = CLUSTER.claims("../../etc")
    leaf = issue_site(CLUSTER.issuer, SITE.private.public_key(), claims, NOW)
    with pytest.raises(Malformed, match="impossible name"):
        verify(Passport((leaf, CLUSTER.issuer.certificate)))


def test_an_issuer_without_the_name_constraint_is_malformed_although_the_root_signed_it() -> None:
    proper = x509.load_der_x509_certificate(CLUSTER.issuer.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(proper.subject)
        .issuer_name(proper.issuer)
        .public_key(CLUSTER.issuer.private_key.public_key())
        .serial_number(7)
        .not_valid_before(proper.not_valid_before_utc)
        .not_valid_after(proper.not_valid_after_utc)
    )
    for extension in proper.extensions:
        if not isinstance(extension.value, x509.NameConstraints):
            builder = builder.add_extension(extension.value, critical=extension.critical)
    der = builder.sign(CLUSTER.root.private_key, None).public_bytes(Encoding.DER)
    with pytest.raises(Malformed, match="name constraint"):
        verify(Passport((SITE.passport.chain[0], der)))


def test_an_issuer_certifies_no_longer_than_it_lives_itself() -> None:
    near_end = NOW - BACKDATE + ISSUER_LIFE - timedelta(days=3)
    member = CLUSTER.site("edge-2", now=near_end)
    identity = verify_passport(member.passport, ROOT, near_end, ())
    assert identity.not_after == NOW - BACKDATE + ISSUER_LIFE
    with pytest.raises(Refused, match="can no longer certify"):
        CLUSTER.site("edge-3", now=near_end + timedelta(days=4))


def test_an_issuer_key_made_elsewhere_is_certified_without_meeting_the_root() -> None:
    private = CLUSTER.key()
    certificate = certify_issuer(CLUSTER.root, private.public_key(), NOW)
    member = CLUSTER.site("edge-4", issuer=IssuerKey(private, certificate))
    assert verify_passport(member.passport, ROOT, NOW, ()).issuer == key_id(private.public_key())


def test_a_key_of_another_kind_is_malformed() -> None:
    key = generate_private_key(SECP256R1())
    name = x509.Name([])
    der = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + SITE_LIFE)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    with pytest.raises(Malformed, match="not an Ed25519"):
        read_verified_leaf(der, ROOT)


def test_a_root_certificate_that_does_not_name_its_own_key_is_malformed() -> None:
    with pytest.raises(Malformed):
        cluster_id(CLUSTER.issuer.certificate)
    assert cluster_id(make_root(CLUSTER.entropy, NOW).certificate) != CLUSTER.id


@given(st.data())
def test_no_change_of_a_byte_makes_a_passport_pass_or_raises_anything_else(
    data: st.DataObject,
) -> None:
    index = data.draw(st.integers(0, 1))
    chain = list(SITE.passport.chain)
    position = data.draw(st.integers(0, len(chain[index]) - 1))
    flip = data.draw(st.integers(1, 255))
    der = bytearray(chain[index])
    der[position] ^= flip
    chain[index] = bytes(der)
    with pytest.raises((Malformed, Refused)):
        verify(Passport(tuple(chain)))


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_a_passport_of_arbitrary_bytes_is_malformed(chain: list[bytes]) -> None:
    with pytest.raises(Malformed):
        verify(Passport(tuple(chain)))
