"""Probes of distant members: refusals, late answers, and which round trips are distances."""

import pytest
from mesh_of_statements import site
from one_site import OneSite

from agent.membership.coordinates import COORDINATE_BYTES, Coordinate
from agent.membership.events import Heard, LoopLagged, PortRefused, SendGossip, SwimEvent
from agent.membership.settings import Settings
from agent.wire.gossip import Ack, Ping

HERE = Coordinate((0.01, 0.0, 0.0, 0.0), 0.001, 0.0, 0.2).pack()


class Distant(OneSite):
    """Member a answers each ping after ``trip_s``, or its host refuses it after that time."""

    trip_s = 0.25
    is_gone = False
    settings = Settings.wan()

    def __init__(self, members: str = "a") -> None:
        self.arrivals: list[tuple[float, SwimEvent]] = []
        self.sent: list[tuple[float, int]] = []
        super().__init__(members)

    def _answer(self, effect: object) -> SwimEvent | None:
        if not isinstance(effect, SendGossip) or effect.target != site("a"):
            return super()._answer(effect)  # type: ignore[arg-type]
        if isinstance(effect.message, Ping):
            number = effect.message.number
            self.sent.append((self.now, number))
            answer: SwimEvent = Heard(site("a"), Ack(number, site("a"), coordinate=HERE))
            if self.is_gone:
                answer = PortRefused(site("a"))
            self.arrivals.append((self.now + self.trip_s, answer))
        return None

    def pass_time(self, for_s: float) -> None:
        """Let time pass; what is under way arrives."""
        until = self.now + for_s
        while True:
            arrives_at = min((at for at, _ in self.arrivals), default=until)
            wakes_at = self.swim.wake_at()
            if min(arrives_at, wakes_at) >= until:
                break
            if wakes_at <= arrives_at:
                self.run(wakes_at - self.now)
            else:
                first = min(self.arrivals, key=lambda one: one[0])
                self.arrivals.remove(first)
                self.now = arrives_at
                self.step(first[1])
        self.now = until

    @property
    def rtt_s(self) -> float | None:
        return self.swim.members()[site("a")].rtt_s


@pytest.mark.parametrize("trip_s", [0.05, 0.25, 0.29, 0.31, 0.6])
def test_a_refused_port_counts_however_long_the_way_is(trip_s: float) -> None:
    one = Distant()
    one.trip_s = 0.05
    one.pass_time(20.0)  # the timeout is short: 0.3 s
    one.trip_s, one.is_gone = trip_s, True
    one.pass_time(8.0)
    assert one.state("a") == "dead"


def test_a_path_that_became_slower_than_its_timeout_is_measured_again() -> None:
    one = Distant()
    one.trip_s = 0.05
    one.pass_time(20.0)
    assert one.rtt_s == pytest.approx(0.05, abs=0.01)
    one.trip_s = 0.7
    one.pass_time(60.0)
    assert one.rtt_s == pytest.approx(0.7, rel=0.1)
    assert one.state("a") == "alive"


def test_the_timeout_of_a_probe_follows_its_own_member() -> None:
    near, far = Distant(), Distant()
    near.trip_s, far.trip_s = 0.01, 0.6
    waits = []
    for one in (near, far):
        one.pass_time(40.0)
        one.arrivals.clear()
        one.trip_s = 99.0
        one.sent.clear()
        one.pass_time(6.0)
        numbers = [number for _, number in one.sent]
        twice = next(number for number in numbers if numbers.count(number) > 1)
        first, second, *_ = (at for at, number in one.sent if number == twice)
        waits.append(second - first)
    assert waits[0] == pytest.approx(0.3, abs=0.01)
    assert 0.6 < waits[1] <= 1.5


def test_a_round_trip_in_which_we_stood_still_is_no_distance() -> None:
    one = Distant()
    one.trip_s = 0.05
    one.pass_time(20.0)
    before = one.swim.coordinate
    while not one.arrivals:
        one.run(0.01)
    one.now += 0.4
    one.step(LoopLagged(0.4))
    one.step(one.arrivals.pop(0)[1])
    assert one.rtt_s == pytest.approx(0.05, abs=0.01)
    assert one.swim.coordinate == before


def test_coordinates_are_made_from_direct_answers_while_we_are_healthy() -> None:
    one = Distant()
    one.trip_s = 0.05
    one.pass_time(10.0)
    assert one.swim.coordinate.error < 1.5
    assert one.swim.estimated_s(site("a")) == pytest.approx(0.05, rel=0.5)
    before = one.swim.coordinate
    one.swim._detector.health.note(8)
    one.pass_time(5.0)  # these answers heal, and tell no distance
    assert 0 < one.swim.health < 8
    assert one.swim.coordinate == before


def test_a_member_that_tells_no_place_moves_us_nowhere() -> None:
    one = OneSite()
    one.run(30)
    assert one.swim.coordinate.error == 1.5
    assert len(one.swim.coordinate.pack()) == COORDINATE_BYTES
    assert one.swim.estimated_s(site("a")) is None
    assert one.swim.distance_s(site("a")) == one.swim.members()[site("a")].rtt_s
