import itertools
from random import Random

from mesh_of_statements import site

from agent.foundation.ids import SiteId
from agent.membership.settings import Settings
from agent.membership.syncs import SyncPlan

A, B, C = site("a"), site("b"), site("c")
SETTINGS = Settings.lan()


class Bench:
    def __init__(self) -> None:
        self.asked: list[tuple[SiteId, str]] = []
        self.plan = SyncPlan(SETTINGS, Random(1), lambda *asked: self.asked.append(asked), 0.0)


def test_one_target_is_not_asked_twice_at_once_nor_too_often() -> None:
    bench = Bench()
    assert bench.plan.want(A, "r", 0.0)
    assert not bench.plan.want(A, "r", 10.0)
    bench.plan.ended(A, succeeded=True, now=0.0)
    assert not bench.plan.want(A, "r", SETTINGS.sync_spacing_s - 0.1)
    assert bench.plan.want(A, "r", SETTINGS.sync_spacing_s + 0.1)


def test_few_syncs_are_open_at_once_and_fewer_with_the_silent() -> None:
    bench = Bench()
    names = [site(str(number)) for number in range(10)]
    silent = [bench.plan.try_silent(name, "lost", 0.0) for name in names[:5]]
    assert silent == [True, True, False, False, False]
    hopeful = [bench.plan.want(name, "r", 0.0) for name in names[5:]]
    assert hopeful == [True, True, False, False, False]


def test_a_sync_whose_end_is_never_reported_stops_counting() -> None:
    bench = Bench()
    bench.plan.want(A, "r", 0.0)
    assert bench.plan.want(A, "r", SETTINGS.sync_timeout_s + 0.1)


def test_until_the_first_success_a_sync_is_tried_every_second_or_so() -> None:
    bench = Bench()
    now = 0.0
    for _ in range(5):
        bench.plan.run_periodic((A, B, C), 4, now)
        for target, _ in bench.asked:
            bench.plan.ended(target, succeeded=False, now=now)
        now += 1.25
    assert [reason for _, reason in bench.asked].count("join") >= 4


def test_afterwards_syncs_are_periodic() -> None:
    bench = Bench()
    bench.plan.ended(A, succeeded=True, now=0.0)
    for second in range(61):
        bench.plan.run_periodic((A, B), 3, float(second))
        for target, _ in bench.asked:
            bench.plan.ended(target, succeeded=True, now=float(second))
    assert 4 <= len(bench.asked) <= 6
    assert {reason for _, reason in bench.asked} == {"periodic"}


def test_the_first_success_is_the_join_and_a_repairing_sync_follows_soon() -> None:
    bench = Bench()
    bench.plan.ended(A, succeeded=True, now=0.0)
    bench.plan.run_periodic((A, B), 3, 0.7)
    assert bench.asked == []
    bench.plan.run_periodic((A, B), 3, 2.5)
    assert [reason for _, reason in bench.asked] == ["periodic"]


def test_a_greeted_site_leaves_its_own_join_until_greetings_had_time_to_end() -> None:
    bench = Bench()
    bench.plan.met(1.0)
    bench.plan.met(1.1)
    bench.plan.run_periodic((A, B), 3, 1.25)
    assert bench.asked == []
    bench.plan.run_periodic((A, B), 3, 1.6)
    assert [reason for _, reason in bench.asked] == ["join"]


def test_members_of_the_peer_book_are_asked_at_once() -> None:
    bench = Bench()
    bench.plan.met(1.0)
    bench.plan.hasten(1.0)
    bench.plan.run_periodic((A, B), 3, 1.0)
    assert [reason for _, reason in bench.asked] == ["join"]


def test_word_of_many_unknown_members_makes_one_sync() -> None:
    bench = Bench()
    for number in range(50):
        bench.plan.look_up((A, B)[number % 2], 0.0)
    assert bench.asked == []
    bench.plan.run_look_up(0.02)
    assert bench.asked == [(B, "unknown member")]
    bench.plan.look_up(A, 0.03)
    bench.plan.run_look_up(0.09)
    assert len(bench.asked) == 1
    bench.plan.run_look_up(0.13)
    assert bench.asked[1:] == [(A, "unknown member")]


