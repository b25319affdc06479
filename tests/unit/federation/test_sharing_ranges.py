"""A round's mean that several sites make: who makes which part, and what becomes of it when one is gone."""

from federated_site import ANNA, BERT, CARL, JOB, ME, Around, asked, desk, digest, job, of, value

from agent.federation.cohort import Cohort
from agent.federation.custody import Custody
from agent.federation.events import AggregateRange, Ask, FetchBlob, ForgetBlob, Label
from agent.federation.sharing import (
    NEXT_S,
    PAUSE_S,
    SUM_TIMEOUT_S,
    TURNS_MAX,
    Counted,
    Ended,
    Sharing,
)
from agent.federation.summing import FETCHES_MAX, WORKS_MAX, Summing
from agent.federation.value import blob_digest
from agent.foundation.ids import Digest, SiteId
from agent.foundation.machine import NEVER
from agent.wire.mesh import (
    Cut,
    Declined,
    Offer,
    RangeNotSummed,
    RangeSummed,
    Reply,
    Summand,
    SumRange,
)
from agent.wire.schema import pack

PARTS = 3


def parts_of(name: str, count: int = PARTS) -> tuple[Digest, ...]:
    return tuple(digest(f"{name} {n}") for n in range(count))


def offer(name: str, count: int = PARTS) -> Offer:
    parts = parts_of(name, count)
    return Offer(JOB, 1, 1, digest("p0"), blob_digest(pack(Cut(parts))), 5, (), parts=parts)


def wanted(part: int = 0, *names: str, **changes: object) -> SumRange:
    sites = {"anna": ANNA, "bert": BERT, "me": ME}
    summands = tuple(
        Summand(parts_of(name)[part], sites[name], 5, None) for name in names or ("anna", "bert")
    )
    fields = {"epoch": 1, "round": 1} | changes
    return SumRange(JOB, fields["epoch"], fields["round"], digest("p0"), part, PARTS, summands)  # type: ignore[arg-type]


class Site:
    """A site that makes ranges."""

    def __init__(self) -> None:
        self.desk, self.around = desk(), Around(ANNA, BERT, CARL)
        self.around.held.add(digest("p0"))
        self.summing = Summing(job(ranges=PARTS), ME, self.desk, self.around)
        self.summing.moved(value(aggregator=CARL), 0.0)
        self.replies: list[Reply] = []
        self.aggregator = CARL

    def ask(self, message: SumRange) -> list[Digest]:
        """What it fetches for it."""
        self.summing.sum(self.aggregator, message, lambda reply, _: self.replies.append(reply), 0.0)
        return [one.digest for one in of(self.desk.take(), FetchBlob)]

    def serve(self, *blobs: Digest) -> None:
        for blob in blobs:
            self.around.held.add(blob)
            self.summing.blob_arrived(blob, 1.0)

    def work(self) -> AggregateRange:
        (work,) = of(self.desk.take(), AggregateRange)
        return work

    def forgotten(self) -> set[Digest]:
        return {one.digest for one in of(self.desk.take(), ForgetBlob)}


# --- who makes a range ---------------------------------------------------------------------------
def test_a_range_is_fetched_from_whoever_made_it_summed_and_told() -> None:
    site = Site()
    assert site.ask(wanted(1)) == [parts_of("anna")[1], parts_of("bert")[1]]
    site.serve(parts_of("anna")[1], parts_of("bert")[1])
    work = site.work()
    assert (work.part, work.round, work.base) == ((1, PARTS), 1, digest("p0"))
    assert [one.update for one in work.updates] == [parts_of("anna")[1], parts_of("bert")[1]]
    assert site.summing.work_done(work.token, digest("range"), 2.0)
    assert site.replies == [RangeSummed(digest("range"))]
    assert [one.digest for one in of(site.desk.take(), Label)] == [digest("range")]
    assert not site.summing.work_done(work.token, digest("range"), 2.0), "once"


def test_whoever_asks_again_joins_and_so_does_the_next_aggregator() -> None:
    site = Site()
    site.ask(wanted(0))
    assert site.ask(wanted(0)) == []
    site.summing.moved(value(epoch=2, aggregator=BERT), 1.0)
    site.aggregator = BERT
    assert site.ask(wanted(0, epoch=2)) == []
    site.serve(parts_of("anna")[0], parts_of("bert")[0])
    site.summing.work_done(site.work().token, digest("range"), 2.0)
    assert site.replies == [RangeSummed(digest("range"))] * 2, "the first call was given up"
    site.ask(wanted(0, epoch=2))
    assert site.replies[-1] == RangeSummed(digest("range"))


