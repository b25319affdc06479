from dataclasses import replace
from math import inf
from random import Random
from typing import Any

from federated_site import (
    ANNA,
    BERT,
    CARL,
    JOB,
    ME,
    Around,
    asked,
    contributions,
    desk,
    digest,
    job,
    of,
    value,
)

from agent.election.lease import LEASE_S
from agent.federation.aggregator import (
    FAILURES_MAX,
    RESIGNED_S,
    STUCK_S,
    Aggregation,
)
from agent.federation.custody import Custody
from agent.federation.deadline import SLACK_S
from agent.federation.events import Aggregate, Export, FetchBlob, Initialise
from agent.federation.history import History
from agent.federation.register import Register
from agent.federation.summing import Summing
from agent.federation.value import Contribution, Contributions, JobValue
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.mesh import (
    Ballot,
    Declined,
    Done,
    Keep,
    Notice,
    NoticeReply,
    Offer,
    OfferReply,
    Read,
    ReadReply,
)
from agent.wire.schema import pack


class Bench:
    """An aggregation at ``ME``; the register is this site's alone unless a committee is given."""

    def __init__(self, held: JobValue | None = None, asked_at: float = inf, **changes: Any) -> None:
        self.desk, self.around = desk(), Around(ANNA, BERT)
        self.around.held.add(digest("p0"))
        self.job = job(**changes)
        self.register = Register(self.job, ME, 1, self.desk, Random(1), None)
        self.register.lease.renewed(asked_at)  # as the claim has done
        self.value = held or value(aggregator=ME)
        self.adopted: list[JobValue] = []
        self.recorded: list[Contributions] = []
        custody = Custody(self.job, ME, self.desk, self.around, lambda: self.value)
        self.history = History(
            self.job, self.desk, self.around, lambda: (ANNA,), self.recorded.append
        )
        self.aggregation = Aggregation(
            self.job, ME, self.desk, self.around, self.register, custody, lambda: (ANNA,),
            lambda v, _: self.adopted.append(v), self.history, self.value,
            self._summing(),
        )  # fmt: skip
        self.aggregation.begin(self.value, 0.0)

    def _summing(self) -> Summing:
        made = Summing(self.job, ME, self.desk, self.around)
        made.moved(self.value, 0.0)
        return made

    def phase(self) -> str:
        """Read anew each time: it changes under the calls between two looks."""
        return self.aggregation.phase

    def offer(
        self, site: SiteId, name: str, round_: int = 1, *, held: bool = True, now: float = 1.0
    ) -> OfferReply:
        if held:
            self.around.held.add(digest(name))
        offer = Offer(JOB, 1, round_, digest(f"p{round_ - 1}"), digest(name), 5, ())
        return self.aggregation.collect(site, offer, now)

    def close_at(self) -> float:
        at = self.aggregation.wake_at()
        self.aggregation.woke(at)
        return at


def means(effects: list[Any]) -> list[list[Digest]]:
    return [[one.update for one in work.updates] for work in of(effects, Aggregate)]


def test_every_living_site_is_invited_once() -> None:
    bench = Bench()
    notices = asked(bench.desk.take(), Notice)
    assert {ask.site for ask in notices} == {ANNA, BERT}
    bench.aggregation.view_changed(1.0)
    assert asked(bench.desk.take(), Notice) == []


def test_the_mean_is_made_when_everyone_who_takes_part_has_been_fetched() -> None:
    bench = Bench()
    for ask in asked(bench.desk.take(), Notice):
        is_anna = ask.site == ANNA
        bench.desk.replied(ask.call, NoticeReply(is_anna, "" if is_anna else "no data"), 0.5)
    bench.offer(ME, "u-me")
    assert means(bench.desk.take()) == []
    bench.offer(ANNA, "u-anna")
    ((first, second),) = means(bench.desk.take())
    assert {first, second} == {digest("u-me"), digest("u-anna")}
    assert bench.phase() == "averaging"


def test_a_straggler_is_waited_for_a_while_and_no_longer() -> None:
    bench = Bench()
    bench.offer(ME, "u-me", now=2.0)
    assert bench.phase() == "collecting"
    assert bench.close_at() == 2.0 + 2.0 + SLACK_S
    assert bench.phase() == "averaging"


def test_a_site_that_joins_mid_round_is_counted() -> None:
    bench = Bench()
    assert bench.offer(CARL, "u-carl") == OfferReply("collected")
    assert bench.aggregation.entries[CARL].state == "fetched"


