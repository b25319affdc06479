"""Asking another site for renewal, over TLS that shows no certificate.

The asked site says who it is (``GET /join/1/chain``), then gets a request that is meant for it alone.
"""

import asyncio
import ssl
from collections.abc import Callable

import aiohttp

from agent.drivers import tls
from agent.drivers.clock import wall
from agent.drivers.keystore import SiteKeys
from agent.foundation.errors import Malformed, Refused, Unreachable
from agent.identity.certificates import read_passport
from agent.identity.renewal import TRUST_BYTES_TOLD_MAX, RenewalReply, make_renewal
from agent.identity.tokens import IssuerProof
from agent.wire.records import Endpoint, Passport
from agent.wire.schema import pack, unpack

CHAIN_PATH = "/join/1/chain"
RENEWAL_PATH = "/renew/1"
TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = (16 << 10) + TRUST_BYTES_TOLD_MAX
"""Three certificates of 2 KiB, a few addresses, and what this site lacks of the trust log."""
REFUSAL_CHARS_MAX = 400


class RenewalCalls:
    """Makes one call at a time; a connection is used for one conversation."""

    def __init__(
        self, keys: Callable[[], SiteKeys], trust_head: Callable[[], bytes] = bytes
    ) -> None:
        """``keys`` and the head of the trust log: this site's, as they are now."""
        self._keys, self._trust_head = keys, trust_head

    async def ask(self, endpoint: Endpoint) -> RenewalReply:
        """What the site at ``endpoint`` answers; the chain in it is not proven yet.

        Raises:
            Unreachable: no connection, another cluster, or no answer in time.
            Refused: the site does not renew; its words.
            Malformed: the answer does not decode.
        """
        keys = self._keys()
        connector = aiohttp.TCPConnector(ssl=tls.renew_context(keys), limit=1)
        base = f"https://{_host(endpoint.host)}:{endpoint.mesh_port}"
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                aiohttp.ClientSession(
                    base, connector=connector, auto_decompress=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
            ):  # fmt: skip
                shown = unpack(IssuerProof, await _exchange(session, "GET", CHAIN_PATH, None))
                there = read_passport(Passport(shown.chain), keys.root)
                if there.site == keys.site:
                    raise Unreachable("this site itself answers", why="it is its own address")
                request = make_renewal(
                    there.site, keys.passport, keys.site_private, keys.gossip_private, wall(),
                    self._trust_head(),
                )  # fmt: skip
                answer = await _exchange(session, "POST", RENEWAL_PATH, pack(request))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable("it does not answer", why=_reason(error)) from None
        return unpack(RenewalReply, answer, ANSWER_BYTES_MAX)


async def _exchange(
    session: aiohttp.ClientSession, method: str, path: str, body: bytes | None
) -> bytes:
    async with session.request(method, path, data=body, allow_redirects=False) as response:
        data = b""
        async for part in response.content.iter_any():
            data += part
            if len(data) > ANSWER_BYTES_MAX:
                response.close()
                raise Malformed("the answer is too long", why=f"at most {ANSWER_BYTES_MAX} bytes")
        if response.status == 200:  # noqa: PLR2004 - HTTP OK
            return data
        said = data[:REFUSAL_CHARS_MAX].decode("utf-8", "replace")
        if response.status == 403:  # noqa: PLR2004 - HTTP Forbidden
            raise Refused(said)
        raise Malformed(f"{path} is answered with {response.status}", why=said)


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLError):
        return f"TLS failed: {getattr(inner, 'verify_message', '') or inner.reason or inner}"
    return str(inner) or type(error).__name__
