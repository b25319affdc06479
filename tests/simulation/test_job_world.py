"""A job under faults, and the proof that the checkers see: each mutant removes one guard."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from agent.election.proposer import Refusal
from agent.election.reader import Reader
from agent.federation import aggregator as aggregator_module
from agent.federation import cohort as cohort_module
from agent.federation import counting as counting_module
from agent.federation import register as register_module
from agent.federation import value as value_module
from agent.federation.aggregator import Aggregation
from agent.federation.cohort import Cohort, Entry
from agent.federation.desk import Desk
from agent.federation.history import History
from agent.federation.job import JobMachine
from agent.federation.offering import Offering
from agent.federation.participant import Participant, Update
from agent.federation.securing import Securing
from agent.federation.swaps import Swaps
from agent.federation.ties import Delegate
from agent.federation.value import Change, JobValue, State, decode
from agent.federation.watch import Watching
from agent.foundation.ids import Digest, SiteId
from agent.simulation.job_chaos import scenario_of
from agent.simulation.job_checks import contents
from agent.simulation.job_fleet import Parts, Scenario
from agent.simulation.job_world import add_arguments, run, simulate
from agent.wire.mesh import Done
from agent.wire.schema import pack

BAD = Scenario(fault_every_s=1.5, kills=6, seconds=40.0)
LATE = replace(BAD, staleness_max=2, outer="momentum", rounds=6, sites_min=3, train_mean_s=4.0)
SEEDS = range(1, 41)


def first_violations(
    scenario: Scenario = BAD, saying: str = "", seeds: Iterable[int] = SEEDS
) -> list[str]:
    for seed in seeds:
        found = [one for one in simulate(seed, scenario).violations if saying in one]
        if found:
            return found
    return []


# --- the real parts ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "scenario",
    [
        BAD,
        replace(BAD, rounds=6, loss=0.1, duplicate=0.1),
        replace(BAD, sites=14, committee=5, gone=2),
        replace(BAD, sites=5, committee=1, gone=0, sites_min=1, poison=0.0),
        replace(BAD, sites=1, committee=1, gone=0, sites_min=1, poison=0.0),
        replace(BAD, commit_mean_s=0.2),
        replace(BAD, cancel=True),
        replace(BAD, publish=""),
    ],
    ids=["bad", "lossy", "large", "one-vote", "alone", "slow-disk", "cancelled", "no-model"],
)
def test_every_rule_holds_under_faults(scenario: Scenario) -> None:
    for seed in range(1, 6):
        report = simulate(seed, scenario)
        assert report.violations == [], f"seed {seed}"
        assert report.finished_at is not None
        assert scenario.cancel or report.rounds == scenario.rounds


def test_a_calm_job_needs_one_epoch_and_leaves_nothing_behind() -> None:
    calm = Scenario(
        fault_every_s=1e9, kills=0, gone=0, loss=0, duplicate=0, fetch_failure=0,
        attempt_failure=0, poison=0, work_failure=0,
    )  # fmt: skip
    for seed in range(1, 6):
        report = simulate(seed, calm)
        assert report.violations == []
        assert report.evidence.leftovers == []
        assert report.epochs <= 2
        assert report.asks < 100 * calm.rounds + 400
        late = simulate(seed, replace(calm, staleness_max=2, outer="momentum", sites_min=3))
        assert late.violations == []
        assert late.evidence.leftovers == []


def test_a_hundred_sites_finish_a_job() -> None:
    report = simulate(1, replace(Scenario(), sites=100, committee=5, gone=2, rounds=2))
    assert report.violations == []
    assert report.rounds == 2


def test_one_seed_gives_one_trace() -> None:
    assert simulate(7, BAD).trace == simulate(7, BAD).trace
    assert simulate(7, BAD).trace != simulate(8, BAD).trace


def test_the_command_reports_good_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    arguments = ["--runs", "2", "--sites", "5", "--rounds", "2", "--seed", "3"]
    assert run(parser.parse_args(arguments)) == 0
    assert "2 of 2 seeds are good" in capsys.readouterr().out


# --- mutants: the register's value ---------------------------------------------------------------
def unfenced(
    epoch: int,  # noqa: ARG001 - what the mutant does not look at
    operation: bytes,
    apply: Callable[[JobValue], JobValue | str],
) -> Change:
    def change(value: bytes | None) -> bytes | Refusal:
        now = decode(value)
        if now is None:
            return Refusal("nobody has claimed the job", None)
        if operation in now.operations:
            return pack(now)
        after = apply(now)
        return Refusal(after, value) if isinstance(after, str) else pack(after)

    return change


def test_a_commit_that_does_not_check_its_epoch_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(value_module, "_fenced", unfenced)
    assert first_violations(saying="not fenced")


def test_a_second_commit_of_a_round_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(round_, parameters, contributions, epoch, operation, **how):  # type: ignore[no-untyped-def]
        def apply(now: JobValue) -> JobValue:
            last: State = "exporting" if how["publishes"] else "finished"
            state: State = "running" if round_ < how["rounds"] else last
            return replace(
                now, round=round_, parameters=parameters, contributions=contributions,
                carried=how["carried"], state=state, operations=(*now.operations, operation)[-8:],
            )  # fmt: skip

        return unfenced(epoch, operation, apply)

    monkeypatch.setattr(aggregator_module, "commit_round", unchecked)
    restless = replace(BAD, fault_every_s=1.0, rounds=8, seconds=80.0, train_mean_s=0.5)
    assert first_violations(restless, saying="committed twice")


class ReadsFromOne(Reader):
    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._voters.have = bool  # type: ignore[assignment]


def test_going_on_from_what_one_member_tells_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register_module, "Reader", ReadsFromOne)
    assert first_violations(saying="no majority had")


def test_a_site_that_does_not_check_the_epoch_of_what_it_hears_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Answers come in any order: one that is older than what the site has read is no news."""

    def adopt(self: JobMachine, value: JobValue, now: float) -> None:
        if self.value is not None and value.progress < self.value.progress:
            self.value = None
        original(self, value, now)

    original = JobMachine._adopt
    monkeypatch.setattr(JobMachine, "_adopt", adopt)
    slow = replace(BAD, delay_mean_s=0.1, fault_every_s=1.0)
    assert first_violations(slow, saying="went back from round", seeds=range(1, 1001))


