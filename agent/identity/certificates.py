"""Certificates: offline root -> issuers -> sites, and the proof of a passport.

Rule: nothing in a certificate is believed before its signature chain ends at the cluster's root.

The shape is fixed, and everything that deviates is refused (RFC 5280, RFC 8410 for Ed25519):

========  =====================================  ============================================
level     says                                   is bounded by
========  =====================================  ============================================
root      CN = cluster id; CA                    its SHA-256 (SPKI) *is* the cluster id
issuer    CA, pathlen 0                          critical name constraint: URIs of this cluster
site      SAN ``atoll://cluster/site``, Claims   14 days, back-dated 1 h; inside its issuer's life
========  =====================================  ============================================

Key identifiers are the whole SHA-256 of the public key, so a leaf's authority key identifier names
its issuer without the issuer's certificate at hand; TLS checks that it matches (RFC 5280 4.2.1.1).
Serial numbers are hashes of what is certified, so that issuing needs no randomness.
"""

import hashlib
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID

from agent.foundation.errors import Malformed, Refused
from agent.foundation.ids import ID_BYTES, SiteId, short
from agent.foundation.randomness import Entropy
from agent.identity.claims import LIFE_S_MAX, Claims, is_jurisdiction, is_name
from agent.wire.records import Passport
from agent.wire.schema import pack, unpack

CLAIMS_OID = x509.ObjectIdentifier("2.25.147692842153065440875722626454676974132")
"""Arc 2.25 (ITU-T X.667): a UUID is its own registration."""

CERTIFICATE_BYTES_MAX = 2048
"""As ``Passport``; a full leaf is below 1,100 bytes."""

ROOT_LIFE = timedelta(days=7300)
ISSUER_LIFE = timedelta(days=1825)
SITE_LIFE = timedelta(seconds=LIFE_S_MAX)
BACKDATE = timedelta(hours=1)
"""A receiver whose clock is up to an hour behind accepts a fresh certificate."""
RENEWAL_SHARE = 1 / 3
"""The part of a certificate's life after which its site renews it."""
EXPIRED_GRACE = timedelta(days=90)
"""How long an expired, unrevoked site may still ask for renewal: an offline site heals itself."""

LEAVES_REMEMBERED_MAX = 256
"""Every request over a connection asks who is at its other end; a site talks with fewer at a time."""

_SCHEME = "atoll"
_PARSE_FAULTS = (
    ValueError,
    TypeError,
    OverflowError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
    Warning,
)
"""What ``cryptography`` raises on hostile DER; some faults come as warnings turned errors."""


@dataclass(frozen=True, slots=True)
class RootKey:
    """The cluster's root: kept offline by the operator, used only to add or remove issuers."""

    private_key: Ed25519PrivateKey = field(repr=False)
    certificate: bytes


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """What lets a site admit and renew others."""

    private_key: Ed25519PrivateKey = field(repr=False)
    certificate: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """A site as its certificate proves it."""

    site: SiteId
    claims: Claims
    public_key: Ed25519PublicKey
    issuer: bytes
    """SHA-256 of the issuer's public key (SPKI)."""
    not_before: datetime
    not_after: datetime

    @property
    def begins_at(self) -> datetime:
        """When it was issued: ``not_before`` without the back-dating."""
        return min(self.not_before + BACKDATE, self.not_after)

    def renew_at(self) -> datetime:
        """When a third of the certificate's life has passed."""
        return self.begins_at + (self.not_after - self.begins_at) * RENEWAL_SHARE


def key_id(public_key: Ed25519PublicKey | X25519PublicKey) -> bytes:
    """SHA-256 of the public key as SubjectPublicKeyInfo: the identity of its holder."""
    spki = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


def site_id(public_key: Ed25519PublicKey) -> SiteId:
    """The ``SiteId`` of whoever holds the private half."""
    return SiteId(key_id(public_key))


def site_uri(cluster: bytes, site: bytes) -> str:
    """The subject alternative name of a site."""
    return f"{_SCHEME}://{_host(cluster)}/{site.hex()}"


def cluster_id(root_der: bytes) -> bytes:
    """The cluster's id: SHA-256 of the root's public key (SPKI).

    Raises:
        Malformed: ``root_der`` is not a root certificate of this protocol.
    """
    return _root(root_der)[0]


def read_root(root_der: bytes) -> tuple[bytes, Ed25519PublicKey]:
    """The cluster's id and root key, from the root certificate.

    Raises:
        Malformed: ``root_der`` is not a root certificate of this protocol.
    """
    cluster, certificate = _root(root_der)
    return cluster, _ed25519(certificate)


