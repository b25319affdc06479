"""Connections between sites that can be closed at once when a key is revoked.

Rule: a connection was checked when it was made, and each request is checked again; but a session that
is open to a revoked site must also end, whatever passes over it. Only what ``verify`` refuses now is
closed: a revocation costs nobody else a call that is under way.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

import aiohttp

from agent.drivers.tls import Verify, peer_identity
from agent.foundation.errors import Malformed, Refused

if TYPE_CHECKING:
    from aiohttp.client_proto import ResponseHandler
    from aiohttp.client_reqrep import ClientRequest
    from aiohttp.connector import Connection
    from aiohttp.tracing import Trace


def close_refused(transports: Iterable[asyncio.BaseTransport | None], verify: Verify) -> int:
    """Abort those whose peer is refused now, and say how many; anonymous ones stay."""
    count = 0
    for transport in list(transports):
        if transport is None or transport.is_closing():
            continue
        try:
            peer_identity(transport.get_extra_info("ssl_object"), verify)
        except (Refused, Malformed):
            # uvloop's transport is no subclass of asyncio's.
            cast("asyncio.Transport", transport).abort()
            count += 1
    return count


class SitePool(aiohttp.TCPConnector):
    """aiohttp's pool, which also knows the connections that are in use."""

    _made: "frozenset[ResponseHandler]" = frozenset()

    async def connect(
        self,
        req: "ClientRequest",
        traces: "list[Trace]",
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's signature
    ) -> "Connection":
        """As aiohttp's; a connection is remembered until it is closed."""
        connection = await super().connect(req, traces, timeout)
        protocol = connection.protocol
        if protocol is not None and protocol not in self._made:
            known = (one for one in self._made if one.is_connected())
            self._made = frozenset((*known, protocol))
        return connection

    def close_refused(self, verify: Verify) -> int:
        """End every connection, idle or not, whose peer ``verify`` refuses now."""
        return close_refused((one.transport for one in self._made), verify)
