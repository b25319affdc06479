"""Join tokens: how a new site proves to one issuer that the operator invited it.

Rule: a token admits one key, once. It is redeemed only by the issuer that minted it, so "once" is
one local transaction (the row is durable before the certificate is signed), not an agreement.

The conversation (the issuer's answers are served to peers without a certificate):

1. The joiner opens TLS to a seed and asks for ``IssuerProof``. ``check_issuer`` compares it with the
   token: the root's hash, the issuer's site id, and that the key of the TLS connection is that
   site's. Nothing of the token has been sent until then, so a false seed learns nothing.
2. ``make_request`` signs the request with the new site's key and proves knowledge of the secret by
   an HMAC that covers the issuer and the whole request: it is worth nothing anywhere else. The
   secret never travels.
3. The issuer's ``redeem`` says what is granted; five wrong proofs burn the token. The same key may
   ask again until the token expires, because an answer can be lost after the row was written.
4. ``accept_reply`` checks all that came back before anything is stored.

Text form: ``atoll1.`` and base64url of a 4-byte checksum and the packed token, so that a mistyped
token is told from a wrong one and never counts as a wrong proof.
"""

import binascii
import hashlib
import hmac
from base64 import b64decode, urlsafe_b64encode
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.foundation.errors import Malformed, Refused, UsageError
from agent.foundation.ids import SiteId, short
from agent.foundation.randomness import Entropy
from agent.identity.certificates import (
    Identity,
    IssuerKey,
    cluster_id,
    issue_site,
    site_id,
    verify_passport,
)
from agent.identity.claims import LIFE_S_MAX, Claims, check_place
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import ENTRY_BYTES_MAX, HEIGHT_MAX
from agent.wire.records import Identifier, Name, Passport, Port, Site
from agent.wire.schema import AtMost, Length, Range, pack, unpack

TTL_S_DEFAULT = 3600.0
TTL_S_MAX = 7 * 86_400.0
"""A token is a password in somebody's clipboard."""
LIFE_S_MIN = 30
"""Below it a site would be busy renewing."""
WRONG_TRIES_MAX = 5
SEEDS_MAX = 4
TOKEN_CHARS_MAX = 1024
"""Four seeds with the longest names take about 800."""

_PREFIX = "atoll1."
_CHECKSUM_BYTES = 4
_PROOF_DOMAIN = b"atoll-join"
_REQUEST_DOMAIN = b"atoll join request 1\0"

TokenId = Annotated[bytes, Length(8)]
Host = Annotated[str, AtMost(64)]
Seeds = Annotated[tuple[tuple[Host, Port], ...], AtMost(SEEDS_MAX)]
Der = Annotated[bytes, AtMost(2048)]


@dataclass(frozen=True, slots=True)
class Token:
    """What the operator carries from the issuer to the new site."""

    root: Identifier
    """SHA-256 of the root's public key (SPKI): the cluster's id."""
    issuer: Site
    token_id: TokenId
    secret: Annotated[bytes, Length(16)] = field(repr=False)
    name: Name
    seeds: Seeds
    """Where the issuer listens (host, mesh port), best first; none: it is looked for by multicast."""


@dataclass(frozen=True, slots=True)
class TokenRow:
    """What the issuer keeps (table ``tokens``): enough to check, not enough to print the token."""

    cluster: Identifier
    issuer: Site
    token_id: TokenId
    proof_key: Identifier = field(repr=False)
    name: Name
    region: Name
    tier: Literal["edge", "regional", "core"]
    jurisdiction: Name
    roles: Annotated[tuple[Name, ...], AtMost(8)]
    expires_at: Annotated[float, Range(0.0, 1e12)]
    """Unix time, seconds."""
    wrong_tries: Annotated[int, Range(0, WRONG_TRIES_MAX)] = 0
    state: Literal["open", "spent", "burned"] = "open"
    spent_by: Annotated[bytes, AtMost(32)] = b""
    """The site that redeemed it; empty before."""
    life_s: Annotated[int, Range(0, LIFE_S_MAX)] = 0
    """Of the site's certificates; 0: the longest."""


