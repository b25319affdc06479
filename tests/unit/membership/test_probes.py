from collections import Counter
from random import Random

from mesh_of_statements import site

from agent.foundation.machine import NEVER
from agent.membership.probes import OpenProbes, ProbeOrder

ALL = tuple(site(f"s{number}") for number in range(20))
ME = site("me")


def test_every_second_probe_goes_to_the_ring_successor() -> None:
    order = ProbeOrder(ME, Random(1))
    chosen = [order.next(ALL) for _ in range(40)]
    successor = min([one for one in ALL if one > ME] or ALL)
    assert set(chosen[0::2]) == {successor}


def test_the_other_probes_reach_everybody_once_a_round() -> None:
    order = ProbeOrder(ME, Random(1))
    chosen = [order.next(ALL) for _ in range(80)][1::2]
    assert Counter(chosen[:20]) == Counter(ALL)
    assert Counter(chosen[20:]) == Counter(ALL)
    assert chosen[:20] != chosen[20:]


def test_the_highest_site_probes_the_lowest() -> None:
    highest = max(ALL)
    others = tuple(one for one in ALL if one != highest)
    assert ProbeOrder(highest, Random(1)).next(others) == min(others)


def test_a_new_member_enters_the_present_round() -> None:
    order = ProbeOrder(ME, Random(1))
    order.next(ALL)
    order.next(ALL)
    new = site("new")
    order.insert(new)
    assert new in [order.next((*ALL, new)) for _ in range(42)][1::2][:21]


def test_nobody_is_probed_where_nobody_is() -> None:
    assert ProbeOrder(ME, Random(1)).next(()) is None


def test_one_target_has_one_open_probe_and_their_number_is_bounded() -> None:
    probes = OpenProbes(2)
    first = probes.open(ALL[0], 0.0, 1.0)
    assert first is not None
    assert probes.open(ALL[0], 0.0, 1.0) is None
    assert probes.open(ALL[1], 0.0, 1.0) is not None
    assert probes.open(ALL[2], 0.0, 1.0) is None
    probes.close(first)
    assert probes.open(ALL[2], 0.0, 1.0) is not None


def test_relays_are_bounded() -> None:
    probes = OpenProbes(1)
    assert probes.relay(ME, 5, ALL[0], 1.0, 2.0) is not None
    assert probes.relay(ME, 6, ALL[1], 1.0, 2.0) is None


def test_a_stall_postpones_every_open_probe() -> None:
    probes = OpenProbes(8)
    probes.open(ALL[0], 0.0, 1.0)
    probes.hold(9.0)
    assert probes.due(8.9) == []
    assert len(probes.due(9.0)) == 1


def test_behind_a_silent_successor_the_next_ones_are_watched_too() -> None:
    sites = tuple(sorted(site(name) for name in "abcdefgh"))
    me, *others = sites
    order = ProbeOrder(me, Random(1))
    reachable = tuple(others)
    assert order.beyond(others[0], reachable) is None, "no turn has come yet"
    assert order.next(reachable) == others[0]
    assert order.beyond(others[3], reachable) is None, "another site watches that one"
    assert order.beyond(others[0], reachable) == others[1]
    assert order.beyond(others[1], reachable) == others[2]
    assert order.beyond(others[1], reachable) is None, "the chain has gone on"


def test_the_watch_ends_when_it_has_gone_round_the_ring() -> None:
    me, one, other = sorted(site(name) for name in "abc")
    order = ProbeOrder(me, Random(1))
    assert order.next((one, other)) == one
    assert order.beyond(one, (one, other)) == other
    assert order.beyond(other, (one, other)) is None
    assert order.beyond(one, (one,)) is None


def test_nobody_is_woken_once_nothing_is_open() -> None:
    probes = OpenProbes(8)
    probe = probes.open(site("a"), 0.0, 0.5)
    relay = probes.relay(site("b"), 7, site("c"), 0.3, 1.0)
    assert probe is not None
    assert relay is not None
    assert probes.wake_at() == 0.3
    probes.close(probe)
    assert probes.wake_at() == 0.3
    probes.close_relay(relay)
    assert probes.wake_at() == NEVER


def test_a_deadline_that_has_moved_is_found_when_the_former_one_comes() -> None:
    probes = OpenProbes(8)
    probe = probes.open(site("a"), 0.0, 0.5)
    assert probe is not None
    probes.hold(2.0)
    assert probes.due(0.5) == []
    probes.looked()
    assert probes.wake_at() == 2.0
    probe.repeat_at = 1.0
    probes.want(1.0)
    assert probes.wake_at() == 1.0
    assert probes.due(1.0) == [probe]