# --- issuing -------------------------------------------------------------------------------------
def make_root(entropy: Entropy, now: datetime) -> RootKey:
    """A new cluster: its root key and the self-signed certificate."""
    private_key = Ed25519PrivateKey.from_private_bytes(entropy(32))
    public_key = private_key.public_key()
    cluster = key_id(public_key)
    name = _name(cluster.hex())
    start = now.replace(microsecond=0) - BACKDATE
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(_serial(b"root", cluster))
        .not_valid_before(start)
        .not_valid_after(start + ROOT_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(cluster), critical=False)
    )
    return RootKey(private_key, builder.sign(private_key, None).public_bytes(Encoding.DER))


def make_issuer(root: RootKey, entropy: Entropy, now: datetime) -> IssuerKey:
    """A new issuer key, certified by the root."""
    private_key = Ed25519PrivateKey.from_private_bytes(entropy(32))
    return IssuerKey(private_key, certify_issuer(root, private_key.public_key(), now))


def certify_issuer(root: RootKey, public_key: Ed25519PublicKey, now: datetime) -> bytes:
    """The issuer certificate (DER) of ``public_key``; the private half never meets the root."""
    cluster, certificate = _root(root.certificate)
    issuer = key_id(public_key)
    start = max(now.replace(microsecond=0) - BACKDATE, certificate.not_valid_before_utc)
    end = min(start + ISSUER_LIFE, certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(f"issuer {issuer.hex()[:16]}"))
        .issuer_name(certificate.subject)
        .public_key(public_key)
        .serial_number(_serial(b"issuer", issuer, start.isoformat().encode()))
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_authority=True), critical=True)
        .add_extension(_constraint(cluster), critical=True)
        .add_extension(x509.SubjectKeyIdentifier(issuer), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(cluster, None, None), critical=False)
    )
    return builder.sign(root.private_key, None).public_bytes(Encoding.DER)


def issue_site(
    issuer: IssuerKey, public_key: Ed25519PublicKey, claims: Claims, now: datetime
) -> bytes:
    """The site certificate (DER) for ``claims``, valid from ``now`` for as long as they say.

    Raises:
        Refused: the issuer's own certificate ends before ``now``.
    """
    authority = x509.load_der_x509_certificate(issuer.certificate)
    issuer_key = key_id(issuer.private_key.public_key())
    site = site_id(public_key)
    body = pack(claims)
    moment = now.replace(microsecond=0)
    start = max(moment - BACKDATE, authority.not_valid_before_utc)
    life = timedelta(seconds=claims.life_s) if claims.life_s else SITE_LIFE
    end = min(moment + life, authority.not_valid_after_utc)
    if end <= moment:
        raise Refused(
            "this issuer can no longer certify",
            why=f"its own certificate ended {authority.not_valid_after_utc.isoformat()}",
            mend="certify it again with the root key",
        )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(claims.name))
        .issuer_name(authority.subject)
        .public_key(public_key)
        .serial_number(_serial(b"site", issuer_key, site, body, start.isoformat().encode()))
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(is_authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier(site_uri(claims.cluster, site))]
            ),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier(site), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier(issuer_key, None, None), critical=False)
        .add_extension(x509.UnrecognizedExtension(CLAIMS_OID, body), critical=False)
    )
    certificate = builder.sign(issuer.private_key, None).public_bytes(Encoding.DER)
    assert len(certificate) <= CERTIFICATE_BYTES_MAX
    return certificate


# --- proving -------------------------------------------------------------------------------------
def verify_passport(
    passport: Passport,
    root_der: bytes,
    now: datetime,
    revoked: Collection[bytes],
    *,
    grace: timedelta = timedelta(0),
) -> Identity:
    """Prove who holds a passport.

    Args:
        passport: leaf first, then its issuer; the root may stand at the end.
        root_der: the cluster's root certificate, from our own disk.
        now: wall-clock time, with time zone.
        revoked: ids (SHA-256 of SPKI) of revoked sites and removed issuers.
        grace: how long after its end a certificate is still accepted (renewal only).

    Raises:
        Malformed: the bytes are no certificates of this protocol.
        Refused: another cluster's, not signed by its issuer, expired, not yet valid, or revoked.
    """
    identity = read_passport(passport, root_der)
    check_standing(identity, now, revoked, grace=grace)
    return identity


