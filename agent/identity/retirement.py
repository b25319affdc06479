"""Retirement: an identity whose place a reinstalled site of the same name has taken.

Rule: the issuer that admits a site under a known name writes the former identities of that name into
the new certificate (``Claims.replaces``). Whoever has seen that certificate treats them as revoked,
for as long as the new identity stands itself: a stolen token's site, once revoked, retires nobody.

The facts are signed and only grow, so the outcome does not depend on the order in which certificates
and revocations become known. A name is retired by a certificate of that same name only: an identity
that turns out to have another name is not touched.
"""

from collections.abc import Collection, Iterable, Iterator

from agent.foundation.errors import Refused
from agent.foundation.ids import SiteId, short
from agent.identity.certificates import Identity
from agent.identity.claims import REPLACES_MAX
from agent.wire.limits import MEMBERS_MAX

RETIRED_MAX = MEMBERS_MAX
"""Former identities remembered; each was named by an issuer. The oldest give way."""


class Retirements:
    """Who was replaced by whom, as far as this site has seen."""

    def __init__(self) -> None:
        self._replacements: dict[SiteId, dict[SiteId, Identity]] = {}

    def __iter__(self) -> Iterator[SiteId]:
        """Every identity that some certificate replaces."""
        return iter(self._replacements)

    def learn(self, identity: Identity) -> None:
        """Take note of whom a proven certificate replaces."""
        for former in identity.claims.replaces:
            if former == identity.site:
                continue
            if former not in self._replacements and len(self._replacements) >= RETIRED_MAX:
                del self._replacements[next(iter(self._replacements))]
            known = self._replacements.setdefault(former, {})
            if identity.site in known or len(known) < REPLACES_MAX:
                known[identity.site] = identity

    def replacement(self, identity: Identity, revoked: Collection[bytes]) -> Identity | None:
        """Who has taken the place of ``identity``; None if it is current."""
        for other in self._standing(identity.site, revoked):
            if other.claims.name == identity.claims.name:
                return other
        return None

    def is_replaced(
        self, site: SiteId, identity: Identity | None, revoked: Collection[bytes]
    ) -> bool:
        """As ``replacement``; an unknown identity is taken to have the name that issuers say."""
        if identity is not None:
            return self.replacement(identity, revoked) is not None
        return any(True for _ in self._standing(site, revoked))

    def _standing(self, site: SiteId, revoked: Collection[bytes]) -> Iterator[Identity]:
        for other in self._replacements.get(site, {}).values():
            if other.site not in revoked and other.issuer not in revoked:
                yield other

    def require_current(self, identity: Identity, revoked: Collection[bytes]) -> None:
        """Return if nobody has taken the place of ``identity``.

        Raises:
            Refused: names the identity that has.
        """
        if (other := self.replacement(identity, revoked)) is not None:
            raise Refused(
                f"{identity.claims.name} ({short(identity.site)}) is retired",
                why=f"a new site joined under its name: {short(other.site)},"
                f" on {other.begins_at:%Y-%m-%d %H:%M} UTC or before",
                mend="if this machine is the right one, join again with an empty state folder and a"
                " new token; and revoke the other",
            )


def predecessors(name: str, known: Iterable[Identity], joiner: SiteId) -> tuple[SiteId, ...]:
    """What the certificate of ``joiner`` is to replace: every known identity of that name.

    Those named by their certificates are included, so that a name that was reinstalled twice has one
    holder even where the middle one was never seen. The latest first, at most ``REPLACES_MAX``.
    """
    namesakes = sorted(
        (one for one in known if one.claims.name == name and one.site != joiner),
        key=lambda one: (one.not_before, one.site),
        reverse=True,
    )
    found = [one.site for one in namesakes]
    found += [former for one in namesakes for former in one.claims.replaces if former != joiner]
    return tuple(dict.fromkeys(found))[:REPLACES_MAX]
