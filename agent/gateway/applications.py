"""Who asks at the doors for applications, and whether it may: the one place where that is decided.

Every request that is let in has the name of an application: that of its token, ``local`` where none is
demanded and none was given, and ``site NAME`` at the members' door. A token never leaves this site: a
request that is passed on carries the certificate of this site instead.

Guessing: a wrong token costs one SHA-256 and is refused before anything of the request's body is read.
At 2^256 possible secrets nothing else is needed, so nobody who shares an address is locked out. What is
refused is counted; the log gets a line a minute, and never what was sent.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.hdrs import AUTHORIZATION

from agent.drivers.clock import monotonic_s, wall_s
from agent.foundation.errors import Busy
from agent.gateway.site import SiteState
from agent.serving.access import LOCAL, READ, REPOSITORY, Application, infer
from agent.serving.failures import ScopeLacking, Unauthenticated

APPLICATION: web.RequestKey[str] = web.RequestKey("application", str)
"""Name of the application, set for every request that reaches an endpoint; ``health`` asks nobody."""
LOG_EVERY_S = 60.0

_log = logging.getLogger("gateway.applications")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def needs(scope: str, model: str) -> tuple[str, ...]:
    """The scopes one of which lets an operation pass.

    Args:
        scope: as ``openapi.Operation`` has it.
        model: that it is about; empty if about none.
    """
    match scope:
        case "infer":
            return (infer(model),)
        case "model":  # who may run it needs to know how
            return (READ, infer(model))
        case "repository":
            return (REPOSITORY,)
        case _:
            assert scope == READ, f"there is no scope {scope}"
            return (READ,)


def told(application: str, host: str) -> str:
    """Who did something, for a person."""
    where = host or "this machine"
    if application == LOCAL:
        return f"an application at {where}"
    return f"the application {application!r} at {where}"


class Porter:
    """Lets applications in by their tokens."""

    def __init__(self, state: SiteState) -> None:
        self._state = state
        self._log_at = float("-inf")
        self._unlogged = 0

    @property
    def is_token_required(self) -> bool:
        """Whether a request without a token is turned away."""
        return self._state.limits.is_token_required

    def authenticate(self, authorizations: Sequence[str], peer: str | None) -> Application:
        """Who asks, by its ``Authorization`` headers; ``peer`` is its address, for the log.

        Raises:
            Unauthenticated: no token, where one is demanded, or a wrong one.
            Busy: the site is starting and knows no tokens yet.
        """
        access = self._state.access
        if access is None:
            if authorizations or self.is_token_required:
                raise Busy("the site is starting", mend="try again later")
            return Application(LOCAL)
        try:
            return access.authenticate(authorizations, wall_s())
        except Unauthenticated as error:
            self._turned_away(error.reason, error.what, peer)
            raise

    def admit(
        self, authorizations: Sequence[str], wanted: Sequence[str], peer: str | None = None
    ) -> str:
        """The name of an application that has one of the scopes ``wanted``.

        Raises:
            Unauthenticated, Busy: as ``authenticate``.
            ScopeLacking: its token is for something else.
        """
        application = self.authenticate(authorizations, peer)
        try:
            application.require(wanted)
        except ScopeLacking as error:
            self._turned_away("scope", error.what, peer)
            raise
        return application.name

    def guard(self, scope: str, handler: Handler) -> Handler:
        """The handler behind this porter; ``scope`` as in ``needs``, or empty: open to all."""
        if not scope:
            return handler

        async def admitted(request: web.Request) -> web.StreamResponse:
            wanted = needs(scope, request.match_info.get("model", ""))
            given = request.headers.getall(AUTHORIZATION, ())
            request[APPLICATION] = self.admit(given, wanted, request.remote)
            return await handler(request)

        return admitted

    def _turned_away(self, reason: str, text: str, peer: str | None) -> None:
        self._state.figures.turned_away[reason] += 1
        self._unlogged += 1
        now = monotonic_s()
        if now - self._log_at >= LOG_EVERY_S:
            whence = "" if peer is None else f" from {peer}"
            _log.warning("turned away %d, the last%s: %s", self._unlogged, whence, text)
            self._log_at, self._unlogged = now, 0
