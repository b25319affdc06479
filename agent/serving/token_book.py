"""The tokens that a site's operator has made: what may be made, what ends, what is kept.

One application has one valid token, under its own name. Of tokens that are revoked or have ended the
name and the dates are kept, so that the operator can look them up, until their place or their name is
needed.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from agent.foundation.errors import NotFound, UsageError
from agent.foundation.writes import Delete, Put, Write
from agent.serving.access import LOCAL
from agent.wire.inside import ApplicationToken

TOKENS_MAX = 256
"""Kept at one site, whatever their state: each may be a label of the counters, and all go to the gateway
in one message."""
TABLE = "application_tokens"
RESERVED = frozenset({LOCAL, "others"})
"""Names that counters give to requests without a token of their own."""
State = Literal["valid", "ended", "revoked"]


@dataclass(frozen=True, slots=True)
class KeptToken:
    """One token as the database has it; instants are Unix seconds."""

    name: str
    hash: bytes
    scopes: tuple[str, ...]
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def state(self, now: float) -> State:
        """How it is at ``now``."""
        if self.revoked_at is not None:
            return "revoked"
        return "ended" if self.expires_at is not None and now >= self.expires_at else "valid"

    @property
    def over_at(self) -> float:
        """When it was revoked or ends, whichever is first; infinite if neither."""
        return min(at for at in (self.revoked_at, self.expires_at, float("inf")) if at is not None)

    def put(self) -> Put:
        """The row."""
        return Put(
            TABLE,
            {
                "name": self.name,
                "hash": self.hash,
                "scopes": " ".join(self.scopes),
                "created_at": self.created_at,
                "expires_at": self.expires_at,
                "revoked_at": self.revoked_at,
            },
        )


@dataclass(frozen=True, slots=True)
class Change:
    """A token that is new or changed, and the one that makes room for it."""

    token: KeptToken
    dropped: str | None = None

    def writes(self) -> tuple[Write, ...]:
        """What is to be durable before ``TokenBook.apply``."""
        drop = () if self.dropped is None else (Delete(TABLE, (self.dropped,)),)
        return (*drop, self.token.put())


class TokenBook:
    """All tokens of one site by their names."""

    def __init__(self, tokens: Iterable[KeptToken] = ()) -> None:
        self._tokens = {token.name: token for token in tokens}

    def all(self) -> list[KeptToken]:
        """Every token that is kept, by name."""
        return [self._tokens[name] for name in sorted(self._tokens)]

    def valid(self, now: float) -> tuple[ApplicationToken, ...]:
        """Those that let somebody in at ``now``."""
        return tuple(
            ApplicationToken(token.name, token.hash, token.scopes, token.expires_at or 0.0)
            for token in self.all()
            if token.state(now) == "valid"
        )

    def create(self, token: KeptToken, now: float) -> Change:
        """Add ``token``, in place of one of its name that is over.

        Raises:
            UsageError: the name is reserved or has a valid token, or there are too many.
        """
        if token.name in RESERVED:
            raise UsageError(f"{token.name!r} is the name of requests without a token of their own")
        former = self._tokens.get(token.name)
        if former is not None and former.state(now) == "valid":
            raise UsageError(
                f"the application {token.name!r} has a valid token",
                why="each has one, by whose name it is counted",
                mend=f"take another name, or revoke it first: atoll app token revoke {token.name}",
            )
        if former is not None or len(self._tokens) < TOKENS_MAX:
            return Change(token)
        over = [one for one in self._tokens.values() if one.state(now) != "valid"]
        if not over:
            raise UsageError(
                f"{TOKENS_MAX} applications have a valid token",
                why="that is the most one site keeps",
                mend="revoke those that are not used (atoll app token list)",
            )
        return Change(token, min(over, key=lambda one: (one.over_at, one.name)).name)

    def revoke(self, name: str, now: float) -> Change:
        """End the token of ``name``; one that is over may be revoked too.

        Raises:
            NotFound: there is none.
        """
        token = self._tokens.get(name)
        if token is None:
            raise NotFound(
                f"no application {name!r} has a token here", mend="see atoll app token list"
            )
        if token.revoked_at is not None:
            return Change(token)
        return Change(replace(token, revoked_at=now))

    def apply(self, change: Change) -> None:
        """Its writes are on disk: it holds from now on."""
        if change.dropped is not None:
            del self._tokens[change.dropped]
        self._tokens[change.token.name] = change.token
