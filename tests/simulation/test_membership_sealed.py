"""Single stories in the sealed world: draining, leaving, stalls, clocks, addresses, revocation."""

import pytest

from agent.foundation.ids import SiteId
from agent.membership.events import LocalChanged
from agent.membership.settings import Settings
from agent.simulation.membership_chaos import LAN
from agent.simulation.membership_rules import Broken
from agent.simulation.membership_sealed import SealedWorld
from agent.simulation.membership_world import site_id
from agent.simulation.network import Faults
from agent.wire.records import STATEMENTS, Accusation


def calm(sites: int, seed: int) -> tuple[SealedWorld, list[SiteId]]:
    """Sites that know each other and have nothing more to say."""
    faults = Faults(delay_min_s=LAN.delay_min_s, delay_mean_s=LAN.delay_mean_s)
    world = SealedWorld(seed=seed, settings=Settings.lan(sites), faults=faults)
    ids: list[SiteId] = []
    for index in range(sites):
        ids.append(world.add(index, seeds=ids[:1]))
    assert world.until_converged(20.0) is not None
    world.run(12.0)
    world.checks.is_calm = True
    return world, ids


@pytest.mark.parametrize("sites", [5, 10, 20])
def test_everybody_knows_within_one_gossip_period_that_a_site_drains(sites: int) -> None:
    period_s = Settings.lan(sites).gossip_interval_s
    for seed in range(5):
        world, ids = calm(sites, seed)
        world.change(ids[2], LocalChanged(status="draining"))
        world.run(period_s + 0.02)  # the way there included
        told = {world.swim(i).members()[ids[2]].record.status for i in ids if i != ids[2]}
        assert told == {"draining"}


def test_who_leaves_is_left_for_everybody_at_once_and_accused_by_nobody() -> None:
    world, ids = calm(10, 1)
    world.leave(ids[4])
    world.run(1.0)
    assert {world.swim(i).members()[ids[4]].state for i in ids if i != ids[4]} == {"left"}
    world.run(20.0)
    assert world.checks.verdicts == []


def test_a_quarter_that_stands_still_four_of_every_five_seconds_accuses_nobody() -> None:
    world, ids = calm(12, 2)
    frozen = ids[:3]
    for _ in range(12):
        for site in frozen:
            world.pause(site, 4.0)
            world.checks.stirred(site, world.now + 5.0)
        world.run(5.0)  # an accusation of one of the other nine would raise
    assert world.checks.verdicts == []


def test_a_stopped_machine_whose_clock_stood_still_accuses_nobody() -> None:
    world, ids = calm(10, 3)
    for seconds in (1, 3, 7, 20):
        world.suspend(ids[0], seconds)
        world.checks.troubled(ids[0], world.now + seconds + 5.0)
        world.run(seconds + 10.0)
    assert world.until_converged(10.0) is not None
    assert {verdict.subject for verdict in world.checks.verdicts} <= {ids[0]}


@pytest.mark.parametrize("seed", range(20, 24))
def test_a_machine_that_slept_clock_and_all_hears_what_it_missed_when_it_wakes(seed: int) -> None:
    """It cannot know by itself that it slept; that others accused it says so."""
    world, ids = calm(10, seed)
    world.suspend(ids[0], 12)
    world.checks.troubled(ids[0], world.now + 30.0)
    world.network.cut(ids[1:], ids[:1])  # its buffers are full
    world.run(1.0)
    world.kill(ids[5], host=True)
    world.run(10.9)
    world.network.heal()
    assert world.swim(ids[1]).members()[ids[5]].state == "dead"
    world.run(9.0)
    assert world.swim(ids[0]).members()[ids[5]].state == "dead"


def test_addresses_that_change_hands_mislead_nobody() -> None:
    world, ids = calm(8, 4)
    one, other = ids[1], ids[5]
    hosts = [world.sites[site].endpoint.host for site in (one, other)]
    world.move(one, "10.9.9.9")
    world.move(other, hosts[0])
    world.move(one, hosts[1])
    assert world.until_converged(5.0) is not None
    assert world.checks.verdicts == []
    assert world.swim(ids[0]).members()[one].record.endpoint.host == hosts[1]


def test_a_wiped_site_returns_as_another_at_the_same_address() -> None:
    world, ids = calm(6, 5)
    world.kill(ids[3], host=True)
    host = world.sites[ids[3]].endpoint.host
    again = world.install(50, host, [ids[0]])
    assert again == site_id(50)
    assert world.until_converged(12.0) is not None
    members = world.swim(ids[0]).members()
    assert (members[ids[3]].state, members[again].state) == ("dead", "alive")


def test_a_site_that_lost_its_peer_book_is_found_again() -> None:
    world, ids = calm(6, 6)
    world.kill(ids[3], host=True)
    world.run(15.0)
    world.forget_peers(ids[3])
    world.start(ids[3])
    # It knows nobody and asks nobody: the others' peer books bring it back.
    assert world.until_converged(30.0) is not None


def test_a_revoked_key_is_heard_by_nobody_who_knows_also_after_a_restart() -> None:
    world, ids = calm(10, 7)
    victim = ids[6]
    world.revoke(victim, at=ids[0])
    world.run(5.0)
    assert all(victim in world.revoked[site] for site in ids if site != victim)
    assert all(victim not in world.swim(site).members() for site in ids if site != victim)
    world.kill(ids[2], host=True)
    world.start(ids[2])
    world.run(10.0)
    assert victim not in world.swim(ids[2]).members()
    assert world.sites[victim].is_isolated


def test_a_revocation_crosses_a_cut_as_soon_as_it_heals() -> None:
    world, ids = calm(8, 8)
    half = ids[:4], ids[4:]
    for some, others in (half, half[::-1]):
        world.network.cut(some, others)
    for site in ids:
        world.checks.cut(site)
    world.revoke(ids[3], at=ids[0])
    world.run(20.0)
    assert ids[3] not in world.revoked[ids[6]]
    world.network.heal()
    world.checks.healed(world.now)
    world.run(15.0)
    assert all(ids[3] in world.revoked[site] for site in ids if site != ids[3])
    assert world.until_converged(10.0) is not None


def test_the_rules_are_not_asleep() -> None:
    world, ids = calm(4, 9)
    with pytest.raises(Broken, match="boot epoch"):
        world.checks.booted(ids[0], 1)
    with pytest.raises(Broken, match="accuses"):
        world.checks.signed(ids[1], accusation(ids[1], ids[2]), world.now + 60.0)


def accusation(accuser: SiteId, subject: SiteId) -> bytes:
    return STATEMENTS.pack(Accusation(accuser, subject, 1 << 32))
