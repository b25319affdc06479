"""Other sites, as the gateway meets them: who calls here, and calls to them.

Rule: nobody is believed before the certificate: a caller is who its certificate says, and not a
byte of a request leaves before the site at the other end has shown the key that was meant.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import aiohttp

from agent.drivers import clock, tls
from agent.drivers.keystore import SiteKeys
from agent.drivers.pinned import PinnedContext, server_name
from agent.drivers.pool import SitePool
from agent.foundation.errors import Refused, Unreachable
from agent.foundation.ids import SiteId, short
from agent.identity.certificates import Identity, check_standing, read_verified_leaf
from agent.serving.failures import DeadlineExceeded
from agent.wire.inside import RemoteSite

CONNECT_TIMEOUT_S = 3.0
CONNECTIONS_PER_SITE_MAX = 16
"""More under way than a site's slots only wait there."""
CONNECTIONS_MAX = 256
IDENTITIES_CACHED_MAX = 1024

HOPS_HEADER = "Atoll-Hops"
ID_HEADER = "Atoll-Request-Id"
DEADLINE_HEADER = "Atoll-Deadline-Ms"
RESIDENCY_HEADER = "Atoll-Residency"
SERVED_BY_HEADER = "Atoll-Served-By"
LOST_HEADER = "Atoll-Request-Lost"
"""On a 503: the request ended a model worker (``RequestLost``), so no other site should try it."""


@dataclass(frozen=True, slots=True)
class MemberAnswer:
    """What another site answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    is_cold: bool = False
    """Whether a connection was made for it: its time is not the site's alone."""


class NotConnected(Unreachable):
    """No connection was made: not a byte of the request has left."""


class Callers:
    """Says who is at the other end of a connection to the data port."""

    def __init__(self, keys: SiteKeys) -> None:
        self._root = keys.root
        self._read = lru_cache(maxsize=IDENTITIES_CACHED_MAX)(self._verified)
        self.revoked: frozenset[bytes] = frozenset()

    def identify(self, transport: asyncio.BaseTransport | None) -> Identity:
        """The calling member; asked anew for each request, so that a revocation acts at once.

        Raises:
            Refused: no certificate, or one that is revoked or expired.
            Malformed: a certificate of something else.
        """
        connection = None if transport is None else transport.get_extra_info("ssl_object")
        identity = tls.peer_identity(connection, self.verify)
        if identity is None:
            raise Refused("members only", why="no certificate was shown")
        return identity

    def verify(self, leaf: bytes) -> Identity:
        """Whose certificate it is that TLS has verified, if that site may act now; as ``identify``."""
        identity = self._read(leaf)
        check_standing(identity, clock.wall(), self.revoked)
        return identity

    def _verified(self, leaf: bytes) -> Identity:
        return read_verified_leaf(leaf, self._root)


class Members:
    """Calls to other sites over pooled, pinned TLS connections."""

    def __init__(self, keys: SiteKeys, callers: Callers, body_bytes_max: int) -> None:
        """Needs a running loop. ``callers`` knows what is revoked; answers are bounded too."""
        self._verify = tls.verifier(keys, lambda: callers.revoked, clock.wall)
        self._pinned = PinnedContext(keys, self._verify)
        self._ends_at = keys.identity.not_after
        self._body_bytes_max = body_bytes_max
        self.under_way: dict[SiteId, int] = {}
        self._pool = SitePool(
            limit=CONNECTIONS_MAX,
            limit_per_host=CONNECTIONS_PER_SITE_MAX,
            keepalive_timeout=20,
            force_close=False,
        )
        self._session = aiohttp.ClientSession(
            connector=self._pool,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            trace_configs=[_noting_new_connections()],
        )

    def close_refused(self) -> int:
        """End the sessions with sites that are refused now (revoked since); how many there were."""
        return self._pool.close_refused(self._verify)

    def renew(self, keys: SiteKeys) -> None:
        """Show the renewed certificate: requests from now on use connections made with it."""
        self._pinned = PinnedContext(keys, self._verify)
        self._ends_at = keys.identity.not_after

    async def call(
        self,
        remote: RemoteSite,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> MemberAnswer:
        """One request to one site; a connection that went stale in the pool is replaced once.

        Raises:
            NotConnected: no connection, or another site at its address.
            Unreachable: the answer broke off, or this site may not ask.
            DeadlineExceeded: it answered too late.
        """
        if clock.wall() > self._ends_at:
            raise Unreachable(
                f"site {remote.name} is not asked",
                why=f"this site's certificate ended {self._ends_at:%Y-%m-%d %H:%M} UTC,"
                " and with that it may only renew; atoll status shows how that goes",
            )
        self.under_way[remote.site] = self.under_way.get(remote.site, 0) + 1
        try:
            try:
                return await self._call(remote, method, path, headers, body, deadline)
            except aiohttp.ServerDisconnectedError:
                return await self._call(remote, method, path, headers, body, deadline)
        except TimeoutError:
            if clock.monotonic_s() >= deadline:
                raise DeadlineExceeded(f"site {remote.name} did not answer in time") from None
            raise NotConnected(
                f"site {remote.name} cannot be reached", why="no connection in time"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            is_out = isinstance(error, aiohttp.ClientConnectorError)
            raise (NotConnected if is_out else Unreachable)(
                f"site {remote.name} ({short(remote.site)}) cannot be reached",
                why=str(error) or type(error).__name__,
            ) from error
        finally:
            left = self.under_way[remote.site] - 1
            if left:
                self.under_way[remote.site] = left
            else:
                del self.under_way[remote.site]

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _call(
        self,
        remote: RemoteSite,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: bytes | None,
        deadline: float,
    ) -> MemberAnswer:
        left_s = max(deadline - clock.monotonic_s(), 0.001)
        made: list[bool] = []
        host = f"[{remote.host}]" if ":" in remote.host else remote.host
        async with self._session.request(
            method,
            f"https://{host}:{remote.data_port}{path}",
            data=body,
            headers={**headers, DEADLINE_HEADER: str(round(left_s * 1000))},
            ssl=self._pinned.context,
            server_hostname=server_name(remote.site),
            allow_redirects=False,
            trace_request_ctx=made,
            timeout=aiohttp.ClientTimeout(
                total=left_s, connect=min(CONNECT_TIMEOUT_S, left_s), ceil_threshold=1e9
            ),
        ) as response:
            content = await self._read(response)
            return MemberAnswer(response.status, response.headers, content, bool(made))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        chunks: list[bytes] = []
        size = 0
        while chunk := await response.content.readany():
            chunks.append(chunk)
            size += len(chunk)
            if size > self._body_bytes_max:
                raise aiohttp.ClientPayloadError(
                    f"answer of more than {self._body_bytes_max} bytes"
                )
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _noting_new_connections() -> aiohttp.TraceConfig:
    async def note(_session: object, context: Any, _made: object) -> None:
        context.trace_request_ctx.append(True)

    config = aiohttp.TraceConfig()
    config.on_connection_create_end.append(note)
    return config
