"""One site's part in a rollout: when it begins, when it has passed, when it goes back for good."""

import math
from dataclasses import replace
from typing import Literal

import pytest

from agent.catalog.gates import Counts
from agent.catalog.rollout import (
    Here,
    Part,
    Peer,
    Standing,
    has_ended_elsewhere,
    in_order,
    is_rollout,
    restored,
    rollout_id,
    waves,
)
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Deployment, Rollout
from agent.wire.records import Gate, Stage, Trial

VERSION = "m:2"
ID = b"rollout8"
TERMS = Rollout("1", 1, (5.0, 50.0), observe_s=10.0)
SITES = in_order(VERSION, [SiteId(bytes([number]) * 32) for number in range(20)])
FIRST, SECOND, LAST = SITES[0], SITES[1], SITES[19]
READY = Here("ready")


def peers(
    me: SiteId,
    stages: dict[SiteId, Stage] | None = None,
    presence: dict[SiteId, Literal["alive", "suspect", "away"]] | None = None,
) -> dict[SiteId, Peer]:
    found = {}
    for number, site in enumerate(SITES):
        stage = (stages or {}).get(site)
        trial = None if stage is None else Trial(ID, stage)
        if site != me:
            found[site] = Peer(site, f"s{number}", (presence or {}).get(site, "alive"), trial)
    return found


def stage_of(one: Part) -> Stage:
    return one.standing.stage


def part(me: SiteId, stage: Stage = Stage.WAITING) -> Part:
    return Part(me, ID, VERSION, Standing(stage))


def test_the_waves_are_shares_of_all_sites_and_the_first_has_one_at_least() -> None:
    sizes = [len(wave) for wave in waves(TERMS, VERSION, SITES)]
    assert sizes == [1, 9, 10]
    assert [len(wave) for wave in waves(replace(TERMS, waves=()), VERSION, SITES)] == [20]
    assert [len(wave) for wave in waves(TERMS, VERSION, SITES[:2])] == [1, 1]
    assert [len(wave) for wave in waves(TERMS, VERSION, SITES[:1])] == [1]


def test_the_order_is_the_same_whoever_asks_and_another_one_for_another_version() -> None:
    assert in_order(VERSION, reversed(SITES)) == SITES
    assert in_order("m:3", SITES) != SITES


def test_the_first_wave_begins_at_once_and_serves_both_versions() -> None:
    one = part(FIRST)
    assert one.step(TERMS, peers(FIRST), Here("absent"), 0.0)
    assert stage_of(one) is Stage.TRYING
    assert one.serves_new
    assert one.keeps_previous


def test_a_later_wave_waits_for_everybody_alive_before_it() -> None:
    one = part(LAST)
    assert not one.step(TERMS, peers(LAST), Here("absent"), 0.0)
    assert not one.serves_new
    assert one.why_waiting.startswith("wave 3 of 3 waits for s0, s1, s2 and 7 more")
    all_but_one: dict[SiteId, Stage] = dict.fromkeys(SITES[:9], Stage.PASSED)
    one.step(TERMS, peers(LAST, all_but_one), Here("absent"), 1.0)
    assert one.why_waiting == "wave 3 of 3 waits for s9"
    assert one.step(TERMS, peers(LAST, dict.fromkeys(SITES[:10], Stage.PASSED)), READY, 2.0)
    assert stage_of(one) is Stage.TRYING


def test_the_dead_are_not_waited_for_and_a_suspect_is() -> None:
    passed: dict[SiteId, Stage] = dict.fromkeys(SITES[:9], Stage.PASSED)
    waiting = part(LAST)
    waiting.step(TERMS, peers(LAST, passed, {SITES[9]: "suspect"}), READY, 0.0)
    assert stage_of(waiting) is Stage.WAITING
    waiting.step(TERMS, peers(LAST, passed, {SITES[9]: "away"}), READY, 1.0)
    assert stage_of(waiting) is Stage.TRYING


@pytest.mark.parametrize("presence", ["away", "suspect"])
def test_a_wave_of_which_nobody_is_alive_does_not_pass(
    presence: Literal["away", "suspect"],
) -> None:
    one = part(SECOND)
    one.step(TERMS, peers(SECOND, {FIRST: Stage.PASSED}, {FIRST: presence}), READY, 0.0)
    assert stage_of(one) is Stage.WAITING
    assert one.why_waiting == "nobody of wave 1 is alive: s0"


