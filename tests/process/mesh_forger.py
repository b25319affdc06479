"""A small mesh of real machines, keys and sealed packets, and what an attacker makes of them.

Time is virtual, everything else is real: certificates, signatures, AES-GCM, the codec, ``Swim``. Two
attackers: an *outsider* has every packet that was ever sent and no key; an *insider* is an admitted
site with valid keys that says whatever it likes.
"""

import asyncio
import contextlib
import heapq
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agent.drivers.gossip import GossipSocket
from agent.foundation.errors import Malformed, UsageError
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER, Woke
from agent.identity.certificates import (
    cluster_id,
    issue_site,
    make_issuer,
    make_root,
    site_id,
)
from agent.identity.claims import Claims
from agent.identity.envelope import HEADER_BYTES, SHORT_ID_BYTES, Sealer
from agent.identity.registry import Roll, SiteNotary
from agent.identity.trust import TrustLog
from agent.identity.trust_entries import Genesis
from agent.identity.trust_signing import sign_entry
from agent.membership.events import Heard, Introduced, SendGossip, SwimEvent, SyncEnded, SyncWith
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.wire.gossip import GOSSIP, GossipMessage
from agent.wire.limits import PACKET_BYTES_MAX
from agent.wire.records import (
    Endpoint,
    Passport,
    Served,
    SiteRecord,
)

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
DELAY_S = 0.001
HONEST = ("anna", "berta", "carla", "doris")


class RecordingNotary(SiteNotary):
    """Remembers everything that its site has ever signed."""

    def __init__(self, private_key: Ed25519PrivateKey, roll: Roll) -> None:
        super().__init__(private_key, roll)
        self.stated: set[bytes] = set()

    def sign(self, body: bytes) -> bytes:
        self.stated.add(body)
        return super().sign(body)


@dataclass
class Townsman:
    """One site: its keys, and the machines that an attack is aimed at."""

    name: str
    site: SiteId
    private: Ed25519PrivateKey
    passport: Passport
    roll: Roll
    notary: RecordingNotary
    sealer: Sealer
    swim: Swim
    dropped: int = 0
    errors: list[BaseException] = field(default_factory=list)

    def open(self, packet: bytes) -> tuple[SiteId, GossipMessage] | None:
        """As the gossip socket does it; None if the packet is dropped."""
        try:
            sender, body = self.sealer.open(packet)
            return sender, GOSSIP.unpack(body, PACKET_BYTES_MAX)
        except Malformed:
            self.dropped += 1
            return None


