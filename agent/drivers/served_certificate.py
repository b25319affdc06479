"""The certificate that the applications' ports show: the operator's files, read anew when they change.

It is not the site's own: that one has an Ed25519 key, which the clients of applications rarely take, and
names the site by its id, not by a host name.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from agent.foundation.errors import ConfigError

LOOK_EVERY_S = 30.0
"""A renewed certificate is shown by then; those of ACME are renewed weeks before they end."""
FILE_BYTES_MAX = 1 << 20
"""A chain has some 10 kB."""

_log = logging.getLogger("atoll.certificate")


class ServedCertificate:
    """A chain and its key, as TLS listeners take them."""

    def __init__(self, chain: Path, key: Path) -> None:
        """Read both.

        Raises:
            ConfigError: they cannot be read, are not PEM, or do not belong together.
        """
        self._chain, self._key = chain, key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.pair = (b"", b"")
        """The key and the chain that are shown; replaced together."""
        self.read()

    def read(self) -> bool:
        """Show what the files hold now; whether that is another certificate than before.

        Raises:
            ConfigError: as the constructor; what was shown before is shown on.
        """
        try:
            pair = (_content(self._key), _content(self._chain))
            if pair == self.pair:
                return False
            trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            for context in (trial, self.context):  # a half of a pair must not reach the live one
                context.load_cert_chain(self._chain, self._key, _no_passphrase)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            raise ConfigError(
                f"the certificate {self._chain} with the key {self._key} cannot be used",
                why=error.strerror or str(error) if isinstance(error, OSError) else str(error),
                mend="[listen] http_certificate and http_key name two PEM files that belong together, the"
                " key without a passphrase, readable by the agent",
            ) from None
        self.pair = pair
        return True

    async def follow(self) -> None:
        """Read anew, until cancelled, whenever the files have changed."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                if await asyncio.to_thread(self.read):
                    _log.info("the applications' ports show a renewed certificate")
            except ConfigError as error:
                _log.warning("%s; the former certificate is shown on", error)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise ValueError(f"{path} has more than {FILE_BYTES_MAX} bytes")
    return content


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")  # OpenSSL would ask on a terminal
