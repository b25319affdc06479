"""Twenty sites under faults: a good version reaches all in order, a bad one is gone everywhere.

Each rule is kept sharp by a mutant of the machine that must break it.
"""

from collections.abc import Mapping
from typing import Any

import pytest

from agent.catalog.rollout import Here, Part, Peer
from agent.foundation.ids import SiteId
from agent.simulation.rollout_world import Scenario, Version, World, calm
from agent.wire.documents import Rollout
from agent.wire.records import Gate, Stage

SEEDS = 12
VERSIONS: tuple[Version, ...] = ("good", "refused", "failing", "slow", "odd")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_rule_holds_through_crashes_cuts_and_loss(version: Version) -> None:
    for seed in range(SEEDS):
        world = World(seed, Scenario(version)).run()
        assert world.broken == [], (
            f"python -m agent.simulation rollout --version {version} --seed {seed}"
        )


def test_in_calm_a_good_version_takes_the_waves_one_after_the_other() -> None:
    world = World(1, calm("good")).run()
    assert [len(wave) for wave in world.waves] == [1, 7, 12]
    begun = [sorted(world.began_at[site] for site in wave) for wave in world.waves]
    assert begun[1][0] - begun[0][0] > 10.0
    assert begun[2][0] - begun[1][-1] > 10.0


@pytest.mark.parametrize("version", ["refused", "failing", "slow"])
def test_in_calm_a_bad_version_meets_the_first_wave_only_and_is_gone_within_seconds(
    version: Version,
) -> None:
    for seed in range(5):
        world = World(seed, calm(version)).run()
        assert world.exposed <= set(world.waves[0])
        assert world.failed_at is not None
        assert world.back_at - world.failed_at < 3.0


def test_a_site_that_fails_in_the_second_wave_takes_all_back() -> None:
    world = World(1, calm("odd")).run()
    stages = world.stages()
    assert world.odd is not None
    assert stages.pop(world.odd) is Stage.FAILED
    assert set(stages.values()) == {Stage.STOPPED}
    assert world.exposed <= {*world.waves[0], *world.waves[1]}


class Deaf(Part):
    """Does not go back for others."""

    def step(self, terms: Rollout, peers: Mapping[SiteId, Peer], here: Here, now: float) -> bool:
        bad = (Stage.FAILED, Stage.STOPPED)
        heard = {site: peer for site, peer in peers.items() if peer.stage not in bad}
        return super().step(terms, heard, here, now)


class Hasty(Part):
    """Begins whatever the others tell."""

    def _why_not_yet(self, *_: object) -> str:
        return ""


class Blind(Part):
    """Judges no gate."""

    def _gate(self, *_: object) -> tuple[Gate, str]:
        return Gate.NONE, ""


class Forgetful(Part):
    """Knows nothing of its outcome after a restart."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments[:3])


@pytest.mark.parametrize(
    ("mutant", "version", "told"),
    [
        (Deaf, "odd", "is still served"),
        (Hasty, "good", "nobody of the wave before had passed"),
        (Hasty, "failing", "began a version that is failing"),
        (Blind, "failing", "is still served"),
        (Forgetful, "failing", "had gone back and is TRYING"),
    ],
)
def test_a_mutant_breaks_its_rule(mutant: type[Part], version: Version, told: str) -> None:
    runs = (World(seed, Scenario(version), mutant).run() for seed in range(SEEDS))
    assert any(told in rule for world in runs for rule in world.broken)
