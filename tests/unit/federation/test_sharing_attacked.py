"""What an attack on ranges found: helpers that lie, hang or cannot reach each other, strangers, restarts. Each failed first."""

from typing import Any

from federated_site import (
    ANNA,
    BERT,
    CARL,
    JOB,
    ME,
    Around,
    answered,
    asked,
    desk,
    digest,
    job,
    of,
    value,
)
from federated_site import Bench as MachineBench
from test_aggregator import Bench as AggBench
from test_aggregator import securing
from test_custody import Bench as CustodyBench
from test_sharing_ranges import PARTS, Aggregator, Round, Site, offer, parts_of, wanted

from agent.federation.custody import GUESTS_MAX
from agent.federation.events import (
    Aggregate,
    AggregateRange,
    Answer,
    Called,
    FetchBlob,
    ForgetBlob,
    Join,
    Label,
)
from agent.federation.restored import Restored
from agent.federation.sharing import SUM_TIMEOUT_S
from agent.federation.summing import WORKS_MAX, Summing
from agent.foundation.machine import NEVER
from agent.wire.mesh import (
    Declined,
    Keep,
    RangeNotSummed,
    RangeSummed,
    Summand,
    SumRange,
)


# --- securing ------------------------------------------------------------------------------------
def test_a_member_that_did_not_keep_is_asked_again_in_time() -> None:
    """D: ``Aggregation.wake_at`` leaves out ``Securing.wake_at``."""
    bench = AggBench(committee=(ME, ANNA, BERT))
    for keep in securing(bench):
        bench.desk.replied(keep.call, Declined("the blob could not be fetched"), 21.0)
    assert bench.aggregation.wake_at() <= 21.0 + 0.5


# --- sharing: liveness ---------------------------------------------------------------------------
def round_of_three(
    sites_min: int, answer: Any, seconds: float = 3600.0
) -> tuple[AggBench, list[Any]]:
    """ME aggregates; ANNA, BERT and ME have offered. ``answer(ask)`` is what a helper says."""
    bench = AggBench(ranges=PARTS, sites_min=sites_min)
    bench.around.held.update(parts_of("me"))
    bench.register.lease.renewed(1e9)
    sites = {"anna": ANNA, "bert": BERT, "me": ME}
    made: list[Any] = []
    now, n = 1.0, 0

    def pump() -> None:
        nonlocal n
        while effects := bench.desk.take():
            made.extend(effects)
            for e in effects:
                if isinstance(e, FetchBlob):
                    bench.around.held.add(e.digest)
                    bench.aggregation._sharing._summing.blob_arrived(e.digest, now)
                    bench.aggregation.blob_arrived(e.digest, now)
                if isinstance(e, AggregateRange):
                    n += 1
                    bench.around.held.add(digest(f"range {n}"))
                    bench.aggregation._sharing._summing.work_done(
                        e.token, digest(f"range {n}"), now
                    )
            for ask in asked(effects, SumRange):
                reply = answer(ask)
                bench.desk.replied(ask.call, reply, now + 0.1)

    pump()
    for name, site in sites.items():
        bench.aggregation.collect(site, offer(name), now)
    pump()
    while now < seconds and not of(made, Join):
        at = bench.aggregation.wake_at()
        if at == NEVER:
            break
        now = max(now, at)
        bench.aggregation.woke(now)
        pump()
    return bench, made


def helper_without_link(ask: Any) -> Any:
    """BERT and ANNA cannot reach each other; each reaches the aggregator."""
    other = "anna" if ask.site == BERT else "bert"
    part = parts_of(other)[ask.message.part]
    if any(one.part == part for one in ask.message.summands):
        return RangeNotSummed((part,), (), "parts of updates could not be had")
    return RangeSummed(digest(f"good {ask.message.part} {ask.site.hex()}"))


def test_two_sites_that_reach_only_the_aggregator_do_not_end_the_job() -> None:
    """With ``ranges = 1`` this round is made at once."""
    bench, made = round_of_three(3, helper_without_link)
    assert of(made, Join), (bench.aggregation.phase, bench.aggregation.waiting_for)


def test_the_control_all_links_are_there() -> None:
    _, made = round_of_three(3, lambda ask: RangeSummed(digest(f"good {ask.message.part}")))
    assert of(made, Join)


def test_one_helper_that_names_what_nobody_asked_for_is_passed_over() -> None:
    def answer(ask: Any) -> Any:
        if ask.site == BERT:
            return RangeNotSummed((digest("nothing of ours"),), (), "x")
        return RangeSummed(digest(f"good {ask.message.part}"))

    bench, made = round_of_three(2, answer, seconds=50.0)
    assert of(made, Join), (bench.aggregation.phase, bench.aggregation.waiting_for)