def test_a_round_waits_for_the_least_number_of_updates() -> None:
    bench = Bench(sites_min=2)
    bench.offer(ME, "u-me")
    for _ in range(10):
        bench.close_at()
    assert bench.phase() == "collecting"
    assert "1 of at least 2" in bench.aggregation.waiting_for


def test_a_late_update_counts_for_less_and_only_once_and_only_where_the_job_allows_it() -> None:
    first, _, content = contributions(1, None, Contribution(BERT, digest("u-bert-1"), 7))
    second = value(aggregator=ME, round=1, parameters=digest("p1"), contributions=first)
    strict = Bench(second)
    strict.history.record(first, content, 0.0)
    assert strict.offer(ANNA, "u-anna-1") == OfferReply("stale")
    bench = Bench(second, staleness_max=1)
    bench.around.held.add(digest("p1"))
    assert bench.offer(ANNA, "u-anna-1") == OfferReply("stale"), "round 1 is not known here"
    bench.history.record(first, content, 0.0)
    assert bench.offer(BERT, "u-bert-1") == OfferReply("stale"), "it was counted"
    assert bench.offer(ANNA, "u-anna-1") == OfferReply("collected")
    bench.offer(ME, "u-me-2", round_=2)
    bench.close_at()
    work = of(bench.desk.take(), Aggregate)[-1]
    weights = {one.update: (one.weight, one.started_from) for one in work.updates}
    assert weights == {digest("u-anna-1"): (3, digest("p0")), digest("u-me-2"): (5, None)}


def test_what_a_late_update_started_from_is_fetched_with_it() -> None:
    first, _, content = contributions(1, None)
    at = value(aggregator=ME, round=1, parameters=digest("p1"), contributions=first)
    bench = Bench(at, staleness_max=1)
    bench.history.record(first, content, 0.0)
    bench.around.held.discard(digest("p0"))
    bench.desk.take()
    bench.offer(ANNA, "u-anna-1", held=False)
    fetched = {f.digest for f in of(bench.desk.take(), FetchBlob)}
    assert fetched == {digest("u-anna-1"), digest("p0")}
    bench.around.held.add(digest("u-anna-1"))
    bench.aggregation.blob_arrived(digest("u-anna-1"), 2.0)
    assert bench.aggregation.entries[ANNA].state == "offered"
    bench.around.held.add(digest("p0"))
    bench.aggregation.blob_arrived(digest("p0"), 2.0)
    assert bench.aggregation.entries[ANNA].state == "fetched"


def test_what_the_optimizer_left_is_there_before_the_mean_is_made() -> None:
    at = value(aggregator=ME, round=1, parameters=digest("p1"), carried=digest("m1"))
    bench = Bench(at, outer="momentum")
    bench.around.held.add(digest("p1"))
    assert digest("m1") in {f.digest for f in of(bench.desk.take(), FetchBlob)}
    bench.offer(ME, "u-me", round_=2)
    bench.close_at()
    assert not of(bench.desk.take(), Aggregate)
    bench.around.held.add(digest("m1"))
    bench.aggregation.blob_arrived(digest("m1"), 20.0)
    (work,) = of(bench.desk.take(), Aggregate)
    assert work.carried == digest("m1")


def test_an_aggregator_that_was_stopped_reads_the_register_before_it_makes_a_mean() -> None:
    bench = Bench(asked_at=0.0, committee=(ME, ANNA, BERT), sites_min=2)
    bench.offer(ME, "u-me", now=1.0)
    bench.desk.take()
    bench.offer(ANNA, "u-anna", now=1.0 + LEASE_S)
    bench.aggregation.woke(60.0)
    effects = bench.desk.take()
    asks = asked(effects, Read)
    assert {ask.site for ask in asks} == {ANNA, BERT}
    assert means(effects) == []
    newer = replace(bench.value, epoch=2, aggregator=ANNA)
    for ask in asks:
        bench.desk.replied(ask.call, ReadReply(Ballot(3, b"x" * 48), pack(newer)), 61.0)
    assert bench.adopted == [newer]
    assert means(bench.desk.take()) == []


