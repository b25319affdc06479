"""What an issuer says of a site, inside the site's certificate.

A site cannot claim any of this by itself: routing and residency decisions read jurisdiction, region
and tier from here and from nowhere else.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from agent.foundation.errors import UsageError
from agent.wire.records import Identifier, Name, Site
from agent.wire.schema import AtMost, Range

Tier = Literal["edge", "regional", "core"]
TIERS: tuple[Tier, ...] = ("edge", "regional", "core")
ROLES_MAX = 8
"""Keeps a certificate below 2 KiB, the bound of a passport's parts."""

REPLACES_MAX = 8
"""Reinstallations of one name that a certificate names (34 bytes each); older ones have expired."""
LIFE_S_MAX = 14 * 86_400
"""Bounds how long a partitioned group trusts a key that was revoked elsewhere."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
_JURISDICTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Claims:
    """The issuer's statement about one site."""

    cluster: Identifier
    """SHA-256 of the root's public key (SPKI)."""
    name: Name
    region: Name
    tier: Tier
    jurisdiction: Name
    """Where the law places the site, for example ``DE``; case counts."""
    roles: Annotated[tuple[Name, ...], AtMost(ROLES_MAX)]
    gossip_key: Identifier
    """Raw X25519 public key of the gossip envelope."""
    replaces: Annotated[tuple[Site, ...], AtMost(REPLACES_MAX)] = ()
    """Identities of the same name that this one takes the place of: retired for ever, wherever this
    certificate is known (``agent.identity.retirement``)."""
    life_s: Annotated[int, Range(0, LIFE_S_MAX)] = 0
    """How long its certificates live, seconds; 0: ``LIFE_S_MAX``. Kept by every renewal."""


def is_name(text: str) -> bool:
    """Whether ``text`` can name a site, region, role, model or job: never a path."""
    return _NAME.fullmatch(text) is not None


def is_job_id(text: str) -> bool:
    """Whether ``text`` can be a job's id: a name, a dash and 8 hex digits, so up to 80 characters."""
    return _JOB_ID.fullmatch(text) is not None


def is_jurisdiction(text: str) -> bool:
    """Whether ``text`` can label a jurisdiction (as a name, capitals allowed)."""
    return _JURISDICTION.fullmatch(text) is not None


def check_place(
    name: str, region: str, tier: str, jurisdiction: str, roles: tuple[str, ...]
) -> Tier:
    """Check what an operator typed before it is signed, and return the tier, typed.

    Raises:
        UsageError: naming the first value that cannot be used and what it must look like.
    """
    for what, text in (("name", name), ("region", region), *(("role", role) for role in roles)):
        if not is_name(text):
            raise UsageError(
                f"the {what} {text[:80]!r} cannot be used",
                why="a name is 1 to 64 of a-z 0-9 . _ - and starts with a letter or digit",
                mend=f"choose another {what}",
            )
    if not is_jurisdiction(jurisdiction):
        raise UsageError(
            f"the jurisdiction {jurisdiction[:80]!r} cannot be used",
            why="it is 1 to 64 of A-Z a-z 0-9 . _ - and starts with a letter or digit",
            mend="use a short label such as DE",
        )
    if len(roles) > ROLES_MAX:
        raise UsageError(f"{len(roles)} roles", why=f"a site has at most {ROLES_MAX}")
    for known in TIERS:
        if tier == known:
            return known
    raise UsageError(f"no tier {tier[:80]!r}", mend=f"choose one of {', '.join(TIERS)}")
