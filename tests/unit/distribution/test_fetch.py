"""Which chunk is asked of whom: rarest first, each site its part of whoever has all, liars never again."""

from random import Random

import pytest

from agent.distribution.fetch import (
    COPIES_MAX,
    FAILURES_MAX,
    HUNGRY_S,
    SHARED_CHUNKS_MIN,
    SOURCES_MAX,
    ChunkArrived,
    ChunkFailed,
    Complete,
    Drop,
    Failed,
    Fetch,
    FetchEffect,
    FetchEvent,
    Look,
    Looked,
    LookFailed,
    RequestChunk,
    SourceAdded,
)
from agent.foundation.machine import Woke


def make(chunks: int, *, held: tuple[int, ...] = (), seed: int = 1, width: int = 4) -> Fetch:
    return Fetch(chunks=chunks, held=held, rng=Random(seed), now=0.0, in_flight_max=width)


def requests(effects: list[FetchEffect]) -> list[tuple[str, int]]:
    return [(e.source, e.index) for e in effects if isinstance(e, RequestChunk)]


def looks(effects: list[FetchEffect]) -> list[str]:
    return [e.source for e in effects if isinstance(e, Look)]


def woken(fetch: Fetch) -> tuple[float, list[FetchEffect]]:
    """When it does something by itself next, and what."""
    while True:
        now = fetch.wake_at()
        if effects := fetch.step(Woke(), now):
            return now, effects


def mask(*chunks: int) -> int:
    return sum(1 << chunk for chunk in chunks)


def test_a_source_is_looked_at_and_asked_for_one_chunk_at_once() -> None:
    fetch = make(20)
    effects = fetch.step(SourceAdded("a"), 0.0)
    assert looks(effects) == ["a"]
    assert len(requests(effects)) == 1
    assert fetch.step(SourceAdded("a"), 0.0) == []


def test_what_is_held_is_not_asked_for() -> None:
    fetch = make(4, held=(0, 2))
    first = requests(fetch.step(SourceAdded("a"), 0.0))
    more = requests(fetch.step(ChunkArrived(*first[0]), 0.1))
    assert sorted(index for _, index in first + more) == [1, 3]
    assert fetch.step(ChunkArrived(*more[0]), 0.2) == [Complete()]
    assert fetch.is_over
    assert fetch.step(Woke(), 99.0) == []


def test_nothing_missing_is_complete_at_once() -> None:
    assert make(0).step(Woke(), 0.0) == [Complete()]
    assert make(2, held=(0, 1)).step(SourceAdded("a"), 0.0) == [Complete()]


def test_a_source_that_sends_is_asked_for_more_at_a_time_up_to_a_bound() -> None:
    fetch = make(40)
    under_way = requests(fetch.step(SourceAdded("a"), 0.0))
    most = 0
    for _ in range(10):
        under_way += requests(fetch.step(ChunkArrived(*under_way.pop(0)), 0.1))
        most = max(most, len(under_way))
        assert len(set(under_way)) == len(under_way)
    assert most == 4
    under_way += requests(fetch.step(ChunkFailed(*under_way.pop(0), "failed"), 0.2))
    assert len(under_way) == 3, "it rests, and begins with one"


def test_sources_share_the_work_without_asking_twice() -> None:
    fetch = make(20)
    asked = [
        index for n in range(8) for _, index in requests(fetch.step(SourceAdded(f"s{n}"), 0.0))
    ]
    assert len(set(asked)) == 8


def test_sites_begin_with_different_chunks() -> None:
    firsts = [requests(make(1000, seed=seed).step(SourceAdded("a"), 0.0))[0] for seed in range(20)]
    assert len(set(firsts)) > 15


def test_the_chunk_that_the_fewest_have_comes_first() -> None:
    fetch = make(6, width=1)
    busy = dict(one for name in "abc" for one in requests(fetch.step(SourceAdded(name), 0.0)))
    u, v, w = (index for index in range(6) if index not in busy.values())
    for name, chunks in (("c", mask(u)), ("b", mask(u, v)), ("a", mask(u, v, w))):
        assert requests(fetch.step(Looked(name, chunks), 0.0)) == []
    assert requests(fetch.step(ChunkArrived("a", busy["a"]), 0.1)) == [("a", w)]
    assert requests(fetch.step(ChunkArrived("a", w), 0.2)) == [("a", v)]
    assert requests(fetch.step(ChunkArrived("a", v), 0.3)) == [("a", u)]