@dataclass(frozen=True, slots=True)
class IssuerProof:
    """What a seed shows to a joiner before anything else (``GET /join/1/chain``)."""

    chain: Annotated[tuple[Der, ...], AtMost(3)]
    """The seed's own certificate, then its issuer's."""
    root: Der


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """Please certify this key (``POST /join/1``)."""

    token_id: TokenId
    name: Name
    site_public_key: Identifier
    """Raw Ed25519."""
    gossip_public_key: Identifier
    """Raw X25519."""
    signature: Annotated[bytes, Length(64)]
    """By the new site's key: it holds the private half."""
    proof: Identifier
    """HMAC-SHA256 under the key derived from the token's secret."""


@dataclass(frozen=True, slots=True)
class JoinReply:
    """You are a member: everything needed to take part."""

    chain: Annotated[tuple[Der, ...], AtMost(3)]
    root: Der
    seeds: Annotated[tuple[tuple[Host, Port], ...], AtMost(16)]
    """Members' addresses (host, mesh port)."""
    trust: Annotated[tuple[Annotated[bytes, AtMost(ENTRY_BYTES_MAX)], ...], AtMost(HEIGHT_MAX)]
    """The whole trust log, packed entries in order."""


# --- the issuer ----------------------------------------------------------------------------------
def mint(
    *,
    cluster: bytes,
    issuer: SiteId,
    name: str,
    region: str,
    tier: str,
    jurisdiction: str,
    roles: tuple[str, ...],
    seeds: tuple[tuple[str, int], ...],
    entropy: Entropy,
    now: datetime,
    ttl_s: float = TTL_S_DEFAULT,
    vocabulary: tuple[str, ...] = (),
    life_s: int = 0,
) -> tuple[str, TokenRow]:
    """A new token: its text for the operator, shown once, and the row to make durable.

    Args:
        cluster: the cluster's id.
        issuer: this site, the only one that will redeem it.
        name: of the new site; with region, tier, jurisdiction and roles as its certificate will say.
        region: see ``name``.
        tier: edge, regional or core.
        jurisdiction: see ``name``.
        roles: see ``name``.
        seeds: where this issuer listens (host, mesh port), at most ``SEEDS_MAX``.
        entropy: of the operating system.
        now: wall-clock time, with time zone.
        ttl_s: how long it may be redeemed, seconds, at most a week.
        vocabulary: the labels issuers may use (``TrustLog.jurisdictions``); empty = any.
        life_s: how long each of the site's certificates lives, seconds; 0: the longest.

    Raises:
        UsageError: a name, label, address or a lifetime cannot be used.
        Refused: the jurisdiction is not in the cluster's vocabulary.
    """
    known_tier = check_place(name, region, tier, jurisdiction, roles)
    if vocabulary and jurisdiction not in vocabulary:
        raise Refused(
            f"jurisdiction {jurisdiction} is not in this cluster's vocabulary",
            why=f"issuers may use {', '.join(vocabulary)}",
            mend="use one of them, or extend the vocabulary with the root key"
            " (atoll trust jurisdictions)",
        )
    if not 0 < ttl_s <= TTL_S_MAX:
        raise UsageError(f"a lifetime of {ttl_s:g} s", why=f"it is above 0, at most {TTL_S_MAX:g}")
    if life_s and not LIFE_S_MIN <= life_s <= LIFE_S_MAX:
        raise UsageError(
            f"certificates that live {life_s} s",
            why=f"they live {LIFE_S_MIN} s to {LIFE_S_MAX // 86_400} days",
        )
    if len(seeds) > SEEDS_MAX:
        raise UsageError(f"{len(seeds)} seed addresses", why=f"a token holds at most {SEEDS_MAX}")
    token = Token(cluster, issuer, entropy(8), entropy(16), name, seeds)
    row = TokenRow(
        cluster,
        issuer,
        token.token_id,
        _proof_key(token.secret),
        name,
        region,
        known_tier,
        jurisdiction,
        roles,
        now.timestamp() + ttl_s,
        life_s=life_s,
    )
    return encode_token(token), row


