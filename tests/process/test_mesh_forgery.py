"""A tenth of the attacks of ``benchmarks/mesh_attack.py``: forged, replayed and lying packets."""

from itertools import cycle
from random import Random

import pytest
from mesh_forger import (
    HONEST,
    Town,
    Townsman,
    mutations,
    outside_attack,
    over_udp,
)
from mesh_insider import inside_attack

from agent.membership.events import Leave

pytestmark = [pytest.mark.process, pytest.mark.timeout(120)]


@pytest.fixture
def town() -> Town:
    """Sites that have gossiped for a minute."""
    made = Town(11)
    made.run(60.0)
    return made


def sent_to(town: Town, victim: Townsman) -> tuple[list[bytes], list[bytes]]:
    """Packets that were sent to ``victim``, and to others."""
    mine = [packet for target, packet in town.sent if target == victim.site]
    others = [packet for target, packet in town.sent if target != victim.site]
    return mine, others


def test_the_town_works_without_an_attack(town: Town) -> None:
    """Else the tests below would prove nothing."""
    anna = town.named("anna")
    assert len(sent_to(town, anna)[0]) > 100
    assert anna.dropped == 0
    states = {member.state for one in town.honest for member in one.swim.members().values()}
    assert states == {"alive"}
    berta = town.named("berta")
    town.step(berta, Leave())
    town.run(1.0)
    assert anna.swim.members()[berta.site].state == "left"


def test_mutated_packets_change_nothing_and_raise_nothing(town: Town) -> None:
    anna = town.named("anna")
    mine, others = sent_to(town, anna)
    outcome = outside_attack(town, anna, mutations(mine, others, Random(5)), 100_000)
    assert (outcome.opened, outcome.raised, outcome.has_changed) == (0, [], False)


def test_replayed_packets_change_nothing_and_raise_nothing(town: Town) -> None:
    anna = town.named("anna")
    mine, _ = sent_to(town, anna)
    outcome = outside_attack(town, anna, cycle(mine), 10_000)
    assert (outcome.opened, outcome.raised, outcome.has_changed) == (0, [], False)


def test_a_forgotten_replay_window_would_be_noticed(town: Town) -> None:
    """The negative control: without its windows the site believes what it has heard before."""
    anna = town.named("anna")
    mine, _ = sent_to(town, anna)
    anna.sealer._windows.clear()
    assert outside_attack(town, anna, cycle(mine), 100).opened > 0


async def test_a_real_socket_drops_all_of_it_and_answers_nobody(town: Town) -> None:
    anna = town.named("anna")
    mine, others = sent_to(town, anna)
    for packets in (mutations(mine, others, Random(6)), cycle(mine)):
        found = await over_udp(anna, packets, 2_500)
        assert (found.sent, found.received, found.dropped) == (2_500, 2_500, 2_500)
        assert (found.heard, found.replies) == (0, 0)


def test_an_insider_can_kill_nobody_and_speak_for_nobody(town: Town) -> None:
    found = inside_attack(town, 10_000)
    assert found.raised == []
    assert (found.deaths, found.forged, found.suspects) == (set(), set(), set())
    assert found.opened > 5_000, "most of what it says is well formed"
    assert found.dropped > 2_000, "and what is not is counted"
    assert found.counted > 1_000, "as are the statements in it"
    assert set(HONEST) == {one.name for one in town.honest}
