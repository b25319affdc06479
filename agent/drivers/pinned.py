"""Connections that are closed unless the site that was meant answers, before a byte is sent.

aiohttp checks a ``Fingerprint`` after the handshake and before the request; ours compares the site
id (the hash of the public key) and the claims instead of the certificate's bytes.
"""

import asyncio

import aiohttp

from agent.drivers.tls import Verify, peer_identity, require_peer
from agent.foundation.errors import AtollError, Refused
from agent.foundation.ids import ID_BYTES, SiteId
from agent.identity.certificates import Identity


class Pin(aiohttp.Fingerprint):
    """What aiohttp is to check; ``site`` None accepts any member (a greeting)."""

    def __init__(self, site: SiteId | None, verify: Verify) -> None:
        """``verify`` decides who is a member now (cluster, time, revocation)."""
        super().__init__(site if site is not None else bytes(ID_BYTES))
        self._site, self._verify = site, verify
        self.identity: Identity | None = None
        """Who answered the last connection made with this pin."""

    def check(self, transport: asyncio.Transport) -> None:
        """Part of ``aiohttp.Fingerprint``: raise unless the right site is there."""
        connection = transport.get_extra_info("ssl_object")
        try:
            if self._site is not None:
                self.identity = require_peer(connection, self._verify, self._site)
            else:
                self.identity = peer_identity(connection, self._verify)
                if self.identity is None:
                    raise Refused("the peer shows no certificate")
        except AtollError as error:
            host, port, *_ = transport.get_extra_info("peername")
            raise aiohttp.ServerFingerprintMismatch(
                self._site or b"", str(error).encode(), host, port
            ) from error
