"""What a region's aggregator does next, and what its delegate offers to the whole job."""

from dataclasses import replace

from federated_site import ANNA, BERT, ME, asked, contributions, desk, digest, job, of, value

from agent.federation.events import FromRegion, FromWhole, LookAgain, Tell
from agent.federation.offering import Ears
from agent.federation.region import regional
from agent.federation.ties import ALONE_AFTER_S, Delegate, Whole
from agent.federation.value import Above, Contribution, Contributions, JobValue
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER
from agent.wire.documents import Region
from agent.wire.mesh import Offer, OfferReply

NORTH = Region("north", (ANNA, BERT))
WHOLE = job(regions=(NORTH,), staleness_max=2, local_rounds_max=2, rounds=9)


def whole_value(round_: int, **changes: object) -> JobValue:
    return value(round=round_, parameters=digest(f"p{round_}"), **changes)


def region_value(round_: int, above: int, after: int, **more: object) -> JobValue:
    """A region that took the parameters of round ``above`` after ``after`` rounds of its own."""
    parameters = digest(f"n{round_}" if round_ > after else f"p{above}")
    up = Above(0, above, digest(f"p{above}"), after, 70, **more)  # type: ignore[arg-type]
    return value(round=round_, parameters=parameters, above=up)


class Region1:
    """The region's side."""

    def __init__(self) -> None:
        self.desk = desk()
        self.whole = Whole(regional(WHOLE, NORTH), WHOLE.id, self.desk)

    def plan(
        self, held: JobValue, round_: int | None, settled: int = 0, silent: float | None = None,
        now: float = 0.0, *, is_collecting: bool = False,
    ) -> str:  # fmt: skip
        news = None if round_ is None else whole_value(round_)
        self.whole.news = FromWhole(news, settled, silent)
        return self.whole.plan(held, now, is_collecting=is_collecting)


def test_a_region_starts_from_the_newest_parameters_of_the_whole_job() -> None:
    region = Region1()
    fresh = value(parameters=None)
    assert region.whole.plan(fresh, 0.0) == "wait"
    assert region.plan(fresh, None) == "wait"
    assert region.plan(fresh, 0) == "adopt"
    assert region.plan(region_value(0, 0, 0), 0) == "collect"
    assert region.plan(region_value(0, 0, 0), 1) == "adopt", "it has missed a round"


def test_a_region_waits_until_its_round_is_counted_or_can_be_no_more() -> None:
    region, done = Region1(), region_value(1, 0, 0)
    assert region.plan(done, 0) == "wait"
    assert region.plan(done, 1) == "wait", "it may be counted late"
    assert region.plan(done, 1, settled=1) == "adopt"
    assert region.plan(done, 2, settled=0) == "wait"
    assert region.plan(done, 3) == "adopt", "too late for everybody"


def test_a_round_under_way_is_given_up_only_if_it_would_count_no_more() -> None:
    region, begun = Region1(), region_value(0, 0, 0)
    assert region.plan(begun, 2, is_collecting=True) == "collect"
    assert region.plan(begun, 3, is_collecting=True) == "adopt"


def test_a_region_that_is_cut_off_goes_on_alone_so_far_as_the_job_allows() -> None:
    region, done = Region1(), region_value(1, 0, 0)
    assert region.plan(done, 0, silent=10.0, now=10.0) == "wait"
    assert region.whole.alone_at(done) == 10.0 + ALONE_AFTER_S
    assert region.plan(done, 0, silent=10.0, now=10.0 + ALONE_AFTER_S) == "alone"
    going = region_value(1, 0, 0, told=digest("n1"), told_round=1, alone_from=1)
    assert region.plan(going, 0, silent=10.0, now=99.0) == "collect"
    assert region.plan(region_value(2, 0, 0), 0, silent=10.0, now=99.0) == "alone"
    assert region.plan(region_value(3, 0, 0), 0, silent=10.0, now=99.0) == "wait"
    assert region.whole.alone_at(region_value(3, 0, 0)) == NEVER
    assert region.whole.alone_at(value(parameters=None)) == NEVER


def test_the_whole_job_is_told_of_what_is_new() -> None:
    region, around = Region1(), set[bytes]()

    class Held:
        def is_held(self, blob: bytes) -> bool:
            return blob in around

    done = region_value(1, 0, 0)
    for _ in range(2):
        region.whole.tell(done, {}, Held(), speaks=True)  # type: ignore[arg-type]
    (told,) = of(region.desk.take(), Tell)
    assert told == Tell(WHOLE.id, FromRegion(done, speaks=True, is_here=False))
    around.update(done.blobs)
    region.whole.tell(done, {}, Held(), speaks=True)  # type: ignore[arg-type]
    (told,) = of(region.desk.take(), Tell)
    assert told.event == FromRegion(done, speaks=True, is_here=True)
    region.whole.look_again()
    assert of(region.desk.take(), Tell) == [Tell(WHOLE.id, LookAgain())]


