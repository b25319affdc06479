"""Wide networks in the simulator: how good coordinates are, and the same faults as on a LAN."""

from random import Random
from statistics import median

import pytest

from agent.foundation.ids import SiteId
from agent.membership.coordinates import BOUND_S, DIMENSIONS, UNKNOWN, Coordinate
from agent.membership.events import LocalChanged
from agent.membership.settings import Settings
from agent.membership.whereabouts import Whereabouts
from agent.simulation.membership_wan import accuracy, five_cities, on_a_map, wan_fleet
from agent.simulation.membership_world import MembershipWorld

FAR_S = 0.22
"""Width of a map on which the longest round trips take about 300 ms."""


def settled(sites: int, seed: int) -> tuple[MembershipWorld, list[SiteId]]:
    """A fleet with round trips up to 300 ms and 5 ms of jitter in which all know all."""
    world, ids = wan_fleet(on_a_map(sites, FAR_S, Random(seed)), seed, jitter_s=0.005)
    assert world.until_converged(60.0) is not None
    world.run(30.0)
    return world, ids


def cut_both_ways(world: MembershipWorld, some: list[SiteId], others: list[SiteId]) -> None:
    world.network.cut(some, others)
    world.network.cut(others, some)


def death_times(sites: int, seed: int, *, host: bool) -> list[float]:
    """Seconds from a loss to each survivor's verdict."""
    world, ids = settled(sites, seed)
    victim = world.rng.choice(ids)
    lost_at = world.now
    world.kill(victim, host=host)
    world.run(40.0)
    assert world.checks.false_deaths() == []
    times = [v.at - lost_at for v in world.checks.verdicts if v.subject == victim]
    assert len(times) == sites - 1, "everybody notices, once"
    return times


# --- coordinates ---------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(6))
def test_after_a_minute_five_sites_estimate_their_round_trips_within_fifteen_percent(
    seed: int,
) -> None:
    world, _ = wan_fleet(five_cities(), seed)
    world.run(60.0)
    found = accuracy(world)
    assert found.error_median <= 0.15
    assert found.unknown == 0.0
    world.run(60.0)
    assert accuracy(world).error_median <= 0.08


@pytest.mark.parametrize("seed", range(2))
def test_after_two_minutes_fifty_sites_estimate_within_fifteen_percent(seed: int) -> None:
    world, _ = wan_fleet(on_a_map(50, 0.06, Random(seed)), seed)
    world.run(120.0)
    found = accuracy(world)
    assert found.error_median <= 0.15
    assert found.unknown <= 0.01


def test_estimates_survive_ten_percent_loss_and_five_milliseconds_of_jitter() -> None:
    errors = []
    for seed in range(3):
        world, _ = wan_fleet(five_cities(), seed, loss=0.1, jitter_s=0.005)
        world.run(120.0)
        errors.append(accuracy(world).error_median)
    assert median(errors) <= 0.2


@pytest.mark.parametrize("link", ["lan", "wan"])
def test_settled_sites_send_at_most_250_bytes_a_second_each_and_none_of_coordinates(
    link: str,
) -> None:
    settings = Settings.lan(20) if link == "lan" else Settings.wan(20)
    trips = on_a_map(20, 0.0005 if link == "lan" else 0.06, Random(1))
    world, ids = wan_fleet(
        trips, 2, settings=settings, loss=0.0, jitter_s=0.0005, measures_bytes=True
    )
    world.run(300.0)
    before = sum(site.bytes_sent for site in world.sites.values())
    world.run(120.0)
    sent = sum(site.bytes_sent for site in world.sites.values()) - before
    assert 100 < sent / 120.0 / len(ids) <= 250
    silent = [i for i in ids if world.swim(i)._where.answer(is_wanted=False) == b""]
    assert len(silent) >= 18


def test_a_restarted_site_knows_at_once_how_far_everybody_is() -> None:
    world, ids = wan_fleet(five_cities(), 3)
    world.run(150.0)
    again = ids[2]
    world.kill(again, host=True)
    world.run(1.0)
    world.start(again)
    assert world.swim(again).coordinate.place != UNKNOWN.place
    world.run(2.0)
    for other in ids:
        if other != again:
            truth_s = world.network.delays[again, other] * 2 + 0.0017
            assert world.swim(again).distance_s(other) == pytest.approx(truth_s, rel=0.5)


def test_a_site_that_moved_is_found_again_by_its_coordinate() -> None:
    world, ids = wan_fleet(five_cities(), 4)
    world.run(120.0)
    for other in ids[1:]:
        for pair in ((ids[0], other), (other, ids[0])):
            world.network.delays[pair] += 0.04  # satellites for one site: 80 ms more each way round
    world.run(180.0)
    assert accuracy(world).error_median <= 0.15


class Liar(Whereabouts):
    """Claims another absurd place in every ack, and to be sure of it."""

    def answer(self, *, is_wanted: bool) -> bytes:
        rng = Random(f"{self._position.samples} {is_wanted}")
        place = tuple(rng.uniform(-BOUND_S, BOUND_S) for _ in range(DIMENSIONS))
        return Coordinate(place, BOUND_S, -BOUND_S, 0.0).pack()