def check_standing(
    identity: Identity,
    now: datetime,
    revoked: Collection[bytes],
    *,
    grace: timedelta = timedelta(0),
) -> None:
    """Return if the identity may act at ``now``; its signatures were proven before.

    Raises:
        Refused: revoked (the site or its issuer), expired, or not yet valid.
    """
    who = f"certificate of {identity.claims.name} ({short(identity.site)})"
    if identity.site in revoked:
        reason = revoked[identity.site] if isinstance(revoked, Mapping) else ""
        mend = "join again with a new key and a new token"
        raise Refused(f"{who} is revoked", why=reason, mend=mend)
    if identity.issuer in revoked:
        raise Refused(
            f"{who} is revoked",
            why=f"its issuer {short(identity.issuer)} was removed from the cluster",
            mend="join again with a token of another issuer",
        )
    if now > identity.not_after + grace:
        raise Refused(
            f"{who} has expired",
            why=f"it was valid until {identity.not_after.isoformat()}, the clock here says {now.isoformat(timespec='seconds')}",
            mend="the site renews it from any issuer; check both clocks",
        )
    if now < identity.not_before:
        raise Refused(
            f"{who} is not valid yet",
            why=f"it begins {identity.not_before.isoformat()}, the clock here says {now.isoformat(timespec='seconds')}",
            mend="set the clock of this site",
        )


def read_passport(passport: Passport, root_der: bytes) -> Identity:
    """Prove the signature chain and the shape; says nothing about time or revocation.

    Raises:
        Malformed: the bytes are no certificates of this protocol.
        Refused: another cluster's, or not signed by its issuer.
    """
    chain = passport.chain
    if len(chain) not in (2, 3) or (len(chain) == 3 and chain[2] != root_der):  # noqa: PLR2004 - leaf, issuer, root
        raise Malformed("passport does not hold a site and its issuer")
    issuer = _issuer(chain[1], root_der)
    identity, leaf = _leaf(chain[0], root_der)
    if identity.issuer != key_id(_ed25519(issuer)):
        raise Refused(f"certificate of {identity.claims.name} is from another issuer than shown")
    _require_signed(leaf, issuer, f"certificate of {identity.claims.name}")
    if not (
        issuer.not_valid_before_utc <= identity.not_before
        and identity.not_after <= issuer.not_valid_after_utc
    ):
        raise Refused(f"certificate of {identity.claims.name} outlives its issuer's")
    return identity


@lru_cache(maxsize=LEAVES_REMEMBERED_MAX)
def read_verified_leaf(leaf_der: bytes, root_der: bytes) -> Identity:
    """Read a leaf **whose chain TLS has already verified** against this root, and nothing else.

    TLS shows the leaf but, in Python 3.11, not the issuer it was verified with. The authority key
    identifier stands in: the root signed the issuer's subject key identifier, and OpenSSL builds no
    chain where the two differ.

    What is not in the bytes is not looked at: whether it may act *now* is ``check_standing``'s to say, each time.

    Raises:
        Malformed: no site certificate of this protocol.
        Refused: another cluster's.
    """
    return _leaf(leaf_der, root_der)[0]


def issuer_end(issuer_der: bytes, root_der: bytes) -> datetime:
    """When an issuer's certificate ends.

    Raises:
        Malformed: no issuer certificate of this protocol.
        Refused: not signed by this root.
    """
    return _issuer(issuer_der, root_der).not_valid_after_utc


def read_issuer(issuer_der: bytes, root_der: bytes) -> bytes:
    """The id of an issuer whose certificate the root has signed.

    Raises:
        Malformed: no issuer certificate of this protocol.
        Refused: not signed by this root.
    """
    return key_id(_ed25519(_issuer(issuer_der, root_der)))


@lru_cache(maxsize=8)  # a process belongs to one cluster; tests to a few
def _root(root_der: bytes) -> tuple[bytes, x509.Certificate]:
    certificate = _parse(root_der, "root certificate")
    cluster = key_id(_ed25519(certificate))
    if _common_name(certificate) != cluster.hex():
        raise Malformed("root certificate does not name its own key")
    _require_authority(certificate, "root certificate", path_length=1)
    _require_signed(certificate, certificate, "root certificate")
    return cluster, certificate


@lru_cache(
    maxsize=64
)  # far more than the issuers of one cluster; saves a verification for each site
def _issuer(issuer_der: bytes, root_der: bytes) -> x509.Certificate:
    cluster, root = _root(root_der)
    certificate = _parse(issuer_der, "issuer certificate")
    _ed25519(certificate)
    _require_authority(certificate, "issuer certificate", path_length=0)
    _require_signed(certificate, root, "issuer certificate")
    try:
        constraint = certificate.extensions.get_extension_for_class(x509.NameConstraints)
    except _PARSE_FAULTS:
        raise Malformed("issuer certificate has no name constraint") from None
    if not constraint.critical or constraint.value != _constraint(cluster):
        raise Malformed("issuer certificate is not constrained to this cluster")
    return certificate


