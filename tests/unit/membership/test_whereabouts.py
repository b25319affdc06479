"""What a site tells of its place, how seldom, and what it makes of others' places."""

from random import Random
from typing import TypeVar

import pytest
from mesh_of_statements import BOOT, Notary, record, signed, site
from one_site import OneSite

from agent.membership.coordinates import Coordinate
from agent.membership.events import (
    Heard,
    Introduced,
    LocalChanged,
    RecordChanged,
    RememberPlace,
    SendGossip,
    SwimEffect,
)
from agent.membership.member import Peer
from agent.membership.own_record import OwnRecord
from agent.membership.settings import Settings
from agent.membership.whereabouts import FRESH_S, PUBLISH_S_MAX, REMEMBER_S, Whereabouts
from agent.wire.gossip import Ack, Ping
from agent.wire.records import STATEMENTS, SiteRecord


def place(x: float, error: float = 0.1) -> Coordinate:
    return Coordinate((x, 0.0, 0.0, 0.0), 0.001, 0.0, error)


T = TypeVar("T")


class Rig:
    """One site's whereabouts and a member at ``trip_s``."""

    def __init__(self, coordinate: bytes = b"") -> None:
        self.out: list[SwimEffect] = []
        self.own = OwnRecord(
            record("me", coordinate=coordinate), Notary(site("me")), Settings.lan(), 0.0
        )
        self.where = Whereabouts(
            me=site("me"), own=self.own, settings=Settings.lan(), rng=Random(1),
            out=self.out, now=0.0,
        )  # fmt: skip
        told = record("a")
        self.peer = Peer(site("a"), told, signed(told), "alive", 0.0)
        self.now = 0.0

    def measure(self, trip_s: float, x: float = 0.05, *, every_s: float = 1.0) -> None:
        self.now += every_s
        self.peer.coordinate = place(x).pack()
        self.peer.round_trip.recent = (trip_s,)
        self.peer.round_trip.smoothed_s, self.peer.round_trip.measured_at = trip_s, self.now
        self.where.measured(self.peer, self.now)

    def made(self, kind: type[T]) -> list[T]:
        return [one for one in self.out if isinstance(one, kind)]


def test_acks_carry_the_place_until_the_record_says_it() -> None:
    rig = Rig()
    assert rig.where.answer(is_wanted=False) == rig.where.coordinate.pack()
    for _ in range(80):
        rig.measure(0.05)
    assert rig.made(RecordChanged)
    assert rig.own.record.coordinate
    assert rig.where.answer(is_wanted=False) == b""
    for _ in range(20):
        rig.measure(0.2)  # the network changed
    assert rig.where.answer(is_wanted=False) == rig.where.coordinate.pack()


def test_records_for_the_place_alone_become_rarer_and_end_when_it_settles() -> None:
    rig = Rig()
    for turn in range(3600):
        rig.measure(0.05 if turn % 400 < 200 else 0.09)
    restless = len(rig.made(RecordChanged))
    assert 3 <= restless <= 14
    assert rig.where._pace_s == PUBLISH_S_MAX
    rig.out.clear()
    for _ in range(3600):
        rig.measure(0.05)
    assert len(rig.made(RecordChanged)) <= 2


