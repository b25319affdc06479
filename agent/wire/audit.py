"""Where a site's audit log ends, as the site says it and as others have witnessed it."""

from dataclasses import dataclass
from typing import Annotated

from agent.wire.records import Counter, Identifier, Site
from agent.wire.schema import Length

Signature = Annotated[bytes, Length(64)]


@dataclass(frozen=True, slots=True)
class AuditHead:
    """The last entry of a site's audit log at some time."""

    site: Site
    sequence: Counter
    hash: Identifier
    at_ms: Counter
    """Unix time by the site's own clock, milliseconds."""


@dataclass(frozen=True, slots=True)
class Testimony:
    """A site's own word for where its log ends; nobody else can make one."""

    head: AuditHead
    signature: Signature
    """By ``head.site``, of ``audit.witness.signed_part``."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """Another site's word that it has seen a testimony."""

    testimony: Testimony
    witness: Site
    seen_ms: Counter
    """Unix time by the witness's clock, milliseconds."""
    signature: Signature
    """By ``witness``, of ``audit.witness.seen_part``."""
