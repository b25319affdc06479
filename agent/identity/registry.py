"""The roll: every identity this site has proven, and signing and checking with them.

Rule: an identity enters by a passport that verifies, and leaves only when it is revoked or retired
(``retirement``: a reinstalled site of its name took its place). Expiry keeps a
passport from *entering* and a TLS connection from being made; a member that is on the roll already
goes on gossiping, because losing every issuer must never stop a cluster.

Of two passports of one site the one issued later counts, so that nobody can roll claims back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId, short
from agent.identity.certificates import Identity, check_standing, read_passport, site_id
from agent.identity.envelope import SHORT_ID_BYTES
from agent.identity.retirement import Retirements
from agent.identity.trust import TrustLog
from agent.wire.limits import MEMBERS_MAX
from agent.wire.records import Passport
from agent.wire.residency import Group

SIGNATURE_BYTES = 64
AUTHORITIES_MAX = 64
"""Certificates of issuers shared by passports: far more than a cluster has."""


@dataclass(frozen=True, slots=True)
class _Entry:
    identity: Identity
    passport: Passport


class Roll:
    """Known identities of one cluster, by site; at most ``MEMBERS_MAX``."""

    def __init__(self, root_der: bytes, trust: TrustLog) -> None:
        """An empty roll.

        Args:
            root_der: the cluster's root certificate, from our own disk.
            trust: asked for revocations on every use, so that they count from the next packet on.
        """
        self._root, self._trust = root_der, trust
        self._entries: dict[SiteId, _Entry] = {}
        self._shorts: dict[bytes, SiteId] = {}
        self._leaves: dict[bytes, SiteId] = {}  # one for each entry
        self._authorities: dict[bytes, bytes] = {}
        self._retirements = Retirements()
        self._renewed: set[SiteId] = set()

    def __len__(self) -> int:
        """How many sites are known, revoked ones included."""
        return len(self._entries)

    def __iter__(self) -> Iterator[SiteId]:
        """The known, unrevoked sites."""
        revoked = self._trust.revoked()
        entries = self._entries.items()
        return (site for site, entry in entries if self._stands(entry.identity, revoked))

    @property
    def groups(self) -> tuple[Group, ...]:
        """Of jurisdictions, as the trust log has them now."""
        return self._trust.groups

    def admit(self, passport: Passport, now: datetime) -> Identity:
        """Prove a passport and remember it; the identity that counts from now on.

        Raises:
            Malformed, Refused: as ``verify_passport``; also if the roll is full or another site has
                the same short id (2^-64 by chance).
        """
        identity = self._known(passport) or read_passport(passport, self._root)
        self._retirements.learn(identity)
        self.require_current(identity)
        check_standing(identity, now, self._trust.revoked())
        site = identity.site
        former = self._entries.get(site)
        if former is None:
            self._make_room()
            if self._shorts.setdefault(site[:SHORT_ID_BYTES], site) != site:
                raise Refused(f"short id of {short(site)} is taken", mend="join with a new key")
        elif _rank(former) >= _rank(_Entry(identity, passport)) and self._stands(
            former.identity, self._trust.revoked()
        ):
            return former.identity
        else:
            del self._leaves[former.passport.chain[0]]
            self._renewed.add(site)
        self._entries[site] = _Entry(identity, self._frugal(passport))
        self._leaves[passport.chain[0]] = site
        return identity

    def _frugal(self, passport: Passport) -> Passport:
        """The same, with one copy of the issuer's certificate for all the sites that it has certified."""
        leaf, *authorities = passport.chain
        if len(self._authorities) >= AUTHORITIES_MAX:
            self._authorities.clear()
        shared = (self._authorities.setdefault(der, der) for der in authorities)
        return Passport((leaf, *shared))

    def get(self, site: SiteId) -> Identity | None:
        """The proven identity of ``site``; None if unknown or revoked."""
        entry = self._entries.get(site)
        if entry is None or not self._stands(entry.identity, self._trust.revoked()):
            return None
        return entry.identity

    def known(self, site: SiteId) -> Identity | None:
        """As ``get``, also for a revoked site: for a person who asks who that was."""
        entry = self._entries.get(site)
        return None if entry is None else entry.identity

    def passport(self, site: SiteId) -> Passport | None:
        """What proves ``site`` to others; None if unknown or revoked."""
        return None if self.get(site) is None else self._entries[site].passport

    def named(self, name: str) -> tuple[SiteId, ...]:
        """The standing sites whose certificate says ``name``: one, unless two issuers admitted it at once."""
        return tuple(site for site in self if self._entries[site].identity.claims.name == name)

    def identities(self) -> Iterator[Identity]:
        """Every identity here that is not revoked, retired ones included."""
        revoked = self._trust.revoked()
        for entry in self._entries.values():
            if _stands(entry.identity, revoked):
                yield entry.identity

    def take_renewed(self) -> frozenset[SiteId]:
        """Sites whose passport was replaced by a newer one since this was asked last."""
        renewed, self._renewed = frozenset(self._renewed), set()
        return renewed

    def learn_retired(self, identity: Identity) -> None:
        """Take note of whom a proven certificate replaces, also when it is this site's or expired."""
        self._retirements.learn(identity)

    def require_current(self, identity: Identity) -> None:
        """Return unless a reinstalled site of the same name has taken the place of ``identity``.

        Raises:
            Refused: it has.
        """
        self._retirements.require_current(identity, self._trust.revoked())

    def retired(self) -> frozenset[SiteId]:
        """Sites whose place another has taken; also those whose passport never came here."""
        revoked = self._trust.revoked()
        return frozenset(
            site
            for site in self._retirements
            if self._retirements.is_replaced(
                site, entry.identity if (entry := self._entries.get(site)) else None, revoked
            )
        )

    def is_gone(self, site: SiteId) -> bool:
        """Whether ``site`` was revoked or retired: nobody of that identity ever comes back."""
        return site in self._trust.revoked() or site in self.retired()

    def gossip_key(self, site: SiteId) -> bytes | None:
        """Raw X25519 public key of a known, unrevoked site (``lookup`` of the sealer)."""
        identity = self.get(site)
        return None if identity is None else identity.claims.gossip_key

    def resolve(self, short_id: bytes) -> SiteId | None:
        """The known site whose id starts with these 8 bytes (``resolve`` of the sealer)."""
        return self._shorts.get(short_id)

    def _known(self, passport: Passport) -> Identity | None:
        """Save the signature check where the very same bytes were proven before."""
        site = self._leaves.get(passport.chain[0]) if passport.chain else None
        entry = None if site is None else self._entries[site]
        return entry.identity if entry is not None and entry.passport == passport else None

    def _stands(self, identity: Identity, revoked: frozenset[bytes]) -> bool:
        return (
            _stands(identity, revoked) and self._retirements.replacement(identity, revoked) is None
        )

    def _make_room(self) -> None:
        if len(self._entries) < MEMBERS_MAX:
            return
        revoked = self._trust.revoked()
        for site, entry in self._entries.items():
            if not self._stands(entry.identity, revoked):
                del self._entries[site], self._shorts[site[:SHORT_ID_BYTES]]
                del self._leaves[entry.passport.chain[0]]
                return
        raise Refused(
            "the roll is full",
            why=f"this cluster has {MEMBERS_MAX} sites",
            mend="revoke sites that are gone for good",
        )


class SiteNotary:
    """Signs with this site's key and checks what sites on the roll signed (a ``Notary``)."""

    def __init__(self, private_key: Ed25519PrivateKey, roll: Roll) -> None:
        """``private_key`` is this site's; ``roll`` names the others."""
        self._private_key, self._roll = private_key, roll
        self._public_key = private_key.public_key()
        self._me = site_id(self._public_key)

    def sign(self, body: bytes) -> bytes:
        """The signature of ``body`` by this site (64 bytes)."""
        return self._private_key.sign(body)

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        """Whether ``site`` signed ``body``; False for unknown and revoked sites."""
        if site == self._me:
            public_key = self._public_key
        else:
            identity = self._roll.get(site)
            if identity is None:
                return False
            public_key = identity.public_key
        try:
            public_key.verify(signature, body)
        except (InvalidSignature, ValueError):
            return False
        return True


def _stands(identity: Identity, revoked: frozenset[bytes]) -> bool:
    return identity.site not in revoked and identity.issuer not in revoked


def _rank(entry: _Entry) -> tuple[datetime, datetime, bytes]:
    """Issued later is newer; the bytes decide a tie the same way everywhere."""
    return entry.identity.not_before, entry.identity.not_after, entry.passport.chain[0]
