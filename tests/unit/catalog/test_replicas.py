"""Who holds replicas: chosen alike everywhere, moved as little as can be, left only when others are there."""

from collections import Counter

from agent.catalog.replicas import LINGER_S, Candidate, Lingering, holders
from agent.foundation.ids import SiteId

KEY = b"k" * 8


def site(number: int) -> SiteId:
    return SiteId(number.to_bytes(32, "big"))


def edge(count: int, capacity: float = 1.0) -> list[Candidate]:
    return [Candidate(site(number), "edge", capacity) for number in range(1, count + 1)]


def test_the_choice_does_not_depend_on_the_order_of_the_candidates() -> None:
    assert holders("m", 3, edge(20)) == holders("m", 3, reversed(edge(20)))


def test_there_are_as_many_as_wanted_or_as_there_are() -> None:
    assert len(holders("m", 3, edge(20))) == 3
    assert len(holders("m", 3, edge(2))) == 2
    assert holders("m", 3, []) == []


def test_the_loss_of_a_site_moves_only_what_it_held() -> None:
    candidates = edge(30)
    for number in range(50):
        before = holders(f"m{number}", 3, candidates)
        lost = before[1]
        after = holders(f"m{number}", 3, [one for one in candidates if one.site != lost])
        assert after[:2] == [before[0], before[2]]
        other = next(one for one in candidates if one.site not in before)
        assert holders(f"m{number}", 3, [one for one in candidates if one != other]) == before


def test_a_site_twice_as_strong_holds_twice_as_many() -> None:
    candidates = [*edge(9), Candidate(site(99), "edge", 2.0)]
    held = Counter(holders(f"m{number}", 1, candidates)[0] for number in range(2000))
    assert 0.75 * 2 / 11 < held[site(99)] / 2000 < 1.25 * 2 / 11


def test_the_edge_is_chosen_first_and_what_it_cannot_hold_goes_to_the_region_and_then_the_core() -> (
    None
):
    regional, core = Candidate(site(50), "regional", 100.0), Candidate(site(60), "core", 1000.0)
    assert site(50) not in holders("m", 2, [*edge(2), regional, core])
    assert holders("m", 3, [*edge(2), regional, core])[2] == site(50)
    assert holders("m", 4, [*edge(2), regional, core])[3] == site(60)


def test_a_site_without_capacity_takes_no_part() -> None:
    assert holders("m", 2, edge(2, capacity=0.0)) == []


def test_nobody_leaves_before_those_who_follow_serve_and_a_minute_has_passed() -> None:
    lingering = Lingering()
    assert lingering.update({KEY}, {KEY: [site(1)]}, 0.0) == {KEY}
    assert lingering.update({KEY}, {KEY: []}, LINGER_S - 1) == {KEY}
    assert lingering.update({KEY}, {KEY: [site(1)]}, LINGER_S) == {KEY}
    assert lingering.update({KEY}, {KEY: []}, LINGER_S) == set()


def test_who_is_chosen_again_starts_over() -> None:
    lingering = Lingering()
    lingering.update({KEY}, {}, 0.0)
    lingering.update(set(), {}, LINGER_S - 1)
    assert lingering.update({KEY}, {}, LINGER_S) == {KEY}
    assert lingering.wake_at() == 2 * LINGER_S
