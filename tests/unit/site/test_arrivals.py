from sites_of_one_cluster import World

from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.site.arrivals import QUIET_S, WAIT_MAX_S, WAITING_MAX, Arrivals
from agent.wire.mesh import Introduction, SyncRequest
from agent.wire.records import Passport, Signed

REQUEST = SyncRequest(
    Introduction(Passport((b"leaf", b"issuer")), Signed(b"record", bytes(64))), (), ()
)


def site(number: int) -> SiteId:
    return SiteId(number.to_bytes(32))


def test_one_that_comes_alone_is_answered_after_the_quiet_time() -> None:
    arrivals: Arrivals[SyncRequest] = Arrivals()
    assert arrivals.due_at == NEVER
    arrivals.add(7, site(1), REQUEST, 10.0)
    assert list(arrivals.take(10.0 + QUIET_S / 2)) == []
    assert list(arrivals.take(10.0 + QUIET_S)) == [(7, site(1), REQUEST)]
    assert arrivals.due_at == NEVER


def test_those_that_knock_one_after_the_other_are_answered_together_in_order() -> None:
    arrivals: Arrivals[SyncRequest] = Arrivals()
    for number in range(4):
        arrivals.add(number, site(number), REQUEST, 10.0 + number * QUIET_S * 0.9)
        assert list(arrivals.take(10.0 + number * QUIET_S * 0.9)) == []
    assert [call for call, _, _ in arrivals.take(10.0 + 4 * QUIET_S)] == [0, 1, 2, 3]


def test_the_first_waits_no_longer_than_the_bound_however_many_follow() -> None:
    arrivals: Arrivals[SyncRequest] = Arrivals()
    now, number = 10.0, 0
    while now < 10.0 + WAIT_MAX_S:
        arrivals.add(number, site(number), REQUEST, now)
        now, number = now + QUIET_S / 2, number + 1
    assert arrivals.due_at == 10.0 + WAIT_MAX_S
    assert len(list(arrivals.take(10.0 + WAIT_MAX_S))) == number


def test_no_more_than_the_bound_are_kept_waiting() -> None:
    arrivals: Arrivals[SyncRequest] = Arrivals()
    for number in range(WAITING_MAX):
        arrivals.add(number, site(number), REQUEST, 10.0)
    assert len(list(arrivals.take(10.0))) == WAITING_MAX


def test_sites_that_are_told_of_one_seed_at_once_need_one_sync_each_to_see_all() -> None:
    world = World()
    nodes = [world.add() for _ in range(8)]
    for node in nodes[1:]:
        world.meet(node, nodes[0])
    world.run(QUIET_S + 0.001)
    everybody = {node.site.me for node in nodes}
    assert all(node.alive() | {node.site.me} == everybody for node in nodes)
    syncs = [sum(isinstance(ask.message, SyncRequest) for ask in node.asked) for node in nodes]
    assert syncs == [0, 1, 1, 1, 1, 1, 1, 1]
