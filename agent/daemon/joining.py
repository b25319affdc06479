"""Admitting new sites: this issuer's tokens, each redeemed once, in one local transaction.

The row that says "spent" is on disk before the certificate leaves, so a crash between the two lets
the same site ask again and nobody else.
"""

import asyncio
import os

from agent.api.operations import TokenRequest
from agent.drivers.clock import wall
from agent.drivers.keystore import SiteKeys
from agent.drivers.store import Store
from agent.foundation.errors import Refused
from agent.foundation.writes import Delete, Put, Scalar
from agent.identity.certificates import IssuerKey
from agent.identity.tokens import (
    IssuerProof,
    JoinReply,
    JoinRequest,
    TokenRow,
    certify,
    mint,
    redeem,
)
from agent.identity.trust import TrustLog
from agent.wire.schema import pack, unpack

TOKENS_MAX = 1000
"""Open tokens of one issuer: a rollout of a thousand sites in one hour."""
REQUEST_BYTES_MAX = 4096


class Joining:
    """Mints and redeems tokens at an issuer; refuses at every other site."""

    def __init__(
        self, keys: SiteKeys, trust: TrustLog, store: Store, seeds: tuple[tuple[str, int], ...]
    ) -> None:
        """``seeds``: where this site listens (host, mesh port)."""
        self._keys, self._trust, self._store, self._seeds = keys, trust, store, seeds
        self._lock = asyncio.Lock()

    @property
    def shown_chain(self) -> bytes:
        """What a joiner is shown first, packed."""
        return pack(IssuerProof(self._keys.chain, self._keys.root))

    async def create_token(self, request: TokenRequest) -> str:
        """A new token's text; its row is durable when this returns.

        Raises:
            Refused: this site is no issuer, or has ``TOKENS_MAX`` open tokens.
            UsageError: the claims cannot be used.
        """
        self._require_issuer()
        text, row = mint(
            cluster=self._keys.cluster, issuer=self._keys.site, name=request.name,
            region=request.region, tier=request.tier, jurisdiction=request.jurisdiction,
            roles=request.roles, seeds=self._seeds, entropy=os.urandom, now=wall(),
            ttl_s=request.ttl_s, vocabulary=self._trust.jurisdictions,
        )  # fmt: skip
        async with self._lock:
            await self._forget_expired()
            await self._save(row)
        return text

    async def join(self, body: bytes) -> bytes:
        """The packed answer to a packed request.

        Raises:
            Malformed: not a request.
            Refused: no issuer here, or the token does not allow it; says why.
        """
        request = unpack(JoinRequest, body, REQUEST_BYTES_MAX)
        issuer = self._require_issuer()
        async with self._lock:
            row = await self._load(request.token_id)
            changed, outcome = redeem(row, request, wall(), self._trust.revoked())
            if changed is not None and changed != row:
                await self._save(changed)
        if isinstance(outcome, Refused):
            raise outcome
        chain = certify(issuer, request, outcome, wall())
        reply = JoinReply(chain, self._keys.root, self._seeds, self._trust.entries())
        return pack(reply)

    def _require_issuer(self) -> IssuerKey:
        if self._keys.issuer is None:
            raise Refused(
                "this site does not admit others",
                why="it holds no issuer key",
                mend="run the command on an issuer: the site where atoll init was run",
            )
        return self._keys.issuer

    async def _load(self, token_id: bytes) -> TokenRow | None:
        rows = await self._store.read(
            lambda database: list(database.query("SELECT row FROM tokens WHERE id = ?", [token_id]))
        )
        return unpack(TokenRow, rows[0]["row"]) if rows else None

    async def _save(self, row: TokenRow) -> None:
        columns: dict[str, Scalar] = {
            "id": row.token_id,
            "row": pack(row),
            "expires_at": row.expires_at,
        }
        await self._store.commit((Put("tokens", columns),))

    async def _forget_expired(self) -> None:
        """Expired tokens are kept a day, so that their use gets the true reason, then forgotten."""
        before = wall().timestamp() - 86_400
        rows = await self._store.read(
            lambda database: list(database.query("SELECT id, expires_at FROM tokens"))
        )
        old = [Delete("tokens", (row["id"],)) for row in rows if row["expires_at"] < before]
        if len(rows) - len(old) >= TOKENS_MAX:
            raise Refused(
                f"{TOKENS_MAX} tokens are open", mend="wait until some have expired (atoll doctor)"
            )
        await self._store.commit(old)