def redeem(
    row: TokenRow | None, request: JoinRequest, now: datetime, revoked: Collection[bytes] = ()
) -> tuple[TokenRow | None, Claims | Refused]:
    """Judge a request; the caller makes a changed row durable **before** it acts on the answer.

    Args:
        row: the row of ``request.token_id``; None if this issuer has none.
        request: as received.
        now: wall-clock time, with time zone.
        revoked: ids that must not come back (``TrustLog.revoked``, ``Roll.retired``).

    Returns:
        The row as it must stand now, and either the claims to ``certify`` or why not.
    """
    if row is None:
        return None, Refused(
            "this issuer knows no such token",
            why="another issuer minted it, or it expired and was forgotten",
            mend="use the seed address in the token, or make a new token",
        )
    if now.timestamp() > row.expires_at:
        return row, Refused(
            "the token has expired",
            why=f"it was good until {_when(row.expires_at)}",
            mend="make a new one with atoll token create",
        )
    if row.state == "burned":
        return row, Refused(
            "the token is burned",
            why=f"{WRONG_TRIES_MAX} wrong proofs were sent with it",
            mend="make a new one with atoll token create, and find out who tried",
        )
    if not hmac.compare_digest(_proof(row.proof_key, row.issuer, request), request.proof):
        tries = min(row.wrong_tries + 1, WRONG_TRIES_MAX)
        is_burned = row.state == "open" and tries == WRONG_TRIES_MAX
        return replace(row, wrong_tries=tries, state="burned" if is_burned else row.state), Refused(
            "the proof does not match the token",
            why=f"wrong try {tries} of {WRONG_TRIES_MAX}",
            mend="copy the token again, whole",
        )
    return _grant(row, request, revoked)


def _grant(
    row: TokenRow, request: JoinRequest, revoked: Collection[bytes]
) -> tuple[TokenRow, Claims | Refused]:
    site = _requester(request)
    if site is None:
        return row, Refused("the request is not signed by the key it asks to certify")
    if site in revoked:
        return row, Refused(
            "this key is revoked or retired", mend="empty the identity folder for a new key"
        )
    if request.name != row.name:
        return row, Refused(
            f"the token is not for a site named {request.name}",
            why=f"it was made for {row.name}",
            mend="join under that name, or make a new token",
        )
    if row.state == "spent" and row.spent_by != site:
        return row, Refused(
            "the token was used already",
            why=f"site {short(row.spent_by)} joined with it",
            mend="make a new one; if nobody should have used it, revoke that site",
        )
    claims = Claims(
        row.cluster,
        row.name,
        row.region,
        row.tier,
        row.jurisdiction,
        row.roles,
        request.gossip_public_key,
        life_s=row.life_s,
    )
    return replace(row, state="spent", spent_by=bytes(site)), claims


def joiner_of(request: JoinRequest) -> SiteId:
    """Whom a request that was granted is from."""
    return site_id(Ed25519PublicKey.from_public_bytes(request.site_public_key))


def certify(
    issuer: IssuerKey, request: JoinRequest, claims: Claims, now: datetime
) -> tuple[bytes, ...]:
    """The chain (leaf, issuer; DER) for a request that ``redeem`` has granted.

    Raises:
        Refused: the issuer's own certificate has ended.
    """
    public_key = Ed25519PublicKey.from_public_bytes(request.site_public_key)
    return issue_site(issuer, public_key, claims, now), issuer.certificate


# --- the joiner ----------------------------------------------------------------------------------
def encode_token(token: Token) -> str:
    """The text an operator copies; ``decode_token`` is its inverse."""
    body = pack(token)
    return _PREFIX + urlsafe_b64encode(_checksum(body) + body).decode().rstrip("=")


def decode_token(text: str) -> Token:
    """The token in ``text``; line breaks and blanks of a copy do not matter.

    Raises:
        UsageError: no token, cut off or mistyped, or of a newer version.
    """
    compact = "".join(text.split())
    if not compact.startswith(_PREFIX) or len(compact) > TOKEN_CHARS_MAX:
        raise UsageError(
            "this is not a join token",
            why=f"a token of this version starts with {_PREFIX}",
            mend="copy what atoll token create printed, whole",
        )
    encoded = compact[len(_PREFIX) :]
    if "+" in encoded or "/" in encoded:  # which the decoder takes for "-" and "_"
        raise _mangled("a character is missing or does not belong there")
    try:
        data = b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _mangled("a character is missing or does not belong there") from None
    body = data[_CHECKSUM_BYTES:]
    if not hmac.compare_digest(_checksum(body), data[:_CHECKSUM_BYTES]):
        raise _mangled("its checksum differs")
    try:
        token = unpack(Token, body, TOKEN_CHARS_MAX)
    except Malformed as error:
        raise _mangled(str(error)) from None
    return token


