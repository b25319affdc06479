"""Tokens that every site knows: what documents of the catalog let applications do.

A document names an application, hashes of its tokens and scopes, as ``serving.access`` has them. A token's
secret is made where it is signed and told once; 256 bits cannot be found by trying, so the hash may be read by
every site.
"""

from collections.abc import Iterable, Sequence

from agent.serving.token_book import RESERVED
from agent.wire.documents import Scope
from agent.wire.inside import ApplicationToken
from agent.wire.limits import FLEET_TOKENS_MAX
from agent.wire.residency import Group, is_within


def valid_here(
    scopes: Iterable[Scope], jurisdiction: str, groups: Sequence[Group]
) -> tuple[ApplicationToken, ...]:
    """The tokens that let somebody in at a site in ``jurisdiction``, by application.

    Those beyond ``FLEET_TOKENS_MAX`` let nobody in, at any site alike.
    """
    found = [
        ApplicationToken(one.name, digest, one.scopes, float(one.expires_at_s))
        for one in sorted(scopes, key=lambda scope: scope.name)
        if one.is_active and one.name not in RESERVED
        and is_within(jurisdiction, one.jurisdictions, groups)
        for digest in one.tokens
    ]  # fmt: skip
    return tuple(found[:FLEET_TOKENS_MAX])