def test_few_are_fetched_at_a_time() -> None:
    site = Site()
    many = tuple(Summand(digest(f"x{n}"), ANNA, 5, None) for n in range(3 * FETCHES_MAX))
    message = SumRange(JOB, 1, 1, digest("p0"), 0, PARTS, many)
    assert len(site.ask(message)) == FETCHES_MAX
    site.serve(digest("x0"))
    assert [one.digest for one in of(site.desk.take(), FetchBlob)] == [digest(f"x{FETCHES_MAX}")]


def test_what_cannot_be_had_or_counted_is_named() -> None:
    site = Site()
    site.ask(wanted(0))
    site.summing.blob_missing(parts_of("anna")[0], 1.0)
    assert site.replies == [], "the other may be missing, too"
    site.serve(parts_of("bert")[0])
    assert site.replies == [
        RangeNotSummed((parts_of("anna")[0],), (), "parts of updates could not be had")
    ]
    assert site.forgotten() == {parts_of("bert")[0]}
    site.ask(wanted(0))
    site.serve(parts_of("anna")[0], parts_of("bert")[0])
    token = site.work().token
    site.summing.work_failed(token, "not finite", (parts_of("anna")[0],), 2.0)
    assert site.replies[-1] == RangeNotSummed((), (parts_of("anna")[0],), "not finite")
    site.summing.sum(CARL, wanted(0), lambda reply, _: site.replies.append(reply), 2.0)
    site.summing.work_failed(site.work().token, "killed", (), 2.0)
    told: list[Reply] = [*site.replies]
    assert told[-1] == Declined("killed")


def test_older_parameters_and_the_rounds_own_are_fetched_too() -> None:
    site = Site()
    site.around.held.clear()
    late = Summand(parts_of("bert")[0], BERT, 3, digest("old"))
    message = SumRange(JOB, 1, 1, digest("p0"), 0, PARTS, (late,))
    site.summing.sum(CARL, message, lambda reply, _: site.replies.append(reply), 0.0)
    fetches = {one.digest: one.sources for one in of(site.desk.take(), FetchBlob)}
    assert fetches == {
        digest("p0"): (CARL,),
        digest("old"): (BERT,),
        parts_of("bert")[0]: (BERT,),
    }
    site.serve(parts_of("bert")[0], digest("old"))
    site.summing.blob_missing(digest("p0"), 1.0)
    assert site.replies == [Declined("the parameters of the round could not be had")]


def test_nothing_is_made_for_a_round_that_is_over_and_what_was_made_goes() -> None:
    site = Site()
    for part in range(2):
        site.ask(wanted(part))
    site.serve(parts_of("anna")[0], parts_of("bert")[0])
    site.summing.work_done(site.work().token, digest("range"), 2.0)
    site.desk.take()
    assert site.summing.needs(digest("range"))
    assert site.summing.needs(parts_of("anna")[1])
    assert digest("range") in site.summing.kept
    site.around.held.add(digest("range"))
    site.summing.moved(value(round=1), 3.0)
    assert site.replies[-1] == Declined("the job has moved on")
    assert site.forgotten() == {digest("range"), parts_of("anna")[0], parts_of("bert")[0]}
    site.serve(parts_of("anna")[1])
    assert site.forgotten() == {parts_of("anna")[1]}, "it was under way"
    assert not site.summing.needs(parts_of("anna")[1])
    assert site.ask(wanted(0)) == []
    assert site.replies[-1] == Declined("not the aggregator, as far as is known here")
    site.aggregator = ANNA
    assert site.ask(wanted(0)) == []
    assert site.replies[-1] == Declined("not the round that is open, as far as is known here")


def test_who_may_not_or_cannot_says_so() -> None:
    site = Site()
    site.ask(SumRange(JOB, 1, 1, digest("p0"), 0, PARTS, ()))
    assert site.replies[-1] == Declined("there is no such part")
    site.around.aggregates = False
    site.ask(wanted(0))
    assert site.replies[-1] == Declined("this site does not aggregate")
    site.around.outlaws.add(ME)
    site.ask(wanted(0))
    assert site.replies[-1] == Declined("the job's residency does not allow it here")
    site.summing.end(1.0)
    site.ask(wanted(0))
    assert site.replies[-1] == Declined("the job has ended here")


def test_an_aggregator_that_asks_for_ever_new_ranges_fills_no_memory() -> None:
    site = Site()
    for number in range(WORKS_MAX + 2):
        summand = Summand(digest(f"x{number}"), ANNA, 5, None)
        site.ask(SumRange(JOB, 1, 1, digest("p0"), 0, PARTS, (summand,)))
    assert site.replies == [Declined("other ranges came")] * 2