def test_a_wrong_chunk_bans_its_source_drops_what_is_under_way_and_another_brings_it() -> None:
    fetch = make(8, width=2)
    first = requests(fetch.step(SourceAdded("liar"), 0.0))
    lies = requests(fetch.step(ChunkArrived(*first[0]), 0.0))
    assert len(lies) == 2
    asked = requests(fetch.step(SourceAdded("honest"), 0.0))
    effects = fetch.step(ChunkFailed(*lies[0], "bad"), 0.1)
    assert effects[0] == Drop("liar")
    asked += requests(effects)
    for source, index in asked:  # grows meanwhile
        assert source == "honest"
        asked += requests(fetch.step(ChunkArrived(source, index), 0.2))
    assert fetch.is_over
    assert {lies[0][1], lies[1][1]} <= {index for _, index in asked}


def test_only_liars_fail_at_once_with_the_reason() -> None:
    fetch = make(2)
    ((_, index),) = requests(fetch.step(SourceAdded("liar"), 0.0))
    failed = fetch.step(ChunkFailed("liar", index, "bad"), 0.1)[-1]
    assert isinstance(failed, Failed)
    assert f"liar: sent a wrong chunk {index}" in failed.reason


def test_a_silent_source_is_asked_later_and_then_given_up() -> None:
    fetch = make(1, width=1)
    now = 0.0
    effects = fetch.step(SourceAdded("a"), now)
    for _ in range(FAILURES_MAX - 1):
        assert requests(effects) == [("a", 0)]
        assert fetch.step(ChunkFailed("a", 0, "failed", "no answer"), now) == []
        assert fetch.wake_at() > now
        now, effects = woken(fetch)
    failed = fetch.step(ChunkFailed("a", 0, "failed", "no answer"), now)[-1]
    assert isinstance(failed, Failed)
    assert "no answer" in failed.reason


def test_a_source_that_does_not_tell_what_it_has_is_given_up_the_same() -> None:
    fetch, now = make(1), 0.0
    ((_, index),) = requests(fetch.step(SourceAdded("a"), now))
    fetch.step(ChunkFailed("a", index, "missing"), now)
    for _ in range(FAILURES_MAX - 1):
        assert fetch.step(LookFailed("a", "no answer"), now) == []
        now, effects = woken(fetch)
        assert looks(effects) == ["a"]
    assert isinstance(fetch.step(LookFailed("a", "no answer"), now)[-1], Failed)


def test_a_source_that_is_fetching_too_is_looked_at_again_and_asked_for_what_it_has() -> None:
    fetch = make(4)
    ((_, index),) = requests(fetch.step(SourceAdded("partial"), 0.0))
    assert fetch.step(ChunkFailed("partial", index, "missing"), 0.1) == [], "not at random again"
    assert fetch.step(Looked("partial", 0), 0.1) == []
    now = fetch.wake_at()
    assert 0.1 < now < 1.0
    assert fetch.step(Woke(), now) == [Look("partial")]
    assert requests(fetch.step(Looked("partial", mask(2)), now)) == [("partial", 2)]
    assert requests(fetch.step(ChunkFailed("partial", 2, "missing"), now)) == []


def test_one_that_has_nothing_is_looked_at_ever_less() -> None:
    looked_s: list[float] = []
    fetch, now = make(100), 0.0
    ((_, index),) = requests(fetch.step(SourceAdded("a"), now))
    fetch.step(ChunkFailed("a", index, "missing"), now)
    while now < 29.0:
        if looks(fetch.step(Woke(), now)) or not looked_s:
            looked_s.append(now)
            fetch.step(Looked("a", 0), now)
        now = fetch.wake_at()
    assert 5 < len(looked_s) < 15
    assert looked_s[-1] - looked_s[-2] > 10 * (looked_s[1] - looked_s[0])


def test_an_idle_source_helps_with_the_last_chunk() -> None:
    fetch = make(1)
    assert requests(fetch.step(SourceAdded("slow"), 0.0)) == [("slow", 0)]
    assert requests(fetch.step(SourceAdded("fast"), 0.1)) == [("fast", 0)]
    assert requests(fetch.step(SourceAdded("third"), 0.2)) == []
    assert COPIES_MAX == 2
    assert fetch.step(ChunkArrived("fast", 0), 0.3) == [Complete()]


def test_each_of_several_readers_asks_whoever_has_all_for_its_part() -> None:
    chunks = 2 * SHARED_CHUNKS_MIN
    asked = []
    for place in range(2):
        fetch = make(chunks)
        first = requests(fetch.step(SourceAdded("origin"), 0.0))
        fetch.step(Looked("origin", (1 << chunks) - 1, readers=2, place=place), 0.0)
        got = []
        under_way = requests(fetch.step(ChunkArrived(*first[0]), 0.0))
        while under_way:
            got.append(under_way.pop(0))
            under_way += requests(fetch.step(ChunkArrived(*got[-1]), 0.0))
        asked.append({index for _, index in got} | {first[0][1]} & set(range(place, chunks, 2)))
        assert requests(fetch.step(Woke(), HUNGRY_S - 0.1)) == []
        assert requests(fetch.step(Woke(), HUNGRY_S)), "the others give nothing"
    assert asked == [set(range(0, chunks, 2)), set(range(1, chunks, 2))]


