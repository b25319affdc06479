"""Signing and checking, as the machines see them.

Machines never hold keys: they are given a ``Notary``. The real one (identity) uses Ed25519 and the
certificates of known members; the simulator's is a cheap stand-in with the same contract.
"""

from typing import Protocol

from agent.foundation.ids import SiteId


class Notary(Protocol):
    """Signs as this site and checks what other sites signed."""

    def sign(self, body: bytes) -> bytes:
        """The signature of ``body`` by this site (64 bytes)."""
        ...

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        """Whether ``site`` signed ``body``; False also when the site's key is not known here."""
        ...