def test_an_aggregator_that_does_not_mind_a_newer_epoch_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(JobMachine, "_drop_aggregation", lambda self: None)  # noqa: ARG005
    assert first_violations(saying="aggregators")


def test_an_operation_id_used_again_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that is not in the register is taken for one that is."""
    original = Desk.number

    def operation(self: Desk) -> bytes:
        return self._prefix[:8] + bytes([original(self) % 4])

    monkeypatch.setattr(Desk, "operation", operation)
    assert first_violations(saying="never committed")


# --- the committee changes -----------------------------------------------------------------------
TURNOVER = replace(BAD, sites=10, gone=0, turnover=4, rounds=8, seconds=80.0)
"""Of a committee of three, four are lost for good one after another, and revoked."""


def test_a_job_outlives_its_first_committee() -> None:
    generations = []
    for seed in range(1, 9):
        report = simulate(seed, TURNOVER)
        assert report.violations == [], f"seed {seed}"
        assert report.rounds == TURNOVER.rounds
        rosters = [choice.value.roster for choice in report.evidence.chosen]
        generations.append(max(roster.generation for roster in rosters if roster is not None))
    assert max(generations) == 2 * TURNOVER.turnover


def test_a_new_member_that_need_not_hold_the_parameters_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def after_keeping(self: Swaps, by, value, change, now) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
        self._change(change, now)

    monkeypatch.setattr(Swaps, "_after_keeping", after_keeping)
    assert first_violations(TURNOVER, saying="committee disks hold", seeds=range(1, 1001))


def test_a_blob_that_is_to_be_removed_is_not_said_to_be_kept() -> None:
    """Seed 3549: a removal waited for the disk while the aggregator was told that the blob is held."""
    assert simulate(3549, scenario_of(3549)).violations == []


LOST = replace(BAD, sites=10, gone=0, recover=True, rounds=6, seconds=60.0)
"""A majority of the committee burns at once; what it knew, some other site had read."""


def test_a_job_that_lost_its_majority_goes_on_when_an_operator_takes_it_over() -> None:
    for seed in range(1, 9):
        report = simulate(seed, LOST)
        assert report.violations == [], f"seed {seed}"
        assert report.rounds == LOST.rounds
        assert max(choice.value.recoveries for choice in report.evidence.chosen) == 1
        assert report.epochs > 2**20


def test_a_job_that_lost_its_majority_does_not_go_on_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Swaps, "recover", lambda *_: None)
    report = simulate(1, LOST)
    assert report.epochs < 2**20
    assert all("long after the last fault" in one for one in report.violations)
    assert report.violations


def test_a_recovery_that_leaves_the_parameters_behind_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def have_kept(self: Swaps, members, best, now, then) -> None:  # type: ignore[no-untyped-def]  # noqa: ARG001
        then(now)

    monkeypatch.setattr(Swaps, "_have_kept", have_kept)
    assert first_violations(LOST, saying="committee disks hold", seeds=range(1, 1001))


def test_a_round_kept_by_the_committee_before_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed 602 of the whole jobs found it once: a commit that was under way when the committee changed."""
    monkeypatch.setattr(aggregator_module, "under", lambda change, _generation: change)
    # One job in some hundreds: the one that found it last is asked first.
    seeds = (253, *range(1, 1001))
    assert first_violations(scenario_of(602), "committee disks held", seeds)


