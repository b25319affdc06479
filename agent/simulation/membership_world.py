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
from agent.foundation.notary import Notary
from agent.membership.events import (
    Heard,
    Introduced,
    IsolationChanged,
    Leave,
    LocalChanged,
    PortRefused,
    RememberPeer,
    RememberPlace,
    SendFailed,
    SendGossip,
    SwimEffect,
    SwimEvent,
    SyncEnded,
    SyncWith,
)
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.membership.testimony import read_statement
from agent.simulation.membership_checks import MembershipChecks
from agent.simulation.network import Faults, Network
from agent.site.arrivals import Arrivals
from agent.wire.gossip import GOSSIP, GossipMessage
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.mesh import MemberHead
from agent.wire.records import Accusation, Endpoint, Signed, SiteRecord

ENVELOPE_BYTES = 37
IP_UDP_BYTES = 28
SYNC_ROUND_TRIPS = 3
"""TCP, TLS, request: what a sync on a fresh connection costs."""
SYNC_TIMEOUT_S = 3.0
STATEMENTS_KEPT_MAX = 100_000
"""Some 100 MB; what is read again after it costs 10 microseconds."""


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
    place: bytes = b""
    """The coordinate on its disk."""
    swim: Swim | None = None
    boot_epoch: int = 0
    wake: float = NEVER
    arrivals: Arrivals[tuple[MemberHead, ...]] = field(default_factory=Arrivals)
    bytes_sent: int = 0
    packets_sent: int = 0
    is_isolated: bool = False
    has_dead_uplink: bool = False
    is_off: bool = False
    """Host and process gone: nothing refuses, nothing answers."""
    clock_s: float = 0.0
    """The site's monotonic clock minus virtual time: whole seconds, so that sums are exact."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A sealed gossip message: it opens only at the boot of the receiver that it was sealed for."""

    message: GossipMessage
    sender_boot: int
    target_boot: int


