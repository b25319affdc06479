"""An admitted site with valid keys that says whatever it likes, and what came of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import msgpack
from mesh_forger import Town, Townsman

from agent.foundation.ids import SiteId
from agent.identity.envelope import BODY_BYTES_MAX
from agent.membership.events import Heard
from agent.wire.gossip import GOSSIP, Ack, Gossip, GossipMessage, Nack, Ping, PingRequest
from agent.wire.limits import RUMOR_BYTES_MAX
from agent.wire.records import STATEMENTS, Accusation, Endpoint, Served, Signed, SiteRecord

JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63), float("nan"), float("inf"),
    -0.0, 1e308, "", "x" * 300, "\x00", b"", bytes(32), bytes(64), bytes(900), [], [[]], {}, {"a": 1},
    msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2),
)  # fmt: skip


def bodies(town: Town, insider: Townsman, victim: Townsman, random: Random) -> Iterator[bytes]:
    """Endless bodies that only an admitted site can send."""
    forger = _Forger(town, insider, victim, random)
    while True:
        body = forger.body()
        if len(body) <= BODY_BYTES_MAX:
            yield body


class _Forger:
    """Makes bodies; ``random`` decides."""

    def __init__(self, town: Town, insider: Townsman, victim: Townsman, random: Random) -> None:
        self._town, self._me, self._victim, self._random = town, insider, victim, random
        self._sequence = insider.swim.record.sequence + 1
        self._makers: tuple[Callable[[], bytes], ...] = (
            self._noise, self._deep, self._wrong_types, self._mutated_message, self._message,
            self._message, self._message, self._message,
        )  # fmt: skip

    def body(self) -> bytes:
        return self._random.choice(self._makers)()

    # --- not a message ---------------------------------------------------------------------------
    def _noise(self) -> bytes:
        return self._random.randbytes(self._random.randrange(200))

    def _deep(self) -> bytes:
        depth = self._random.choice((15, 16, 17, 200, 1000))
        return b"\x92\x05" + b"\x91" * depth + b"\x90"

    def _junk(self) -> Any:
        if self._random.random() < 0.2:
            return [self._junk() for _ in range(self._random.randrange(4))]
        return self._random.choice(JUNK)

    def _wrong_types(self) -> bytes:
        fields = [self._junk() for _ in range(self._random.randrange(5))]
        tag = self._random.choice((1, 2, 3, 4, 5, 6, True, -1, "1", 2**64 - 1, None))
        return msgpack.packb([tag, fields], use_bin_type=True)  # type: ignore[no-any-return]

    def _mutated_message(self) -> bytes:
        body = bytearray(self._message())
        for _ in range(self._random.randrange(1, 4)):
            body[self._random.randrange(len(body))] = self._random.randrange(256)
        return bytes(body)

    # --- a message full of lies ------------------------------------------------------------------
    def _message(self) -> bytes:
        rumors = tuple(self._rumor() for _ in range(self._random.randrange(1, 4)))
        number = self._random.choice((0, 1, self._random.randrange(200), 2**63 - 1))
        subject = self._anybody()
        message: GossipMessage = self._random.choice(
            (
                Ping(number, rumors), Ack(number, subject, rumors), Nack(number, rumors),
                PingRequest(number, subject, rumors), Gossip(rumors), Gossip(rumors),
            )
        )  # fmt: skip
        return GOSSIP.pack(message)

    def _anybody(self) -> SiteId:
        unknown = SiteId(self._random.randbytes(32))
        return self._random.choice((*self._town.sites, unknown))

    def _rumor(self) -> Signed:
        makers = (
            self._others_record, self._others_record, self._old_record, self._accusation_by_another,
            self._accusation_of_mine, self._record_of_mine, self._stranger, self._padded,
        )  # fmt: skip
        return self._random.choice(makers)()

    def _signed(self, body: bytes) -> Signed:
        return Signed(body, self._me.private.sign(body))

    def _victims_view(self) -> list[tuple[SiteRecord, Signed]]:
        members = self._victim.swim.members().values()
        mine = (self._victim.swim.record, self._victim.swim.signed)
        return [mine, *((m.record, m.signed) for m in members if m.site != self._me.site)]

    def _others_record(self) -> Signed:
        """Another site's record with something changed: its own signature, ours, or none."""
        record, signed = self._random.choice(self._victims_view())
        number = record.sequence + self._random.choice((0, 1, 2**31, 2**32))
        changes: dict[str, Any] = self._random.choice(
            (
                {"sequence": number}, {"sequence": number, "incarnation": number},
                {"sequence": number, "status": "left"},
                {"sequence": number, "endpoint": Endpoint("10.9.9.9", 1, 1)},
                {"sequence": 2**63 - 1, "incarnation": 2**63 - 1},
                {"sequence": number, "boot_epoch": 2**32 - 1},
            )
        )  # fmt: skip
        body = STATEMENTS.pack(replace(record, **changes))
        if self._random.random() < 0.3:
            changed = bytearray(signed.body)
            changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
            body = bytes(changed)
        return self._random.choice(
            (Signed(body, signed.signature), self._signed(body), Signed(body, bytes(64)))
        )

    def _old_record(self) -> Signed:
        """Signed by its owner, and long past: from packets of the first second."""
        return self._random.choice(self._victims_view())[1]

    def _accusation_by_another(self) -> Signed:
        record, _ = self._random.choice(self._victims_view())
        accuser = self._anybody()
        number = record.incarnation + self._random.choice((0, 0, 0, -1, 1, 2**40))
        body = STATEMENTS.pack(
            Accusation(accuser, record.site, number, self._random.random() < 0.5)
        )
        return self._signed(body) if accuser != self._me.site else Signed(body, bytes(64))

    def _accusation_of_mine(self) -> Signed:
        """Allowed: everybody may say that another does not answer."""
        record, _ = self._random.choice(self._victims_view())
        body = STATEMENTS.pack(Accusation(self._me.site, record.site, record.incarnation))
        return self._signed(body)

    def _record_of_mine(self) -> Signed:
        """Allowed: of itself it may say anything that is well formed, however odd."""
        self._sequence += 1
        random = self._random
        host = random.choice(("10.0.0.9", "", "::1", "255.255.255.255", "224.0.0.1", "no.such.host",
                              "0.0.0.0", "x" * 64))  # fmt: skip
        served = tuple(Served(random.randbytes(8), random.getrandbits(63)) for _ in range(24))
        record = replace(
            self._me.swim.record, sequence=self._sequence,
            incarnation=random.choice((self._me.swim.record.incarnation, self._sequence)),
            status=random.choice(("alive", "draining", "left")),
            endpoint=Endpoint(host, random.randrange(1, 65536), 1),
            load=random.choice((0.0, 1e6)), capacity=random.choice((0.0, 1e9)),
            serving=random.choice(((), served)),
        )  # fmt: skip
        return self._signed(STATEMENTS.pack(record))

    def _stranger(self) -> Signed:
        """A site that nobody admitted."""
        record = replace(self._me.swim.record, site=SiteId(self._random.randbytes(32)))
        return self._signed(STATEMENTS.pack(record))

    def _padded(self) -> Signed:
        """An accusation of its own with fields that a newer version might append, up to the bound."""
        record, _ = self._random.choice(self._victims_view())
        accusation = Accusation(self._me.site, record.site, record.incarnation, is_refused=False)
        fields = [accusation.accuser, accusation.subject, accusation.incarnation, False]
        room = RUMOR_BYTES_MAX - 3 - len(STATEMENTS.pack(accusation))
        return self._signed(msgpack.packb([2, [*fields, bytes(room)]], use_bin_type=True))