def test_a_small_blob_is_simply_asked_of_whoever_has_it() -> None:
    chunks = SHARED_CHUNKS_MIN - 1
    fetch = make(chunks)
    under_way = requests(fetch.step(SourceAdded("origin"), 0.0))
    fetch.step(Looked("origin", (1 << chunks) - 1, readers=9, place=3), 0.0)
    while under_way:
        under_way += requests(fetch.step(ChunkArrived(*under_way.pop(0)), 0.0))
    assert fetch.is_over


def test_no_progress_ends_the_fetch() -> None:
    fetch = make(3)
    assert fetch.step(Woke(), 29.0) == []
    assert fetch.wake_at() == 30.0
    assert isinstance(fetch.step(Woke(), 30.0)[0], Failed)
    fetch = make(3)
    first = requests(fetch.step(SourceAdded("a"), 0.0))
    fetch.step(ChunkArrived(*first[0]), 25.0)
    assert not any(isinstance(e, Failed) for e in fetch.step(Woke(), 54.0))
    assert isinstance(fetch.step(Woke(), 55.0)[0], Failed)


def test_the_number_of_sources_is_bounded() -> None:
    fetch = make(10_000)
    asked = [requests(fetch.step(SourceAdded(f"s{n}"), 0.0)) for n in range(SOURCES_MAX + 5)]
    assert sum(bool(one) for one in asked) == SOURCES_MAX


def test_reports_about_nothing_asked_are_harmless() -> None:
    fetch = make(2)
    assert fetch.step(ChunkFailed("nobody", 7, "bad"), 0.0) == []
    assert fetch.step(Looked("nobody", 3), 0.0) == []
    assert fetch.step(LookFailed("nobody", "gone"), 0.0) == []
    fetch.step(SourceAdded("a"), 0.0)
    fetch.step(Looked("a", 1 << 70_000), 0.0)
    fetch.step(ChunkArrived("nobody", 1), 0.0)
    fetch.step(ChunkArrived("nobody", 77), 0.0)
    assert fetch.missing == 1


class Mixed:
    """Sources that lie, stay silent or hold a part, and one that has everything."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.chunks = self.rng.randrange(1, 60)
        self.kinds = {
            "honest": "honest",
            **{f"s{n}": self.rng.choice(["liar", "silent", "part"]) for n in range(4)},
        }
        self.arrived: set[int] = set()

    def answer(self, asked: RequestChunk | Look) -> FetchEvent:
        kind, source = self.kinds[asked.source], asked.source
        if isinstance(asked, Look):
            tells = sum(1 << n for n in range(1, self.chunks, 2))
            crowd = self.rng.choice([(1, 0), (3, 2), (20, 7)])
            if kind == "silent":
                return LookFailed(source, "no answer")
            return Looked(source, tells if kind == "part" else (1 << self.chunks) - 1, *crowd)
        if kind == "honest" or (kind == "part" and asked.index % 2):
            self.arrived.add(asked.index)
            return ChunkArrived(source, asked.index)
        if kind == "part":
            return ChunkFailed(source, asked.index, "missing")
        return ChunkFailed(source, asked.index, "bad" if kind == "liar" else "failed")


@pytest.mark.parametrize("seed", range(60))
def test_it_ends_complete_whatever_one_honest_source_is_mixed_with(seed: int) -> None:
    world = Mixed(seed)
    fetch = make(world.chunks, seed=seed, width=3)
    now, outcome = 0.0, None
    pending: list[tuple[float, str, RequestChunk | Look]] = []
    effects: list[FetchEffect] = []
    for name in world.rng.sample(sorted(world.kinds), len(world.kinds)):
        effects += fetch.step(SourceAdded(name), now)
    for _ in range(5000):
        for effect in effects:
            if isinstance(effect, RequestChunk | Look):
                pending.append((now + world.rng.uniform(0.01, 0.3), effect.source, effect))
            elif isinstance(effect, Drop):
                pending = [one for one in pending if one[1] != effect.source]
            else:
                outcome = effect
        if outcome is not None:
            break
        assert len(pending) <= 4 * len(world.kinds)
        assert fetch.wake_at() > now, "it would spin"
        pending.sort(key=lambda one: one[0])
        if pending and pending[0][0] <= fetch.wake_at():
            now, _, asked = pending.pop(0)
            effects = fetch.step(world.answer(asked), now)
        else:
            now = max(now, fetch.wake_at())
            effects = fetch.step(Woke(), now)
    assert outcome == Complete()
    assert world.arrived == set(range(world.chunks))