class Library:
    """Decodes each statement once for all sites of the process; frozen, so they may share it."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._statements: dict[bytes, SiteRecord | Accusation] = {}

    def read(self, body: bytes) -> SiteRecord | Accusation:
        """As ``read_statement``."""
        if (known := self._statements.get(body)) is None:
            known = read_statement(body)
            if len(self._statements) >= STATEMENTS_KEPT_MAX:
                self._statements.clear()
            self._statements[body] = known
        return known


def _said(record: SiteRecord) -> tuple[object, ...]:
    """What a record says but for its number and its place."""
    return (
        record.incarnation, record.status, record.endpoint, record.load, record.capacity,
        record.serving, record.catalog,
    )  # fmt: skip


def _is_same(
    one: dict[SiteId, tuple[str, SiteRecord]], other: dict[SiteId, tuple[str, SiteRecord]]
) -> bool:
    """Whether two views say the same of every site, places apart."""
    if len(one) != len(other):
        return False
    for site, (state, record) in one.items():
        theirs = other.get(site)
        if theirs is None or theirs[0] != state:
            return False
        if theirs[1] is not record and _said(theirs[1]) != _said(record):
            return False
    return True


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
        self._library = Library()
        self._last_to_differ: SiteId | None = None
        self.checks: MembershipChecks = MembershipChecks(self.made)
        self.measures_bytes = measures_bytes
        self.syncs: dict[str, int] = {}
        """State syncs asked for, by reason."""

    @property
    def now(self) -> float:
        """Virtual time in seconds."""
        return self.network.now

    def local(self, site: Site) -> float:
        """What the monotonic clock of ``site`` shows."""
        return self.now + site.clock_s

    def notary(self, site: Site) -> Notary:
        """What signs for ``site`` and checks for it."""
        return FakeNotary(site.id, site.known, self.made)

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
            coordinate=site.place,
        )
        site.swim = self._machine(
            record=record,
            notary=self.notary(site),
            settings=self.settings,
            rng=Random(self.rng.getrandbits(64)),  # noqa: S311 - reproducible on purpose
            now=self.local(site),
            read=self._library.read,
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
        if (until := self.network.paused_until(me)) > 0.0:
            boot = site.boot_epoch
            self.network.call_at(until, self._step_late, site, boot, event)
            return
        effects = site.swim.step(event, self.network.now + site.clock_s)
        for effect in effects:
            self._carry_out(site, effect)
        self.checks.stepped(me, site.swim, effects, self.network.now)
        self._arm(site)

    def _step_late(self, site: Site, boot: int, event: SwimEvent) -> None:
        if site.boot_epoch == boot:
            self.step(site.id, event)

    def _arm(self, site: Site) -> None:
        if site.swim is None:
            return
        at = site.swim.wake_at() - site.clock_s
        self.checks.armed(site.id, at, self.network.now)
        if at < site.wake:
            site.wake = at
            self.network.call_at(at, self._wake, site, site.boot_epoch)

    def _wake(self, site: Site, boot: int) -> None:
        if site.swim is None or site.boot_epoch != boot or self.network.now < site.wake:
            return
        if (until := self.network.paused_until(site.id)) > 0.0:
            site.wake = until
            self.network.call_at(until, self._wake, site, boot)
            return
        site.wake = NEVER
        if site.swim.wake_at() <= self.local(site):
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
            case RememberPlace():
                site.place = effect.coordinate
            case _:
                pass

    def _send(self, site: Site, effect: SendGossip) -> None:
        site.packets_sent += 1
        if self.measures_bytes:
            size = len(GOSSIP.pack(effect.message)) + ENVELOPE_BYTES
            assert size <= PACKET_BYTES_MAX, f"a packet of {size} bytes"
            site.bytes_sent += size + IP_UDP_BYTES
        if site.has_dead_uplink:
            failed = SendFailed(effect.target)
            self.network.call_at(self.now, self.step, site.id, failed)
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
    def may_sync(self, site: Site, other: Site) -> bool:
        """Whether two sites accept each other's certificates."""
        return site is not other

    def _start_sync(self, site: Site, target: SiteId) -> None:
        one_way_s = self.network.one_way_s(site.id, target)
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
        is_open = is_open and self.may_sync(site, other)
        if other.swim is None or other.has_dead_uplink or paused > 0 or not is_open:
            refused = other.swim is None and not other.is_off and is_open
            end = SyncEnded(other.id, succeeded=False)
            delay_s = 0.0 if refused else SYNC_TIMEOUT_S
            self.network.call_at(self.now + delay_s, lambda: self.step(site.id, end))
            return
        heads = site.swim.heads()
        site.known.add(other.id)
        other.known.add(site.id)
        is_new = site.id not in other.swim.members()
        self._introduce(other, ((site.id, site.swim.signed),), is_caller=True)
        if not is_new:
            self._answer_sync(site, other, boot, heads)
            return
        # As ``site.relations`` does: newcomers that knock together are answered together.
        other.arrivals.add(boot, site.id, heads, self.now)
        self.network.call_at(other.arrivals.due_at, lambda: self._answer_arrivals(other))

    def _answer_arrivals(self, other: Site) -> None:
        for boot, site, heads in other.arrivals.take(self.now):
            self._answer_sync(self.sites[site], other, boot, heads)

    def _answer_sync(
        self, site: Site, other: Site, boot: int, heads: tuple[MemberHead, ...]
    ) -> None:
        if site.swim is None or site.boot_epoch != boot:
            return
        if other.swim is None:
            self.step(site.id, SyncEnded(other.id, succeeded=False))
            return
        reply = other.swim.statements_for(site.id, heads)
        wanted = set(other.swim.wanted(heads))
        push = [
            (member.site, member.signed)
            for member in site.swim.members().values()
            if member.site in wanted
        ]
        self._introduce(other, (*push, *site.swim.evidence_for(other.id)))
        self._introduce(site, reply)
        self.step(site.id, SyncEnded(other.id, succeeded=True))

    def _introduce(
        self, site: Site, pairs: Iterable[tuple[SiteId, Signed]], *, is_caller: bool = False
    ) -> None:
        pairs = list(pairs)
        site.known.update(speaker for speaker, _ in pairs)
        if pairs:
            signed = tuple(signed for _, signed in pairs)
            self.step(site.id, Introduced(signed, is_by_sync=True, is_caller=is_caller))

    # --- what the world can see ------------------------------------------------------------------
    def views(self) -> list[dict[SiteId, tuple[object, ...]]]:
        """State and record of every site as each running site believes them, places apart.

        Where a site lies is told by syncs only (see ``membership/whereabouts.py``): views may differ.
        """
        result = []
        for me in self.running():
            swim = self.swim(me)
            view: dict[SiteId, tuple[object, ...]] = {
                member.site: (member.state, *_said(member.record))
                for member in swim.members().values()
            }
            view[me] = ("alive", *_said(swim.record))
            result.append(view)
        return result

    def has_converged(self) -> bool:
        """Whether all running sites believe the same, and it is true of the running ones."""
        running = self.running()
        if self._last_to_differ in running:
            # Whoever differed a moment ago likely still does: most answers cost two views.
            running.remove(self._last_to_differ)
            running.insert(1, self._last_to_differ)
        first = self._view(running[0]) if running else {}
        up = set(running)
        gone = ("dead", "left")
        if any(
            site not in first or first[site][0] not in (("alive",) if site in up else gone)
            for site in self.sites
            if site in first or site in up
        ):
            return False
        for me in running[1:]:
            if not _is_same(first, self._view(me)):
                self._last_to_differ = me
                return False
        return True

    def _view(self, me: SiteId) -> dict[SiteId, tuple[str, SiteRecord]]:
        swim = self.swim(me)
        view: dict[SiteId, tuple[str, SiteRecord]] = {
            site: (member.state, member.record) for site, member in swim.members().items()
        }
        view[me] = ("alive", swim.record)
        return view

    def until_converged(self, within_s: float, step_s: float = 0.1) -> float | None:
        """Run until all believe the same; the time it took, or None if it did not happen."""
        start = self.now
        while self.now - start < within_s:
            if self.has_converged():
                return self.now - start
            self.run(step_s)
        return self.now - start if self.has_converged() else None
