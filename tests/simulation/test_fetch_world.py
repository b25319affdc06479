"""Many sites fetch a blob at once, with the machine of the real site: what that costs its origin."""

import heapq
import itertools
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest

from agent.distribution.fetch import (
    ChunkArrived,
    ChunkFailed,
    Complete,
    Drop,
    Fetch,
    FetchEffect,
    Look,
    Looked,
    RequestChunk,
    SourceAdded,
)
from agent.foundation.machine import Woke

RTT_S = 0.02
SPREAD_S = 0.2
"""Sites hear of the blob within so long."""
SOURCES = 16
ORIGIN = -1


@dataclass
class Crowd:
    """Each site sends its chunks one after the other; ``rates`` are chunks a second, by site."""

    sites: int
    chunks: int
    seed: int
    rates: dict[int, float] = field(default_factory=dict)
    liars: frozenset[int] = frozenset()
    sent: dict[int, int] = field(default_factory=dict)
    lies: int = 0
    ended_s: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rng = Random(self.seed)
        self.have = dict.fromkeys(range(self.sites), 0) | {ORIGIN: (1 << self.chunks) - 1}
        self.free_s = dict.fromkeys(self.have, 0.0)
        self.readers: dict[int, dict[int, float]] = {site: {} for site in self.have}
        self.fetches: dict[int, Fetch] = {}
        self.wakes_s: dict[int, float] = {}
        self.events: list[tuple[float, int, int, Any]] = []
        self.order = itertools.count()

    def run(self) -> float:
        """Copies of the blob that the origin has sent, when all are complete."""
        for site in range(self.sites):
            self.push(self.rng.random() * SPREAD_S, site, "begin")
        while self.events:
            now, _, site, event = heapq.heappop(self.events)
            if event == "begin":
                self.begin(site, now)
            elif isinstance(event, tuple):
                self.serve(event[0], event[1], site, now)
            elif not self.fetches[site].is_over:
                if isinstance(event, ChunkArrived):
                    self.have[site] |= 1 << event.index
                self.carry_out(site, self.fetches[site].step(event, now), now)
        assert len(self.ended_s) == self.sites
        return self.sent.get(ORIGIN, 0) / self.chunks

    def push(self, at_s: float, site: int, event: Any) -> None:
        heapq.heappush(self.events, (at_s, next(self.order), site, event))

    def begin(self, site: int, now: float) -> None:
        rng = Random(self.rng.getrandbits(32))
        fetch = self.fetches[site] = Fetch(chunks=self.chunks, held=(), rng=rng, now=now)
        others = [other for other in range(self.sites) if other != site]
        self.rng.shuffle(others)
        for source in (ORIGIN, *others[: SOURCES - 1]):
            self.carry_out(site, fetch.step(SourceAdded(str(source)), now), now)

    def carry_out(self, site: int, effects: list[FetchEffect], now: float) -> None:
        for effect in effects:
            if isinstance(effect, RequestChunk | Look):
                self.push(now + RTT_S / 2, site, (int(effect.source), effect))
            elif isinstance(effect, Complete):
                self.ended_s[site] = now
            else:
                assert isinstance(effect, Drop), effect
        wakes_s = self.fetches[site].wake_at()
        if wakes_s != self.wakes_s.get(site):
            self.wakes_s[site] = wakes_s
            self.push(max(now, wakes_s), site, Woke())

    def serve(self, source: int, asked: RequestChunk | Look, site: int, now: float) -> None:
        self.readers[source][site] = now
        back_s = now + RTT_S / 2
        if isinstance(asked, Look):
            active = sorted(at for at, s in self.readers[source].items() if s > now - 10)
            seen = Looked(asked.source, self.have[source], len(active), active.index(site))
            self.push(back_s, site, seen)
        elif source in self.liars:
            self.lies += 1
            self.push(back_s, site, ChunkFailed(asked.source, asked.index, "bad"))
        elif self.have[source] >> asked.index & 1:
            took_s = 1 / self.rates.get(source, 100.0)
            self.free_s[source] = max(now, self.free_s[source]) + took_s
            self.sent[source] = self.sent.get(source, 0) + 1
            got = ChunkArrived(asked.source, asked.index)
            self.push(self.free_s[source] + RTT_S / 2, site, got)
        else:
            self.push(back_s, site, ChunkFailed(asked.source, asked.index, "missing"))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sites", [2, 8, 20])
def test_the_origin_sends_a_blob_hardly_more_than_once(sites: int, seed: int) -> None:
    assert Crowd(sites, 300, seed).run() < 1.2


@pytest.mark.parametrize("seed", range(4))
def test_twenty_sites_cost_the_origin_twice_the_blob_at_most_though_some_are_slow(
    seed: int,
) -> None:
    crowd = Crowd(20, 200, seed, rates={0: 0.5, 1: 1.0, 2: 2.0})
    assert crowd.run() < 2.0
    assert max(crowd.ended_s.values()) < 10.0, (
        "nobody waits for the slow ones: 400 s at 0.5 a second"
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_liar_costs_each_reader_one_chunk(seed: int) -> None:
    crowd = Crowd(10, 100, seed, liars=frozenset({3, 4}))
    crowd.run()
    assert crowd.lies <= 2 * 10