# --- mutants: updates ----------------------------------------------------------------------------
def test_an_update_forgotten_when_it_was_offered_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Participant._offer

    def offer(self: Participant, update: Update, value: JobValue, now: float) -> None:
        original(self, update, value, now)
        self._close(update, "counted")

    monkeypatch.setattr(Participant, "_offer", offer)
    assert first_violations(saying="dropped its update")


def test_an_offer_counted_without_its_blob_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(self: Cohort, place: SiteId, entry: Entry, now: float) -> None:
        self._fetched(place, entry, now)

    monkeypatch.setattr(Cohort, "_fetch", fetch)
    assert first_violations(saying="of what it does not hold")


def test_counting_who_arrived_while_the_mean_was_made_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Aggregation._secure_round

    def secure_round(self: Aggregation, *arguments) -> None:  # type: ignore[no-untyped-def]
        self._counted = tuple(
            (entry, entry.offer)
            for _, entry in sorted(self.entries.items())
            if entry.state == "fetched" and entry.offer is not None
        )
        original(self, *arguments)

    monkeypatch.setattr(Aggregation, "_secure_round", secure_round)
    busy = replace(BAD, sites=14, fetch_failure=0.4)
    assert first_violations(busy, saying="not the mean")


def test_a_commit_before_a_majority_keeps_the_parameters_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end_at_once(self: Securing, now: float) -> None:
        if self._is_open:
            self.stop()
            self._done(now)

    monkeypatch.setattr(Securing, "_end_if_kept", end_at_once)
    assert first_violations(saying="committee disks held")


def test_late_updates_are_counted_once_and_the_optimizer_goes_on_where_it_was() -> None:
    late = 0
    for seed in range(1, 13):
        report = simulate(seed, LATE)
        assert report.violations == []
        rounds = contents(report.evidence).values()
        late += sum(bool(entry.round) for content in rounds for entry in content.entries)
    assert late > 10


def test_a_late_update_that_is_taken_without_reading_the_rounds_before_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late_by(_site, round_, _base, open_round, staleness_max, _known):  # type: ignore[no-untyped-def]
        late = open_round - round_
        return late if 0 < late <= staleness_max else None

    monkeypatch.setattr(cohort_module, "late_by", late_by)
    assert first_violations(LATE, saying="was counted in round")


def test_a_late_update_that_counts_in_full_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting_module, "weight_of", lambda samples, _late: samples)
    assert first_violations(LATE, saying="not the mean")


def test_an_optimizer_that_begins_anew_with_each_aggregator_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Aggregation._average

    def average(self: Aggregation, sites: tuple[SiteId, ...], now: float) -> None:
        kept = self._value
        if self.epoch != 1:
            self._value = replace(kept, carried=None)
        original(self, sites, now)
        self._value = kept

    monkeypatch.setattr(Aggregation, "_average", average)
    assert first_violations(LATE, saying="not the mean")


CORRECTED = replace(BAD, correction="scaffold", rounds=5)


def test_control_variates_are_those_of_the_round_that_a_site_starts_from() -> None:
    for seed in range(1, 9):
        for scenario in (CORRECTED, replace(CORRECTED, outer="momentum", ranges=3)):
            report = simulate(seed, scenario)
            assert report.violations == [], f"seed {seed}"
            assert report.rounds == 5


def test_control_variates_of_another_round_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original, first = Participant._prepare, dict[SiteId, Digest]()

    def prepare(self: Participant, round_: int, base: Digest, carried: Digest | None) -> None:
        if carried is not None:
            carried = first.setdefault(self._me, carried)
        original(self, round_, base, carried)

    monkeypatch.setattr(Participant, "_prepare", prepare)
    assert first_violations(CORRECTED, saying="by another round's")


# --- burial --------------------------------------------------------------------------------------
BURIED = replace(BAD, rounds=2, seconds=80.0, jobs_kept=0)


def test_jobs_that_are_buried_at_once_end_everywhere_alike() -> None:
    buried = told = 0
    for seed in range(1, 21):
        for scenario in (BURIED, replace(BURIED, regions=2, sites=9, gone=0)):
            report = simulate(seed, scenario)
            assert report.violations == [], f"seed {seed}"
            buried += report.evidence.buried
            told += len(report.evidence.told)
    assert buried > 150
    assert told > 5, "some were away while all others buried it"


def test_a_site_that_forgets_its_tombstones_is_caught() -> None:
    """It votes in a register that it has given up, as if it had never held it."""
    found = (simulate(seed, BURIED, Parts(tombstones=lambda _: {})) for seed in range(1, 1001))
    assert any("went back" in one for report in found for one in report.violations)


