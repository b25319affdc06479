"""N membership machines over an unreliable network, from one seed.

The world stands in for everything below membership: the envelope (unknown senders and stale boot
epochs are dropped), ICMP (a dead process on a living host refuses), state sync over TCP (all or
nothing, no loss), the wall of a stopped process (no steps, no wake-ups, packets wait).
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER, Woke
from agent.membership.events import (
    Heard,
    Introduced,
    IsolationChanged,
    Leave,
    LocalChanged,
    PortRefused,
    RememberPeer,
    SendFailed,
    SendGossip,
    SwimEffect,
    SwimEvent,
    SyncEnded,
    SyncWith,
)
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.simulation.membership_checks import MembershipChecks
from agent.simulation.network import Faults, Network
from agent.wire.gossip import GOSSIP, GossipMessage
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import Endpoint, Signed, SiteRecord

ENVELOPE_BYTES = 37
IP_UDP_BYTES = 28
SYNC_ROUND_TRIPS = 3
"""TCP, TLS, request: what a sync on a fresh connection costs."""
SYNC_TIMEOUT_S = 3.0


class FakeNotary:
    """Keyed hashes in place of signatures; keeps every statement that a site really made."""

    def __init__(self, me: SiteId, known: set[SiteId], made: dict[bytes, SiteId]) -> None:
        """``known`` is this site's set of admitted keys; ``made`` is the world's ledger."""
        self._me, self._known, self._made = me, known, made

    def sign(self, body: bytes) -> bytes:
        """As ``Notary``."""
        self._made[body] = self._me
        return hashlib.blake2b(body, key=self._me, digest_size=64).digest()

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        """As ``Notary``."""
        if site not in self._known:
            return False
        return signature == hashlib.blake2b(body, key=site, digest_size=64).digest()


@dataclass(slots=True)
class Site:
    """One simulated site: its machine and what survives a restart of it."""

    id: SiteId
    endpoint: Endpoint
    known: set[SiteId]
    book: dict[SiteId, Signed] = field(default_factory=dict)
    swim: Swim | None = None
    boot_epoch: int = 0
    wake: float = NEVER
    bytes_sent: int = 0
    packets_sent: int = 0
    is_isolated: bool = False
    has_dead_uplink: bool = False
    is_off: bool = False
    """Host and process gone: nothing refuses, nothing answers."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A sealed gossip message: it opens only at the boot of the receiver that it was sealed for."""

    message: GossipMessage
    sender_boot: int
    target_boot: int


def site_id(index: int) -> SiteId:
    """A stable name for the n-th simulated site."""
    return SiteId(hashlib.sha256(b"site %d" % index).digest())


