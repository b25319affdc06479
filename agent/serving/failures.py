"""Which HTTP status an error is, and how the protocol words it.

Rule: whatever goes wrong, the answer is ``{"error": "<text>"}`` with a status that says who can act:
4xx the caller, 5xx this site or its peers.
"""

import orjson

from agent.foundation.errors import (
    AtollError,
    Busy,
    Malformed,
    NotFound,
    Refused,
    Unreachable,
    UsageError,
)

ERROR_CHARS_MAX = 1000
"""ONNX Runtime quotes whole graphs in some messages; a person reads the first lines."""


class TooLarge(UsageError):
    """The body is beyond the limit that the message names."""


class TooSlow(UsageError):
    """The caller did not send its request in time."""


class DeadlineExceeded(AtollError):
    """The request's own time limit passed before its answer was there."""


class RequestLost(AtollError):
    """Workers have ended with the request in them: neither they nor another site get it again."""


class KeyReused(UsageError):
    """An idempotency key names another request."""


class KeySpent(AtollError):
    """The request of an idempotency key was run, or may have been, and its answer is not there."""


class Unauthenticated(UsageError):
    """A token is missing, or the one given is not valid."""

    def __init__(self, what: str, *, why: str = "", mend: str = "", reason: str) -> None:
        """As the base; ``reason`` is one word: missing, malformed, unknown or expired."""
        super().__init__(what, why=why, mend=mend)
        self.reason = reason

    @property
    def challenge(self) -> str:
        """The ``WWW-Authenticate`` header (RFC 6750, section 3: no error where nothing was given)."""
        return "Bearer" if self.reason == "missing" else 'Bearer error="invalid_token"'


class ScopeLacking(Refused):
    """The token is valid and not for this."""

    def __init__(self, what: str, *, why: str = "", mend: str = "", scope: str) -> None:
        """As the base; ``scope`` is one that would do."""
        super().__init__(what, why=why, mend=mend)
        self.scope = scope

    @property
    def challenge(self) -> str:
        """As of ``Unauthenticated``; a model's name is quoted as RFC 9110 wants it."""
        scope = "".join(c for c in self.scope if c.isascii() and c.isprintable() and c not in '"\\')
        return f'Bearer error="insufficient_scope", scope="{scope}"'


_STATUS: tuple[tuple[type[AtollError], int], ...] = (
    (TooLarge, 413),
    (TooSlow, 408),
    (Unauthenticated, 401),
    (NotFound, 404),
    (Refused, 403),
    (KeyReused, 422),
    (KeySpent, 409),
    (Busy, 503),
    (RequestLost, 503),
    (UsageError, 400),
    (Malformed, 400),
    (Unreachable, 503),
    (DeadlineExceeded, 504),
)


def status_of(error: AtollError) -> int:
    """The HTTP status of an error; 500 for what is this site's own fault."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_of(status: int, text: str) -> AtollError:
    """The error that another process or site answered with."""
    if status in (429, 503):
        return Busy(text)
    kind = next((kind for kind, number in _STATUS if number == status), None)
    if kind is None:
        kind = UsageError if 400 <= status < 500 else Unreachable  # noqa: PLR2004 - HTTP's classes
    return kind(text)


def error_body(text: str) -> bytes:
    """The protocol's error object, with the text cut to what a person reads."""
    return orjson.dumps({"error": error_text(text)})


def told_in(body: bytes) -> str:
    """The text of an error object, or what else there is."""
    try:
        return str(orjson.loads(body)["error"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return body[:ERROR_CHARS_MAX].decode("utf-8", "replace")


def error_text(text: str) -> str:
    """What of an error is shown: valid UTF-8, at most ``ERROR_CHARS_MAX`` characters."""
    clean = text.encode("utf-8", "replace").decode()
    return clean if len(clean) <= ERROR_CHARS_MAX else clean[: ERROR_CHARS_MAX - 1] + "…"
