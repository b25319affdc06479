"""Wall clocks that jump: certificates have dates, membership has none."""

import contextlib
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agent.foundation.errors import AtollError
from agent.foundation.ids import SiteId
from agent.identity.certificates import cluster_id, issue_site, make_issuer, make_root, site_id
from agent.identity.claims import Claims
from agent.identity.envelope import SHORT_ID_BYTES
from agent.identity.registry import Roll, SiteNotary
from agent.membership.events import LocalChanged
from agent.membership.settings import Settings
from agent.simulation.membership_chaos import LAN
from agent.simulation.membership_sealed import SealedWorld, gossip_public
from agent.simulation.membership_world import Site
from agent.simulation.network import Faults
from agent.wire.records import Endpoint, Passport

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
YEAR = timedelta(days=365)


class NobodyRevoked:
    """The part of a trust log that a roll asks."""

    def revoked(self) -> dict[bytes, str]:
        return {}


class Known(set[SiteId]):
    """Whoever a site's roll has admitted, by the wall clock of that site at that time."""

    def __init__(self, world: "DatedWorld", me: SiteId) -> None:
        super().__init__()
        self._world, self._me = world, me

    def add(self, site: SiteId) -> None:
        with contextlib.suppress(AtollError):
            self._world.rolls[self._me].admit(
                self._world.passports[site], self._world.wall(self._me)
            )
            super().add(site)

    def update(self, *groups: Iterable[SiteId]) -> None:
        for site in (one for group in groups for one in group):
            self.add(site)


class LedgerNotary(SiteNotary):
    """The real notary; the world keeps what was really signed."""

    def __init__(self, world: "DatedWorld", site: Site) -> None:
        super().__init__(world.keys[site.id], world.rolls[site.id])
        self._world, self._site = world, site.id

    def sign(self, body: bytes) -> bytes:
        self._world.checks.signed(self._site, body, self._world.now)
        self._world.made[body] = self._site
        return super().sign(body)


class DatedWorld(SealedWorld):
    """Real keys, certificates and rolls; a wall clock for each site."""

    def __init__(self, seed: int, sites: int) -> None:
        notary: Any = LedgerNotary
        faults = Faults(delay_min_s=LAN.delay_min_s, delay_mean_s=LAN.delay_mean_s)
        super().__init__(seed=seed, settings=Settings.lan(sites), faults=faults, notary=notary)
        entropy = Random(seed).randbytes
        self.root = make_root(entropy, NOW)
        self.issuer = make_issuer(self.root, entropy, NOW)
        self.keys: dict[SiteId, Ed25519PrivateKey] = {}
        self.passports: dict[SiteId, Passport] = {}
        self.rolls: dict[SiteId, Roll] = {}
        self.clock_errors: dict[SiteId, timedelta] = {}

    def wall(self, me: SiteId) -> datetime:
        return NOW + timedelta(seconds=self.now) + self.clock_errors[me]

    def install(self, index: int, host: str, seeds: Iterable[SiteId] = ()) -> SiteId:
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"key %d" % index).digest())
        me = site_id(key.public_key())
        claims = Claims(
            cluster_id(self.root.certificate), f"site-{index}", "north", "edge", "DE", ("member",),
            gossip_public(me),
        )  # fmt: skip
        leaf = issue_site(self.issuer, key.public_key(), claims, NOW + timedelta(seconds=self.now))
        self.keys[me], self.clock_errors[me] = key, timedelta()
        self.passports[me] = Passport((leaf, self.issuer.certificate))
        trust: Any = NobodyRevoked()
        self.rolls[me] = Roll(self.root.certificate, trust)
        known = Known(self, me)
        self.sites[me] = Site(me, Endpoint(host, 7411, 7412), known)
        self._shorts[me[:SHORT_ID_BYTES]] = me
        self.revoked[me] = set()
        self.hosts[host] = me
        self.start(me, seeds)
        return me

    def _public_of(self, site: Site, other: SiteId) -> bytes | None:
        return self.rolls[site.id].gossip_key(other)


def dated(seed: int, sites: int = 6) -> tuple[DatedWorld, list[SiteId]]:
    world = DatedWorld(seed, sites)
    ids: list[SiteId] = []
    for index in range(sites):
        ids.append(world.add(index, seeds=ids[:1]))
    assert world.until_converged(10.0) is not None
    world.run(12.0)
    world.checks.is_calm = True
    return world, ids


def test_wall_clocks_that_jump_by_a_year_disturb_no_member() -> None:
    world, ids = dated(1)
    world.clock_errors[ids[1]], world.clock_errors[ids[2]] = YEAR, -YEAR
    world.run(60.0)
    assert world.checks.verdicts == []
    for site in ids[:3]:
        world.change(site, LocalChanged(capacity=4.0))
    assert world.until_converged(2.0) is not None


def test_who_has_a_wrong_clock_meets_a_newcomer_as_soon_as_it_is_right() -> None:
    world, ids = dated(2)
    world.clock_errors[ids[1]] = YEAR
    late = world.install(20, "10.0.9.9", ids[:1])
    world.run(10.0)
    assert late not in world.swim(ids[1]).members(), (
        "its certificate has long ended, says that clock"
    )
    assert late in world.swim(ids[2]).members()
    assert world.checks.verdicts == []
    world.clock_errors[ids[1]] = timedelta()
    assert world.until_converged(30.0) is not None
