"""Which application asks, and what its token lets it ask for.

A token is a random secret of 256 bits that the site's operator makes for one application, valid at this
site only. The site keeps its SHA-256 and nothing else: a secret of that size cannot be found by trying,
so the slow hashes that passwords need would only cost every request.

=============  ====================================================================================
infer:MODEL    run this model (``infer:*``: any), and see what it takes and gives and if it is ready
read           descriptions, index, statistics and counters of the whole site
repository     load and unload models
=============  ====================================================================================

Source: RFC 6750 (bearer tokens); RFC 9110 section 11.
"""

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from agent.foundation.errors import UsageError
from agent.serving.failures import ScopeLacking, Unauthenticated
from agent.wire.inside import ApplicationToken

READ: Final = "read"
REPOSITORY: Final = "repository"
EVERY_MODEL: Final = "infer:*"
SCOPES_MAX: Final = 64
"""Of one token; an application that needs more models may have ``infer:*``."""
SECRET_BYTES: Final = 32
LOCAL: Final = "local"
"""The application of a request without a token, where none is demanded."""
MAKE_ONE: Final = "the site's operator makes one: atoll app token create NAME --scope infer:MODEL"

SCOPE: Final = re.compile(r"read|repository|infer:(?:\*|[a-z0-9][a-z0-9._-]{0,63})")
_TOKEN = re.compile(r"atoll_[A-Za-z0-9_-]{43}")
_START_BYTES = 8
_EXPECTED = "Authorization: Bearer atoll_..."


def infer(model: str) -> str:
    """The scope of running ``model``."""
    return f"infer:{model}"


def check_scopes(given: Iterable[str]) -> tuple[str, ...]:
    """The scopes, each once and in order.

    Raises:
        UsageError: there is none, or one that does not exist.
    """
    for scope in given:
        if not SCOPE.fullmatch(scope):
            raise UsageError(
                f"there is no scope {scope[:80]!r}",
                why="a scope is infer:MODEL, infer:* (any model), read or repository",
            )
    scopes = tuple(sorted(set(given)))
    if not 0 < len(scopes) <= SCOPES_MAX:
        raise UsageError(
            f"a token has 1 to {SCOPES_MAX} scopes, not {len(scopes)}",
            mend="give infer:MODEL, infer:* (any model), read or repository",
        )
    return scopes


def mint(secret: bytes) -> tuple[str, bytes]:
    """A token, and the hash that is kept of it.

    Args:
        secret: ``SECRET_BYTES`` bytes from the system's source of randomness.
    """
    assert len(secret) == SECRET_BYTES
    token = f"atoll_{urlsafe_b64encode(secret).decode().rstrip('=')}"
    return token, _hash(token)


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


@dataclass(frozen=True, slots=True)
class Application:
    """Who asks; ``scopes`` is None for one that needs no token."""

    name: str
    scopes: frozenset[str] | None = None

    def require(self, needs: Sequence[str]) -> None:
        """Pass if the token has one of the scopes ``needs``.

        Raises:
            ScopeLacking: names the scopes.
        """
        has = self.scopes
        if has is None or not has.isdisjoint(needs):
            return
        if EVERY_MODEL in has and any(need.startswith("infer:") for need in needs):
            return
        wanted = " or ".join(need[:80] for need in needs)
        raise ScopeLacking(
            f"the token {self.name!r} lacks the scope {wanted}",
            why=f"it has {', '.join(sorted(has))[:200]}",
            mend="the site's operator makes one that has it (atoll app token create)",
            scope=needs[0][:80],
        )


_NO_TOKEN = Application(LOCAL)


class Access:
    """The tokens of one site, and whether a request needs one."""

    def __init__(self, *, is_required: bool, tokens: Iterable[ApplicationToken] = ()) -> None:
        self.is_required = is_required
        # What is looked up leaks by its timing at most the start of a hash, from which no secret follows.
        self._by_start = {
            token.hash[:_START_BYTES]: (
                token,
                Application(token.name, frozenset(token.scopes)),
            )
            for token in tokens
        }

    def authenticate(self, authorizations: Sequence[str], now: float) -> Application:
        """The application that sent a request.

        Args:
            authorizations: the values of all its ``Authorization`` headers.
            now: Unix seconds.

        Raises:
            Unauthenticated: no token where one is demanded, or one that is not (or no longer) valid.
        """
        if not authorizations:
            return self._without_token(f"no token was given; send {_EXPECTED}")
        if len(authorizations) > 1:
            raise _invalid("malformed", "the request has several Authorization headers")
        scheme, _, text = authorizations[0].partition(" ")
        if scheme.lower() != "bearer":
            return self._without_token(f"another kind of Authorization was given; send {_EXPECTED}")
        text = text.strip(" ")
        if not _TOKEN.fullmatch(text):
            raise _invalid(
                "malformed", "what was sent is no token of Atoll: atoll_ and 43 characters"
            )
        digest = _hash(text)
        token, application = self._by_start.get(digest[:_START_BYTES], (None, _NO_TOKEN))
        if token is None or not hmac.compare_digest(token.hash, digest):
            why = "it was revoked, belongs to another site, or is mistyped"
            raise _invalid("unknown", "the token is not known at this site", why)
        if token.expires_at and now >= token.expires_at:
            ended = datetime.fromtimestamp(token.expires_at, UTC)
            raise _invalid("expired", f"the token {token.name!r} ended {ended:%Y-%m-%d %H:%M} UTC")
        return application

    def _without_token(self, why: str) -> Application:
        if not self.is_required:
            return _NO_TOKEN
        why = why if self._by_start else f"{why}; there is no token at this site yet"
        raise Unauthenticated(
            "this site takes requests with a token only", why=why, mend=MAKE_ONE, reason="missing"
        )


def _invalid(reason: str, what: str, why: str = "") -> Unauthenticated:
    return Unauthenticated(what, why=why, mend=MAKE_ONE, reason=reason)
