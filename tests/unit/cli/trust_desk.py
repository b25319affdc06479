"""A trust log behind an admin server, with all that its operators sign."""

from collections.abc import Sequence
from dataclasses import replace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.api.bodies import Json
from agent.api.trust import report
from agent.drivers.clock import wall
from agent.drivers.keystore import SiteKeys
from agent.foundation.errors import AtollError, NotFound
from agent.foundation.ids import SiteId
from agent.identity.certificates import issue_site, site_id
from agent.identity.issuing import make_issuer_request
from agent.identity.trust import TrustLog
from agent.wire.records import Passport
from agent.wire.schema import pack

PASS = "correct horse battery"


class Desk:
    """The trust log of berlin, and the member paris that may be made an issuer."""

    def __init__(self, keys: SiteKeys) -> None:
        self.keys = keys
        self.log = TrustLog(keys.cluster)
        for entry in keys.trust:
            self.log.append(entry)
        self.private, self.issuer_key = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self.paris = site_id(self.private.public_key())
        self.meanwhile: list[bytes] = []
        """Entries that somebody else brings in before the next one is taken."""

    @property
    def berlin(self) -> SiteId:
        return self.keys.site

    def trust(self) -> Json:
        issuer = self.keys.identity.issuer.hex()
        rows = [
            {"id": site.hex(), "name": name, "issuer": issuer, "self": site == self.berlin}
            for site, name in ((self.berlin, "berlin"), (self.paris, "paris"))
        ]
        names: dict[bytes, str] = {self.berlin: "berlin", self.paris: "paris"}
        found = report(self.log, names, {self.keys.identity.issuer: ["berlin", "paris"]})
        return {**found, "sites": rows, "own_issuer": issuer}

    def trust_entries(self) -> tuple[bytes, ...]:
        return self.log.entries()

    async def submit_trust(self, entries: Sequence[bytes]) -> list[str]:
        while self.meanwhile:
            self.log.submit(self.meanwhile.pop(0))
        reasons = []
        for entry in entries:
            try:
                self.log.submit(entry)
                reasons.append("")
            except AtollError as error:
                reasons.append(str(error))
        return reasons

    async def issuer_request(self, site: SiteId | None) -> bytes:
        if site not in (None, self.paris):
            raise NotFound("no member is known here")
        claims = replace(self.keys.identity.claims, name="paris")
        issuer = self.keys.issuer
        assert issuer is not None
        leaf = issue_site(issuer, self.private.public_key(), claims, wall())
        passport = Passport((leaf, issuer.certificate))
        return pack(make_issuer_request(passport, self.private, self.issuer_key, wall()))