def test_the_place_is_written_to_disk_at_most_once_a_minute() -> None:
    rig = Rig()
    for turn in range(600):
        rig.measure(0.02 + 0.08 * (turn // 30 % 2))
    written = rig.made(RememberPlace)
    assert 2 <= len(written) <= 600 / REMEMBER_S + 1
    assert all(Coordinate.unpack(one.coordinate) is not None for one in written)


def test_the_first_place_is_written_as_soon_as_it_is_known() -> None:
    rig = Rig()
    while not rig.made(RememberPlace):
        rig.measure(0.05)
        assert rig.now < REMEMBER_S
    (first,) = rig.made(RememberPlace)
    assert not Coordinate.is_vague(first.coordinate)
    again = Rig(first.coordinate)
    for _ in range(int(REMEMBER_S) - 2):
        again.measure(0.2)
    assert not again.made(RememberPlace), "after a restart it is known already"


def test_a_place_that_waits_for_another_change_makes_no_record_of_its_own() -> None:
    rig = Rig()
    rig.own.change(LocalChanged(load=0.9), 0.0)
    rig.own.publish(0.0)
    rig.own.change(LocalChanged(load=0.1), 0.0)
    sequence = rig.own.record.sequence
    assert not rig.own.move(place(0.01).pack(), 0.5)
    assert rig.own.record.sequence == sequence
    rig.own.publish(2.0)
    assert (rig.own.record.load, rig.own.record.coordinate) == (0.1, place(0.01).pack())


def test_a_site_starts_where_its_record_says_it_was() -> None:
    rig = Rig(place(0.07).pack())
    assert rig.where.coordinate.place == place(0.07).place
    assert rig.where.answer(is_wanted=False) == b""


def test_a_fresh_measurement_comes_before_an_estimate_and_an_old_one_after() -> None:
    rig = Rig()
    for _ in range(100):
        rig.measure(0.06)
    rig.peer.round_trip.smoothed_s = 0.011
    assert rig.where.distance_s(rig.peer, rig.now + FRESH_S) == 0.011
    estimated_s = rig.where.distance_s(rig.peer, rig.now + FRESH_S + 1.0)
    assert estimated_s == pytest.approx(0.06, rel=0.1)
    rig.peer.coordinate = b""
    assert rig.where.distance_s(rig.peer, rig.now + FRESH_S + 1.0) == 0.011


@pytest.mark.parametrize("told", [b"", b"x" * 19, b"?", place(0.05, error=1.2).pack()])
def test_a_member_without_a_usable_place_has_no_estimate(told: bytes) -> None:
    rig = Rig()
    for _ in range(50):
        rig.measure(0.06)
    rig.peer.coordinate = told
    assert rig.where.estimated_s(rig.peer) is None
    assert Rig().where.estimated_s(rig.peer) is None


# --- in the whole machine ------------------------------------------------------------------------
def test_a_record_that_only_moved_is_believed_and_not_passed_on_as_a_rumor() -> None:
    one = OneSite()
    one.run(20)
    one.effects.clear()
    moved = record("a", BOOT + 1, coordinate=place(0.03).pack())
    one.step(Introduced((signed(moved),)))
    one.run(20)
    assert one.swim.members()[site("a")].record == moved
    assert not [s for s in one.told() if isinstance(s, SiteRecord) and s.site == site("a")]
    busier = record("a", BOOT + 2, coordinate=place(0.04).pack(), load=0.7)
    one.step(Introduced((signed(busier),)))
    one.run(20)
    assert busier in one.told()


def test_a_probe_is_answered_with_the_place_while_no_record_tells_it() -> None:
    one = OneSite()
    one.run(3)
    one.effects.clear()
    one.step(Heard(site("b"), Ping(42)))
    (answer,) = [e.message for e in one.made(SendGossip) if isinstance(e.message, Ack)]
    assert answer.coordinate == one.swim.coordinate.pack()


def test_who_does_not_know_where_a_member_lies_asks_with_its_pings_until_told() -> None:
    one = OneSite()
    one.run(10)
    pings = [e.message for e in one.made(SendGossip) if isinstance(e.message, Ping)]
    assert pings
    assert all(ping.is_place_wanted for ping in pings)
    for name in "abcd":
        moved = record(name, BOOT + 1, coordinate=place(0.03).pack())
        one.step(Introduced((signed(moved),)))
    one.effects.clear()
    one.run(10)
    pings = [e.message for e in one.made(SendGossip) if isinstance(e.message, Ping)]
    assert not any(ping.is_place_wanted for ping in pings)


def test_who_asks_is_told_also_what_the_record_says() -> None:
    rig = Rig(place(0.07).pack())
    assert rig.where.answer(is_wanted=False) == b""
    assert rig.where.answer(is_wanted=True) == rig.where.coordinate.pack()


def test_a_record_of_the_former_version_is_read_and_says_nothing_of_the_place() -> None:
    old = bytes.fromhex(
        "92019ac420" + site("a").hex() + "cf000000010000000001cf0000000100000000a5616c697665"
        "93a831302e302e302e31cd1cf3cd1cf4cb0000000000000000cb3ff000000000000090c4080000000000000000"
    )
    assert STATEMENTS.unpack(old) == record("a")
    assert STATEMENTS.pack(record("a")) == old
