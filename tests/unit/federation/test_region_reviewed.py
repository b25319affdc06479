"""What fresh eyes found wrong with regions. Each failed first."""

import test_ties as ties
from federated_site import ANNA, BERT, JOB, ME, Around, desk, digest, job, of, value

from agent.federation.cohort import Cohort
from agent.federation.custody import Custody
from agent.federation.events import Ask, ForgetBlob, FromRegion, FromWhole, Tell
from agent.federation.region import party
from agent.federation.ties import ALONE_AFTER_S
from agent.federation.value import (
    Above,
    Contribution,
    Contributions,
    JobValue,
    adopt_above,
    commit_round,
    decode,
    encode_value,
    go_on_alone,
)
from agent.foundation.ids import SiteId
from agent.wire.documents import Region
from agent.wire.mesh import Keep, Offer


def applied(change, held: JobValue) -> JobValue:  # type: ignore[no-untyped-def]
    after = change(encode_value(held))
    assert isinstance(after, bytes), after
    found = decode(after)
    assert found is not None
    return found


def committed(held: JobValue, round_: int, operation: bytes) -> JobValue:
    assert held.parameters is not None
    change = commit_round(
        round_, digest(f"n{round_}"), digest(f"c{round_}"), 1, operation,
        rounds=99, publishes=False, base=held.parameters, samples=70,
    )  # fmt: skip
    return applied(change, held)


# --- 1: nobody moves -----------------------------------------------------------------------------
def test_a_region_counted_between_two_silences_offers_the_rest_or_starts_anew() -> None:
    """Alone once, offered (0, 2] while the link was there, alone again: the whole job counts (0, 2]."""
    start = value(round=0, parameters=digest("p0"), above=Above(0, 0, digest("p0"), 0))
    one = committed(start, 1, b"1")
    alone = applied(go_on_alone(1, 1, b"2"), one)  # told: round 1
    two = committed(alone, 2, b"3")
    bench = ties.Bench()
    bench.delegate.follow(ties.whole_value(0), 0.0)
    (offer,) = bench.speak(two)  # the link is back for a moment
    assert (offer.after, offer.until) == (0, 2)
    again = applied(go_on_alone(2, 1, b"4"), two)  # and gone again
    three = committed(again, 3, b"5")
    # Back: the whole job has counted what it was offered.
    entry = Contribution(ME, two.parameters, 70, (), region="north", after=0, until=2)  # type: ignore[arg-type]
    bench.rounds[1] = Contributions(
        ties.WHOLE.id, 1, 1, ME, digest("p0"), digest("p1"), (entry,), None
    )
    bench.delegate.follow(ties.whole_value(1), 1.0)
    offers = bench.speak(three)
    region = ties.Region1()
    plan = region.plan(three, 1, settled=2)
    assert offers or plan == "adopt", (
        "it neither offers (2, 3] nor starts from the newest parameters"
    )


# --- 2: the disk fills ---------------------------------------------------------------------------
def test_a_region_that_is_too_slow_keeps_no_more_than_a_few_parameters() -> None:
    """Each time its round would count no more it adopts newer parameters; its own round stays 0."""
    around, out = Around(ANNA), desk()
    held: list[JobValue] = [
        value(round=0, parameters=digest("p0"), above=Above(0, 0, digest("p0"), 0))
    ]
    custody = Custody(job(), ME, out, around, lambda: held[0])
    for whole in range(3, 300, 3):
        blob = digest(f"p{whole}")
        custody.keep(whole, ANNA, Keep(JOB, (blob,)))
        around.held.add(blob)
        custody.blob_arrived(blob, 1.0)
        change = adopt_above(Above(0, whole, blob, 0), 1, b"%d" % whole)
        held[0] = applied(change, held[0])
        custody.moved(held[0])
        gone = {f.digest for f in of(out.take(), ForgetBlob) if not custody.needs(f.digest)}
        around.held -= gone
    assert len(around.held) <= 3, f"{len(around.held)} models are kept for a region of no rounds"


def test_what_an_aggregator_that_lost_had_kept_goes_when_the_job_moves_on() -> None:
    around, out = Around(ANNA), desk()
    held = [value(round=0)]
    custody = Custody(job(), ME, out, around, lambda: held[0])
    for round_ in range(1, 20):
        winner, loser = digest(f"p{round_}"), digest(f"other{round_}")
        for call, blob in ((2 * round_, winner), (2 * round_ + 1, loser)):
            custody.keep(call, ANNA, Keep(JOB, (blob,)))
            around.held.add(blob)
            custody.blob_arrived(blob, 1.0)
        held[0] = value(round=round_, parameters=winner)
        custody.moved(held[0])
        custody.settled([])
        gone = {f.digest for f in of(out.take(), ForgetBlob) if not custody.needs(f.digest)}
        around.held -= gone
    assert len(around.held) <= 6, f"{len(around.held)} models are kept"