class Bench:
    """The whole job's side, at a site of the region."""

    def __init__(self) -> None:
        self.desk = desk()
        self.rounds: dict[int, Contributions] = {}
        self.refreshed = 0
        self.sources: tuple[SiteId, ...] = (ANNA,)
        self.delegate = Delegate(
            WHOLE, NORTH, ME, self.desk,
            Ears(lambda *_: OfferReply("stale"), lambda _: None), lambda: self.sources, self.rounds.get,
        )  # fmt: skip

    def speak(self, held: JobValue, *, is_here: bool = True) -> list[Offer]:
        self.delegate.from_region(FromRegion(held, speaks=True, is_here=is_here), 0.0)
        return self.offers()

    def offers(self) -> list[Offer]:
        effects = self.desk.take()
        self.told = [tell.event for tell in of(effects, Tell)]
        found = []
        for ask in asked(effects, Offer):
            assert isinstance(ask.message, Offer)
            found.append(ask.message)
            self.desk.replied(ask.call, OfferReply("collected"), 0.0)
        return found


def test_only_who_speaks_for_the_region_offers_and_only_what_is_here() -> None:
    bench, done = Bench(), region_value(1, 0, 0)
    bench.delegate.follow(whole_value(0), 0.0)
    bench.delegate.from_region(FromRegion(done, speaks=False, is_here=True), 0.0)
    assert bench.offers() == []
    assert bench.speak(done, is_here=False) == []
    (offer,) = bench.speak(done)
    assert (offer.round, offer.base, offer.update) == (1, digest("p0"), digest("n1"))
    assert (offer.after, offer.until, offer.samples) == (0, 1, 70)
    assert bench.speak(done) == [], "it was taken"
    assert bench.speak(region_value(0, 0, 0)) == [], "nothing was made yet"


def test_a_region_that_was_away_offers_all_it_has_made_as_one() -> None:
    bench = Bench()
    bench.delegate.follow(whole_value(1), 0.0)
    away = region_value(3, 0, 0, told=digest("n1"), told_round=1, alone_from=2)
    assert bench.speak(away) == [], "what round 1 has counted is not known here"
    bench.rounds[1] = contributions(1, None)[2]
    bench.delegate.woke(bench.delegate.wake_at())
    (offer,) = bench.offers()
    assert (offer.round, offer.base, offer.after, offer.until) == (1, digest("p0"), 0, 3)


def test_what_was_counted_before_it_was_cut_off_is_not_offered_again() -> None:
    bench = Bench()
    one = Contribution(ANNA, digest("n1"), 70, (), 0, None, "north", 0, 1)
    bench.rounds[1] = contributions(1, None, one)[2]
    bench.delegate.follow(whole_value(1), 0.0)
    away = region_value(3, 0, 0, told=digest("n1"), told_round=1, alone_from=2)
    (offer,) = bench.speak(away)
    assert (offer.base, offer.after, offer.until) == (digest("n1"), 1, 3)
    assert bench.speak(region_value(1, 0, 0)) == [], "all of it was counted"
    assert bench.delegate._told is not None
    assert bench.delegate._told.settled_until == 1


def test_what_is_too_late_is_not_offered() -> None:
    bench = Bench()
    for round_ in (1, 2, 3):
        bench.rounds[round_] = contributions(round_, None)[2]
    bench.delegate.follow(whole_value(3), 0.0)
    assert bench.speak(region_value(1, 0, 0)) == []
    bench.delegate.follow(replace(whole_value(3), recoveries=1), 0.0)
    assert bench.speak(region_value(4, 3, 3)) == [], "the whole job was taken over meanwhile"


def test_the_region_hears_of_sites_that_have_come_since() -> None:
    """Else it would ask for the parameters where they are not, for ever."""
    bench = Bench()
    bench.delegate.follow(whole_value(0), 0.0)
    bench.speak(value(parameters=None))
    assert bench.told == [FromWhole(whole_value(0), 0, None, (ANNA,))]
    bench.sources = (ANNA, BERT)
    bench.delegate.tell()
    bench.offers()
    assert bench.told == [FromWhole(whole_value(0), 0, None, (ANNA, BERT))]
    bench.delegate.tell()
    bench.offers()
    assert bench.told == [], "no news"


def test_silence_and_the_end_are_told_to_the_region() -> None:
    bench, done = Bench(), region_value(1, 0, 0)
    bench.delegate.follow(whole_value(0), 0.0)
    bench.speak(done)
    bench.delegate.unreadable(7.0)
    bench.delegate.unreadable(9.0)
    bench.offers()
    assert bench.told == [FromWhole(whole_value(0), 0, 7.0, (ANNA,))]
    bench.delegate.follow(whole_value(0), 10.0)
    bench.offers()
    assert bench.told == [FromWhole(whole_value(0), 0, None, (ANNA,))]
    end = whole_value(9, state="finished")
    bench.delegate.end(end)
    tells = of(bench.desk.take(), Tell)
    assert tells == [Tell(JobId(regional(WHOLE, NORTH).id), FromWhole(end, 0, None, is_over=True))]
    bench.delegate.follow(end, 11.0)
    assert bench.offers() == []