def test_an_update_counts_only_when_its_blob_is_here() -> None:
    bench = Bench()
    bench.desk.take()
    bench.offer(ANNA, "u-anna", held=False)
    assert [f.digest for f in of(bench.desk.take(), FetchBlob)] == [digest("u-anna")]
    assert bench.aggregation.entries[ANNA].state == "offered"
    bench.aggregation.blob_arrived(digest("u-anna"), 2.0)
    assert bench.aggregation.entries[ANNA].state == "fetched"


def test_a_fetch_that_fails_is_repeated_after_growing_pauses() -> None:
    bench = Bench(sites_min=3)
    bench.offer(ANNA, "u-anna", held=False)
    now, pauses = 1.0, []
    for _ in range(8):
        bench.aggregation.blob_missing(digest("u-anna"), now)
        at = bench.aggregation._cohort._refetch[ANNA]
        pauses.append(at - now)
        now = at
        bench.desk.take()
        bench.aggregation.woke(now)
        assert len(of(bench.desk.take(), FetchBlob)) == 1
    assert pauses[0] < 1.0
    assert pauses == sorted(pauses)
    assert pauses[-1] == 8.0


def test_offers_for_another_round_or_from_outside_the_residency_are_not_taken() -> None:
    bench = Bench()
    stale = Offer(JOB, 1, 2, digest("p0"), digest("u"), 5, ())
    assert bench.aggregation.collect(ANNA, stale, 1.0) == OfferReply("stale")
    bench.around.outlaws = {BERT}
    assert bench.offer(BERT, "u-bert") == OfferReply("elsewhere")


def averaging(bench: Bench, *sites: SiteId) -> Aggregate:
    for site in sites:
        bench.offer(site, f"u-{site.hex()[:4]}")
    while bench.phase() == "collecting":
        bench.close_at()
    return of(bench.desk.take(), Aggregate)[-1]


def test_what_is_averaged_is_what_is_counted_whatever_happens_meanwhile() -> None:
    bench = Bench()
    bench.offer(BERT, "u-bert", held=False)
    work = averaging(bench, ME, ANNA)
    bench.around.held.add(digest("u-bert"))
    bench.aggregation.blob_arrived(digest("u-bert"), 30.0)
    bench.aggregation.withdrawn(ANNA, 1, "changed its mind", 30.0)
    bench.aggregation.work_done(work.token, digest("p1"), 9, 31.0)
    assert bench.aggregation._made is not None
    counted = {entry.update for entry in bench.aggregation._made[1].entries}
    assert counted == {one.update for one in work.updates}
    assert digest("u-bert") not in counted


def test_culprits_are_dropped_and_the_rest_averaged_again() -> None:
    bench = Bench()
    work = averaging(bench, ME, ANNA)
    bad = bench.aggregation.entries[ANNA].offer
    assert bad is not None
    bench.aggregation.work_failed(work.token, "NaN", (bad.update,), 20.0)
    (again,) = of(bench.desk.take(), Aggregate)
    assert bad.update not in [one.update for one in again.updates]
    assert "NaN" in bench.aggregation.entries[ANNA].reason
    assert bench.aggregation.collect(ANNA, bad, 21.0) == OfferReply("collected")
    assert bench.aggregation.entries[ANNA].state == "withdrawn"


def test_work_that_keeps_failing_makes_the_aggregator_resign_and_try_much_later() -> None:
    bench = Bench()
    work, now = averaging(bench, ME), 20.0
    for _ in range(FAILURES_MAX - 1):
        bench.aggregation.work_failed(work.token, "out of memory", (), now)
        assert bench.aggregation.wake_at() > now
        now = bench.aggregation.wake_at()
        bench.aggregation.woke(now)
        (work,) = of(bench.desk.take(), Aggregate)
    bench.aggregation.work_failed(work.token, "out of memory", (), now)
    assert bench.aggregation.resigned_because(now) == "out of memory"
    assert bench.aggregation.wake_at() == now + RESIGNED_S
    bench.aggregation.woke(now + RESIGNED_S)
    (later,) = of(bench.desk.take(), Aggregate)
    assert later.updates == work.updates


def test_culprits_that_nobody_knows_are_a_failure_like_any_other() -> None:
    bench = Bench()
    work = averaging(bench, ME)
    bench.aggregation.work_failed(work.token, "?", (digest("unknown"),), 20.0)
    assert of(bench.desk.take(), Aggregate) == []
    assert bench.aggregation.wake_at() > 20.0