def test_a_liar_does_not_spoil_what_the_others_know_of_each_other() -> None:
    world, ids = wan_fleet(on_a_map(10, 0.06, Random(8)), 8)
    world.swim(ids[0])._where.__class__ = Liar
    world.run(180.0)
    assert world.swim(ids[1])._roster.get(ids[0]).coordinate[-1] == 0, "the lie arrives"  # type: ignore[union-attr]
    world.kill(ids[0])  # only the honest ones are judged
    assert accuracy(world).error_median <= 0.25
    assert max(abs(part) for me in ids[1:] for part in world.swim(me).coordinate.place) <= 0.5


def test_one_seed_gives_one_trace_with_coordinates() -> None:
    def places() -> list[bytes]:
        world, ids = wan_fleet(five_cities(), 5)
        world.run(40.0)
        return [world.swim(me).coordinate.pack() for me in ids]

    assert places() == places()


# --- the wide preset under faults ----------------------------------------------------------------
@pytest.mark.parametrize(("sites", "within_s"), [(2, 2.0), (20, 5.0), (50, 5.0)])
def test_distant_sites_that_start_at_once_know_each_other(sites: int, within_s: float) -> None:
    world, _ = wan_fleet(on_a_map(sites, FAR_S, Random(1)), 1, jitter_s=0.005)
    took_s = world.until_converged(60.0)
    assert took_s is not None
    assert took_s <= within_s


@pytest.mark.parametrize("sites", [2, 3, 20])
def test_a_distant_process_that_was_killed_is_noticed_by_all_within_six_seconds(sites: int) -> None:
    assert max(max(death_times(sites, seed, host=False)) for seed in range(1, 5)) <= 6.0


@pytest.mark.parametrize("sites", [3, 20])
def test_a_distant_host_that_vanished_is_noticed_by_all_within_twenty_seconds(sites: int) -> None:
    assert max(max(death_times(sites, seed, host=True)) for seed in range(1, 4)) <= 20.0


@pytest.mark.parametrize(("sites", "cut_off"), [(20, 10), (20, 1), (5, 1), (2, 1), (9, 3)])
def test_a_healed_cut_between_regions_is_forgotten_within_seconds(sites: int, cut_off: int) -> None:
    world, ids = settled(sites, 4)
    cut_both_ways(world, ids[:cut_off], ids[cut_off:])
    world.run(60.0)
    world.network.heal()
    took_s = world.until_converged(60.0)
    assert took_s is not None
    assert took_s <= 10.0


def test_distant_members_that_stand_still_for_four_of_five_seconds_are_never_dead() -> None:
    world, ids = settled(12, 3)
    for _ in range(10):
        for frozen in ids[:3]:
            world.pause(frozen, 4.0)
        world.run(5.0)
    world.run(10.0)
    assert world.checks.verdicts == []
    assert world.until_converged(30.0) is not None


@pytest.mark.parametrize("loss", [0.1, 0.2, 0.3])
def test_loss_on_long_ways_kills_nobody_and_isolates_nobody(loss: float) -> None:
    world, ids = settled(10, 11)
    world.network.faults.loss = loss
    for _ in range(60):
        world.run(2.0)
        assert [i for i in ids if world.sites[i].is_isolated] == []
    assert world.checks.verdicts == []


def test_a_distant_site_whose_uplink_is_dead_says_isolated_within_five_seconds() -> None:
    for seed in range(1, 5):
        world, ids = settled(12, seed)
        world.sites[ids[3]].has_dead_uplink = True
        world.run(5.0)
        assert world.sites[ids[3]].is_isolated
        world.run(20.0)
        assert {v.subject for v in world.checks.verdicts} <= {ids[3]}
        assert [i for i in ids if world.sites[i].is_isolated] == [ids[3]]


def test_a_way_that_becomes_slow_is_measured_and_nobody_dies() -> None:
    world, ids = wan_fleet(five_cities(), 6)
    world.run(60.0)
    for other in ids[1:]:
        for pair in ((ids[0], other), (other, ids[0])):
            world.network.delays[pair] = 0.35
    world.run(120.0)
    assert world.checks.verdicts == []
    for other in ids[1:]:
        assert world.swim(ids[0]).members()[other].rtt_s == pytest.approx(0.7, rel=0.3)


@pytest.mark.parametrize("seed", range(1, 7))
def test_trouble_on_a_wide_network_ends_in_agreement(seed: int) -> None:
    sites = 8
    world, ids = wan_fleet(on_a_map(sites, FAR_S, Random(seed)), seed, jitter_s=0.005)
    assert world.until_converged(60.0) is not None
    rng, started_at = world.rng, world.now
    world.network.faults.loss = rng.choice((0.0, 0.1, 0.3))
    while world.now - started_at < 90.0:
        some = rng.sample(ids, rng.randint(1, sites - 1))
        stopped = [site for site in ids if world.sites[site].swim is None]
        match rng.choice(("kill", "start", "cut", "heal", "pause", "change")):
            case "kill" if len(stopped) < sites // 2:
                world.kill(rng.choice(world.running()), host=rng.choice((True, False)))
            case "start" if stopped:
                world.start(rng.choice(stopped))
            case "cut":
                world.network.cut(some, [site for site in ids if site not in some])
            case "heal":
                world.network.heal()
            case "pause":
                world.pause(rng.choice(ids), rng.uniform(0.5, 8.0))
            case "change":
                change = LocalChanged(capacity=rng.uniform(1, 9))
                world.change(rng.choice(world.running()), change)
            case _:
                pass
        world.run(rng.uniform(0.5, 6.0))
    world.network.heal()
    world.network.faults.loss = 0.0
    assert world.until_converged(120.0, 0.5) is not None
