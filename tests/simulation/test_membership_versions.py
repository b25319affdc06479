"""Sites of this version and of a next one in one cluster: neither disturbs the other."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import msgpack

from agent.foundation.ids import SiteId
from agent.identity.envelope import BODY_BYTES_MAX
from agent.membership.events import LocalChanged
from agent.membership.own_record import OwnRecord
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.simulation.membership_sealed import LinkedSealer, SealedWorld
from agent.simulation.membership_world import Site, site_id
from agent.wire.gossip import GOSSIP, GossipMessage
from agent.wire.limits import PROTOCOL_VERSION
from agent.wire.records import STATEMENTS, Signed, SiteRecord
from agent.wire.schema import Tagged

LATER = b"a field of the next version"
NEXT_VERSION = PROTOCOL_VERSION + 1
NEW_MESSAGE_TAG, NEW_STATEMENT_TAG = 99, 98
ROOM_BYTES = 700


def lengthened(tagged: Tagged, message: object) -> list[Any]:
    """A message as the next version packs it: every field of ours, and one more."""
    tag, plain = msgpack.unpackb(tagged.pack(message), use_list=True)
    for column in fields(message)[len(plain) :]:  # type: ignore[arg-type]
        plain.append(column.default)
    return [tag, [*plain, LATER]]


class NewerRecord(OwnRecord):
    """Says more of its site than we understand."""

    def _sign(self, record: SiteRecord) -> Signed:
        body = msgpack.packb(lengthened(STATEMENTS, record))
        return Signed(body, self._notary.sign(body))


class NewerSealer(LinkedSealer):
    """Opens its own envelopes besides ours."""

    def open(self, packet: bytes) -> tuple[SiteId, bytes]:
        if packet[0] == NEXT_VERSION:
            packet = bytes((PROTOCOL_VERSION,)) + packet[1:]
        return super().open(packet)


class MixedWorld(SealedWorld):
    """Every second site runs the next version."""

    def __init__(self, seed: int, sites: int) -> None:
        self.newer: set[SiteId] = set()
        self.sent_new = self._turn = 0
        super().__init__(
            seed=seed,
            settings=Settings.lan(sites),
            machine=self._machine_of,
            sealer=self._sealer_of,
        )

    def install(self, index: int, host: str, seeds: Any = ()) -> SiteId:
        if index % 2:
            self.newer.add(site_id(index))
        return super().install(index, host, seeds)

    def _machine_of(self, **parts: Any) -> Swim:
        swim = Swim(**parts)
        if swim.record.site in self.newer:
            swim._own.__class__ = NewerRecord
            first = swim._own.record
            swim._own.record = swim._own._wanted = first
            signed = swim._own._sign(first)
            self.made[signed.body] = first.site
            swim._own.signed = signed
            swim._rumors.put((first.site, first.site), signed)
        return swim

    def _sealer_of(self, me: SiteId, *parts: Any) -> LinkedSealer:
        kind: Callable[..., LinkedSealer] = NewerSealer if me in self.newer else LinkedSealer
        return kind(me, *parts)

    def pack(self, site: Site, message: GossipMessage) -> bytes:
        if site.id not in self.newer:
            return super().pack(site, message)
        tag, plain = lengthened(GOSSIP, message)
        rumors = next(one for one in plain if isinstance(one, list))
        body: bytes = msgpack.packb([tag, plain])
        if len(body) < ROOM_BYTES:
            # A kind of statement that we do not know travels as a rumor among the known ones.
            statement = msgpack.packb([NEW_STATEMENT_TAG, [site.id, LATER]])
            rumors.append([statement, self.notary_of(site).sign_anything(statement)])
            body = msgpack.packb([tag, plain])
        if len(body) > BODY_BYTES_MAX:  # our machine has filled the packet to its brim
            return super().pack(site, message)
        return body

    def notary_of(self, site: Site) -> "Anything":
        return Anything(site.id)

    def _seal_and_post(self, site: Site, target: SiteId, endpoint: Any, body: bytes) -> None:
        super()._seal_and_post(site, target, endpoint, body)
        self._turn += 1
        if site.id not in self.newer or self._turn % 4:
            return
        new_message = msgpack.packb([NEW_MESSAGE_TAG, [LATER]])
        super()._seal_and_post(site, target, endpoint, new_message)
        packet = self.sealer(site.id).seal(target, new_message)
        self.checks.sealed(site.id, packet, self.now)
        self.post_raw(site.id, target, bytes((NEXT_VERSION,)) + packet[1:])
        self.sent_new += 1

    def has_said_more(self, at: SiteId, of: SiteId) -> bool:
        """Whether ``at`` holds the record of a newer site with all that it said."""
        return LATER in self.swim(at).members()[of].signed.body


class Anything:
    """Signs what no machine of ours makes."""

    def __init__(self, me: SiteId) -> None:
        self._me = me

    def sign_anything(self, body: bytes) -> bytes:
        return body[:1] * 64


def mixed(seed: int, sites: int = 8) -> tuple[MixedWorld, list[SiteId]]:
    world = MixedWorld(seed, sites)
    ids: list[SiteId] = []
    for index in range(sites):
        ids.append(world.install(index, f"10.0.0.{index + 1}", ids[:1]))
    assert world.until_converged(20.0) is not None
    world.run(15.0)
    return world, ids


def test_a_mixed_cluster_agrees_and_nobody_is_suspected() -> None:
    world, ids = mixed(1)
    older = [site for site in ids if site not in world.newer]
    assert world.checks.verdicts == []
    assert world.sent_new > 30
    for site in older:
        assert world.swim(site).malformed > 0, "new statements came, and were dropped"
        assert all(member.state == "alive" for member in world.swim(site).members().values())
    world.change(older[0], LocalChanged(status="draining"))
    world.change(min(world.newer), LocalChanged(capacity=7.0))
    assert world.until_converged(5.0) is not None


def test_an_older_site_passes_on_what_a_newer_one_says_unchanged() -> None:
    world, ids = mixed(2)
    late = world.install(9, "10.0.0.99", [ids[0]])
    assert ids[0] not in world.newer
    assert late in world.newer
    assert world.until_converged(10.0) is not None
    for at in ids:
        assert world.has_said_more(at, late)
        if at != ids[1]:
            assert world.has_said_more(at, ids[1])


def test_versions_notice_each_others_deaths_and_returns() -> None:
    world, ids = mixed(3)
    for victim in ids[:2]:
        world.kill(victim, host=True)
        assert world.until_converged(10.0) is not None
        world.start(victim)
        assert world.until_converged(10.0) is not None
    assert {verdict.was_running for verdict in world.checks.verdicts} == {False}


def test_a_cut_between_versions_heals() -> None:
    world, ids = mixed(4)
    older = [site for site in ids if site not in world.newer]
    newer = [site for site in ids if site in world.newer]
    for one, other in ((older, newer), (newer, older)):
        world.network.cut(one, other)
        for site in one:
            world.checks.cut(site)
    world.run(20.0)
    world.network.heal()
    world.checks.healed(world.now)
    took_s = world.until_converged(30.0)
    assert took_s is not None
    assert took_s <= 10.0