class Town:
    """Sites that gossip over a perfect network in virtual time."""

    def __init__(self, seed: int, names: tuple[str, ...] = (*HONEST, "mallory")) -> None:
        """Everybody knows everybody's passport and record, as after a first sync."""
        self.random = Random(seed)
        self.now = 100.0
        self.sent: list[tuple[SiteId, bytes]] = []
        """(target, packet) of everything that was ever sent."""
        self._order = count()
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        entropy = self.random.randbytes
        root = make_root(entropy, NOW)
        self._issuer = make_issuer(root, entropy, NOW)
        self._cluster = cluster_id(root.certificate)
        self._root = root.certificate
        admin = Ed25519PrivateKey.from_private_bytes(entropy(32)).public_key().public_bytes_raw()
        self._trust = TrustLog(self._cluster)
        genesis = Genesis(root.certificate, self._issuer.certificate, admin, ())
        self._trust.append(sign_entry(self._trust, genesis, root.private_key, NOW))
        self.sites = {one.site: one for one in (self._settle(name) for name in names)}
        for one in self.sites.values():
            for other in self.sites.values():
                one.roll.admit(other.passport, NOW)
        records = tuple(one.swim.signed for one in self.sites.values())
        for one in self.sites.values():
            self.step(one, Introduced(records))

    def _settle(self, name: str) -> Townsman:
        private = Ed25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        gossip = X25519PrivateKey.from_private_bytes(self.random.randbytes(32))
        raw = gossip.public_key().public_bytes_raw()
        claims = Claims(self._cluster, name, "north", "edge", "DE", ("member",), raw)
        leaf = issue_site(self._issuer, private.public_key(), claims, NOW)
        site = site_id(private.public_key())
        roll = Roll(self._root, self._trust)
        notary = RecordingNotary(private, roll)
        where = Endpoint(f"10.0.0.{self.random.randrange(1, 250)}", 7411, 7412)
        record = SiteRecord(
            site, 1 << 32, 1, 1 << 32, "alive", where, 0.0, 1.0,
            (Served(bytes(8), 1000),), bytes(8),
        )  # fmt: skip
        swim = Swim(
            record=record, notary=notary, settings=Settings.lan(),
            rng=Random(self.random.random()), now=self.now,
        )  # fmt: skip

        def epoch_of(target: SiteId) -> int:
            member = swim.members().get(target)
            return 0 if member is None else member.record.boot_epoch

        sealer = Sealer(site, gossip, 1, roll.gossip_key, epoch_of, roll.resolve)
        passport = Passport((leaf, self._issuer.certificate))
        return Townsman(name, site, private, passport, roll, notary, sealer, swim)

    def named(self, name: str) -> Townsman:
        """By the name in its certificate."""
        return next(one for one in self.sites.values() if one.name == name)

    @property
    def honest(self) -> list[Townsman]:
        """Everybody but the insider."""
        return [one for one in self.sites.values() if one.name != "mallory"]

    # --- the network -----------------------------------------------------------------------------
    def step(self, one: Townsman, event: SwimEvent) -> None:
        """One event at one site; what it sends is sealed and arrives a millisecond later."""
        try:
            effects = one.swim.step(event, self.now)
        except Exception as error:  # noqa: BLE001 - what the attack is after
            one.errors.append(error)
            return
        for effect in effects:
            if isinstance(effect, SendGossip):
                try:
                    packet = one.sealer.seal(effect.target, GOSSIP.pack(effect.message))
                except (
                    UsageError
                ) as error:  # the socket would only log it: the target hears nothing
                    one.errors.append(error)
                    continue
                self.sent.append((effect.target, packet))
                self._later(lambda to=effect.target, data=packet: self.deliver(to, data))  # type: ignore[misc]
            elif isinstance(effect, SyncWith):
                self._later(lambda to=effect.site: self._sync(one, to))  # type: ignore[misc]

    def deliver(self, target: SiteId, packet: bytes) -> None:
        """A datagram arrives."""
        one = self.sites[target]
        if (found := one.open(packet)) is not None:
            self.step(one, Heard(*found))

    def _sync(self, one: Townsman, site: SiteId) -> None:
        other = self.sites[site]
        for asker, answerer in ((one, other), (other, one)):
            pairs = answerer.swim.statements_for(asker.site, asker.swim.heads())
            self.step(asker, Introduced(tuple(signed for _, signed in pairs)))
        self.step(one, SyncEnded(site, succeeded=True))

    def _later(self, act: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + DELAY_S, next(self._order), act))

    def run(self, for_s: float) -> None:
        """Let virtual time pass."""
        until = self.now + for_s
        while True:
            sleeper = min(self.sites.values(), key=lambda one: one.swim.wake_at())
            wake_at = sleeper.swim.wake_at()
            at = min(wake_at, self._queue[0][0] if self._queue else NEVER)
            if at > until:
                break
            self.now = max(self.now, at)
            if self._queue and self._queue[0][0] <= wake_at:
                heapq.heappop(self._queue)[2]()
            else:
                self.step(sleeper, Woke())
        self.now = until

    # --- what must not change --------------------------------------------------------------------
    def beliefs(self, one: Townsman, *, but: str = "") -> dict[str, Any]:
        """All that ``one`` believes of members (of all but ``but``) and of packets."""
        members = {
            self.sites[site].name: (
                member.state, member.record, member.signed, member.is_relayed, member.changed_at,
            )
            for site, member in one.swim.members().items()
            if self.sites[site].name != but
        }  # fmt: skip
        windows = {
            self.sites[site].name: (window.boot_epoch, window.highest, window.seen)
            for site, window in one.sealer._windows.items()
            if self.sites[site].name != but
        }
        return {"members": members, "windows": windows, "own": one.swim.record}


@dataclass
class Outcome:
    """What came of an attack."""

    packets: int = 0
    opened: int = 0
    """Packets that got as far as the membership machine."""
    raised: list[BaseException] = field(default_factory=list)
    has_changed: bool = False
    """Whether any belief moved."""


# --- the outsider --------------------------------------------------------------------------------
def mutations(recorded: list[bytes], strange: list[bytes], random: Random) -> Iterator[bytes]:
    """Endless packets like real ones, each different from every one of ``recorded``.

    Args:
        recorded: packets that the victim was sent.
        strange: packets sent to others: whole, they are mutations of their own kind.
        random: choices.
    """
    known = set(recorded)
    makers = (
        _flip_one_bit, _flip_some_bytes, _cut, _extend, _splice, _other_counter, _other_epoch,
        _other_sender, _other_version, _noise, _empty_body,
    )  # fmt: skip
    while True:
        if random.random() < 0.05:
            packet = random.choice(strange)
        else:
            packet = random.choice(makers)(random.choice(recorded), recorded, random)
        if packet not in known:
            yield packet


