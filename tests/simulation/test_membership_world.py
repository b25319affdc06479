"""Whole fleets under faults, and the proof that the checks see: each mutant removes one guard."""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import pytest

from agent.foundation.ids import SiteId
from agent.membership.events import Introduced, LocalChanged
from agent.membership.roster import Roster, Verdict
from agent.membership.settings import Settings
from agent.membership.swim import Swim
from agent.simulation.membership_checks import Violation
from agent.simulation.membership_scenarios import (
    add_arguments,
    chaos,
    fleet,
    run,
    settled_fleet,
    tour,
)
from agent.simulation.membership_world import MembershipWorld
from agent.wire.records import STATEMENTS, Accusation, Endpoint, Signed, SiteRecord

LAN = Settings.lan()


def death_times(sites: int, seed: int, *, host: bool) -> list[float]:
    """Seconds from a loss to each survivor's verdict."""
    world, ids = settled_fleet(sites, seed)
    victim = world.rng.choice(ids)
    lost_at = world.now
    world.kill(victim, host=host)
    world.run(12.0)
    assert world.checks.false_deaths() == []
    times = [v.at - lost_at for v in world.checks.verdicts if v.subject == victim]
    assert len(times) == sites - 1, "everybody notices, once"
    return times


def cut_both_ways(world: MembershipWorld, some: list[SiteId], others: list[SiteId]) -> None:
    world.network.cut(some, others)
    world.network.cut(others, some)


# --- what the goals ask for ----------------------------------------------------------------------
@pytest.mark.parametrize(("sites", "within_s"), [(2, 0.2), (20, 0.5), (40, 1.0)])
def test_sites_that_start_at_once_know_each_other(sites: int, within_s: float) -> None:
    world, _ = fleet(sites, 1)
    took_s = world.until_converged(20.0, 0.05)
    assert took_s is not None
    assert took_s <= within_s


def test_idle_sites_send_at_most_250_bytes_a_second_each() -> None:
    world, ids = fleet(20, 2, measures_bytes=True)
    world.run(20.0)
    before = sum(site.bytes_sent for site in world.sites.values())
    world.run(30.0)
    sent = sum(site.bytes_sent for site in world.sites.values()) - before
    assert 100 < sent / 30.0 / len(ids) <= 250


@pytest.mark.parametrize("sites", [2, 3, 5, 20])
def test_a_killed_process_is_noticed_by_all_within_three_seconds(sites: int) -> None:
    last = [max(death_times(sites, seed, host=False)) for seed in range(4)]
    assert max(last) <= 3.0


@pytest.mark.parametrize("sites", [3, 20])
def test_a_vanished_host_is_noticed_by_all_within_six_and_a_half_seconds(sites: int) -> None:
    last = [max(death_times(sites, seed, host=True)) for seed in range(4)]
    assert max(last) <= 6.5
    assert median(last) <= 5.5


@pytest.mark.parametrize("gone", [2, 3])
def test_ring_neighbours_that_vanish_together_are_noticed_like_a_single_site(gone: int) -> None:
    slowest = 0.0
    for seed in range(8):
        world, ids = settled_fleet(20, seed)
        world.run(30.0)  # until nobody is excused as known from the peer book only
        ring = sorted(ids)
        at = world.rng.randrange(len(ring))
        victims = [ring[(at + step) % len(ring)] for step in range(gone)]
        lost_at = world.now
        for victim in victims:
            world.kill(victim, host=True)
        world.run(12.0)
        times = [v.at - lost_at for v in world.checks.verdicts]
        assert len(times) == gone * (20 - gone)
        slowest = max(slowest, *times)
    assert slowest <= 6.5


def test_members_that_stand_still_for_four_of_five_seconds_are_never_dead() -> None:
    world, ids = settled_fleet(12, 3)
    for _ in range(6):
        for frozen in ids[:3]:
            world.pause(frozen, 4.0)
        world.run(5.0)
    world.run(5.0)
    assert world.checks.verdicts == []
    assert world.until_converged(20.0) is not None


@pytest.mark.parametrize(("sites", "cut_off"), [(20, 10), (20, 1), (5, 1), (2, 1), (9, 3)])
def test_a_healed_cut_is_forgotten_within_seconds(sites: int, cut_off: int) -> None:
    world, ids = settled_fleet(sites, 4)
    cut_both_ways(world, ids[:cut_off], ids[cut_off:])
    world.run(25.0)
    world.network.heal()
    took_s = world.until_converged(60.0)
    assert took_s is not None
    assert took_s <= 10.0


