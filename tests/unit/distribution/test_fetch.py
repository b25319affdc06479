import heapq
import itertools
from random import Random

import pytest

from agent.distribution.fetch import (
    COPIES_MAX,
    FAILURES_MAX,
    SOURCES_MAX,
    ChunkArrived,
    ChunkFailed,
    Complete,
    Failed,
    Fetch,
    FetchEffect,
    RequestChunk,
    SourceAdded,
)
from agent.foundation.machine import Woke


def make(chunks: int, *, held: tuple[int, ...] = (), seed: int = 1, width: int = 4) -> Fetch:
    return Fetch(chunks=chunks, held=held, rng=Random(seed), now=0.0, in_flight_max=width)


def requests(effects: list[FetchEffect]) -> list[tuple[str, int]]:
    return [(e.source, e.index) for e in effects if isinstance(e, RequestChunk)]


def test_what_is_held_is_not_asked_for() -> None:
    fetch = make(4, held=(0, 2))
    assert sorted(index for _, index in requests(fetch.step(SourceAdded("a"), 0.0))) == [1, 3]
    assert fetch.step(ChunkArrived("a", 1), 0.1) == []
    assert fetch.step(ChunkArrived("a", 3), 0.2) == [Complete()]
    assert fetch.is_over
    assert fetch.step(Woke(), 99.0) == []


def test_nothing_missing_is_complete_at_once() -> None:
    assert make(0).step(Woke(), 0.0) == [Complete()]
    assert make(2, held=(0, 1)).step(SourceAdded("a"), 0.0) == [Complete()]


def test_requests_to_one_source_are_bounded_and_refilled() -> None:
    fetch = make(20)
    first = requests(fetch.step(SourceAdded("a"), 0.0))
    assert len(first) == 4
    more = requests(fetch.step(ChunkArrived(*first[0]), 0.1))
    assert len(more) == 1
    assert more[0] not in first


def test_sources_share_the_work_without_asking_twice() -> None:
    fetch = make(20)
    asked = requests(fetch.step(SourceAdded("a"), 0.0)) + requests(
        fetch.step(SourceAdded("b"), 0.0)
    )
    assert len({index for _, index in asked}) == 8


def test_two_sites_begin_with_different_chunks() -> None:
    orders = [
        [i for _, i in requests(make(1000, seed=seed).step(SourceAdded("a"), 0.0))]
        for seed in range(5)
    ]
    assert len({index for order in orders for index in order}) > 15


def test_a_wrong_chunk_bans_its_source_and_another_brings_it() -> None:
    fetch = make(2, width=2)
    fetch.step(SourceAdded("liar"), 0.0)
    fetch.step(SourceAdded("honest"), 0.0)
    again = requests(fetch.step(ChunkFailed("liar", 0, "bad"), 0.1))
    assert all(source == "honest" for source, _ in again)
    fetch.step(ChunkFailed("liar", 1, "bad"), 0.1)
    fetch.step(ChunkArrived("honest", 0), 0.2)
    assert fetch.step(ChunkArrived("honest", 1), 0.2)[-1] == Complete()
    assert requests(fetch.step(SourceAdded("liar"), 0.3)) == []


def test_only_liars_fail_at_once_with_the_reason() -> None:
    fetch = make(2)
    fetch.step(SourceAdded("liar"), 0.0)
    (failed,) = fetch.step(ChunkFailed("liar", 1, "bad"), 0.1)
    assert isinstance(failed, Failed)
    assert "liar: sent a wrong chunk 1" in failed.reason


def test_a_silent_source_is_asked_later_and_then_given_up() -> None:
    fetch = make(1, width=1)
    now = 0.0
    effects = fetch.step(SourceAdded("a"), now)
    for _ in range(FAILURES_MAX - 1):
        assert requests(effects) == [("a", 0)]
        assert fetch.step(ChunkFailed("a", 0, "failed", "no answer"), now) == []
        assert fetch.wake_at() > now
        now = fetch.wake_at()
        effects = fetch.step(Woke(), now)
    (failed,) = fetch.step(ChunkFailed("a", 0, "failed", "no answer"), now)
    assert isinstance(failed, Failed)
    assert "no answer" in failed.reason


def test_a_source_that_is_fetching_too_is_asked_again_later() -> None:
    fetch = make(2, width=2)
    fetch.step(SourceAdded("partial"), 0.0)
    fetch.step(ChunkFailed("partial", 0, "missing"), 0.1)
    fetch.step(ChunkFailed("partial", 1, "missing"), 0.1)
    now = fetch.wake_at()
    assert 0.1 < now < 2.0
    ((_, index),) = requests(fetch.step(Woke(), now))  # cautiously, one at a time
    assert len(requests(fetch.step(ChunkArrived("partial", index), now))) == 1


def test_an_idle_source_helps_with_the_last_chunk() -> None:
    fetch = make(1)
    assert requests(fetch.step(SourceAdded("slow"), 0.0)) == [("slow", 0)]
    assert requests(fetch.step(SourceAdded("fast"), 0.1)) == [("fast", 0)]
    assert requests(fetch.step(SourceAdded("third"), 0.2)) == []
    assert COPIES_MAX == 2
    assert fetch.step(ChunkArrived("fast", 0), 0.3) == [Complete()]