@dataclass
class Betrayal:
    """What came of an insider's lies."""

    opened: int = 0
    """Bodies that decoded."""
    dropped: int = 0
    """Bodies that did not."""
    counted: int = 0
    """Statements that the victim has counted as malformed or forged."""
    raised: list[BaseException] = field(default_factory=list)
    deaths: set[tuple[str, str]] = field(default_factory=set)
    """(believer, honest site) whenever an honest site was held dead or gone."""
    forged: set[tuple[str, str]] = field(default_factory=set)
    """(believer, site) whenever something was believed of a site that it never stated."""
    suspects: set[tuple[str, str]] = field(default_factory=set)
    """(believer, honest site) still under suspicion when the lies have ended."""


def inside_attack(town: Town, number: int, *, batch: int = 500) -> Betrayal:
    """Let the insider send ``number`` bodies to 'anna' while everybody goes on gossiping."""
    victim, insider = town.named("anna"), town.named("mallory")
    found = Betrayal()
    made = bodies(town, insider, victim, Random(town.random.random()))
    before = victim.dropped
    for done in range(number):
        message = victim.open(insider.sealer.seal(victim.site, next(made)))
        if message is not None:
            found.opened += 1
            town.step(victim, Heard(*message))
        if done % batch == batch - 1:
            town.run(0.05)
            _look(town, found)
    town.run(15.0)
    _look(town, found)
    found.suspects = {
        (one.name, town.sites[site].name)
        for one in town.honest
        for site, member in one.swim.members().items()
        if town.sites[site].name != "mallory" and member.state != "alive"
    }
    found.raised = [error for one in town.sites.values() for error in one.errors]
    found.dropped = victim.dropped - before
    found.counted = victim.swim.malformed + victim.swim.forged
    return found


def _look(town: Town, found: Betrayal) -> None:
    for one in town.honest:
        for site, member in one.swim.members().items():
            other = town.sites.get(site)
            if other is None:
                found.forged.add((one.name, site.hex()[:8]))
            elif other.name != "mallory":
                if member.state in ("dead", "left"):
                    found.deaths.add((one.name, other.name))
                if member.signed.body not in other.notary.stated:
                    found.forged.add((one.name, other.name))