def test_one_helper_that_blames_an_update_wrongly_does_not_have_it_left_out() -> None:
    def answer(ask: Any) -> Any:
        part = parts_of("anna")[ask.message.part]
        if ask.site == BERT and any(one.part == part for one in ask.message.summands):
            return RangeNotSummed((), (part,), "not finite")
        return RangeSummed(digest(f"good {ask.message.part}"))

    bench, _ = round_of_three(2, answer, seconds=600.0)
    assert bench.aggregation.entries[ANNA].state == "fetched", bench.aggregation.entries[ANNA]


def test_a_helper_that_hangs_is_replaced_within_the_rounds_time() -> None:
    """docs/jobs.md: "A helper that is gone, slow or refuses is replaced by the next" (round_timeout_s = 60)."""
    bench = Aggregator()
    first = bench.begin()[0]
    now = 0.0
    while now < 3000.0:
        now += SUM_TIMEOUT_S
        bench.answer(0, None, now=now)
        bench.sharing.woke(now)
        asks = bench.asks()
        if asks.get(0) != first:
            break
    assert now <= 60.0, f"replaced after {now} s"


# --- sharing: what stays on the disk -------------------------------------------------------------
def test_ranges_that_came_for_a_list_that_was_given_up_go() -> None:
    bench = Aggregator()
    bench.begin()
    bench.answer(0, RangeSummed(digest("r0")))
    bench.arrive(digest("r0"))
    bench.desk.take()
    bench.answer(1, RangeNotSummed((parts_of("anna")[1],), (), "x"))
    assert bench.ended
    assert bench.borrowed == [digest("r0")], "it goes with the round"


# --- summing -------------------------------------------------------------------------------------
def test_only_the_aggregator_has_ranges_made() -> None:
    bench = MachineBench(
        job(ranges=PARTS, committee=(ANNA,)), ANNA, BERT, restored=Restored(value())
    ).start()
    made = bench.step(
        Called(
            7,
            CARL,
            SumRange(
                JOB, 1, 10**9, digest("p0"), 0, PARTS, (Summand(digest("anything"), BERT, 5, None),)
            ),
        )
    )
    assert of(made, FetchBlob) == []


def test_ranges_of_strangers_do_not_push_out_those_of_the_aggregator() -> None:
    bench = MachineBench(
        job(ranges=PARTS, committee=(ANNA,)), ANNA, BERT, restored=Restored(value())
    ).start()
    bench.around.held.add(digest("p0"))
    bench.step(Called(1, ANNA, wanted(0)))
    made = []
    for n in range(WORKS_MAX):
        made += bench.step(Called(100 + n, CARL, wanted(0, round=1000 + n)))
    assert [one for one in of(made, Answer) if one.call == 1] == []


def test_a_job_that_was_over_before_the_restart_makes_no_ranges() -> None:
    ended = value(round=3, state="finished", parameters=digest("p3"))
    bench = MachineBench(
        job(ranges=PARTS, committee=(ANNA,)), ANNA, BERT, restored=Restored(ended)
    ).start()
    bench.around.held.add(digest("p0"))
    made = bench.step(Called(1, ANNA, wanted(0, round=4)))
    assert of(made, FetchBlob) == []
    assert isinstance(answered(made), Declined)


def test_a_stale_range_is_refused_after_a_restart_too() -> None:
    now = value(round=2, epoch=5, parameters=digest("p2"))
    bench = MachineBench(
        job(ranges=PARTS, committee=(ANNA,)), ANNA, BERT, restored=Restored(now)
    ).start()
    made = bench.step(Called(1, ANNA, wanted(0, round=1, epoch=1)))
    assert isinstance(answered(made), Declined)


def test_a_range_of_one_foreign_blob_does_not_open_it_to_everybody() -> None:
    """A member asks this site to "sum" one part of another job that lies here; the mean of one is that part."""
    the_desk, around = desk(), Around(ANNA, CARL)
    secret = digest("part of a job that must stay in the EU")
    around.held.update((digest("p0"), secret))
    summing = Summing(job(ranges=PARTS, residency=()), ME, the_desk, around)
    summing.moved(value(aggregator=CARL), 0.0)
    summing.sum(
        CARL,
        SumRange(JOB, 1, 1, digest("p0"), 1, PARTS, (Summand(secret, ME, 1, None),)),
        lambda _, __: None,
        0.0,
    )
    (work,) = of(the_desk.take(), AggregateRange)
    assert [one.update for one in work.updates] == [secret]
    summing.work_done(
        work.token, secret, 1.0
    )  # the mean of a single part is that part, bit for bit
    assert not [
        one for one in of(the_desk.take(), Label) if one.digest == secret and one.residency == ()
    ]


