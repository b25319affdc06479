"""Records, accusations and a notary for tests of membership."""

import hashlib
from dataclasses import replace

from agent.foundation.ids import SiteId
from agent.wire.records import STATEMENTS, Accusation, Endpoint, Signed, SiteRecord

BOOT = 1 << 32


def site(name: str) -> SiteId:
    return SiteId(hashlib.sha256(name.encode()).digest())


def signature(speaker: SiteId, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=speaker, digest_size=64).digest()


class Notary:
    """Keyed hashes; knows every key but those listed as strangers."""

    def __init__(self, me: SiteId, strangers: tuple[SiteId, ...] = ()) -> None:
        self.me, self.strangers = me, strangers
        self.checked = 0

    def sign(self, body: bytes) -> bytes:
        return signature(self.me, body)

    def is_signed_by(self, speaker: SiteId, body: bytes, given: bytes) -> bool:
        self.checked += 1
        return speaker not in self.strangers and given == signature(speaker, body)


def record(name: str, sequence: int = BOOT, **changes: object) -> SiteRecord:
    base = SiteRecord(
        site(name),
        sequence,
        1,
        BOOT,
        "alive",
        Endpoint("10.0.0.1", 7411, 7412),
        load=0.0,
        capacity=1.0,
        serving=(),
        catalog=bytes(8),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def signed(statement: SiteRecord | Accusation) -> Signed:
    body = STATEMENTS.pack(statement)
    speaker = statement.site if isinstance(statement, SiteRecord) else statement.accuser
    return Signed(body, signature(speaker, body))


def accusation(
    accuser: str, subject: str, incarnation: int = BOOT, *, is_refused: bool = False
) -> Accusation:
    return Accusation(site(accuser), site(subject), incarnation, is_refused)