# --- the aggregator ------------------------------------------------------------------------------
class Aggregator:
    """Has the mean of three sites' updates made."""

    def __init__(self, *names: str) -> None:
        self.desk, self.around = desk(), Around(ANNA, BERT)
        self.around.held.update((digest("p0"), *parts_of("me")))
        wanted_job = job(ranges=PARTS)
        self.summing = Summing(wanted_job, ME, self.desk, self.around)
        self.summing.moved(value(aggregator=ME, round=1), 0.0)
        self.borrowed: list[Digest] = []
        self.ended: list[Ended] = []
        self.sharing = Sharing(
            wanted_job, ME, self.desk, self.around, self.summing, self.borrowed.append,
            lambda one, _: self.ended.append(one),
        )  # fmt: skip
        sites = {"anna": ANNA, "bert": BERT, "me": ME}
        self.counted = [
            Counted(offer(name), sites[name], 5, False) for name in names or ("anna", "bert", "me")
        ]

    def begin(self, round_: int = 2, *, is_alone: bool = False) -> dict[int, SiteId]:
        """Who is asked for which part."""
        self.sharing.begin(round_, 1, digest("p0"), self.counted, 0.0, is_alone=is_alone)
        return self.asks()

    def asks(self) -> dict[int, SiteId]:
        self.calls: dict[int, Ask] = {}
        for ask in asked(self.desk.take(), SumRange):
            assert isinstance(ask.message, SumRange)
            self.calls[ask.message.part] = ask
        return {part: ask.site for part, ask in self.calls.items()}

    def messages(self) -> list[SumRange]:
        """What was asked last."""
        found = [ask.message for ask in self.calls.values()]
        return [one for one in found if isinstance(one, SumRange)]

    def answer(self, part: int, reply: Reply | None, now: float = 1.0) -> None:
        self.desk.replied(self.calls[part].call, reply, now)

    def arrive(self, blob: Digest) -> None:
        self.around.held.add(blob)
        self.sharing.blob_arrived(blob, 1.0)


def test_each_range_is_made_by_another_site_and_all_come_here() -> None:
    bench = Aggregator()
    first, second = sorted((ANNA, BERT))
    assert bench.begin() == {0: first, 1: second}, "the third is this site's own"
    for message in bench.messages():
        assert {one.site for one in message.summands} == {ANNA, BERT, ME}
        updates = [blob_digest(pack(Cut(parts_of(name)))) for name in ("anna", "bert", "me")]
        sites = dict(zip(updates, (ANNA, BERT, ME), strict=True))
        assert [one.site for one in message.summands] == [sites[one] for one in sorted(updates)]
    bench.answer(0, RangeSummed(digest("r0")))
    bench.answer(1, RangeSummed(digest("r1")))
    assert [one.digest for one in of(bench.desk.take(), FetchBlob)] == [digest("r0"), digest("r1")]
    bench.arrive(digest("r1"))
    bench.arrive(digest("r0"))
    assert bench.ended == []
    assert "1 of 3" in bench.sharing.waiting_for
    for name in ("anna", "bert"):
        bench.around.held.add(parts_of(name)[2])
        bench.summing.blob_arrived(parts_of(name)[2], 1.0)
    (work,) = of(bench.desk.take(), AggregateRange)
    bench.around.held.add(digest("r2"))
    bench.summing.work_done(work.token, digest("r2"), 1.0)
    assert bench.ended == [Ended((digest("r0"), digest("r1"), digest("r2")))]


def test_other_sites_begin_in_the_next_round() -> None:
    one, other = Aggregator(), Aggregator()
    assert one.begin(2)[0] != other.begin(3)[0]


def test_a_range_whose_site_is_gone_or_refuses_is_asked_of_another() -> None:
    bench = Aggregator()
    first, second = sorted((ANNA, BERT))
    bench.begin()
    bench.around.living.pop(first)
    bench.sharing.view_changed(1.0)
    bench.sharing.woke(bench.sharing.wake_at())
    assert bench.asks() == {0: second}
    bench.answer(0, Declined("busy"))
    assert bench.sharing.wake_at() == 1.0 + NEXT_S
    bench.sharing.woke(bench.sharing.wake_at())
    assert bench.asks() == {}, "this site makes it itself"
    assert bench.summing.needs(parts_of("anna")[0])


def test_a_slow_site_is_asked_again_and_joins_what_it_does() -> None:
    bench = Aggregator()
    sites = bench.begin()
    bench.answer(0, None, now=SUM_TIMEOUT_S)
    assert bench.asks() == {0: sites[0]}
    bench.answer(0, None, now=SUM_TIMEOUT_S + 0.1)
    bench.sharing.woke(bench.sharing.wake_at())
    assert bench.asks()[0] != sites[0], "the connection broke"


