"""The gateway's two doors: plain HTTP for applications, mutual TLS for members.

Bounds on what a client can hold: connections; 10 s from connecting to a first request's end of
headers, then 30 s to stay idle or to send the headers of the next (aiohttp's keep-alive timer runs until
they are complete); headers of 8 KiB a line, 64 lines; bodies as ``bodies`` says.
"""

import asyncio
import ssl
from collections.abc import Collection, Sequence
from typing import cast

from aiohttp import web
from aiohttp.typedefs import Middleware

from agent.drivers.pool import close_refused
from agent.drivers.tls import Verify
from agent.gateway.endpoints import CALLER, Handler, errors_as_json
from agent.gateway.guard import local_names_only
from agent.gateway.members import Callers

CONNECTIONS_MAX = 1024
"""Of each door; below the usual limit of open files together with everything else."""
HEADERS_TIMEOUT_S = 10.0
"""To a connection's first request; aiohttp itself never ends one that sends nothing."""
IDLE_TIMEOUT_S = 30.0
"""Between requests; longer than the clients' own, so that it is they who close."""
REVIEW_S = 2.0
"""How often connections without a request are looked at, while there are any."""
HANDSHAKE_TIMEOUT_S = 5.0
BACKLOG = 256
DRAIN_S = 2.0
"""Requests under way at the end have this long."""

_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
    b"Retry-After: 1\r\nContent-Length: 32\r\nConnection: close\r\n\r\n"
    b'{"error":"too many connections"}'
)


class _TurnedAway(asyncio.Protocol):
    """For a connection too many: a short answer and the door."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        stream = cast("asyncio.WriteTransport", transport)  # uvloop's own class is no subclass
        stream.write(_FULL)
        stream.close()


class Door:
    """One listening socket and the application behind it."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server) -> None:
        """Use ``open_door``."""
        self._runner = runner
        self._server = server

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self._server.sockets[0].getsockname()[1])

    def close_refused(self, verify: Verify) -> int:
        """End the sessions of sites that ``verify`` refuses now; how many there were."""
        handlers = self._runner.server
        assert handlers is not None, "set up when the door was opened"
        return close_refused((one.transport for one in handlers.connections), verify)

    async def close(self) -> None:
        """Take no more connections; let requests end for ``DRAIN_S``."""
        self._server.close()
        await self._runner.cleanup()
        await self._server.wait_closed()


async def open_door(
    host: str | Sequence[str],
    port: int,
    routes: Sequence[web.RouteDef],
    *,
    context: ssl.SSLContext | None = None,
    callers: Callers | None = None,
    names: Collection[str] = (),
) -> Door:
    """Listen; with ``context`` and ``callers`` for members only.

    ``names``: by which applications may call this machine, besides its addresses.

    Raises:
        OSError: the address cannot be bound.
    """
    newcomers = _Newcomers()
    middlewares: list[Middleware] = [newcomers.middleware(), errors_as_json]
    if callers is not None:
        middlewares.append(_members_only(callers))
    else:
        middlewares.append(local_names_only(names))
    application = web.Application(middlewares=middlewares)
    application.add_routes(routes)
    runner = web.AppRunner(
        application,
        access_log=None,
        handler_cancellation=True,
        keepalive_timeout=IDLE_TIMEOUT_S,
        lingering_time=1.0,
        max_headers=64,
        shutdown_timeout=DRAIN_S,
    )
    await runner.setup()
    handlers = runner.server
    assert handlers is not None

    def accept() -> asyncio.Protocol:
        if len(handlers.connections) >= CONNECTIONS_MAX:
            return _TurnedAway()
        handler = handlers()
        newcomers.add(handler)
        return handler

    try:
        server = await asyncio.get_running_loop().create_server(
            accept,
            host,
            port,
            ssl=context,
            backlog=BACKLOG,
            ssl_handshake_timeout=None if context is None else HANDSHAKE_TIMEOUT_S,
        )
    except BaseException:
        await runner.cleanup()
        raise
    return Door(runner, server)


class _Newcomers:
    """Connections that have not sent a whole request yet; each has ``HEADERS_TIMEOUT_S`` to do so."""

    def __init__(self) -> None:
        self._until: dict[web.RequestHandler, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, handler: web.RequestHandler) -> None:
        """A connection comes; bounded by ``CONNECTIONS_MAX``."""
        loop = asyncio.get_running_loop()
        self._until[handler] = loop.time() + HEADERS_TIMEOUT_S
        if self._timer is None:
            self._timer = loop.call_later(min(REVIEW_S, HEADERS_TIMEOUT_S), self._review)

    def middleware(self) -> Middleware:
        """Strikes out whoever has sent a request."""

        @web.middleware
        async def served(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._until.pop(request.protocol, None)
            return await handler(request)

        return served

    def _review(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._timer = loop.time(), None
        for handler, until in tuple(self._until.items()):
            if now >= until:
                del self._until[handler]
                handler.force_close()
        if self._until:
            self._timer = loop.call_later(min(REVIEW_S, HEADERS_TIMEOUT_S), self._review)


def _members_only(callers: Callers) -> Middleware:
    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[CALLER] = callers.identify(request.transport).site
        return await handler(request)

    return identify