def test_no_progress_ends_the_fetch() -> None:
    fetch = make(3)
    assert fetch.step(Woke(), 29.0) == []
    assert fetch.wake_at() == 30.0
    assert isinstance(fetch.step(Woke(), 30.0)[0], Failed)
    fetch = make(3)
    first = requests(fetch.step(SourceAdded("a"), 0.0))
    fetch.step(ChunkArrived(*first[0]), 25.0)
    assert fetch.step(Woke(), 54.0) == []
    assert isinstance(fetch.step(Woke(), 55.0)[0], Failed)


def test_the_number_of_sources_is_bounded() -> None:
    fetch = make(10_000)
    asked = [requests(fetch.step(SourceAdded(f"s{n}"), 0.0)) for n in range(SOURCES_MAX + 5)]
    assert sum(bool(one) for one in asked) <= SOURCES_MAX


def test_reports_about_nothing_asked_are_harmless() -> None:
    fetch = make(2)
    assert fetch.step(ChunkFailed("nobody", 7, "bad"), 0.0) == []
    fetch.step(SourceAdded("a"), 0.0)
    fetch.step(ChunkArrived("nobody", 1), 0.0)
    fetch.step(ChunkArrived("nobody", 77), 0.0)
    assert fetch.missing == 1


@pytest.mark.parametrize("seed", range(60))
def test_it_ends_complete_whatever_one_honest_source_is_mixed_with(seed: int) -> None:
    """A small world: sources that lie, stay silent, hold a part; one that has everything."""
    rng = Random(seed)
    chunks = rng.randrange(1, 60)
    fetch = Fetch(chunks=chunks, held=(), rng=Random(seed), now=0.0, in_flight_max=3)
    kinds = {
        "honest": "honest",
        **{f"s{n}": rng.choice(["liar", "silent", "part"]) for n in range(4)},
    }
    now = 0.0
    pending: list[tuple[float, str, int]] = []
    arrived: set[int] = set()
    outcome: FetchEffect | None = None
    effects: list[FetchEffect] = []
    for name in rng.sample(sorted(kinds), len(kinds)):
        effects += fetch.step(SourceAdded(name), now)
    for _ in range(5000):
        for effect in effects:
            if isinstance(effect, RequestChunk):
                pending.append((now + rng.uniform(0.01, 0.3), effect.source, effect.index))
            else:
                outcome = effect
        if outcome is not None:
            break
        assert len(pending) <= 3 * len(kinds)
        pending.sort()
        if pending and pending[0][0] <= fetch.wake_at():
            now, source, index = pending.pop(0)
            kind = kinds[source]
            if kind == "honest" or (kind == "part" and index % 2):
                arrived.add(index)
                effects = fetch.step(ChunkArrived(source, index), now)
            elif kind == "part":
                effects = fetch.step(ChunkFailed(source, index, "missing"), now)
            else:
                why = "bad" if kind == "liar" else "failed"
                effects = fetch.step(ChunkFailed(source, index, why), now)  # type: ignore[arg-type]
        else:
            now = max(now, fetch.wake_at())
            effects = fetch.step(Woke(), now)
    assert outcome == Complete()
    assert arrived == set(range(chunks))


def origin_copies(  # noqa: C901 - one loop over one kind of world
    sites: int, chunks: int, chunks_per_s: float = 40.0, rtt_s: float = 0.02
) -> float:
    """How many copies of a blob its origin sends when ``sites`` fetch it at once.

    Each site can send ``chunks_per_s``, one after the other; every site knows every other.
    """
    fetches = [Fetch(chunks=chunks, held=(), rng=Random(site), now=0.0) for site in range(sites)]
    have: list[set[int]] = [set() for _ in fetches] + [set(range(chunks))]
    free_at, sent = [0.0] * len(have), [0] * len(have)
    order = itertools.count()
    events: list[tuple[float, int, str, int, int, int]] = []

    def carry_out(site: int, effects: list[FetchEffect], now: float) -> None:
        for effect in effects:
            assert not isinstance(effect, Failed)
            if isinstance(effect, RequestChunk):
                at = now + rtt_s / 2
                asked = int(effect.source)
                heapq.heappush(events, (at, next(order), "ask", site, asked, effect.index))
        if not fetches[site].is_over:
            at = max(now, fetches[site].wake_at())
            heapq.heappush(events, (at, next(order), "wake", site, 0, 0))

    for site, fetch in enumerate(fetches):
        others = [other for other in range(len(have)) if other != site]
        effects: list[FetchEffect] = []
        for other in Random(site).sample(others, len(others)):
            effects += fetch.step(SourceAdded(str(other)), 0.0)
        carry_out(site, effects, 0.0)
    while events:
        now, _, what, site, other, index = heapq.heappop(events)
        fetch = fetches[site]
        if what == "wake" and now >= fetch.wake_at():
            carry_out(site, fetch.step(Woke(), now), now)
        elif what == "ask" and index in have[other]:
            free_at[other] = max(now, free_at[other]) + 1 / chunks_per_s
            sent[other] += 1
            back = free_at[other] + rtt_s / 2
            heapq.heappush(events, (back, next(order), "got", site, other, index))
        elif what == "ask":
            event = ChunkFailed(str(other), index, "missing")
            carry_out(site, fetch.step(event, now + rtt_s / 2), now + rtt_s / 2)
        elif what == "got":
            have[site].add(index)
            carry_out(site, fetch.step(ChunkArrived(str(other), index), now), now)
    assert all(fetch.is_over for fetch in fetches)
    return sent[-1] / chunks


def test_the_origins_egress_hardly_grows_with_the_number_of_sites() -> None:
    assert origin_copies(1, 100) == 1.0
    assert origin_copies(5, 100) < 3.0
    assert origin_copies(15, 100) < 4.0
