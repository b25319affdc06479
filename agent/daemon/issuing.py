"""A site that is to be an issuer: its key is made here, and used as soon as the root has certified it.

Nothing is imported or copied: the certificate arrives with the trust log.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from agent.daemon.joining import Joining
from agent.daemon.renewing import Renewing
from agent.drivers import keystore
from agent.drivers.clock import wall
from agent.foundation.errors import AtollError, Refused
from agent.foundation.ids import SiteId, short
from agent.identity.certificates import IssuerKey, key_id
from agent.identity.issuing import make_issuer_request
from agent.identity.trust import TrustLog
from agent.wire.mesh import Call, Declined, IssuerKeyOffer, IssuerKeyWanted, Reply
from agent.wire.schema import pack

Handle = Callable[[SiteId, Call], Awaitable[Reply]]

_log = logging.getLogger("atoll.trust")


class Issuing:
    """This site's issuer key: offered, certified, removed."""

    def __init__(self, trust: TrustLog, renewing: Renewing, joining: Joining) -> None:
        """``renewing`` has the keys as they are now; with ``joining`` it uses an issuer key."""
        self._trust, self._renewing, self._joining = trust, renewing, joining
        self._lock = asyncio.Lock()
        self.trouble = ""
        """Why a certified key could not be stored; for ``atoll doctor``."""

    @property
    def issuer(self) -> bytes | None:
        """The id of the key with which this site may admit and renew now; None if with none."""
        found = self._renewing.keys.issuer
        identifier = None if found is None else key_id(found.private_key.public_key())
        return identifier if identifier in self._trust.issuers() else None

    def _adopt(self, issuer: IssuerKey) -> None:
        self._renewing.keys = keys = replace(self._renewing.keys, issuer=issuer)
        self._joining.recertified(keys)

    async def request(self) -> bytes:
        """This site's packed request for the root; its key is on disk when this returns.

        Raises:
            Refused: this site is revoked.
            ConfigError: the identity folder cannot be written.
        """
        keys = self._renewing.keys
        if keys.site in self._trust.revoked():
            raise Refused("this site is revoked", mend="choose another site as issuer")
        async with self._lock:
            private = await asyncio.to_thread(keystore.prepare_issuer, keys, self._trust.revoked())
        return pack(make_issuer_request(keys.passport, keys.site_private, private, wall()))

    def handling(self, others: Handle) -> Handle:
        """Answer members who ask for this site's request; all else is for ``others``."""

        async def handle(sender: SiteId, message: Call) -> Reply:
            if not isinstance(message, IssuerKeyWanted):
                return await others(sender, message)
            try:
                return IssuerKeyOffer(await self.request())
            except AtollError as error:
                return Declined(str(error)[:400])

        return handle

    async def look(self) -> None:
        """After the trust log has grown: become an issuer if the root has certified this site's key."""
        async with self._lock:
            keys = self._renewing.keys
            certified = self._trust.issuers()
            try:
                private = await asyncio.to_thread(keystore.issuer_to_be, keys)
                certificate = None
                if private is not None:
                    certificate = certified.get(key_id(private.public_key()))
                if private is None or certificate is None:
                    return
                if keys.issuer is not None and keys.issuer.certificate == certificate:
                    return
                issuer = IssuerKey(private, certificate)
                await asyncio.to_thread(keystore.store_issuer, keys, issuer)
            except AtollError as error:
                self.trouble = str(error)
                _log.warning("this site was made an issuer and cannot be one: %s", error)
                return
            self.trouble = ""
            self._adopt(issuer)
            _log.info(
                "this site is an issuer now: key %s admits and renews",
                short(key_id(private.public_key())),
            )
