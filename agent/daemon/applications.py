"""The operator's tokens for applications (implements ``agent.api.applications``).

Order of a change: on disk, then in the gateway, then told to the operator. A gateway that starts gets
all valid tokens before its first view.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable

from agent.api.bodies import Json
from agent.config.settings import ListenPart
from agent.daemon.listening import shown
from agent.drivers.clock import wall_s
from agent.drivers.sqlite_library import Database
from agent.drivers.store import Store
from agent.serving.access import MAKE_ONE, SECRET_BYTES, mint
from agent.serving.fleet_tokens import valid_here
from agent.serving.token_book import TABLE, Change, KeptToken, TokenBook
from agent.site.site import Site
from agent.wire.documents import Scope
from agent.wire.inside import ApplicationToken

Tell = Callable[[], Awaitable[bool]]


class ApplicationDesk:
    """One site's tokens."""

    def __init__(
        self, store: Store, book: TokenBook, listen: ListenPart, site: Site | None
    ) -> None:
        """Use ``open``."""
        self._store, self._book, self._listen, self._site = store, book, listen, site
        self._changing = asyncio.Lock()
        self.tell: Tell | None = None
        """Has the gateway decide by ``valid``; whether it has confirmed that."""

    @classmethod
    async def open(
        cls, store: Store, listen: ListenPart, site: Site | None = None
    ) -> "ApplicationDesk":
        """With what the database holds.

        Args:
            store: of this site.
            listen: says who can reach the applications' ports.
            site: whose catalog has the tokens that are valid at every site.
        """

        def read(database: Database) -> list[KeptToken]:
            return [
                KeptToken(
                    row["name"], row["hash"], tuple(row["scopes"].split()), row["created_at"],
                    row["expires_at"], row["revoked_at"],
                )
                for row in database[TABLE].rows
            ]  # fmt: skip

        return cls(store, TokenBook(await store.read(read)), listen, site)

    @property
    def certificate(self) -> str:
        """The file of the certificate that the applications' ports show; empty: they speak no TLS."""
        return str(self._listen.http_certificate or "")

    def valid(self) -> tuple[ApplicationToken, ...]:
        """For the gateway; what this site's operator says of a token comes before what the fleet says."""
        return (*self._book.valid(wall_s()), *self._of_fleet())

    def _of_fleet(self) -> tuple[ApplicationToken, ...]:
        if self._site is None:
            return ()
        jurisdiction = self._site.identity.claims.jurisdiction
        scopes = self._site.catalog.of_kind(Scope)
        return valid_here(scopes, jurisdiction, self._site.trust.groups)

    # --- the operator ------------------------------------------------------------------------------
    def tokens(self) -> list[Json]:
        """See ``ApplicationOperations.tokens``."""
        valid = {token.hash for token in self._of_fleet()}
        catalog = self._site.catalog if self._site is not None else ()
        fleet = [
            _fleet_row(entry.body, entry.document.stamp.wall_ms / 1000, valid)
            for entry in catalog
            if isinstance(entry.body, Scope)
        ]
        return [*(_row(token) for token in self._book.all()), *fleet]

    async def create(self, name: str, scopes: tuple[str, ...], life_s: float) -> Json:
        """See ``ApplicationOperations.create``."""
        token, digest = mint(os.urandom(SECRET_BYTES))
        async with self._changing:
            now = wall_s()
            expires_at = now + life_s if life_s else None
            kept = KeptToken(name, digest, scopes, now, expires_at)
            return {"token": token, **await self._change(self._book.create(kept, now))}

    async def revoke(self, name: str) -> Json:
        """See ``ApplicationOperations.revoke``."""
        async with self._changing:
            return await self._change(self._book.revoke(name, wall_s()))

    async def _change(self, change: Change) -> Json:
        await self._store.commit(change.writes())
        self._book.apply(change)
        assert self.tell is not None, "set before the admin socket opens"
        return {**_row(change.token), "is_in_force": await self.tell()}

    # --- for status and doctor ---------------------------------------------------------------------
    def reasons(self) -> list[str]:
        """What an operator should know about who may use this site."""
        return [evidence for _, ok, evidence, _ in self.checks() if not ok]

    def checks(self) -> list[tuple[str, bool, str, str]]:
        """Of ``atoll doctor``: check, ok, evidence, mend."""
        listen, valid = self._listen, len(self.valid())
        where = shown(listen.http_host, listen.http_port)
        count = f"{valid} valid {'token' if valid == 1 else 'tokens'}"
        if listen.is_token_required:
            evidence = f"applications need a token at {where}; there is none: all are refused"
            return [("tokens", bool(valid), count if valid else evidence, MAKE_ONE)]
        if listen.is_local:
            return [("tokens", True, f"not needed at {where}; {count}", "")]
        evidence = f'whoever reaches {where} may use this site: [listen] http_tokens = "never"'
        return [("tokens", False, evidence, "remove that line, and make tokens for applications")]


def _row(token: KeptToken) -> Json:
    return {
        "name": token.name, "scopes": list(token.scopes), "created_at": token.created_at,
        "expires_at": token.expires_at, "revoked_at": token.revoked_at,
        "state": token.state(wall_s()), "is_fleet": False,
    }  # fmt: skip


def _fleet_row(scope: Scope, at: float, valid: set[bytes]) -> Json:
    expires_at = float(scope.expires_at_s) or None
    state = "valid" if not valid.isdisjoint(scope.tokens) else "elsewhere"
    if not scope.is_active:
        state = "revoked"
    elif expires_at is not None and wall_s() >= expires_at:
        state = "ended"
    return {
        "name": scope.name, "scopes": list(scope.scopes), "created_at": at, "expires_at": expires_at,
        "revoked_at": None if scope.is_active else at, "state": state, "is_fleet": True,
    }  # fmt: skip