def test_a_range_that_cannot_be_had_is_made_again() -> None:
    bench = Aggregator()
    sites = bench.begin()
    bench.answer(0, RangeSummed(digest("r0")))
    bench.sharing.blob_missing(digest("r0"), 1.0)
    bench.sharing.woke(bench.sharing.wake_at())
    assert bench.asks()[0] != sites[0]


def test_updates_that_cannot_be_had_or_counted_end_it_with_their_names() -> None:
    for is_missing in (True, False):
        bench = Aggregator()
        bench.begin()
        part = (parts_of("anna")[0],)
        reply = RangeNotSummed(part, (), "x") if is_missing else RangeNotSummed((), part, "x")
        bench.answer(0, reply)
        update = frozenset({offer("anna").update})
        none = frozenset[Digest]()
        assert bench.ended == [
            Ended((), update if is_missing else none, none if is_missing else update, "x", False)
        ]
        assert bench.sharing.wake_at() == NEVER
        bench.answer(1, RangeSummed(digest("r1")))
        assert of(bench.desk.take(), FetchBlob) == [], "nothing more is wanted"


def test_what_nobody_makes_is_given_up_after_some_turns() -> None:
    bench = Aggregator("anna")
    bench.around.living.clear()
    bench.around.aggregates = False
    bench.begin()
    turns, now = 0, 0.0
    while not bench.ended:
        now, turns = bench.sharing.wake_at(), turns + 1
        bench.sharing.woke(now)
    assert turns <= PARTS * 2 * TURNS_MAX
    assert now > PAUSE_S, "a whole turn comes with a pause"
    assert bench.ended[0].ranges == ()
    assert "no site makes range" in bench.ended[0].reason


def test_alone_this_site_makes_them_all() -> None:
    bench = Aggregator()
    assert bench.begin(is_alone=True) == {}
    assert len(bench.summing.kept) == 1 + 3 * PARTS


# --- which offers a round takes ------------------------------------------------------------------
class Round:
    def __init__(self, **changes: object) -> None:
        self.desk, self.around = desk(), Around(ANNA, BERT)
        wanted_job = job(**({"ranges": PARTS} | changes))
        custody = Custody(wanted_job, ME, self.desk, self.around, lambda: None)
        self.cohort = Cohort(wanted_job, ME, self.desk, self.around, custody, lambda _: None)
        self.cohort.open(0.0)

    def take(self, one: Offer, site: SiteId = ANNA) -> str:
        return self.cohort.collect(site, one, value(), 1.0, is_open=True).outcome


def test_a_cut_update_counts_without_being_here() -> None:
    bench = Round()
    assert bench.take(offer("anna")) == "collected"
    assert bench.cohort.entries[ANNA].state == "fetched"
    assert of(bench.desk.take(), FetchBlob) == []


def test_an_update_that_is_cut_otherwise_than_the_job_says_is_not_taken() -> None:
    wrong = Offer(JOB, 1, 1, digest("p0"), digest("u"), 5, (), parts=parts_of("anna"))
    assert Round().take(wrong) == "elsewhere", "its name is not that of its parts"
    assert Round().take(offer("anna", PARTS + 1)) == "elsewhere"
    assert Round().take(Offer(JOB, 1, 1, digest("p0"), digest("u"), 5, ())) == "elsewhere"
    assert Round(ranges=1).take(offer("anna")) == "elsewhere"
    bench = Round()
    for site, count in ((ANNA, 3), (BERT, 3), (CARL, 2)):
        bench.take(offer(site.hex(), count), site)
    assert bench.cohort.cut_otherwise((ANNA, BERT, CARL)) == {offer(CARL.hex(), 2).update}
    bench.take(offer(ME.hex(), 2), ME)
    others = {offer(site.hex(), 3).update for site in (ANNA, BERT)}
    assert bench.cohort.cut_otherwise((ANNA, BERT, CARL, ME)) == others, "its own is right"


def test_an_update_that_could_not_be_had_waits_until_its_site_is_seen() -> None:
    bench = Round()
    bench.take(offer("anna"))
    bench.take(offer("bert"), BERT)
    bench.cohort.unreachable({offer("anna").update}, 2.0)
    assert bench.cohort.standing().fetched == (BERT,)
    bench.around.living.pop(ANNA)
    bench.cohort.woke(bench.cohort.wake_at(), is_open=True)
    assert bench.cohort.standing().fetched == (BERT,)
    bench.around.living[ANNA] = 1.0
    bench.cohort.woke(bench.cohort.wake_at(), is_open=True)
    assert set(bench.cohort.standing().fetched) == {ANNA, BERT}
