"""What the operator sees of the trust log and does with it (implements ``agent.api.trust``)."""

from collections.abc import Sequence
from dataclasses import dataclass

from agent.api.bodies import Json
from agent.api.trust import day, report
from agent.daemon.driver import Driver
from agent.daemon.issuing import Issuing
from agent.daemon.outside import Outside
from agent.drivers.clock import wall_s
from agent.drivers.mesh import MeshClient
from agent.foundation.errors import NotFound, Refused
from agent.foundation.ids import SiteId, short
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import read_entry
from agent.site.events import TrustSubmitted
from agent.wire.documents import Policy
from agent.wire.mesh import Declined, IssuerKeyOffer, IssuerKeyWanted

CALL_TIMEOUT_S = 10.0
_MEND_FORK = (
    "look at the branches with `atoll trust`; then, where the root key is: `atoll trust mend --keep"
    " NUMBER --root-key FILE`. What each branch revokes holds meanwhile"
)


@dataclass(slots=True)
class TrustDesk:
    """One site's copy of the log, and its part in making issuers."""

    trust_log: TrustLog
    driver: Driver
    outside: Outside
    mesh: MeshClient
    issuing: Issuing

    def trust(self) -> Json:
        """See ``TrustOperations.trust``."""
        site = self.driver.site
        names: dict[bytes, str] = {}
        certified: dict[bytes, list[str]] = {}
        sites: list[Json] = []
        for identity in (site.identity, *map(site.roll.get, site.swim.members())):
            if identity is not None:
                name = names[identity.site] = identity.claims.name
                certified.setdefault(identity.issuer, []).append(name)
                row = {"id": identity.site.hex(), "name": name, "issuer": identity.issuer.hex()}
                sites.append({**row, "self": identity.site == site.me})
        for key in self.trust_log.revoked():
            if (gone := site.roll.known(SiteId(key))) is not None:
                names[key] = gone.claims.name
        policies = [one for one in site.catalog.of_kind(Policy) if one.is_active]
        named = {key: sorted(one) for key, one in certified.items()}
        found = report(self.trust_log, names, named, policies)
        mine = self.issuing.issuer
        own = "" if mine is None else mine.hex()
        return {
            **found,
            "own_issuer": own,
            "sites": sorted(sites, key=lambda row: str(row["name"])),
        }

    def trust_entries(self) -> tuple[bytes, ...]:
        """See ``TrustOperations.trust_entries``."""
        return self.trust_log.entries()

    async def submit_trust(self, entries: Sequence[bytes]) -> list[str]:
        """See ``TrustOperations.submit_trust``."""
        for entry in entries:
            read_entry(entry)
        token, future = self.outside.expect()
        self.driver.feed(TrustSubmitted(token, tuple(entries)))
        return list(await future)

    async def issuer_request(self, site: SiteId | None) -> bytes:
        """See ``TrustOperations.issuer_request``."""
        if site is None or site == self.driver.site.me:
            return await self.issuing.request()
        member = self.driver.site.swim.members().get(site)
        if member is None:
            raise NotFound(
                f"no member {short(site)} is known here",
                mend="see atoll members; or run atoll issuer request at that site itself",
            )
        _, reply = await self.mesh.call(
            site, member.record.endpoint, IssuerKeyWanted(), CALL_TIMEOUT_S
        )
        if isinstance(reply, IssuerKeyOffer):
            return reply.request
        said = reply.reason if isinstance(reply, Declined) else "an answer of another kind"
        raise Refused(f"{short(site)} does not offer an issuer key", why=said)

    # --- for status and doctor -------------------------------------------------------------------
    def summary(self) -> Json:
        """Of ``atoll status``."""
        log = self.trust_log
        return {
            "height": log.height, "head": log.head.hex(), "revoked": len(log.revoked()),
            "forked_at": None if log.fork is None else log.fork.height, "doubt": log.trouble,
        }  # fmt: skip

    def reasons(self) -> list[str]:
        """What keeps this site from being trusted, or from trusting as it should."""
        log, found = self.trust_log, []
        site = self.driver.site
        if site.me in log.revoked():
            reason = log.reasons().get(site.me, "")
            found.append(f"this site is revoked{f': {reason}' if reason else ''}")
        elif site.identity.issuer in log.revoked():
            found.append("this site's certificate is by an issuer that was removed")
        if log.trouble:
            found.append(f"the trust log may be older than it was: {log.trouble}")
        if log.fork is not None:
            found.append(f"the trust log is forked at height {log.fork.height} and frozen")
        return found

    def checks(self) -> list[tuple[str, bool, str, str]]:
        """Of ``atoll doctor``: check, ok, evidence, mend."""
        log = self.trust_log
        found = [
            (
                "trust log",
                not log.trouble,
                log.trouble or f"{log.height} entries, {len(log.revoked())} keys revoked",
                "let this site meet a member: it fetches what it lacks; check the disk",
            ),
            (
                "trust log fork",
                log.fork is None,
                self._fork_text(),
                _MEND_FORK,
            ),
        ]
        if self.issuing.trouble:
            found.append(("issuer key", False, self.issuing.trouble, "mend the identity folder"))
        if self.driver.site.me in log.revoked():
            mend = "join again with an empty state folder and a new token"
            found.append(("this site", False, "it is revoked", mend))
        return found

    def _fork_text(self) -> str:
        fork = self.trust_log.fork
        if fork is None:
            return "there is none"
        stamps = [read_entry(branch.entries[0])[0].content.at_ms / 1000 for branch in fork.branches]
        when = ", ".join(day(at) for at in sorted(stamps) if at <= wall_s() + 86_400)
        return (
            f"{len(fork.branches)} entries of height {fork.height} are signed ({when}): the log is"
            " frozen, and somebody may have copied a key"
        )
