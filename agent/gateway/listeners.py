"""The gateway's doors: HTTP for applications, plain or over TLS; mutual TLS for members.

Bounds on what a client can hold: connections and their time as ``crowd`` says, 30 s of which to stay idle
or to send the headers of a next request (aiohttp's keep-alive timer runs until they are complete);
headers of 8 KiB a line, 64 lines; bodies as ``bodies`` says. What members' connections, and those of
strangers, hold before they have said who they are is bounded by ``agent.drivers.door``.
"""

import asyncio
import ssl
from collections.abc import Callable, Collection, Sequence

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Middleware

from agent.drivers.door import Door as TlsDoor
from agent.drivers.door import Familiar
from agent.drivers.pool import close_refused
from agent.drivers.tls import Verify
from agent.gateway.applications import APPLICATION
from agent.gateway.crowd import Connection, Crowd
from agent.gateway.endpoints import CALLER, Handler, errors_as_json
from agent.gateway.guard import local_names_only
from agent.gateway.members import Callers
from agent.serving.failures import error_body

IDLE_TIMEOUT_S = 30.0
"""Between requests; longer than the clients' own, so that it is they who close."""
BACKLOG = 256
DRAIN_S = 2.0
"""Requests under way at the end have this long."""


class Door:
    """What listens, and the application behind it."""

    def __init__(self, runner: web.AppRunner, listening: asyncio.Server | TlsDoor) -> None:
        """Use ``open_door``."""
        self._runner = runner
        self._listening = listening

    @property
    def port(self) -> int:
        """The port that was bound."""
        if isinstance(self._listening, TlsDoor):
            return self._listening.port
        return int(self._listening.sockets[0].getsockname()[1])

    def close_refused(self, verify: Verify) -> int:
        """End the sessions of sites that ``verify`` refuses now; how many there were."""
        handlers = self._runner.server
        assert handlers is not None, "set up when the door was opened"
        return close_refused((one.transport for one in handlers.connections), verify)

    async def close(self) -> None:
        """Take no more connections; let requests end for ``DRAIN_S``."""
        if isinstance(self._listening, TlsDoor):
            await self._listening.close()
            await self._runner.cleanup()
            return
        self._listening.close()
        await self._runner.cleanup()
        await self._listening.wait_closed()


async def open_door(
    host: str,
    port: int,
    routes: Sequence[web.RouteDef],
    *,
    names: Collection[str] = (),
    context: ssl.SSLContext | None = None,
) -> Door:
    """Listen for applications; over TLS if there is a ``context``.

    ``names``: by which they may call this machine, besides its addresses.

    Raises:
        OSError: the address cannot be bound.
    """
    runner, accept = await _served(routes, local_names_only(names))
    try:
        if context is not None:
            address = (await asyncio.get_running_loop().getaddrinfo(host, port))[0][4]
            door = TlsDoor(accept, context, is_for_all=True)
            door.open(str(address[0]), port)
            return Door(runner, door)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(accept, host, port, backlog=BACKLOG)
    except BaseException:
        await runner.cleanup()
        raise
    return Door(runner, server)


async def open_members_door(
    host: str,
    port: int,
    routes: Sequence[web.RouteDef],
    context: ssl.SSLContext,
    callers: Callers,
    familiar: Familiar,
) -> Door:
    """Listen for members, over TLS; ``familiar`` lists the addresses of those that are known.

    Raises:
        OSError: the address cannot be bound.
    """
    runner, accept = await _served(routes, _members_only(callers))
    door = TlsDoor(accept, context, familiar)
    try:
        door.open(host, port)
    except BaseException:
        await runner.cleanup()
        raise
    return Door(runner, door)


async def _served(
    routes: Sequence[web.RouteDef], who: Middleware
) -> tuple[web.AppRunner, Callable[[], asyncio.Protocol]]:
    """The application, and what makes a protocol for each of its connections."""
    crowd = Crowd()
    application = web.Application(middlewares=[crowd.middleware(), errors_as_json, who])
    application.add_routes(
        web.route(route.method, route.path, route.handler, **route.kwargs, expect_handler=_expect)
        for route in routes
    )
    runner = web.AppRunner(
        application, access_log=None, handler_cancellation=True, shutdown_timeout=DRAIN_S
    )
    await runner.setup()
    handlers = runner.server
    assert handlers is not None

    def accept() -> asyncio.Protocol:
        return Connection(
            crowd, handlers, keepalive_timeout=IDLE_TIMEOUT_S, lingering_time=1.0, max_headers=64
        )

    return runner, accept


async def _expect(request: web.Request) -> web.Response | None:
    """The one expectation there is (RFC 9110, section 10.1.1)."""
    expected = request.headers["Expect"]
    if request.version < HttpVersion11:
        return None
    if expected.lower() != "100-continue":
        text = f"nothing is known of the expectation {expected!r:.80}; it may be 100-continue"
        return web.Response(status=417, body=error_body(text), content_type="application/json")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # the answer itself has not begun
    return None


def _members_only(callers: Callers) -> Middleware:
    @web.middleware
    async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
        identity = callers.identify(request.transport)
        request[CALLER] = identity.site
        request[APPLICATION] = f"site {identity.claims.name}"
        return await handler(request)

    return identify
