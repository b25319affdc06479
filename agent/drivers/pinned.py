"""TLS connections that fail in the handshake unless the site that was meant answers.

The site id travels as the server name, split into two labels (RFC 6066 section 3 bounds a label at
63 characters); nobody resolves it. A name without an id is a greeting: whichever member answers.
aiohttp's own ``Fingerprint`` would do the comparison but switches the verification of chains off.
"""

import ssl
from collections import OrderedDict
from collections.abc import Callable

from agent.drivers.keystore import SiteKeys
from agent.drivers.tls import Verify, client_context, peer_identity, require_peer
from agent.foundation.errors import AtollError, Refused
from agent.foundation.ids import SiteId
from agent.identity.certificates import Identity

_SUFFIX = ".site.atoll"
_GREETED_MAX = 256
"""Greetings whose answerer was not asked for yet; each is asked for as soon as it has ended."""


def server_name(site: SiteId) -> str:
    """The server name that stands for ``site``."""
    text = site.hex()
    return f"{text[:32]}.{text[32:]}{_SUFFIX}"


class PinnedContext:
    """A client context whose handshakes check who answers, and who answered the greetings."""

    def __init__(self, keys: SiteKeys, verify: Verify) -> None:
        """``verify`` decides who is a member now (cluster, time, revocation)."""
        self.context = client_context(keys)
        self._answered: OrderedDict[str, Identity] = OrderedDict()
        self.context.sslobject_class = _checked_by(verify, self._remember)

    def _remember(self, name: str, identity: Identity) -> None:
        self._answered[name] = identity
        if len(self._answered) > _GREETED_MAX:
            self._answered.popitem(last=False)

    def greeted(self, name: str) -> Identity | None:
        """Who answered the connection made with server name ``name``; once."""
        return self._answered.pop(name, None)


def _checked_by(verify: Verify, remember: Callable[[str, Identity], None]) -> type[ssl.SSLObject]:
    class Pinned(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            name = self.server_hostname or ""
            try:
                if name.endswith(_SUFFIX):
                    target = SiteId(bytes.fromhex(name.removesuffix(_SUFFIX).replace(".", "")))
                    require_peer(self, verify, target)
                elif (identity := peer_identity(self, verify)) is not None:
                    remember(name, identity)
                else:
                    raise Refused("the peer shows no certificate")
            except AtollError as error:
                raise ssl.SSLCertVerificationError(str(error)) from error

    return Pinned
