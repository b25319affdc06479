"""Calls between sites: HTTP/1.1 over mutual TLS 1.3 on the mesh port, MessagePack bodies.

Only a member's certificate opens ``/mesh/1/call``; the two join routes are for a site that has a
token and no certificate yet, the renewal route for one whose certificate may have ended. The caller
is who its certificate says.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agent.distribution.holding import HOLDING_BYTES_MAX, Holding, parse_holding
from agent.drivers import tls
from agent.drivers.clock import wall
from agent.drivers.door import Door, Familiar
from agent.drivers.keystore import SiteKeys
from agent.drivers.pinned import PinnedContext, server_name
from agent.drivers.pool import SitePool, close_refused
from agent.drivers.reachability import cause_of, cause_of_refusal
from agent.foundation.errors import (
    AtollError,
    ConfigError,
    Malformed,
    NotFound,
    Refused,
    Unreachable,
)
from agent.foundation.ids import Digest, SiteId, short
from agent.identity.certificates import Identity
from agent.site.causes import Cause
from agent.wire.limits import CHUNK_BYTES, MESH_BODY_BYTES_MAX, PROTOCOL_VERSION
from agent.wire.mesh import CALLS, REPLIES, Call, Reply
from agent.wire.records import Endpoint

CALL_PATH = f"/mesh/{PROTOCOL_VERSION}/call"
JOIN_PATH = "/join/1"
CHAIN_PATH = "/join/1/chain"
RENEWAL_PATH = "/renew/1"
CALLS_WAITING_MAX = 20_000
"""Every member of the largest mesh may hold one watch open, and one more call."""
ANSWER_TIMEOUT_S = 90.0
"""Longer than any caller waits; an unanswered call must not be kept for ever."""
CONNECT_TIMEOUT_S = 3.0
JOIN_BODY_BYTES_MAX = 16 << 10
IDLE_S = 75.0
"""Also how long a connection may take to send a request's headers."""
CONNECTIONS_MAX = 4096
"""More than one from each member of a large mesh; what strangers can hold is bounded by ``Door``."""
STRANGER_REQUESTS_MAX = 4
"""Requests on one connection without certificate: a join takes two. More need a new handshake, and those
are few a second."""
REFUSALS_MAX = 16
"""Enough to tell a person who says what."""
CONNECTIONS_PER_SITE_MAX = 64
"""A watch for each of fifty jobs, and calls beside them; more calls wait for a free one."""

_log = logging.getLogger("atoll.mesh")

Handle = Callable[[SiteId, Call], Awaitable[Reply]]
Join = Callable[[bytes], Awaitable[bytes]]