def test_a_healed_cut_brings_one_sync_forward() -> None:
    bench = Bench()
    bench.plan.ended(A, succeeded=True, now=0.0)
    bench.plan.run_periodic((A,), 2, 6.0)
    assert bench.plan.wake_at > 16.0
    bench.plan.bring_forward(7.0)
    assert 9.0 <= bench.plan.wake_at <= 11.0


def test_a_differing_catalog_is_synced_soon_and_then_ever_more_slowly() -> None:
    bench = Bench()
    times = []
    now = 0.0
    while now < 300.0:
        bench.plan.catalog_differs(3, now)
        before = len(bench.asked)
        bench.plan.run_catalog(lambda: [A], now)
        if len(bench.asked) > before:
            times.append(now)
            bench.plan.ended(A, succeeded=True, now=now)
        now += 0.05
    assert times[0] <= 0.1
    gaps = [late - early for early, late in itertools.pairwise(times)]
    assert gaps[0] <= 1.1
    assert gaps[-1] >= 25.0
    bench.plan.catalog_changed()
    bench.plan.catalog_differs(3, now + 60)
    bench.plan.run_catalog(lambda: [B], now + 61)
    assert bench.asked[-1] == (B, "catalog differs")


def test_a_catalog_sync_that_finds_its_target_busy_happens_a_little_later() -> None:
    """A revocation that came while two sites were in another sync waited for the next periodic one."""
    bench = Bench()
    assert bench.plan.want(A, "join", 0.0)
    bench.plan.catalog_differs(3, 0.1)
    bench.plan.run_catalog(lambda: [A], 0.3)
    assert [reason for _, reason in bench.asked] == ["join"]
    bench.plan.ended(A, succeeded=True, now=0.4)
    bench.plan.run_catalog(lambda: [A], 1.0)
    assert bench.asked[-1] == (A, "catalog differs")


def test_a_catalog_sync_that_fails_is_tried_again_ever_more_slowly() -> None:
    bench = Bench()
    bench.plan.catalog_differs(3, 0.0)
    tried = []
    for tenth in range(1200):
        now = tenth / 10
        before = len(bench.asked)
        bench.plan.run_catalog(lambda: [A], now)
        if len(bench.asked) > before:
            tried.append(now)
            bench.plan.ended(A, succeeded=False, now=now)
    assert 4 <= len(tried) <= 10
    gaps = [later - earlier for earlier, later in itertools.pairwise(tried)]
    assert gaps[-1] > 4 * gaps[0]


def test_no_catalog_sync_happens_once_nobody_differs() -> None:
    bench = Bench()
    bench.plan.catalog_differs(3, 0.0)
    bench.plan.run_catalog(list, 1.0)
    assert bench.asked == []


def test_a_periodic_sync_that_fails_is_repeated_soon_and_one_that_cannot_begin_goes_elsewhere() -> (
    None
):
    bench = Bench()
    bench.plan.want(A, "r", 0.0)
    bench.plan.ended(A, succeeded=True, now=0.0)
    bench.plan.run_periodic((A, B, C), 4, 30.0)
    ((_, _), (first, reason)) = bench.asked
    assert reason == "periodic"
    bench.plan.ended(first, succeeded=False, now=33.0)
    assert 34.0 <= bench.plan.wake_at <= 35.0
    bench.plan.run_periodic((first, B, C), 4, bench.plan.wake_at)
    assert len(bench.asked) == 3
    again = bench.asked[2][0]
    bench.plan.ended(again, succeeded=True, now=36.0)
    assert bench.plan.wake_at > 36.0 + SETTINGS.sync_interval_s / 2

    open_with = [one for one in (A, B, C) if one != again][:1]
    bench.plan.want(open_with[0], "r", 60.0)  # under way: another one is asked instead
    bench.plan.run_periodic((open_with[0], again), 3, 60.0)
    assert bench.asked[-1] == (again, "periodic")