@pytest.mark.parametrize("sites", [4, 20])
def test_a_cut_of_thirty_days_heals_like_one_of_seconds(sites: int) -> None:
    world, ids = settled_fleet(sites, 5)
    cut_both_ways(world, ids[: sites // 2], ids[sites // 2 :])
    world.run(30.0)
    for site in ids:
        dead = [p for p in world.swim(site)._roster.peers() if p.state == "dead"]
        assert len(dead) == sites // 2
        for peer in dead:
            # What 30 days leave behind: every back-off at its cap, in no particular phase.
            peer.retry_delay_s = LAN.retry_cap_s(sites // 2)
            peer.retry_at = world.now + world.rng.uniform(0, peer.retry_delay_s)
    world.network.heal()
    took_s = world.until_converged(60.0)
    assert took_s is not None
    assert took_s <= 10.0


@pytest.mark.timeout(300)
def test_a_cut_of_eight_hours_really_lived_through_heals_like_one_of_seconds() -> None:
    world, ids = settled_fleet(4, 6)
    cut_both_ways(world, ids[:2], ids[2:])
    world.run(8 * 3600.0)
    assert {
        p.retry_delay_s for s in ids for p in world.swim(s)._roster.peers() if p.state == "dead"
    } == {LAN.retry_cap_s(2)}
    world.network.heal()
    took_s = world.until_converged(60.0)
    assert took_s is not None
    assert took_s <= 10.0


def test_two_clusters_that_never_met_become_one() -> None:
    world, ids = settled_fleet(6, 6)
    strangers = [world.add(100)]
    strangers += [world.add(100 + number, seeds=strangers[:1]) for number in range(1, 6)]
    world.run(5.0)
    assert not world.has_converged()
    world.introduce(ids[0], strangers[0])
    took_s = world.until_converged(60.0)
    assert took_s is not None
    assert took_s <= 10.0


@pytest.mark.parametrize("moves", [False, True])
def test_a_restarted_site_is_seen_by_all_at_once_also_at_a_new_address(*, moves: bool) -> None:
    world, ids = settled_fleet(12, 7)
    again = ids[5]
    world.kill(again, host=True)
    world.run(0.7)
    if moves:
        world.sites[again].endpoint = Endpoint("10.200.0.9", 7411, 7412)
    world.start(again)
    took_s = world.until_converged(10.0, 0.05)
    assert took_s is not None
    assert took_s <= 0.6
    endpoint = world.swim(ids[0]).members()[again].record.endpoint
    assert endpoint == world.sites[again].endpoint


def test_a_site_whose_uplink_is_dead_says_isolated_and_blames_nobody() -> None:
    world, ids = settled_fleet(12, 8)
    world.sites[ids[3]].has_dead_uplink = True
    world.run(5.0)
    assert world.sites[ids[3]].is_isolated
    world.run(10.0)
    assert all(verdict.subject == ids[3] for verdict in world.checks.verdicts)
    assert [i for i in ids if world.sites[i].is_isolated] == [ids[3]]


def test_two_sites_that_cannot_reach_each_other_stay_alive_for_all() -> None:
    world, ids = settled_fleet(8, 9)
    cut_both_ways(world, [ids[1]], [ids[2]])
    world.run(60.0)
    assert world.checks.verdicts == []
    assert world.swim(ids[1]).members()[ids[2]].is_relayed


def test_a_rumor_reaches_everybody_at_ten_percent_loss() -> None:
    world, ids = settled_fleet(20, 10)
    world.network.faults.loss = 0.1
    for number in range(20):
        source = world.rng.choice(ids)
        world.change(source, LocalChanged(capacity=float(number + 2)))
        world.run(1.5)
        seen = [world.swim(i).members()[source].record.capacity for i in ids if i != source]
        assert set(seen) == {float(number + 2)}


def test_loss_of_a_third_of_all_packets_kills_nobody() -> None:
    world, _ = settled_fleet(10, 11)
    world.network.faults.loss = 0.3
    world.run(60.0)
    assert world.checks.verdicts == []


def test_a_member_that_said_goodbye_is_left_and_never_dead() -> None:
    world, ids = settled_fleet(8, 12)
    world.leave(ids[4])
    world.run(15.0)
    assert world.checks.verdicts == []
    assert {world.swim(i).members()[ids[4]].state for i in ids if i != ids[4]} == {"left"}


@pytest.mark.parametrize("seed", range(1, 9))
def test_chaos_ends_in_agreement(seed: int) -> None:
    assert chaos(seed, sites=8, seconds=30.0) is not None


def test_one_seed_gives_one_trace() -> None:
    first, second = (tour(6, 3, 60.0) for _ in range(2))
    assert first == second
    assert first.is_good


def test_the_command_line_reports_and_judges(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    tour_of_six = ["--tour", "--sites", "6", "--seed", "2", "--seconds", "60"]
    assert run(parser.parse_args(tour_of_six)) == 0
    assert "deaths declared of running sites" in capsys.readouterr().out
    assert run(parser.parse_args(["--sites", "6", "--seeds", "2", "--seconds", "10"])) == 0
    assert "agreed after" in capsys.readouterr().out


# --- mutants that the checks must catch ----------------------------------------------------------
class Believer(Roster):
    """Mutant: believes any record, signed or not, old or new."""

    def take_record(self, record: SiteRecord, signed: Signed, now: float) -> Verdict:
        self._notary = Yes()
        return super().take_record(record, signed, now)


class Yes:
    """A notary that says yes."""

    def sign(self, body: bytes) -> bytes:
        raise AssertionError(body)

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        return bool(site and body and signature)


def mutant(
    settings: Settings | None = None, roster: type[Roster] | None = None
) -> Callable[..., Swim]:
    def build(**parts: object) -> Swim:
        if settings is not None:
            parts["settings"] = settings
        swim = Swim(**parts)  # type: ignore[arg-type]
        if roster is not None:
            swim._roster.__class__ = roster
        return swim

    return build


def test_mutant_too_hasty_to_forgive_a_stall_is_caught() -> None:
    hasty = replace(LAN, suspicion_min_s=1.0)
    world, ids = settled_fleet(8, 13, machine=mutant(hasty))
    for _ in range(4):
        for frozen in ids[:2]:
            world.pause(frozen, 4.0)
        world.run(5.0)
    assert world.checks.false_deaths() != []


def forge(world: MembershipWorld, target: SiteId, subject: SiteId) -> None:
    """A record that its subject never made reaches ``target``."""
    record = world.swim(subject).record
    forged = replace(record, sequence=record.sequence + 9, load=0.77)
    world.step(target, Introduced((Signed(STATEMENTS.pack(forged), bytes(64)),)))


def test_mutant_that_checks_no_signature_is_caught() -> None:
    world, ids = settled_fleet(4, 14)
    forge(world, ids[1], ids[2])
    world, ids = settled_fleet(4, 14, machine=mutant(roster=Believer))
    with pytest.raises(Violation, match="never made"):
        forge(world, ids[1], ids[2])


def test_mutant_that_never_tries_the_dead_again_is_caught() -> None:
    forgetful = replace(LAN, recovery_interval_s=1e9, recovery_fast_s=1e9)
    world, ids = settled_fleet(8, 15, machine=mutant(forgetful))
    cut_both_ways(world, ids[:4], ids[4:])
    world.run(25.0)
    world.network.heal()
    assert world.until_converged(60.0) is None


class Amnesiac(Roster):
    """Mutant: lets an older incarnation replace a newer one."""

    def take_record(self, record: SiteRecord, signed: Signed, now: float) -> Verdict:
        peer = self.get(record.site)
        if peer is not None and record.sequence < peer.record.sequence:
            peer.record = replace(peer.record, sequence=0, incarnation=0)
        return super().take_record(record, signed, now)


def test_mutant_that_takes_back_an_incarnation_is_caught() -> None:
    for roster in (None, Amnesiac):
        world, ids = settled_fleet(4, 16, machine=mutant(roster=roster))
        old = world.swim(ids[2]).signed
        world.change(ids[2], LocalChanged(capacity=3.0))
        world.run(2.0)
        world.swim(ids[1])._testimony.seen = type(world.swim(ids[1])._testimony.seen)(10)
        if roster is None:
            world.step(ids[1], Introduced((old,)))
        else:
            with pytest.raises(Violation, match="fell"):
                world.step(ids[1], Introduced((old,)))


def test_an_accusation_cannot_be_replayed_against_a_later_incarnation() -> None:
    world, ids = settled_fleet(5, 17)
    claim = Accusation(ids[1], ids[2], world.swim(ids[2]).record.incarnation)
    body = STATEMENTS.pack(claim)
    signed = Signed(body, world.sign_as(ids[1], body))
    world.step(ids[3], Introduced((signed,)))
    world.run(3.0)
    assert world.swim(ids[2]).record.incarnation > claim.incarnation
    world.step(ids[3], Introduced((signed,)))
    assert world.swim(ids[3]).members()[ids[2]].state == "alive"