class _TurnedAway(asyncio.Protocol):
    """For a connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class MeshServer:
    """Listens for members' calls, for joiners, and for those who renew their certificate."""

    def __init__(
        self,
        keys: SiteKeys,
        verify: tls.Verify,
        handle: Handle,
        chain: bytes,
        join: Join,
        familiar: Familiar = tuple,
        renew: Join | None = None,
    ) -> None:
        """``chain``: this site's chain for joiners, packed; ``join`` answers a packed request.

        ``familiar`` lists the addresses of known members (see ``Door``). ``renew`` answers a packed
        ``RenewalRequest``; None: nobody is renewed here.
        """
        self._verify, self._handle, self._familiar = verify, handle, familiar
        self._context = tls.server_context(keys)
        self._chain, self._join, self._renew = chain, join, renew
        self._runner: web.AppRunner | None = None
        self.door: Door | None = None
        self._waiting = 0
        self.refused = 0
        """Connections and calls turned away: no certificate, revoked, or not decodable."""

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be bound.
        """
        app = web.Application(
            client_max_size=MESH_BODY_BYTES_MAX, middlewares=[_strangers_ask_little()]
        )
        app.router.add_post(CALL_PATH, self._call)
        app.router.add_get(CHAIN_PATH, self._show_chain)
        app.router.add_post(JOIN_PATH, self._joined)
        app.router.add_post(RENEWAL_PATH, self._renewed)
        runner = self._runner = web.AppRunner(
            app, access_log=None, keepalive_timeout=IDLE_S, lingering_time=1.0, max_headers=32,
            shutdown_timeout=0.5,
        )  # fmt: skip
        await runner.setup()
        protocols = runner.server
        assert protocols is not None, "set up just now"

        def accept() -> asyncio.Protocol:
            is_full = len(protocols.connections) >= CONNECTIONS_MAX
            return _TurnedAway() if is_full else protocols()

        self.door = Door(accept, self._context, self._familiar)
        try:
            self.door.open(host, port)
        except OSError as error:
            raise ConfigError(
                f"cannot listen for members at {host} TCP port {port}",
                why=error.strerror or str(error),
                mend="stop what holds the port (ss -ltnp), or choose another [listen] mesh_port",
            ) from None

    def recertified(self, keys: SiteKeys, chain: bytes) -> None:
        """Show the renewed certificate on new connections; those that are open stay."""
        tls.reload_certificate(self._context, keys)
        self._chain = chain

    def close_refused(self) -> int:
        """End the sessions of sites that are refused now (revoked since); how many there were."""
        if self._runner is None or self._runner.server is None:
            return 0
        open_now = (one.transport for one in self._runner.server.connections)
        return close_refused(open_now, self._verify)

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self.door is not None:
            await self.door.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _caller(self, request: web.Request) -> Identity:
        transport = request.transport
        connection = transport.get_extra_info("ssl_object") if transport is not None else None
        identity = tls.peer_identity(connection, self._verify)
        if identity is None:
            raise Refused("members only", why="no certificate was shown")
        return identity

    async def _call(self, request: web.Request) -> web.Response:
        try:
            identity = self._caller(request)
            message = CALLS.unpack(await request.read(), MESH_BODY_BYTES_MAX)
        except (Refused, Malformed) as error:
            self.refused += 1
            return web.Response(status=403 if isinstance(error, Refused) else 400, text=str(error))
        if self._waiting >= CALLS_WAITING_MAX:
            return web.Response(status=503, text="too many calls wait here")
        self._waiting += 1
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                reply = await self._handle(identity.site, message)
        except TimeoutError:
            return web.Response(status=504, text="no answer was found in time")
        except AtollError as error:
            return web.Response(status=503, text=str(error))
        finally:
            self._waiting -= 1
        return web.Response(body=REPLIES.pack(reply), content_type="application/msgpack")

    async def _show_chain(self, request: web.Request) -> web.Response:  # noqa: ARG002 - aiohttp's signature
        return web.Response(body=self._chain, content_type="application/msgpack")

    async def _joined(self, request: web.Request) -> web.Response:
        return await self._stranger(request, self._join)

    async def _renewed(self, request: web.Request) -> web.Response:
        if self._renew is None:
            return web.Response(status=403, text="nobody is renewed here")
        return await self._stranger(request, self._renew)

    async def _stranger(self, request: web.Request, answer_to: Join) -> web.Response:
        """For somebody whose certificate says nothing: the request itself is the proof."""
        if request.content_length is None or request.content_length > JOIN_BODY_BYTES_MAX:
            return web.Response(status=413, text="a request is at most 16 KiB")
        try:
            answer = await answer_to(await request.read())
        except Malformed as error:
            return web.Response(status=400, text=str(error))
        except AtollError as error:
            return web.Response(status=403, text=str(error))
        return web.Response(body=answer, content_type="application/msgpack")


def _strangers_ask_little() -> Middleware:
    asked: WeakKeyDictionary[asyncio.BaseTransport, int] = WeakKeyDictionary()

    @web.middleware
    async def count_requests(request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        if transport is None or transport.get_extra_info("peercert"):
            return await handler(request)
        asked[transport] = asked.get(transport, 0) + 1
        if asked[transport] > STRANGER_REQUESTS_MAX:
            response: web.StreamResponse = web.Response(status=429, text="connect anew")
        else:
            response = await handler(request)
        if asked[transport] >= STRANGER_REQUESTS_MAX:
            response.force_close()
        return response

    return count_requests


class MeshClient:
    """Calls members; one pool of connections, each pinned to the site it was opened for."""

    def __init__(self, keys: SiteKeys, verify: tls.Verify) -> None:
        """``verify``: who is a member now."""
        self._verify = verify
        self._pinned = PinnedContext(keys, verify)
        self._ends_at = keys.identity.not_after
        self._greetings = count()
        self.refusals: OrderedDict[str, str] = OrderedDict()
        """What members said who refused this site, by address; until one there takes a call."""
        self._pool = connector = SitePool(
            limit=0, limit_per_host=CONNECTIONS_PER_SITE_MAX, keepalive_timeout=IDLE_S / 2,
            use_dns_cache=False,
        )  # fmt: skip
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    def recertified(self, keys: SiteKeys) -> None:
        """Show the renewed certificate on new connections.

        What is under way ends on the old ones; no new call uses them, because members look at the
        certificate of a connection again at every call, and the old one will end.
        """
        self._pinned = PinnedContext(keys, self._verify)
        self._ends_at = keys.identity.not_after

    def close_refused(self) -> int:
        """End the sessions with sites that are refused now (revoked since); how many there were."""
        return self._pool.close_refused(self._verify)

    def _require_certificate(self) -> None:
        if wall() > self._ends_at:
            raise Unreachable(
                "other sites are not called",
                why=f"this site's certificate ended {self._ends_at:%Y-%m-%d %H:%M} UTC,"
                " and with that it may only renew",
                mend="atoll status shows how the renewal goes",
                cause=Cause.WE_EXPIRED,
            )

    def _refused(self, where: str, said: str) -> None:
        self.refusals[where] = said
        self.refusals.move_to_end(where)
        if len(self.refusals) > REFUSALS_MAX:
            self.refusals.popitem(last=False)

    async def call(
        self, site: SiteId | None, endpoint: Endpoint, message: Call, timeout_s: float
    ) -> tuple[SiteId, Reply]:
        """Ask and return who answered what; ``site`` None: whichever member is there.

        Raises:
            Unreachable: no connection, another site, or no answer in time.
            Malformed: the answer does not decode.
        """
        self._require_certificate()
        pinned, where = self._pinned, _who(None, endpoint)
        name = f"greeting-{next(self._greetings)}" if site is None else server_name(site)
        url = f"https://{_host(endpoint.host)}:{endpoint.mesh_port}{CALL_PATH}"
        headers = {"Connection": "close"} if site is None else {}
        try:
            async with self._session.post(
                url, data=CALLS.pack(message), headers=headers, ssl=pinned.context,
                server_hostname=name, allow_redirects=False, timeout=_timeout(timeout_s),
            ) as response:  # fmt: skip
                body = await _body(response, MESH_BODY_BYTES_MAX)
                if response.status != 200:  # noqa: PLR2004 - HTTP OK
                    text = body[:300].decode("utf-8", "replace")
                    if response.status == 403:  # noqa: PLR2004 - HTTP Forbidden
                        self._refused(where, text)
                    raise Unreachable(
                        f"{_who(site, endpoint)} refused the call", why=text,
                        cause=cause_of_refusal(response.status, text),
                    )  # fmt: skip
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(
                f"{_who(site, endpoint)} does not answer",
                why=_reason(error),
                cause=cause_of(error),
            ) from None
        if site is None:
            identity = pinned.greeted(name)
            assert identity is not None, "checked in the handshake"
            site = identity.site
        self.refusals.pop(where, None)
        return site, REPLIES.unpack(body, MESH_BODY_BYTES_MAX)

    async def get_blob_part(
        self, site: SiteId, endpoint: Endpoint, path: str, bytes_max: int
    ) -> bytes:
        """Read ``path`` from the data port of ``site``.

        Raises:
            NotFound: the site does not have it, or may not give it to this one.
            Unreachable: no connection, or not in time.
        """
        self._require_certificate()
        url = f"https://{_host(endpoint.host)}:{endpoint.data_port}{path}"
        try:
            async with self._session.get(
                url, ssl=self._pinned.context, server_hostname=server_name(site),
                allow_redirects=False, timeout=_timeout(30.0),
            ) as response:  # fmt: skip
                body = await _body(response, bytes_max)
                if response.status != 200:  # noqa: PLR2004 - HTTP OK
                    raise NotFound(f"{short(site)} does not give {path}", why=str(response.status))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{short(site)} does not answer", why=_reason(error)) from None
        return body

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


class _Parts(Protocol):
    def get_blob_part(
        self, site: SiteId, endpoint: Endpoint, path: str, bytes_max: int
    ) -> Coroutine[Any, Any, bytes]: ...


class RemoteBlobs:
    """One member as a source of blobs (``agent.drivers.blob_fetch.ChunkSource``)."""

    def __init__(self, client: _Parts, site: SiteId, endpoint: Endpoint) -> None:
        """Reads from the data port of ``endpoint``."""
        self._client, self._site, self._endpoint = client, site, endpoint

    @property
    def name(self) -> str:
        """The site's short id."""
        return short(self._site)

    async def manifest(self, digest: Digest) -> bytes:
        """The encoded manifest."""
        path = f"/blobs/{digest.hex()}/manifest"
        return await self._client.get_blob_part(
            self._site, self._endpoint, path, MESH_BODY_BYTES_MAX
        )

    async def held(self, digest: Digest) -> Holding:
        """Which chunks it has now."""
        path = f"/blobs/{digest.hex()}/held"
        data = await self._client.get_blob_part(self._site, self._endpoint, path, HOLDING_BYTES_MAX)
        return parse_holding(data)

    async def chunk(self, digest: Digest, index: int) -> bytes:
        """One chunk."""
        path = f"/blobs/{digest.hex()}/chunks/{index}"
        return await self._client.get_blob_part(self._site, self._endpoint, path, CHUNK_BYTES)


async def _body(response: aiohttp.ClientResponse, bytes_max: int) -> bytes:
    parts, total = [], 0
    async for part in response.content.iter_any():
        total += len(part)
        if total > bytes_max:
            response.close()
            raise Malformed("the answer is too long", why=f"the bound is {bytes_max} bytes")
        parts.append(part)
    return b"".join(parts)


def _timeout(timeout_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_TIMEOUT_S, timeout_s))


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _who(site: SiteId | None, endpoint: Endpoint) -> str:
    where = f"{_host(endpoint.host)}:{endpoint.mesh_port}"
    return f"{short(site)} at {where}" if site is not None else where


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    inner = getattr(error, "os_error", None) or error.__cause__ or error
    return str(inner) or type(error).__name__
