"""A small real cluster from a seed: root, issuers, sites; used by the tests beside it."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.ids import SiteId
from agent.identity.certificates import (
    IssuerKey,
    RootKey,
    cluster_id,
    issue_site,
    make_issuer,
    make_root,
    site_id,
)
from agent.identity.claims import Claims
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import Genesis
from agent.identity.trust_signing import sign_entry
from agent.wire.records import Passport

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@dataclass(frozen=True)
class Member:
    """One site with its keys."""

    site: SiteId
    private: Ed25519PrivateKey
    gossip: X25519PrivateKey
    claims: Claims
    passport: Passport


class Cluster:
    """Everything an operator would hold."""

    def __init__(self, seed: int = 1) -> None:
        self.entropy = Random(seed).randbytes
        self.root: RootKey = make_root(self.entropy, NOW)
        self.issuer: IssuerKey = make_issuer(self.root, self.entropy, NOW)
        self.admin = self.key()
        self.id = cluster_id(self.root.certificate)

    def key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.entropy(32))

    def claims(self, name: str = "edge-1", **changes: object) -> Claims:
        claims = Claims(self.id, name, "north", "edge", "DE", ("member",), bytes(32))
        return replace(claims, **changes)  # type: ignore[arg-type]

    def site(
        self, name: str = "edge-1", now: datetime = NOW, issuer: IssuerKey | None = None
    ) -> Member:
        private, gossip = self.key(), X25519PrivateKey.from_private_bytes(self.entropy(32))
        claims = self.claims(name, gossip_key=gossip.public_key().public_bytes_raw())
        issuer = issuer or self.issuer
        leaf = issue_site(issuer, private.public_key(), claims, now)
        passport = Passport((leaf, issuer.certificate))
        return Member(site_id(private.public_key()), private, gossip, claims, passport)

    def certified(self, member: Member, claims: Claims, now: datetime = NOW) -> Passport:
        """Another passport of a member's key."""
        leaf = issue_site(self.issuer, member.private.public_key(), claims, now)
        return Passport((leaf, self.issuer.certificate))

    def log(self, *jurisdictions: str) -> TrustLog:
        log = TrustLog(self.id)
        raw = self.admin.public_key().public_bytes_raw()
        action = Genesis(self.root.certificate, self.issuer.certificate, raw, jurisdictions)
        log.append(sign_entry(log, action, self.root.private_key, NOW))
        return log