def test_an_aggregator_that_does_not_train_fetches_the_parameters_before_the_mean() -> None:
    bench = Bench()
    bench.around.held.discard(digest("p0"))
    bench.aggregation.begin(bench.value, 0.0)
    assert digest("p0") in {f.digest for f in of(bench.desk.take(), FetchBlob)}
    bench.offer(ME, "u-me")
    while bench.aggregation.wake_at() < 15.0:
        bench.close_at()
    assert bench.phase() == "collecting"
    bench.around.held.add(digest("p0"))
    bench.aggregation.blob_arrived(digest("p0"), 20.0)
    assert bench.phase() == "averaging"


def securing(bench: Bench) -> list[Any]:
    work = averaging(bench, ME)
    bench.aggregation.work_done(work.token, digest("p1"), 9, 20.0)
    return asked(bench.desk.take(), Keep)


def test_nothing_is_committed_before_a_majority_of_the_committee_keeps_it() -> None:
    bench = Bench(committee=(ME, ANNA, BERT, CARL, digest("fifth")))
    keeps = securing(bench)
    assert len(keeps) == 4
    bench.desk.replied(keeps[0].call, Done(), 21.0)
    assert bench.phase() == "securing"
    bench.desk.replied(keeps[1].call, Done(), 21.0)
    assert bench.phase() == "committing"


def test_an_aggregator_outside_the_committee_does_not_count_itself() -> None:
    bench = Bench(committee=(ANNA, BERT, CARL))
    keeps = securing(bench)
    bench.desk.replied(keeps[0].call, Done(), 21.0)
    assert bench.phase() == "securing"
    bench.desk.replied(keeps[1].call, Done(), 21.0)
    assert bench.phase() == "committing"


def test_members_that_do_not_keep_are_asked_again_one_call_at_a_time() -> None:
    bench = Bench(committee=(ME, ANNA, BERT))
    slow, gone = securing(bench)
    now = 20.0
    for _ in range(6):
        bench.desk.replied(gone.call, None, now)
        now = bench.aggregation.wake_at()
        bench.aggregation.woke(now)
        again = asked(bench.desk.take(), Keep)
        assert slow.site not in [ask.site for ask in again]
        (gone,) = again
    assert now - 20.0 > 6 * 0.5
    bench.desk.replied(slow.call, Done(), now)
    assert bench.phase() == "committing"


def test_a_committee_that_comes_back_is_asked_at_once_when_the_view_changes() -> None:
    bench = Bench(committee=(ME, ANNA, BERT))
    for keep in securing(bench):
        bench.desk.replied(keep.call, Declined("the blob could not be fetched"), 21.0)
    bench.aggregation.view_changed(21.1)
    assert len(asked(bench.desk.take(), Keep)) == 2


def test_an_aggregator_that_reaches_no_majority_lets_another_take_over() -> None:
    bench = Bench(committee=(ME, ANNA, BERT))
    securing(bench)
    assert bench.aggregation.resigned_because(20.0 + STUCK_S - 1) == ""
    assert "majority" in bench.aggregation.resigned_because(20.0 + STUCK_S + 1)


def test_a_wake_up_never_leads_to_another_at_the_same_instant() -> None:
    bench = Bench(committee=(ME, ANNA, BERT))
    securing(bench)
    for _ in range(50):
        at = bench.aggregation.wake_at()
        if at == NEVER:
            break
        bench.aggregation.woke(at)
        assert bench.aggregation.wake_at() > at
        assert len(bench.desk.take()) < 10


def test_an_epoch_in_the_export_phase_begins_with_the_export() -> None:
    bench = Bench(value(aggregator=ME, state="exporting", round=3), publish="model")
    (work,) = of(bench.desk.take(), Export)
    assert work.parameters == digest("p0")


def test_an_epoch_without_parameters_begins_with_them() -> None:
    bench = Bench(value(aggregator=ME, parameters=None))
    assert of(bench.desk.take(), Initialise)


def test_answers_to_a_former_round_change_nothing() -> None:
    bench = Bench(committee=(ME, ANNA, BERT))
    keeps = securing(bench)
    bench.aggregation.begin(value(aggregator=ME, round=1, parameters=digest("p0")), 30.0)
    bench.desk.replied(keeps[0].call, Done(), 31.0)
    assert bench.phase() == "collecting"
    assert not bench.aggregation.work_done(12345, digest("x"), 1, 31.0)
    assert bench.adopted == []