def _flip_one_bit(packet: bytes, _: list[bytes], random: Random) -> bytes:
    place = random.randrange(8 * len(packet))
    changed = bytearray(packet)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _flip_some_bytes(packet: bytes, _: list[bytes], random: Random) -> bytes:
    changed = bytearray(packet)
    for _step in range(random.randrange(1, 9)):
        changed[random.randrange(len(changed))] = random.randrange(256)
    return bytes(changed)


def _cut(packet: bytes, _: list[bytes], random: Random) -> bytes:
    return packet[: random.randrange(len(packet))]


def _extend(packet: bytes, _: list[bytes], random: Random) -> bytes:
    return packet + random.randbytes(random.randrange(1, 64))


def _splice(packet: bytes, recorded: list[bytes], random: Random) -> bytes:
    """The header of one packet before the content of another."""
    return packet[:HEADER_BYTES] + random.choice(recorded)[HEADER_BYTES:]


def _other_counter(packet: bytes, _: list[bytes], random: Random) -> bytes:
    counter = random.choice((0, 1, 2**32, 2**64 - 1, random.getrandbits(64)))
    return packet[:13] + counter.to_bytes(8) + packet[21:]


def _other_epoch(packet: bytes, _: list[bytes], random: Random) -> bytes:
    epoch = random.choice((0, 2, 2**32 - 1, random.getrandbits(32)))
    return packet[:9] + epoch.to_bytes(4) + packet[13:]


def _other_sender(packet: bytes, recorded: list[bytes], random: Random) -> bytes:
    return packet[:1] + random.choice(recorded)[1 : 1 + SHORT_ID_BYTES] + packet[9:]


def _other_version(packet: bytes, _: list[bytes], random: Random) -> bytes:
    return bytes((random.choice((0, 2, 3, 255)),)) + packet[1:]


def _noise(_: bytes, __: list[bytes], random: Random) -> bytes:
    return random.randbytes(random.choice((0, 1, 36, 37, 200, 1200, 1201, 1400)))


def _empty_body(packet: bytes, _: list[bytes], random: Random) -> bytes:
    return packet[:HEADER_BYTES] + random.randbytes(16)


def outside_attack(town: Town, victim: Townsman, packets: Iterator[bytes], number: int) -> Outcome:
    """Give ``victim`` the next ``number`` of ``packets``."""
    outcome = Outcome()
    before = town.beliefs(victim)
    counted = victim.dropped
    for _ in range(number):
        outcome.packets += 1
        try:
            found = victim.open(next(packets))
        except Exception as error:  # noqa: BLE001 - what the attack is after
            outcome.raised.append(error)
            continue
        if found is not None:
            outcome.opened += 1
            town.step(victim, Heard(*found))
    outcome.raised += victim.errors
    outcome.has_changed = town.beliefs(victim) != before
    assert victim.dropped - counted + outcome.opened + len(outcome.raised) == number
    return outcome


# --- through a real socket -----------------------------------------------------------------------
@dataclass
class Delivered:
    """What a gossip socket made of an attacker's datagrams."""

    sent: int = 0
    received: int = 0
    dropped: int = 0
    heard: int = 0
    replies: int = 0
    """Datagrams that the attacker got back."""


async def over_udp(victim: Townsman, packets: Iterator[bytes], number: int) -> Delivered:
    """Send ``number`` of ``packets`` to a gossip socket of ``victim`` on this machine."""
    heard: list[SiteId] = []
    listening = GossipSocket(
        victim.sealer, lambda sender, _: heard.append(sender), heard.append, heard.append
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        attacker.bind(("127.0.0.1", 0))
        attacker.setblocking(False)
        port = attacker.getsockname()[1] ^ 1
        await listening.open("127.0.0.1", port)
        found = Delivered()
        while found.sent < number:
            for _ in range(min(100, number - found.sent)):
                attacker.sendto(next(packets), ("127.0.0.1", port))
                found.sent += 1
            async with asyncio.timeout(10):
                while listening.received < found.sent:  # noqa: ASYNC110 - no event for tests
                    await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        with contextlib.suppress(BlockingIOError):
            while True:
                attacker.recv(2048)
                found.replies += 1
        listening.close()
    found.received, found.dropped, found.heard = listening.received, listening.dropped, len(heard)
    return found
