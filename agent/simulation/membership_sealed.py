"""The membership world with the real envelope: packets are bytes on a wire that an attacker shares.

Added to ``MembershipWorld``: every packet is packed, sealed, opened and checked by the code that a
site runs; packets and state syncs go to addresses, which change and change hands; sites keep a
durable boot epoch, a peer book and the revocations they have heard of; each boot of a site has its
own monotonic clock. Signatures stay keyed hashes: the notary's contract is what matters here.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.foundation.errors import Malformed, NotFound
from agent.foundation.ids import SiteId
from agent.foundation.notary import Notary
from agent.identity.envelope import SHORT_ID_BYTES, Sealer
from agent.membership.events import (
    Heard,
    LocalChanged,
    PortRefused,
    Revoked,
    SendFailed,
    SendGossip,
    SwimEffect,
    SyncEnded,
    SyncWith,
)
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.simulation.membership_rules import FleetChecks
from agent.simulation.membership_world import (
    SYNC_TIMEOUT_S,
    FakeNotary,
    MembershipWorld,
    Site,
    site_id,
)
from agent.simulation.network import Faults
from agent.wire.gossip import GOSSIP, Ack, GossipMessage, Nack
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Endpoint, Signed

CAPTURED_MAX = 512
"""Packets that an attacker keeps to send again, from all times of the run."""
CLOCK_SPREAD_S = 1 << 20
"""Monotonic clocks start anywhere: a machine may use differences only."""
REVOCATION_SPREAD_S = 2.0
"""Within this time a revocation is pushed to everybody who can be reached; syncs bring the rest."""

_links: dict[tuple[SiteId, SiteId], Any] = {}
"""Derived keys by (owner, other): the keys of simulated sites are the same in every run."""


@lru_cache(maxsize=4096)
def gossip_private(site: SiteId) -> X25519PrivateKey:
    """The X25519 key of a simulated site."""
    return X25519PrivateKey.from_private_bytes(hashlib.sha256(b"gossip key" + site).digest())


@lru_cache(maxsize=4096)
def gossip_public(site: SiteId) -> bytes:
    """What its certificate says."""
    return gossip_private(site).public_key().public_bytes_raw()


class LinkedSealer(Sealer):
    """The real sealer; key agreement is done once for each pair of sites in the process."""

    def _link(self, site: SiteId) -> Any:
        if self._lookup(site) is None:
            return None
        link = _links.get((self._me, site))
        if link is None:
            link = _links[self._me, site] = super()._link(site)
        return link


class RevokingNotary(FakeNotary):
    """A fake notary that reports what is signed and believes no revoked key."""

    def __init__(self, world: "SealedWorld", site: Site) -> None:
        super().__init__(site.id, site.known, world.made)
        self._world, self._site, self._revoked = world, site.id, world.revoked[site.id]

    def sign(self, body: bytes) -> bytes:
        """As ``Notary``."""
        self._world.checks.signed(self._site, body, self._world.now)
        return super().sign(body)

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        """As ``Notary``."""
        return site not in self._revoked and super().is_signed_by(site, body, signature)


@dataclass(frozen=True, slots=True)
class Datagram:
    """Bytes on the wire; ``meant`` is known to their sender only (an ICMP error names the address)."""

    packet: bytes
    meant: SiteId


class SealedWorld(MembershipWorld):
    """Sites that share nothing but datagrams, state syncs and the attacker's attention."""

    checks: FleetChecks

    def __init__(
        self,
        *,
        seed: int,
        settings: Settings,
        faults: Faults | None = None,
        machine: Callable[..., Swim] = Swim,
        sealer: Callable[..., Sealer] = LinkedSealer,
        notary: Callable[["SealedWorld", Site], Notary] = RevokingNotary,
        is_epoch_synced: bool = True,
    ) -> None:
        """As ``MembershipWorld``; ``sealer``, ``notary`` and ``is_epoch_synced`` are for mutants."""
        super().__init__(seed=seed, settings=settings, faults=faults, machine=machine)
        self.checks = FleetChecks(self.made)
        self.hosts: dict[str, SiteId] = {}
        """Who has an address now."""
        self.revoked: dict[SiteId, set[SiteId]] = {}
        """By site: the revocations it has heard of; durable."""
        self.captured: deque[tuple[SiteId, SiteId, Datagram]] = deque(maxlen=CAPTURED_MAX)
        self._make_sealer, self._make_notary = sealer, notary
        self._is_epoch_synced = is_epoch_synced
        self._disk_epochs: dict[SiteId, int] = {}
        self._sealers: dict[SiteId, Sealer] = {}
        self._shorts: dict[bytes, SiteId] = {}

    # --- life ------------------------------------------------------------------------------------
    def add(self, index: int, seeds: Iterable[SiteId] = ()) -> SiteId:
        """Install and start the n-th site at an address of its own."""
        return self.install(
            index, f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", seeds
        )

    def install(self, index: int, host: str, seeds: Iterable[SiteId] = ()) -> SiteId:
        """A new identity at ``host``; it knows the revocations that its seeds know."""
        me, seeds = site_id(index), list(seeds)
        self.sites[me] = Site(me, Endpoint(host, 7411, 7412), {me})
        self._shorts[me[:SHORT_ID_BYTES]] = me
        self.revoked[me] = set()
        self.hosts[host] = me
        for seed in seeds:
            self._learn_revocations(me, self.revoked[seed])
        self.start(me, seeds)
        return me

    def start(self, me: SiteId, seeds: Iterable[SiteId] = ()) -> None:
        """Start a process; its boot epoch is on disk before anything is sent."""
        site = self.sites[me]
        site.clock_s = float(self.rng.randrange(CLOCK_SPREAD_S))
        site.boot_epoch = self._disk_epochs.get(me, 0)
        epoch = site.boot_epoch + 1
        if self._is_epoch_synced:
            self._disk_epochs[me] = epoch
        self.checks.booted(me, epoch)
        self._sealers[me] = self._make_sealer(
            me,
            gossip_private(me),
            epoch,
            lambda other: self._public_of(site, other),
            lambda other: self._epoch_of(site, other),
            self._shorts.get,
        )
        super().start(me, seeds)

    def kill(self, me: SiteId, *, host: bool = False) -> None:
        """End a process; with ``host`` the power fails, and what was not synced is lost."""
        if not host:
            self._disk_epochs[me] = self.sites[me].boot_epoch
        super().kill(me, host=host)

    def forget_peers(self, me: SiteId) -> None:
        """Lose the peer book of a stopped site, and with it every key it knew."""
        site = self.sites[me]
        assert site.swim is None, "a running site writes its book again"
        site.book.clear()
        site.known.clear()
        site.known.add(me)

    def move(self, me: SiteId, host: str) -> None:
        """Give a site another address; a running one is told of it by its system."""
        site = self.sites[me]
        if self.hosts.get(site.endpoint.host) == me:
            del self.hosts[site.endpoint.host]
        self.hosts[host] = me
        site.endpoint = Endpoint(host, 7411, 7412)
        self.step(me, LocalChanged(endpoint=site.endpoint))

    def suspend(self, me: SiteId, for_s: int) -> None:
        """Stop the whole machine: its monotonic clock stands still too (whole seconds)."""
        self.pause(me, for_s)
        self.sites[me].clock_s -= for_s

    def revoke(self, victim: SiteId, at: SiteId) -> None:
        """Let ``at`` learn that a key is revoked, and push it on to whom it reaches."""
        self._learn_revocations(at, {victim})
        for other in self.sites:
            delay_s = self.rng.uniform(0.0, REVOCATION_SPREAD_S)
            if other not in (at, victim):
                self.network.call_at(self.now + delay_s, partial(self._push, at, other, victim))

    def _push(self, source: SiteId, target: SiteId, victim: SiteId) -> None:
        is_up = self.sites[target].swim is not None and self.sites[source].swim is not None
        if is_up and self.network.is_connected(source, target):
            self._learn_revocations(target, {victim})

    def _learn_revocations(self, me: SiteId, victims: Iterable[SiteId]) -> None:
        for victim in sorted(set(victims) - self.revoked[me] - {me}):
            self.revoked[me].add(victim)
            self.checks.revocation_came(me, victim, self.now)
            self.step(me, Revoked((victim,)))

    def notary(self, site: Site) -> Notary:
        """Reports each signature to the checks."""
        return self._make_notary(self, site)

    # --- packets ---------------------------------------------------------------------------------
    def sealer(self, me: SiteId) -> Sealer:
        """The envelope of a running site."""
        return self._sealers[me]

    def post_as(self, me: SiteId, target: SiteId, message: GossipMessage) -> None:
        """Let a site send what its machine did not say: it holds its own key, no other."""
        self._seal_and_post(
            self.sites[me], target, self.sites[target].endpoint, GOSSIP.pack(message)
        )

    def post_raw(self, source: SiteId, target: SiteId, packet: bytes) -> None:
        """Put any bytes on the wire."""
        self.network.post(source, target, Datagram(packet, target))

    def _send(self, site: Site, effect: SendGossip) -> None:
        if site.has_dead_uplink:
            failed = SendFailed(effect.target)
            self.network.call_at(self.now, lambda: self.step(site.id, failed))
            return
        self._seal_and_post(site, effect.target, effect.endpoint, self.pack(site, effect.message))

    def pack(self, site: Site, message: GossipMessage) -> bytes:  # noqa: ARG002 - other versions ask
        """The body that ``site`` makes of a message."""
        return GOSSIP.pack(message)

    def _seal_and_post(self, site: Site, target: SiteId, endpoint: Endpoint, body: bytes) -> None:
        try:
            packet = self._sealers[site.id].seal(target, body)
        except NotFound:
            return
        self.checks.sealed(site.id, packet, self.now)
        owner = self.hosts.get(endpoint.host)
        if owner is not None:
            datagram = Datagram(packet, target)
            self.captured.append((site.id, owner, datagram))
            self.network.post(site.id, owner, datagram)

    def _deliver(self, source: SiteId, target: SiteId, payload: object) -> None:
        site = self.sites[target]
        if isinstance(payload, PortRefused):
            self.step(target, payload)
            return
        assert isinstance(payload, Datagram), "nothing else is posted"
        if self.hosts.get(site.endpoint.host) != target:
            return
        if site.swim is None:
            if not site.is_off:
                self.network.post(target, source, PortRefused(payload.meant))
            return
        opened = self.open(site, source, payload.packet)
        if opened is None:
            return
        sender, body = opened
        try:
            message = GOSSIP.unpack(body, PACKET_BYTES_MAX)
        except Malformed:
            return
        self.checks.opened(target, sender, payload.packet, self.now)
        if isinstance(message, (Ack, Nack)):
            self.checks.answered(target, self.now)
        self.step(target, Heard(sender, message))

    def open(self, site: Site, source: SiteId, packet: bytes) -> tuple[SiteId, bytes] | None:  # noqa: ARG002 - a mutant trusts the address
        """Sender and body, by the envelope alone; None for anything that is to be dropped."""
        try:
            return self._sealers[site.id].open(packet)
        except Malformed:
            return None

    def _public_of(self, site: Site, other: SiteId) -> bytes | None:
        if other not in site.known or other in self.revoked[site.id]:
            return None
        return gossip_public(other)

    def _epoch_of(self, site: Site, other: SiteId) -> int:
        member = None if site.swim is None else site.swim.members().get(other)
        return 0 if member is None else member.record.boot_epoch

    # --- state sync ------------------------------------------------------------------------------
    def _carry_out(self, site: Site, effect: SwimEffect) -> None:
        if isinstance(effect, SyncWith):
            owner = self.hosts.get(effect.endpoint.host)
            if owner != effect.site:
                # Nobody there, or another one: the server name in the handshake is the SiteId meant.
                end = SyncEnded(effect.site, succeeded=False)
                delay_s = SYNC_TIMEOUT_S if owner is None else 0.01
                self.network.call_at(self.now + delay_s, lambda: self.step(site.id, end))
                return
        super()._carry_out(site, effect)

    def may_sync(self, site: Site, other: Site) -> bool:
        """Revoked sites are refused by whoever knows it; trust logs are exchanged first."""
        if other.swim is None:
            return True
        ours, theirs = self.revoked[site.id], self.revoked[other.id]
        if other.id in ours or site.id in theirs:
            return False
        if self.network.is_connected(site.id, other.id):
            self._learn_revocations(site.id, theirs)
            self._learn_revocations(other.id, ours)
        return True

    def _introduce(
        self, site: Site, pairs: Iterable[tuple[SiteId, Signed]], *, is_caller: bool = False
    ) -> None:
        revoked = self.revoked[site.id]
        kept = [pair for pair in pairs if pair[0] not in revoked]
        super()._introduce(site, kept, is_caller=is_caller)

    # --- what the world can see ------------------------------------------------------------------
    def has_converged(self) -> bool:
        """Whether all running, unrevoked sites believe the same, and it is true."""
        out = set().union(*self.revoked.values())
        running = [site for site in self.running() if site not in out]
        swims = [self.swim(me) for me in running]
        heights = {me: self.checks.newest(me) for me in running}
        for swim in swims:
            members = swim.members()
            for site in self.sites:
                member = members.get(site)
                if site == swim.record.site or (member is None and site not in heights):
                    continue
                if member is None:
                    return False
                if site in heights:
                    if member.state != "alive" or member.record.sequence < heights[site]:
                        return False
                elif member.state not in ("dead", "left") and site not in out:
                    return False
        return True
