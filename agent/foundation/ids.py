"""Names of things that cross package borders.

A site *is* its key: ``SiteId`` is the SHA-256 of its public key (SubjectPublicKeyInfo, DER), so it
cannot be chosen, moved or forged. A ``Digest`` is the SHA-256 of a blob's manifest. Both are raw
bytes in machines and on the wire, and lower-case hex wherever a person sees them.
"""

from typing import NewType

SiteId = NewType("SiteId", bytes)
Digest = NewType("Digest", bytes)
JobId = NewType("JobId", str)

ID_BYTES = 32
SHORT_HEX = 8


def short(identifier: bytes) -> str:
    """The first eight hex digits: enough for a person to tell one of a few thousand apart."""
    return identifier.hex()[:SHORT_HEX]