def check_issuer(token: Token, shown: IssuerProof, peer_leaf: bytes, now: datetime) -> Identity:
    """Prove that the TLS connection ends at the issuer named by the token, before the request.

    Args:
        token: the operator's.
        shown: what the seed answered.
        peer_leaf: the certificate (DER) of this very connection (``agent.drivers.tls.peer_leaf``).
        now: wall-clock time of the joiner, with time zone.

    Raises:
        Refused: another cluster, another site, or not the holder of the connection's key.
        Malformed: not certificates of this protocol.
    """
    if cluster_id(shown.root) != token.root:
        raise Refused(
            "the seed belongs to another cluster than the token",
            why="its root key has another hash",
            mend="check the address in the token; somebody may stand between",
        )
    identity = verify_passport(Passport(shown.chain), shown.root, now, ())
    if shown.chain[0] != peer_leaf:
        raise Refused(
            "the seed shows a certificate that is not its own",
            why="the TLS connection uses another key",
            mend="somebody may stand between; do not go on from this network",
        )
    if identity.site != token.issuer:
        raise Refused(
            f"the seed is {identity.claims.name}, not the issuer of the token",
            why=f"the token is redeemed by {short(token.issuer)} only",
            mend="use the issuer's address, or have this site make a token",
        )
    return identity


def make_request(
    token: Token, site_private: Ed25519PrivateKey, gossip_private: X25519PrivateKey
) -> JoinRequest:
    """The request for these keys, of use to the token's issuer only."""
    unsigned = JoinRequest(
        token_id=token.token_id,
        name=token.name,
        site_public_key=site_private.public_key().public_bytes_raw(),
        gossip_public_key=gossip_private.public_key().public_bytes_raw(),
        signature=b"",
        proof=b"",
    )
    signed = replace(unsigned, signature=site_private.sign(_REQUEST_DOMAIN + pack(unsigned)))
    return replace(signed, proof=_proof(_proof_key(token.secret), token.issuer, signed))


def accept_reply(
    token: Token, request: JoinRequest, reply: JoinReply, now: datetime
) -> tuple[Identity, TrustLog]:
    """Check everything the issuer answered, before anything is stored.

    Raises:
        Refused: for another cluster, key or name; expired or revoked; or its trust log does not
            hold together.
        Malformed: not certificates or entries of this protocol.
    """
    if cluster_id(reply.root) != token.root:
        raise Refused("the issuer answered for another cluster", mend="do not go on; ask it again")
    log = TrustLog(token.root)
    log.learn(reply.trust)
    if log.height == 0:
        raise Refused("the issuer sent no trust log", mend="ask it again")
    identity = verify_passport(Passport(reply.chain), reply.root, now, log.revoked())
    if (
        identity.public_key.public_bytes_raw() != request.site_public_key
        or identity.claims.gossip_key != request.gossip_public_key
        or identity.claims.name != token.name
    ):
        raise Refused("the issuer certified another site than asked for", mend="ask it again")
    return identity, log


def _requester(request: JoinRequest) -> SiteId | None:
    """The site whose key signed the request; None if its keys or signature are no good."""
    unsigned = replace(request, signature=b"", proof=b"")
    try:
        public_key = Ed25519PublicKey.from_public_bytes(request.site_public_key)
        public_key.verify(request.signature, _REQUEST_DOMAIN + pack(unsigned))
    except (InvalidSignature, ValueError):
        return None
    return site_id(public_key)


def _proof(key: bytes, issuer: SiteId, request: JoinRequest) -> bytes:
    """HMAC over the domain, the issuer's id (hash of its SPKI, as TLS showed it) and the request."""
    digest = hashlib.sha256(pack(replace(request, proof=b""))).digest()
    return hmac.digest(key, _PROOF_DOMAIN + issuer + digest, "sha256")


def _proof_key(secret: bytes) -> bytes:
    return HKDF(SHA256(), length=32, salt=None, info=_PROOF_DOMAIN).derive(secret)


def _mangled(why: str) -> UsageError:
    return UsageError(
        "the join token is cut off or mistyped",
        why=why,
        mend="copy what atoll token create printed, whole",
    )


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + body).digest()[:_CHECKSUM_BYTES]


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
