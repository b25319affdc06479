"""Sites that leave blobs while others do, with questions and answers in any order: two copies remain."""

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.distribution import retention
from agent.distribution.retention import (
    COPIES_MIN,
    Asked,
    Blob,
    Full,
    Leave,
    Look,
    Looked,
    Remove,
    Retention,
    RetentionEffect,
    Standing,
    Stay,
    Told,
)
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import Woke

BLOBS = [Digest(bytes([n]) * 32) for n in range(3)]
STEPS = 400


class World:
    """Sites with retention machines; messages are delivered in any order, some never."""

    def __init__(self, rng: Random, sites: int, loss: float, *, leaves_first: bool = True) -> None:
        self.rng, self.loss, self.leaves_first = rng, loss, leaves_first
        self.ids = [SiteId(bytes([n]) * 32) for n in range(sites)]
        self.files = [set(BLOBS) for _ in self.ids]
        self.told = [set(BLOBS) for _ in self.ids]
        """What each tells that it holds."""
        self.machines = [Retention(now=0.0) for _ in self.ids]
        self.under_way: list[Callable[[], None]] = []
        self.now = 0.0

    def run(self) -> None:
        for _ in range(STEPS):
            self.now += self.rng.choice((0.01, 1.0, 400.0))
            site = self.rng.randrange(len(self.ids))
            if self.under_way and self.rng.random() < 0.7:
                self.under_way.pop(self.rng.randrange(len(self.under_way)))()
            else:
                event = Full() if self.rng.random() < 0.5 else Woke()
                self.carry_out(site, self.machines[site].step(event, self.now))
            for digest in BLOBS:
                copies = sum(digest in files for files in self.files)
                assert copies >= COPIES_MIN, "nobody holds what everybody relied on"

    def carry_out(self, site: int, effects: list[RetentionEffect]) -> None:
        machine = self.machines[site]
        for effect in effects:
            match effect:
                case Look():
                    blobs = {d: Blob(Standing.NAMED) for d in sorted(self.files[site])}
                    self.carry_out(site, machine.step(Looked(blobs), self.now))
                case Leave(digest):
                    if self.leaves_first:
                        self.told[site].discard(digest)
                    others = [n for n in range(len(self.ids)) if n != site]
                    asked = frozenset(self.ids[n] for n in others)
                    self.carry_out(site, machine.step(Asked(digest, asked), self.now))
                    self.under_way += [self.question(site, n, digest) for n in others]
                case Stay(digest):
                    self.told[site].add(digest)
                case Remove(digest):
                    self.told[site].discard(digest)
                    self.files[site].discard(digest)

    def question(self, site: int, asked: int, digest: Digest) -> Callable[[], None]:
        def arrives() -> None:
            is_lost = self.rng.random() < self.loss
            is_held = not is_lost and digest in self.told[asked]
            told = Told(digest, self.ids[asked], is_held)
            self.under_way.append(
                lambda: self.carry_out(site, self.machines[site].step(told, self.now))
            )

        return arrives


def run_many(sites: int, *, leaves_first: bool = True) -> None:
    for seed in range(200):
        World(Random(seed), sites, 0.0, leaves_first=leaves_first).run()


@given(seed=st.integers(0, 2**32), sites=st.integers(2, 6), loss=st.sampled_from((0.0, 0.2)))
@settings(max_examples=150, deadline=None)
def test_two_copies_remain_however_questions_cross(seed: int, sites: int, loss: float) -> None:
    World(Random(seed), sites, loss).run()


def test_room_is_made_where_enough_others_hold_it() -> None:
    removed = 0
    for seed in range(20):
        world = World(Random(seed), 5, 0.0)
        world.run()
        removed += sum(len(BLOBS) - len(files) for files in world.files)
    assert removed > 100, "of 180 that may go"


def test_a_site_that_asks_before_it_leaves_is_found_out() -> None:
    """The control: with the order turned round the last copies go."""
    with pytest.raises(AssertionError, match="nobody holds"):
        run_many(3, leaves_first=False)


def test_one_other_copy_would_not_be_enough_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "COPIES_MIN", 1)
    with pytest.raises(AssertionError, match="nobody holds"):
        run_many(3)