def _leaf(leaf_der: bytes, root_der: bytes) -> tuple[Identity, x509.Certificate]:
    cluster, _ = _root(root_der)
    certificate = _parse(leaf_der, "site certificate")
    public_key = _ed25519(certificate)
    site = site_id(public_key)
    try:
        extensions = certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        statement = extensions.get_extension_for_oid(CLAIMS_OID).value
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _PARSE_FAULTS as error:
        raise Malformed("site certificate lacks a part", why=type(error).__name__) from None
    if basic.ca:
        raise Malformed("site certificate claims to be an authority")
    if not isinstance(statement, x509.UnrecognizedExtension):
        raise Malformed("site certificate has no claims")
    claims = _frugal(unpack(Claims, statement.value, CERTIFICATE_BYTES_MAX), cluster)
    _require_usable(claims)
    if claims.cluster != cluster:
        raise Refused(
            f"{claims.name} belongs to another cluster",
            why=f"its certificate names {short(claims.cluster)}, this is {short(cluster)}",
        )
    expected = [x509.UniformResourceIdentifier(site_uri(cluster, site))]
    if list(names) != expected or _common_name(certificate) != claims.name:
        raise Malformed("site certificate names another site than its key")
    issuer = authority.key_identifier
    if issuer is None or len(issuer) != ID_BYTES:
        raise Malformed("site certificate does not name its issuer")
    if end - start > SITE_LIFE + BACKDATE:
        raise Malformed("site certificate lives too long", why=f"the bound is {SITE_LIFE}")
    return Identity(site, claims, public_key, issuer, start, end), certificate


def _frugal(claims: Claims, cluster: bytes) -> Claims:
    """The same, with one copy of what most sites of a cluster have in common."""
    return replace(
        claims,
        cluster=cluster if claims.cluster == cluster else claims.cluster,
        region=sys.intern(claims.region),
        jurisdiction=sys.intern(claims.jurisdiction),
        roles=tuple(map(sys.intern, claims.roles)),
    )


def _require_usable(claims: Claims) -> None:
    for text in (claims.name, claims.region, *claims.roles):
        if not is_name(text):
            raise Malformed("site certificate holds an impossible name")
    if not is_jurisdiction(claims.jurisdiction):
        raise Malformed("site certificate holds an impossible jurisdiction")


def _parse(der: bytes, what: str) -> x509.Certificate:
    if len(der) > CERTIFICATE_BYTES_MAX:
        raise Malformed(f"{what} of {len(der)} bytes", why=f"the bound is {CERTIFICATE_BYTES_MAX}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        is_expected = (
            certificate.version is x509.Version.v3
            and certificate.signature_algorithm_oid == SignatureAlgorithmOID.ED25519
        )
    except _PARSE_FAULTS as error:
        raise Malformed(f"{what} does not decode", why=type(error).__name__) from None
    if not is_expected:
        raise Malformed(f"{what} is not an Ed25519 X.509 v3 certificate")
    return certificate


def _ed25519(certificate: x509.Certificate) -> Ed25519PublicKey:
    try:
        public_key = certificate.public_key()
    except _PARSE_FAULTS as error:
        raise Malformed("certificate holds no usable key", why=type(error).__name__) from None
    if not isinstance(public_key, Ed25519PublicKey):
        raise Malformed("certificate holds a key of another kind than Ed25519")
    return public_key


def _common_name(certificate: x509.Certificate) -> str | bytes:
    try:
        attributes = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except _PARSE_FAULTS as error:
        raise Malformed("certificate has no readable subject", why=type(error).__name__) from None
    return attributes[0].value if len(attributes) == 1 else ""


def _require_authority(certificate: x509.Certificate, what: str, path_length: int) -> None:
    try:
        extensions = certificate.extensions
        basic = extensions.get_extension_for_class(x509.BasicConstraints).value
        own = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except _PARSE_FAULTS as error:
        raise Malformed(f"{what} lacks a part", why=type(error).__name__) from None
    if not basic.ca or basic.path_length != path_length:
        raise Malformed(f"{what} may not certify what it would have to")
    if own.digest != key_id(_ed25519(certificate)):
        raise Malformed(f"{what} does not carry the hash of its key")


def _require_signed(certificate: x509.Certificate, authority: x509.Certificate, what: str) -> None:
    try:
        certificate.verify_directly_issued_by(authority)
    except InvalidSignature:
        raise Refused(f"{what} is not signed by its issuer") from None
    except _PARSE_FAULTS:
        raise Refused(f"{what} names another issuer") from None


def _host(cluster: bytes) -> str:
    return cluster.hex()[:16]


def _constraint(cluster: bytes) -> x509.NameConstraints:
    return x509.NameConstraints([x509.UniformResourceIdentifier(_host(cluster))], None)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _serial(*parts: bytes) -> int:
    """A positive number below 2^127 (RFC 5280 4.1.2.2: at most 20 octets), unique by its content."""
    return (int.from_bytes(hashlib.sha256(b"\0".join(parts)).digest()[:16]) >> 1) | 1


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )
