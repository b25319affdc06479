"""Admitting new sites: this issuer's tokens, each redeemed once, in one local transaction.

The row that says "spent" is on disk before the certificate leaves, so a crash between the two lets
the same site ask again and nobody else.

A site that joins under a name that is known takes the place of its former identities: its certificate
says so (``agent.identity.retirement``).
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from agent.api.operations import TokenRequest
from agent.drivers.clock import wall
from agent.drivers.keystore import SiteKeys
from agent.drivers.store import Store
from agent.foundation.errors import AtollError, Refused
from agent.foundation.ids import short
from agent.foundation.writes import Delete, Put, Scalar
from agent.identity.certificates import Identity, IssuerKey, key_id, read_passport
from agent.identity.registry import Roll
from agent.identity.retirement import predecessors
from agent.identity.tokens import (
    IssuerProof,
    JoinReply,
    JoinRequest,
    TokenRow,
    certify,
    joiner_of,
    mint,
    redeem,
)
from agent.identity.trust import TrustLog
from agent.wire.mesh import Introduction
from agent.wire.schema import pack, unpack

TOKENS_MAX = 1000
"""Open tokens of one issuer: a rollout of a thousand sites in one hour."""
REQUEST_BYTES_MAX = 4096

_log = logging.getLogger("atoll.joining")


class Joining:
    """Mints and redeems tokens at an issuer; refuses at every other site."""

    def __init__(
        self,
        keys: SiteKeys,
        trust: TrustLog,
        roll: Roll,
        store: Store,
        seeds: tuple[tuple[str, int], ...],
        book: Sequence[Introduction] = (),
    ) -> None:
        """Serve joiners.

        Args:
            keys: of this site.
            trust: who is revoked, and the vocabulary.
            roll: who is known, by name.
            store: table ``tokens``.
            seeds: where this site listens (host, mesh port).
            book: the peer book as of the start, with those whose passports have ended.
        """
        self._keys, self._trust, self._store, self.seeds = keys, trust, store, seeds
        self._roll, self._book = roll, _identities(book, keys.root)
        self._lock = asyncio.Lock()

    @property
    def shown_chain(self) -> bytes:
        """What a joiner is shown first, packed."""
        return pack(IssuerProof(self._keys.chain, self._keys.root))

    def recertified(self, keys: SiteKeys) -> None:
        """Show the renewed certificate to joiners."""
        self._keys = keys

    def living_namesakes(self, name: str) -> int:
        """How many sites a joiner of that name would retire, as far as is known here."""
        return len(self._roll.named(name))

    async def create_token(self, request: TokenRequest) -> str:
        """A new token's text; its row is durable when this returns.

        Raises:
            Refused: this site is no issuer, or has ``TOKENS_MAX`` open tokens.
            UsageError: the claims cannot be used.
        """
        self._require_issuer()
        if request.name == self._keys.identity.claims.name:
            raise Refused(
                f"the name {request.name} is this site's own",
                why="whoever joins under a known name takes the place of the site that has it",
                mend="choose another name; or make the token at another issuer",
            )
        text, row = mint(
            cluster=self._keys.cluster, issuer=self._keys.site, name=request.name,
            region=request.region, tier=request.tier, jurisdiction=request.jurisdiction,
            roles=request.roles, seeds=self.seeds, entropy=os.urandom, now=wall(),
            ttl_s=request.ttl_s, vocabulary=self._trust.jurisdictions, life_s=request.life_s,
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
            refused = self._trust.revoked() | self._roll.retired()
            changed, outcome = redeem(row, request, wall(), refused)
            if changed is not None and changed != row:
                await self._save(changed)
        if isinstance(outcome, Refused):
            raise outcome
        known = (*self._roll.identities(), *self._book)
        replaces = predecessors(outcome.name, known, joiner_of(request))
        chain = certify(issuer, request, replace(outcome, replaces=replaces), wall())
        _log.info("%s (%s) joins%s", outcome.name, short(joiner_of(request)), _instead(replaces))
        reply = JoinReply(chain, self._keys.root, self.seeds, self._trust.entries())
        return pack(reply)

    def _require_issuer(self) -> IssuerKey:
        if self._keys.issuer is None:
            raise Refused(
                "this site does not admit others",
                why="it holds no issuer key",
                mend="run the command on an issuer: the site where atoll init was run",
            )
        if key_id(self._keys.issuer.private_key.public_key()) not in self._trust.issuers():
            raise Refused(
                "this site does not admit others any more",
                why="the root has removed its issuer key",
                mend="run the command on another issuer (atoll trust), or make this one an issuer"
                " again: atoll issuer add",
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


def _identities(book: Sequence[Introduction], root: bytes) -> tuple[Identity, ...]:
    found = []
    for introduction in book:
        try:
            found.append(read_passport(introduction.passport, root))
        except AtollError:
            continue
    return tuple(found)


def _instead(replaces: Sequence[bytes]) -> str:
    return f" in the place of {', '.join(one.hex()[:8] for one in replaces)}" if replaces else ""