class MembershipWorld:
    """Runs the machines, applies faults, feeds the checker."""

    def __init__(
        self,
        *,
        seed: int,
        settings: Settings,
        faults: Faults | None = None,
        measures_bytes: bool = False,
        machine: Callable[..., Swim] = Swim,
    ) -> None:
        """Start empty at virtual time 0.

        Args:
            seed: one seed gives one trace.
            settings: of every site.
            faults: of every message.
            measures_bytes: pack each packet, count and bound its bytes (slower).
            machine: what to run; tests pass mutants that the checker must catch.
        """
        self._machine = machine
        self.rng = Random(seed)  # noqa: S311 - reproducible on purpose
        self.settings = settings
        self.network: Network[SiteId] = Network(self.rng, self._deliver, faults)
        self.sites: dict[SiteId, Site] = {}
        self.made: dict[bytes, SiteId] = {}
        self.checks = MembershipChecks(self.made)
        self._measures_bytes = measures_bytes
        self.syncs: dict[str, int] = {}
        """State syncs asked for, by reason."""

    @property
    def now(self) -> float:
        """Virtual time in seconds."""
        return self.network.now

    # --- life ------------------------------------------------------------------------------------
    def add(self, index: int, seeds: Iterable[SiteId] = ()) -> SiteId:
        """Install and start the n-th site; it joins through ``seeds``."""
        me = site_id(index)
        endpoint = Endpoint(f"10.{index >> 16 & 255}.{index >> 8 & 255}.{index & 255}", 7411, 7412)
        self.sites[me] = Site(me, endpoint, {me})
        self.start(me, seeds)
        return me

    def start(self, me: SiteId, seeds: Iterable[SiteId] = ()) -> None:
        """Start the process of a site with its next boot epoch and its peer book."""
        site = self.sites[me]
        site.boot_epoch += 1
        site.is_off = site.is_isolated = False
        sequence = site.boot_epoch << 32
        record = SiteRecord(
            me,
            sequence,
            site.boot_epoch,
            sequence,
            "alive",
            site.endpoint,
            load=0.0,
            capacity=1.0,
            serving=(),
            catalog=bytes(8),
        )
        site.swim = self._machine(
            record=record,
            notary=FakeNotary(me, site.known, self.made),
            settings=self.settings,
            rng=Random(self.rng.getrandbits(64)),  # noqa: S311 - reproducible on purpose
            now=self.now,
        )
        site.wake = NEVER
        self.checks.started(me, self.now)
        seeds = list(seeds)
        statements = [
            other.swim.signed for seed in seeds if (other := self.sites[seed]).swim is not None
        ]
        site.known.update(seeds)
        statements += site.book.values()
        self.step(me, Introduced(tuple(statements)))

    def kill(self, me: SiteId, *, host: bool = False) -> None:
        """End a process at once; with ``host`` the machine too, so that nothing refuses."""
        site = self.sites[me]
        site.swim, site.is_off = None, host
        self.checks.stopped(me, self.now)

    def leave(self, me: SiteId) -> None:
        """Let a site say goodbye and stop half a second later."""
        self.step(me, Leave())
        self.checks.stopped(me, self.now)

        def stop() -> None:
            self.sites[me].swim = None

        self.network.call_at(self.now + 0.5, stop)

    def pause(self, me: SiteId, for_s: float) -> None:
        """Stop a process as SIGSTOP does, or a blocked event loop."""
        self.network.pause(me, self.now + for_s)

    def change(self, me: SiteId, change: LocalChanged) -> None:
        """Let something change at a site."""
        self.step(me, change)

    def introduce(self, a: SiteId, b: SiteId) -> None:
        """Let two sites hear of each other, as a seed or mDNS does."""
        for me, other in ((a, b), (b, a)):
            self._introduce(self.sites[me], ((other, self.swim(other).signed),))

    def sign_as(self, site: SiteId, body: bytes) -> bytes:
        """A true signature of a running site, for tests of replay."""
        return FakeNotary(site, self.sites[site].known, self.made).sign(body)

    def run(self, for_s: float) -> None:
        """Advance virtual time."""
        self.network.run_until(self.now + for_s)

    def swim(self, me: SiteId) -> Swim:
        """The machine of a running site."""
        machine = self.sites[me].swim
        assert machine is not None, "the site is running"
        return machine

    def running(self) -> list[SiteId]:
        """Sites whose process runs."""
        return [site.id for site in self.sites.values() if site.swim is not None]

    # --- the driver's part -----------------------------------------------------------------------
    def step(self, me: SiteId, event: SwimEvent) -> None:
        """Give one event to a machine and carry out what it asks."""
        site = self.sites[me]
        if site.swim is None:
            return
        effects = site.swim.step(event, self.now)
        for effect in effects:
            self._carry_out(site, effect)
        self.checks.stepped(me, site.swim, effects, self.now)
        self._arm(site)

    def _arm(self, site: Site) -> None:
        if site.swim is None:
            return
        at = site.swim.wake_at()
        if at < site.wake:
            site.wake = at
            boot = site.boot_epoch
            self.network.call_at(at, lambda: self._wake(site, boot))

    def _wake(self, site: Site, boot: int) -> None:
        if site.swim is None or site.boot_epoch != boot or self.now < site.wake:
            return
        if (until := self.network.paused_until(site.id)) > 0.0:
            site.wake = until
            self.network.call_at(until, lambda: self._wake(site, boot))
            return
        site.wake = NEVER
        if site.swim.wake_at() <= self.now:
            self.step(site.id, Woke())
        else:
            self._arm(site)

    def _carry_out(self, site: Site, effect: SwimEffect) -> None:
        match effect:
            case SendGossip():
                self._send(site, effect)
            case SyncWith():
                self.syncs[effect.reason] = self.syncs.get(effect.reason, 0) + 1
                self._start_sync(site, effect.site)
            case IsolationChanged():
                site.is_isolated = effect.is_isolated
            case RememberPeer():
                site.book[effect.site] = effect.signed
            case _:
                pass

    def _send(self, site: Site, effect: SendGossip) -> None:
        site.packets_sent += 1
        if self._measures_bytes:
            size = len(GOSSIP.pack(effect.message)) + ENVELOPE_BYTES
            assert size <= PACKET_BYTES_MAX, f"a packet of {size} bytes"
            site.bytes_sent += size + IP_UDP_BYTES
        if site.has_dead_uplink:
            failed = SendFailed(effect.target)
            self.network.call_at(self.now, lambda: self.step(site.id, failed))
            return
        target = site.swim.members().get(effect.target) if site.swim is not None else None
        target_boot = 0 if target is None else target.record.boot_epoch
        packet = Packet(effect.message, site.boot_epoch, target_boot)
        self.network.post(site.id, effect.target, packet)

    def _deliver(self, source: SiteId, target: SiteId, payload: object) -> None:
        site = self.sites[target]
        if isinstance(payload, PortRefused):
            self.step(target, payload)
            return
        assert isinstance(payload, Packet), "nothing else is posted"
        if site.swim is None:
            if not site.is_off:
                self.network.post(target, source, PortRefused(target))
            return
        if payload.target_boot != site.boot_epoch or source not in site.known:
            return
        known = site.swim.members().get(source)
        if known is not None and payload.sender_boot < known.record.boot_epoch:
            return
        self.step(target, Heard(source, payload.message))

    # --- state sync ------------------------------------------------------------------------------
    def _start_sync(self, site: Site, target: SiteId) -> None:
        one_way_s = self.network.faults.delay_min_s + self.network.faults.delay_mean_s
        boot = site.boot_epoch
        self.network.call_at(
            self.now + 2 * SYNC_ROUND_TRIPS * one_way_s,
            lambda: self._sync(site, self.sites[target], boot),
        )

    def _sync(self, site: Site, other: Site, boot: int) -> None:
        if site.swim is None or site.boot_epoch != boot:
            return
        paused = max(self.network.paused_until(site.id), self.network.paused_until(other.id))
        is_open = self.network.is_connected(site.id, other.id) and not site.has_dead_uplink
        if other.swim is None or other.has_dead_uplink or paused > 0 or not is_open:
            refused = other.swim is None and not other.is_off and is_open
            end = SyncEnded(other.id, succeeded=False)
            delay_s = 0.0 if refused else SYNC_TIMEOUT_S
            self.network.call_at(self.now + delay_s, lambda: self.step(site.id, end))
            return
        heads = site.swim.heads()
        site.known.add(other.id)
        other.known.add(site.id)
        reply = other.swim.statements_for(site.id, heads)
        wanted = set(other.swim.wanted(heads))
        self._introduce(other, ((site.id, site.swim.signed),))
        push = [
            (member.site, member.signed)
            for member in site.swim.members().values()
            if member.site in wanted
        ]
        self._introduce(other, (*push, *site.swim.evidence_for(other.id)))
        self._introduce(site, reply)
        self.step(site.id, SyncEnded(other.id, succeeded=True))

    def _introduce(self, site: Site, pairs: Iterable[tuple[SiteId, Signed]]) -> None:
        pairs = list(pairs)
        site.known.update(speaker for speaker, _ in pairs)
        if pairs:
            self.step(site.id, Introduced(tuple(signed for _, signed in pairs)))

    # --- what the world can see ------------------------------------------------------------------
    def views(self) -> list[dict[SiteId, tuple[str, int]]]:
        """State and sequence of every site as each running site believes them."""
        result = []
        for me in self.running():
            swim = self.swim(me)
            view: dict[SiteId, tuple[str, int]] = {
                member.site: (member.state, member.record.sequence)
                for member in swim.members().values()
            }
            view[me] = ("alive", swim.record.sequence)
            result.append(view)
        return result

    def has_converged(self) -> bool:
        """Whether all running sites believe the same, and it is true of the running ones."""
        views = self.views()
        running = set(self.running())
        gone = ("dead", "left", "unknown")
        return all(view == views[0] for view in views) and all(
            views[0].get(site, ("unknown", 0))[0] in (("alive",) if site in running else gone)
            for site in self.sites
        )

    def until_converged(self, within_s: float, step_s: float = 0.1) -> float | None:
        """Run until all believe the same; the time it took, or None if it did not happen."""
        start = self.now
        while self.now - start < within_s:
            if self.has_converged():
                return self.now - start
            self.run(step_s)
        return self.now - start if self.has_converged() else None