def test_a_paused_rollout_begins_nowhere_and_goes_on_where_it_has_begun() -> None:
    paused = replace(TERMS, is_paused=True)
    one = part(FIRST)
    one.step(paused, peers(FIRST), READY, 0.0)
    assert one.why_waiting == "the rollout is paused"
    begun = part(FIRST, Stage.TRYING)
    begun.step(paused, peers(FIRST), READY, 0.0)
    begun.step(paused, peers(FIRST), READY, 10.0)
    assert stage_of(begun) is Stage.PASSED


def test_observation_begins_when_the_version_is_ready_and_anew_when_it_was_lost() -> None:
    one = part(FIRST, Stage.TRYING)
    one.step(TERMS, peers(FIRST), Here("loading"), 0.0)
    assert one.wake_at() == NEVER
    one.step(TERMS, peers(FIRST), READY, 100.0)
    assert one.wake_at() == 110.0
    one.step(TERMS, peers(FIRST), Here("loading"), 105.0)
    one.step(TERMS, peers(FIRST), READY, 106.0)
    assert not one.step(TERMS, peers(FIRST), READY, 115.9)
    assert one.step(TERMS, peers(FIRST), READY, 116.0)
    assert stage_of(one) is Stage.PASSED


def test_a_version_that_is_refused_or_crashes_fails_at_once_and_for_good() -> None:
    for state, gate in (("refused", Gate.REFUSED), ("crashed", Gate.CRASH)):
        one = part(FIRST, Stage.TRYING)
        one.step(TERMS, peers(FIRST), Here(state, "golden: no"), 0.0)  # type: ignore[arg-type]
        assert one.standing == Standing(Stage.FAILED, gate, "golden: no")
        assert one.trial == Trial(ID, Stage.FAILED, gate=gate)
        assert not one.step(TERMS, peers(FIRST), READY, 1.0)
        assert not one.serves_new


def test_only_what_the_new_version_did_since_it_began_is_judged() -> None:
    one = part(FIRST, Stage.TRYING)
    one.step(TERMS, peers(FIRST), Here("ready", tried=Counts(500, 400)), 0.0)
    one.step(TERMS, peers(FIRST), Here("ready", tried=Counts(600, 400)), 1.0)
    assert stage_of(one) is Stage.TRYING
    assert one.trial == Trial(ID, Stage.TRYING, 64)
    one.step(TERMS, peers(FIRST), Here("ready", tried=Counts(700, 410)), 2.0)
    assert stage_of(one) is Stage.FAILED
    assert one.standing.gate is Gate.ERRORS


def test_a_site_that_has_passed_is_still_judged_until_the_rollout_has_ended() -> None:
    one = part(FIRST, Stage.PASSED)
    one.step(TERMS, peers(FIRST), READY, 0.0)
    one.step(TERMS, peers(FIRST), Here("ready", tried=Counts(10, 10)), 1.0)
    assert stage_of(one) is Stage.FAILED


@pytest.mark.parametrize("stage", [Stage.FAILED, Stage.STOPPED])
@pytest.mark.parametrize("presence", ["alive", "suspect", "away"])
def test_whatever_anybody_tells_of_a_failure_stops_everybody(
    stage: Stage, presence: Literal["alive", "suspect", "away"]
) -> None:
    for mine in (Stage.WAITING, Stage.TRYING, Stage.PASSED, Stage.ENDED, Stage.UNABLE):
        one = part(SECOND, mine)
        assert one.step(TERMS, peers(SECOND, {LAST: stage}, {LAST: presence}), READY, 0.0)
        assert stage_of(one) is Stage.STOPPED
        assert "s19" in one.standing.reason
        assert not one.serves_new


def test_it_has_ended_when_everybody_alive_has_passed_and_only_then_is_the_previous_let_go() -> (
    None
):
    everybody: dict[SiteId, Stage] = dict.fromkeys(SITES, Stage.PASSED)
    one = part(FIRST, Stage.PASSED)
    one.step(TERMS, peers(FIRST, everybody | {LAST: Stage.TRYING}), READY, 0.0)
    assert one.keeps_previous
    one.step(TERMS, peers(FIRST, everybody | {LAST: Stage.UNABLE}), READY, 1.0)
    assert stage_of(one) is Stage.ENDED
    assert one.serves_new
    assert not one.keeps_previous