# --- custody -------------------------------------------------------------------------------------
def test_guests_are_few_even_if_what_they_ask_for_comes_later() -> None:
    bench = CustodyBench()
    calls = {n: tuple(digest(f"{n} {k}") for k in range(8)) for n in range(12)}
    for n, blobs in calls.items():
        bench.custody.keep(n, CARL, Keep(JOB, blobs))
    for blobs in calls.values():
        for blob in blobs:
            bench.around.held.add(blob)
            bench.custody.blob_arrived(blob, 1.0)
    gone = bench.forgotten()
    kept = [
        blob
        for blobs in calls.values()
        for blob in blobs
        if blob not in gone and bench.custody.needs(blob)
    ]
    assert len(kept) <= GUESTS_MAX, len(kept)


# --- who is cut otherwise ------------------------------------------------------------------------
def test_one_that_is_cut_otherwise_does_not_have_the_honest_one_refused() -> None:
    """Two sites: which is "usual" follows from their ids."""
    for honest, other in ((ANNA, BERT), (BERT, ANNA)):
        bench = Round()
        bench.take(offer("honest", 3), honest)
        bench.take(offer("other", 1), other)
        assert bench.cohort.cut_otherwise(sorted((honest, other))) == {offer("other", 1).update}


# --- later ---------------------------------------------------------------------------------------
def test_older_parameters_that_several_sites_have_are_asked_of_more_than_one() -> None:
    """Two late updates from the same older parameters; BERT gives its part, and then is gone. ANNA has all."""
    site = Site()
    late = tuple(
        Summand(parts_of(name)[0], who, 3, digest("old"))
        for name, who in (("anna", ANNA), ("bert", BERT))
    )
    site.summing.sum(
        CARL,
        SumRange(JOB, 1, 1, digest("p0"), 0, PARTS, late),
        lambda r, _: site.replies.append(r),
        0.0,
    )
    fetches = {one.digest: one.sources for one in of(site.desk.take(), FetchBlob)}
    assert set(fetches[digest("old")]) == {ANNA, BERT}, "ANNA's update is left out for BERT's sake"


def with_a_range_here() -> AggBench:
    """A bench that has the first range of three updates, and waits for the others."""
    bench = AggBench(ranges=PARTS, sites_min=2)
    bench.around.held.update(parts_of("me"))
    bench.register.lease.renewed(1e9)
    for name, site in (("anna", ANNA), ("bert", BERT), ("me", ME)):
        bench.aggregation.collect(site, offer(name), 1.0)
    ask = asked(bench.desk.take(), SumRange)[0]
    bench.desk.replied(ask.call, RangeSummed(digest("r0")), 2.0)
    bench.around.held.add(digest("r0"))
    bench.aggregation.blob_arrived(digest("r0"), 2.0)
    return bench


def test_a_range_that_is_here_is_wanted_until_all_are() -> None:
    """Nothing names it: after an hour (``distribution.retention``) it goes, while the last one is still made."""
    bench = with_a_range_here()
    custody, summing = bench.aggregation._custody, bench.aggregation._sharing._summing
    assert digest("r0") in custody.kept() | summing.kept


def test_a_range_that_came_does_not_stay_when_the_epoch_is_over() -> None:
    bench = with_a_range_here()
    bench.aggregation.close()
    assert digest("r0") in {one.digest for one in of(bench.desk.take(), ForgetBlob)}


def test_a_mean_that_fails_without_a_culprit_does_not_stop_the_job_for_ever() -> None:
    """What a hostile update does that ends the process (test_review2_trainers): nobody is named, all of it again."""
    bench = AggBench(sites_min=1)
    bench.register.lease.renewed(1e9)
    for name, site in (("u-anna", ANNA), ("u-bert", BERT), ("u-me", ME)):
        bench.offer(site, name)
    sets, now = [], 1.0
    while now < 3600.0:
        for work in of(bench.desk.take(), Aggregate):
            sets.append(frozenset(one.update for one in work.updates))
            if digest("u-bert") not in sets[-1]:
                return
            bench.aggregation.work_failed(
                work.token, "the aggregation ended with status 1", (), now
            )
        at = bench.aggregation.wake_at()
        if at == NEVER:
            break
        now = max(now, at)
        bench.aggregation.woke(now)
    raise AssertionError(
        f"{len(sets)} tries of the same set in an hour, phase {bench.aggregation.phase}"
    )