# --- 3: cut off ----------------------------------------------------------------------------------
def test_a_region_that_knows_of_newer_parameters_but_cannot_have_them_goes_on_alone() -> None:
    """Its delegate read that all is counted, then the link went, before the parameters were fetched."""
    region, done = ties.Region1(), ties.region_value(1, 0, 0)
    plan = region.plan(done, 1, settled=1, silent=10.0, now=10_000.0)
    assert plan == "alone", "it waits for parameters out of reach as long as the cut lasts"


def test_a_retry_of_an_offer_is_no_reading_of_the_whole_job() -> None:
    """The register is silent from 0 s on; the region goes on alone 5 s later, whatever is retried."""
    bench = ties.Bench()
    told: list[FromWhole] = []

    def drain() -> None:
        for tell in of(bench.desk.take(), Tell):
            assert isinstance(tell.event, FromWhole)
            told.append(tell.event)

    bench.delegate.follow(ties.whole_value(0), -1.0)
    bench.delegate.unreadable(0.0)
    bench.delegate.from_region(
        FromRegion(ties.region_value(1, 0, 0), speaks=True, is_here=True), 1.0
    )  # the region has committed a round meanwhile
    bench.delegate.unreadable(2.5)
    drain()
    assert told[-1].silent_since == 0.0, f"silent since {told[-1].silent_since}"


# --- 4: one voice --------------------------------------------------------------------------------
def test_an_update_that_is_here_is_not_displaced_by_one_that_never_comes() -> None:
    """A site of the region that speaks no more, or lies, offers another; its blob cannot be had."""
    out, around = desk(), Around(ANNA, BERT)
    around.regions = {ANNA: "north", BERT: "north"}
    wanted = job(regions=(Region("north", (ANNA,)),), staleness_max=2, local_rounds_max=2)
    custody = Custody(wanted, ME, out, around, lambda: None)
    cohort = Cohort(wanted, ME, out, around, custody, lambda _: None)
    cohort.open(0.0)

    def offer(sender: SiteId, after: int, until: int, name: str) -> str:
        made = Offer(JOB, 1, 1, digest("p0"), digest(name), 5, (), after, until)
        return cohort.collect(sender, made, value(), 1.0, is_open=True).outcome

    assert offer(ANNA, 0, 2, "newest") == "collected"
    around.held.add(digest("newest"))
    cohort.blob_arrived(digest("newest"), 2.0)
    assert cohort.standing().fetched == (party("north"),)
    offer(BERT, 0, 1, "older")
    around.living.pop(BERT)
    cohort.blob_missing(digest("older"), 3.0)
    assert cohort.standing().fetched == (party("north"),), (
        "ANNA was told: collected; it offers no more"
    )


def test_a_region_with_an_offer_under_way_goes_on_alone_in_time() -> None:
    """The link goes at 0 s: reads fail after 2 s and are tried again 0.75 s later, offers after 5 s."""
    bench, done = ties.Bench(), ties.region_value(1, 0, 0)
    bench.delegate.follow(ties.whole_value(0), -1.0)
    bench.delegate.from_region(FromRegion(done, speaks=True, is_here=True), -0.5)
    region, asks, now, read_ends = ties.Region1(), list[tuple[float, int]](), 0.0, 2.0
    while now < 60.0:
        for effect in bench.desk.take():
            if isinstance(effect, Tell) and isinstance(effect.event, FromWhole):
                region.whole.news = effect.event
            elif isinstance(effect, Ask):
                asks.append((now + 5.0, effect.call))
        if region.whole.news is not None and region.whole.plan(done, now) == "alone":
            break
        now = min(
            [read_ends, bench.delegate.wake_at(), *(at for at, _ in asks)]
            + ([at] if (at := region.whole.alone_at(done)) > now else [])
        )
        for at, call in list(asks):
            if at <= now:
                asks.remove((at, call))
                bench.desk.replied(call, None, now)
        bench.delegate.woke(now)
        if now >= read_ends:
            bench.delegate.unreadable(now)
            read_ends += 2.75
    assert now <= 2.0 + ALONE_AFTER_S + 3.0, f"alone after {now} s"