def test_a_job_that_is_buried_before_its_end_is_decided_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = JobMachine.step

    def step(self: JobMachine, event: object, now: float) -> list[object]:
        effects = original(self, event, now)  # type: ignore[arg-type]
        if self.value is not None and self.value.round == 1 and self.value.epoch > 2:
            self._end(now)
            self.value = replace(self.value, state="finished")
            self._has_tidied = True
        return effects  # type: ignore[return-value]

    monkeypatch.setattr(JobMachine, "step", step)
    found = (simulate(seed, BURIED) for seed in range(1, 1001))
    assert any(report.violations for report in found)


# --- regions -------------------------------------------------------------------------------------
REGIONS = replace(
    BAD, sites=13, regions=3, gone=0, sites_min=2, staleness_max=2, local_rounds_max=3
)


AWAY = replace(
    REGIONS, sites=8, regions=2, has_loners=False, sites_min=1, rounds=6, idle_sites=0.0, poison=0.0,
    staleness_max=4, local_rounds_max=6, train_mean_s=0.3, seconds=60.0, kills=8, loss=0.1,
)  # fmt: skip
"""Regions that make several rounds alone in most seeds."""


def test_a_calm_job_of_regions_counts_each_once_a_round_and_leaves_nothing_behind() -> None:
    calm = replace(
        REGIONS, fault_every_s=1e9, kills=0, loss=0, duplicate=0, fetch_failure=0, seconds=20.0,
        attempt_failure=0, poison=0, work_failure=0, idle_sites=0, train_mean_s=0.1,
    )  # fmt: skip
    for seed in range(1, 4):
        report = simulate(seed, calm)
        assert report.violations == []
        assert report.evidence.leftovers == []
        last = max(contents(report.evidence).values(), key=lambda content: content.round)
        assert {entry.region for entry in last.entries} == {"", "region-0", "region-1", "region-2"}


def test_regions_that_were_cut_off_go_on_alone_and_are_counted_late_and_once() -> None:
    late = alone = 0
    for seed in range(1, 25):
        report = simulate(seed, REGIONS)
        assert report.violations == [], f"seed {seed}"
        rounds = contents(report.evidence).values()
        late += sum(bool(e.region and e.round) for content in rounds for e in content.entries)
        regions = report.evidence.regions.values()
        alone += sum(not one.above for book in regions for one in contents(book).values())
    assert late > 10
    assert alone > 3


def test_a_regions_update_that_is_taken_without_reading_the_rounds_before_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def late_by(_region, offer, open_round, staleness_max, _known):  # type: ignore[no-untyped-def]
        late = open_round - offer.round
        return late if 0 < late <= staleness_max else None

    monkeypatch.setattr(cohort_module, "region_late_by", late_by)
    assert first_violations(AWAY, saying="counts, too", seeds=range(1, 1001))


def test_a_region_whose_every_site_speaks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cohort, "region", lambda *_: "")
    assert first_violations(REGIONS, saying="")


def test_a_region_that_goes_on_without_writing_down_what_was_told_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would offer anew what was counted already, from where it had started."""

    def counted(self: Delegate, region: JobValue, value: JobValue) -> int | None:  # noqa: ARG001
        return 0 if region.above is None else region.above.after

    def late_by(_region, offer, open_round, staleness_max, _known):  # type: ignore[no-untyped-def]
        late = open_round - offer.round
        return late if 0 < late <= staleness_max else None

    monkeypatch.setattr(Delegate, "_counted", counted)
    monkeypatch.setattr(cohort_module, "region_late_by", late_by)
    assert first_violations(REGIONS, saying="counts, too", seeds=range(1, 1001))


# --- mutants: liveness and silence ---------------------------------------------------------------
def test_a_history_that_stops_at_what_it_knows_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def seek_gap(self: History) -> None:
        if self._seeking is None and self._head is not None and self._head[0] not in self._rounds:
            self._seek(self._head[1])

    monkeypatch.setattr(History, "_seek_gap", seek_gap)
    assert first_violations(saying="long after the last fault")


def test_a_retry_without_a_pause_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def retry(self: Offering, now: float) -> None:
        self._again_at = now

    monkeypatch.setattr(Offering, "retry", retry)
    assert first_violations(saying="without end") or first_violations(saying="at once")


def test_a_watch_that_asks_again_at_once_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(self: Watching, target, reply, now) -> None:  # type: ignore[no-untyped-def]
        if self._target == target:
            self._target = None
            if (value := self._value()) is not None:
                self.watch(value, now) if isinstance(reply, Done) else self._look(now, 0.0)

    monkeypatch.setattr(Watching, "_answered", answered)
    assert first_violations(saying="without end")


def test_a_job_that_goes_on_after_its_end_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Participant, "end", lambda self, value: None)  # noqa: ARG005
    assert first_violations(replace(BAD, cancel=True), saying="after the end")
