"""Calls between sites: HTTP/1.1 over mutual TLS 1.3 on the mesh port, MessagePack bodies.

Only a member's certificate opens ``/mesh/1/call``; the two join routes are for a site that has a
token and no certificate yet. The caller is who its certificate says.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from itertools import count
from typing import Any, Protocol

import aiohttp
from aiohttp import web

from agent.drivers import tls
from agent.drivers.keystore import SiteKeys
from agent.drivers.pinned import PinnedContext, server_name
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
from agent.wire.limits import CHUNK_BYTES, MESH_BODY_BYTES_MAX, PROTOCOL_VERSION
from agent.wire.mesh import CALLS, REPLIES, Call, Reply
from agent.wire.records import Endpoint

CALL_PATH = f"/mesh/{PROTOCOL_VERSION}/call"
JOIN_PATH = "/join/1"
CHAIN_PATH = "/join/1/chain"
CALLS_WAITING_MAX = 20_000
"""Every member of the largest mesh may hold one watch open, and one more call."""
ANSWER_TIMEOUT_S = 90.0
"""Longer than any caller waits; an unanswered call must not be kept for ever."""
CONNECT_TIMEOUT_S = 3.0
JOIN_BODY_BYTES_MAX = 16 << 10
IDLE_S = 75.0
"""Also how long a connection may take to send a request's headers."""
HANDSHAKE_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 4096
"""More than one from each member of a large mesh; strangers who only hold the door open are cut off by
the time-outs, and must not use up the process's files before."""
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
    """Listens for members' calls and for joiners."""

    def __init__(
        self, keys: SiteKeys, verify: tls.Verify, handle: Handle, chain: bytes, join: Join
    ) -> None:
        """``chain``: this site's chain for joiners, packed; ``join`` answers a packed request."""
        self._keys, self._verify, self._handle = keys, verify, handle
        self._chain, self._join = chain, join
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._waiting = 0
        self.refused = 0
        """Connections and calls turned away: no certificate, revoked, or not decodable."""

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            ConfigError: the address cannot be bound.
        """
        app = web.Application(client_max_size=MESH_BODY_BYTES_MAX)
        app.router.add_post(CALL_PATH, self._call)
        app.router.add_get(CHAIN_PATH, self._show_chain)
        app.router.add_post(JOIN_PATH, self._joined)
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

        try:
            self._server = await asyncio.get_running_loop().create_server(
                accept, host, port, ssl=tls.server_context(self._keys), backlog=512,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(
                f"cannot listen for members at {host} TCP port {port}",
                why=error.strerror or str(error),
                mend="stop what holds the port (ss -ltnp), or choose another [listen] mesh_port",
            ) from None

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is not None:
            self._server.close()
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
        if request.content_length is None or request.content_length > JOIN_BODY_BYTES_MAX:
            return web.Response(status=413, text="a join request is at most 16 KiB")
        try:
            answer = await self._join(await request.read())
        except Malformed as error:
            return web.Response(status=400, text=str(error))
        except AtollError as error:
            return web.Response(status=403, text=str(error))
        return web.Response(body=answer, content_type="application/msgpack")


class MeshClient:
    """Calls members; one pool of connections, each pinned to the site it was opened for."""

    def __init__(self, keys: SiteKeys, verify: tls.Verify) -> None:
        """``verify``: who is a member now."""
        self._pinned = PinnedContext(keys, verify)
        self._greetings = count()
        connector = aiohttp.TCPConnector(
            ssl=self._pinned.context, limit=0, limit_per_host=CONNECTIONS_PER_SITE_MAX,
            keepalive_timeout=IDLE_S / 2, use_dns_cache=False,
        )  # fmt: skip
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
        )

    async def call(
        self, site: SiteId | None, endpoint: Endpoint, message: Call, timeout_s: float
    ) -> tuple[SiteId, Reply]:
        """Ask and return who answered what; ``site`` None: whichever member is there.

        Raises:
            Unreachable: no connection, another site, or no answer in time.
            Malformed: the answer does not decode.
        """
        name = f"greeting-{next(self._greetings)}" if site is None else server_name(site)
        url = f"https://{_host(endpoint.host)}:{endpoint.mesh_port}{CALL_PATH}"
        headers = {"Connection": "close"} if site is None else {}
        try:
            async with self._session.post(
                url, data=CALLS.pack(message), headers=headers, server_hostname=name,
                allow_redirects=False, timeout=_timeout(timeout_s),
            ) as response:  # fmt: skip
                body = await _body(response, MESH_BODY_BYTES_MAX)
                if response.status != 200:  # noqa: PLR2004 - HTTP OK
                    text = body[:300].decode("utf-8", "replace")
                    raise Unreachable(f"{_who(site, endpoint)} refused the call", why=text)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(
                f"{_who(site, endpoint)} does not answer", why=_reason(error)
            ) from None
        if site is None:
            identity = self._pinned.greeted(name)
            assert identity is not None, "checked in the handshake"
            site = identity.site
        return site, REPLIES.unpack(body, MESH_BODY_BYTES_MAX)

    async def get_blob_part(
        self, site: SiteId, endpoint: Endpoint, path: str, bytes_max: int
    ) -> bytes:
        """Read ``path`` from the data port of ``site``.

        Raises:
            NotFound: the site does not have it, or may not give it to this one.
            Unreachable: no connection, or not in time.
        """
        url = f"https://{_host(endpoint.host)}:{endpoint.data_port}{path}"
        try:
            async with self._session.get(
                url, server_hostname=server_name(site), allow_redirects=False,
                timeout=_timeout(30.0),
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
    where = f"{endpoint.host}:{endpoint.mesh_port}"
    return f"{short(site)} at {where}" if site is not None else where


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    inner = getattr(error, "os_error", None) or error.__cause__ or error
    return str(inner) or type(error).__name__