def test_who_comes_when_it_has_ended_fails_alone() -> None:
    ended: dict[SiteId, Stage] = dict.fromkeys(SITES, Stage.ENDED)
    late = part(SECOND, Stage.TRYING)
    late.step(TERMS, peers(SECOND, ended), Here("refused", "no"), 0.0)
    assert stage_of(late) is Stage.ALONE
    one = part(FIRST, Stage.ENDED)
    assert not one.step(TERMS, peers(FIRST, {SECOND: Stage.ALONE}), READY, 1.0)


def test_a_failure_while_a_single_site_believes_it_ended_is_everybodys() -> None:
    one = part(SECOND, Stage.TRYING)
    one.step(TERMS, peers(SECOND, {FIRST: Stage.ENDED}), Here("refused", "no"), 0.0)
    assert stage_of(one) is Stage.FAILED


def test_a_site_that_cannot_serve_it_takes_no_part_until_it_can() -> None:
    one = part(FIRST)
    one.step(TERMS, peers(FIRST), Here("unable", "no gpu"), 0.0)
    assert stage_of(one) is Stage.UNABLE
    assert one.why_waiting == "no gpu"
    second = part(SECOND)
    second.step(TERMS, peers(SECOND, {FIRST: Stage.UNABLE}), READY, 0.0)
    assert stage_of(second) is Stage.TRYING, "it is first now"
    one.step(TERMS, peers(FIRST), Here("absent"), 1.0)
    assert stage_of(one) is Stage.TRYING


def test_too_few_requests_in_a_wave_keep_the_next_one_waiting() -> None:
    terms = replace(TERMS, requests_min=100)
    one = part(SECOND)
    others = peers(SECOND)
    others[FIRST] = replace(others[FIRST], trial=Trial(ID, Stage.PASSED, 64))
    one.step(terms, others, READY, 0.0)
    assert one.why_waiting == "wave 1 has answered 64 requests of 100"
    others[FIRST] = replace(others[FIRST], trial=Trial(ID, Stage.PASSED, 128))
    one.step(terms, others, READY, 1.0)
    assert stage_of(one) is Stage.TRYING


def test_a_restart_keeps_an_outcome_and_begins_an_observation_anew() -> None:
    for stage in Stage:
        is_kept = stage not in (Stage.WAITING, Stage.TRYING, Stage.UNABLE)
        found = restored(ID, {ID: Standing(stage)})
        assert (found.stage is stage) == (is_kept or stage is Stage.WAITING)
    assert restored(b"another8", {ID: Standing(Stage.FAILED)}) == Standing()
    one = part(FIRST, Stage.PASSED)
    one.step(TERMS, peers(FIRST), Here("loading", tried=Counts(0)), math.pi)
    assert stage_of(one) is Stage.PASSED


def test_pausing_is_the_same_attempt_and_another_version_or_attempt_is_not() -> None:
    def named(version: str = "2", **changes: object) -> bytes:
        terms = replace(TERMS, **changes)  # type: ignore[arg-type]
        return rollout_id(Deployment("m", version, ("a",), rollout=terms))

    assert named() == named(is_paused=True) == named(observe_s=99.0)
    assert len({named(), named("3"), named(attempt=2), named(previous="0")}) == 4


def test_without_a_previous_version_there_is_nothing_to_roll_out() -> None:
    assert is_rollout(Deployment("m", "2", (), rollout=TERMS))
    assert not is_rollout(Deployment("m", "2", ()))
    assert not is_rollout(Deployment("m", "1", (), rollout=TERMS))
    assert not is_rollout(Deployment("m", "2", (), rollout=Rollout()))
    assert not is_rollout(Deployment("m", "2", (), is_active=False, rollout=TERMS))


def test_a_site_outside_takes_the_new_version_for_granted_when_it_has_ended() -> None:
    passed, ended, failed = (
        Trial(ID, stage) for stage in (Stage.PASSED, Stage.ENDED, Stage.FAILED)
    )
    assert has_ended_elsewhere([passed, ended])
    assert not has_ended_elsewhere([passed])
    assert not has_ended_elsewhere([ended, failed])
