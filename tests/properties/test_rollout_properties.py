"""Rollouts whatever happens: waves partition the sites, no evidence no progress, back is for good."""

from collections.abc import Mapping
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from agent.catalog.gates import BOUNDS_S, P99_OF_MIN, Counts
from agent.catalog.rollout import GONE_BACK, GONE_ON, Here, Part, Peer, waves
from agent.foundation.ids import SiteId
from agent.wire.documents import Rollout
from agent.wire.records import Stage, Trial

VERSION, ID = "m:2", b"rollout8"
SITES = [SiteId(bytes([number]) * 32) for number in range(9)]
ME = SITES[0]
terms = st.builds(
    Rollout,
    previous=st.just("1"),
    waves=st.lists(st.floats(0, 100), max_size=8).map(lambda some: tuple(sorted(set(some)))),
    observe_s=st.floats(1, 20),
    is_paused=st.booleans(),
    requests_min=st.sampled_from([0, 0, 100]),
)
peers = st.fixed_dictionaries(
    {
        site: st.builds(
            Peer,
            site=st.just(site),
            name=st.just(str(site[0])),
            presence=st.sampled_from(["alive", "suspect", "away"]),
            trial=st.none() | st.builds(
                Trial, st.just(ID), st.sampled_from(Stage), st.sampled_from([0, 64, 128])
            ),
        )
        for site in SITES[1:]
    }
)  # fmt: skip
states = st.sampled_from(["absent", "loading", "ready", "ready", "refused", "crashed", "unable"])
here = st.builds(
    Here,
    state=states,
    tried=st.builds(Counts, requests=st.integers(0, 50), errors=st.integers(0, 3)),
)
life = st.lists(st.tuples(peers, here, st.floats(0, 30)), min_size=1, max_size=12)


@given(terms, st.sets(st.binary(min_size=32, max_size=32), min_size=1, max_size=60), st.randoms())
def test_waves_partition_the_sites_alike_for_all(
    rollout: Rollout, ids: set[bytes], random: st.DrawFn
) -> None:
    sites = [SiteId(one) for one in sorted(ids)]
    planned = waves(rollout, VERSION, sites)
    assert sorted(site for wave in planned for site in wave) == sites
    assert all(planned)
    random.shuffle(sites)  # type: ignore[attr-defined]
    assert waves(rollout, VERSION, sites) == planned
    if rollout.waves:
        assert len(planned[0]) <= max(1, rollout.waves[0] * len(sites) / 100 + 1)


@given(terms, life)
def test_no_site_begins_without_evidence_and_none_comes_back_from_back(
    rollout: Rollout, looks: list[tuple[dict[SiteId, Peer], Here, float]]
) -> None:
    part, now = Part(ME, ID, VERSION), 0.0
    for others, seen, passed_s in looks:
        now += passed_s
        before = part.standing.stage
        part.step(rollout, others, seen, now)
        stage = part.standing.stage
        if before in GONE_BACK:
            assert stage is before
        elif any(peer.stage in (Stage.FAILED, Stage.STOPPED) for peer in others.values()):
            assert stage is Stage.STOPPED
        if stage is Stage.TRYING and before is not Stage.TRYING:
            assert not rollout.is_paused
            assert is_justified(rollout, others)
        if stage in GONE_BACK:
            assert not part.serves_new
            assert not part.keeps_previous


def is_justified(rollout: Rollout, others: Mapping[SiteId, Peer]) -> bool:
    """The rule said once more, plainly."""
    able = [ME, *(site for site, peer in others.items() if peer.stage is not Stage.UNABLE)]
    planned = waves(rollout, VERSION, able)
    mine = next(number for number, wave in enumerate(planned) if ME in wave)
    for number in range(mine):
        for site in planned[number]:
            peer = others[site]
            is_waited_for = peer.presence != "away" and peer.stage is not Stage.ALONE
            if is_waited_for and peer.stage not in GONE_ON:
                return False
    before = [others[site] for site in planned[mine - 1]] if mine else []
    return not mine or any(p.presence == "alive" and p.stage in GONE_ON for p in before)


@given(terms, life)
def test_nobody_passes_before_the_time_of_observation(
    rollout: Rollout, looks: list[tuple[dict[SiteId, Peer], Here, float]]
) -> None:
    part, now, ready_since = Part(ME, ID, VERSION), 0.0, None
    for others, seen, passed_s in looks:
        now += passed_s
        before = part.standing.stage
        part.step(replace(rollout, waves=()), others, seen, now)
        if part.standing.stage is Stage.PASSED and before is Stage.TRYING:
            assert ready_since is not None
            assert now - ready_since >= rollout.observe_s
        is_observed = before is Stage.TRYING and seen.state == "ready"
        ready_since = (ready_since if ready_since is not None else now) if is_observed else None


@given(st.lists(st.floats(0.0001, 40), min_size=P99_OF_MIN, max_size=300))
def test_the_p99_of_a_histogram_is_near_that_of_the_times(times_s: list[float]) -> None:
    counts = [0] * (len(BOUNDS_S) + 1)
    for one in times_s:
        counts[next(n for n, bound in enumerate(BOUNDS_S) if one <= bound)] += 1
    found = Counts(len(times_s), 0, tuple(counts)).p99_ms / 1000
    true = sorted(times_s)[-(-99 * len(times_s) // 100) - 1]
    assert found <= max(1.25 * true, BOUNDS_S[0]) * 1.001
    assert found >= true / 1.2501 or true <= BOUNDS_S[0]
