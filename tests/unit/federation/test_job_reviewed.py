"""What fresh eyes found wrong with jobs: recovery, tombstones, audit, forged news. Each failed first."""

from dataclasses import replace
from itertools import count
from random import Random

import test_inclusion as inclusion
import test_job as jobs
import test_participant as participants
import test_swaps as swaps
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
    site_id,
    value,
)

from agent.federation.burial import ended
from agent.federation.events import (
    Ask,
    BlobArrived,
    BlobMissing,
    Called,
    FetchBlob,
    JobEffect,
    ReadBlob,
    Replied,
    Trained,
)
from agent.federation.history import History
from agent.federation.inclusion import verify, verify_region
from agent.federation.lateness import late_by
from agent.federation.region import regional
from agent.federation.restored import Restored
from agent.federation.value import Above, Contribution, encode_value
from agent.foundation.ids import JobId
from agent.foundation.machine import NEVER
from agent.identity.claims import is_job_id
from agent.site.workshop import Workshop
from agent.wire.documents import Region
from agent.wire.mesh import CALLS, Ballot, Buried, Keep, Notice, Read, ReadReply


# --- recovery ------------------------------------------------------------------------------------
def recovered_history() -> tuple[History, Contribution]:
    """This site has read round 1; it was lost, and made anew with ANNA's update in it."""
    of_anna, of_bert = Contribution(ANNA, digest("a1"), 5), Contribution(BERT, digest("b1"), 5)
    lost, data, _ = contributions(1, None, of_bert)
    anew, more, _ = contributions(1, None, of_anna, of_bert)
    second, third, _ = contributions(2, anew)
    bytes_of = {lost: data, anew: more, second: third}
    out, around = desk(), Around(ANNA)
    history = History(job(), out, around, lambda: (ANNA,), lambda _: None)

    def serve() -> None:
        while effects := out.take():
            for fetch in of(effects, FetchBlob):
                around.held.add(fetch.digest)
                history.blob_arrived(fetch.digest, 1.0)
            for read in of(effects, ReadBlob):
                history.blob_read(read.digest, bytes_of[read.digest], 1.0)

    history.follow(value(round=1, contributions=lost))
    serve()
    for held in (
        value(round=0, epoch=2**20, recoveries=1),
        value(round=1, epoch=2**20, recoveries=1, contributions=anew),
        value(round=2, epoch=2**20, recoveries=1, contributions=second),
    ):
        history.follow(held)
        serve()
    return history, of_anna


def test_after_a_recovery_the_rounds_are_those_that_were_made_anew() -> None:
    history, of_anna = recovered_history()
    content = history.content(1)
    assert content is not None
    assert of_anna in content.entries, "the history is still that of the round which was lost"


def test_after_a_recovery_no_update_is_counted_twice() -> None:
    """ANNA has not read yet that round 1 counted it; this site aggregates round 3."""
    history, _ = recovered_history()
    late = late_by(ANNA, 1, digest("p0"), 3, 2, history.content)
    assert late is None, "round 1 has counted it, and round 3 counts it again"


def test_a_recovery_goes_on_when_the_furthest_value_names_what_nobody_has() -> None:
    """ANNA accepted round 2, whose parameters only the lost members had; all have those of round 1."""
    far = value(aggregator=BERT, round=2, parameters=digest("p2"), contributions=digest("c2"))
    bench = swaps.Bench(far)
    near = value(round=1, parameters=digest("p1"), contributions=digest("c1"))
    bench.dead, bench.around.held = {BERT}, set(near.blobs)
    bench.swaps.recover((ME, ANNA), (ME, ANNA, swaps.DORA), near, 0.0)
    bench.settle()
    for blob in sorted(far.blobs):
        bench.swaps.blob_missing(blob, 1.0)
    bench.settle()
    assert bench.adopted, f"never, at any site: {bench.swaps.trouble}"


# --- tombstones ----------------------------------------------------------------------------------
def test_an_end_from_a_tombstone_carries_nothing_on() -> None:
    last = value(round=1, carried=digest("momenta"))
    done = ended(Buried(JOB, "finished", 3, digest("model"), 9), last, JOB, ME, has_history=False)
    assert done.carried is None, "a model's worth of momenta stays with a job that is over"


def test_an_update_that_nobody_can_tell_of_any_more_goes() -> None:
    bench, _ = jobs.follower(value(round=0))
    bench.around.held.add(digest("u1"))
    bench.step(Trained(1, digest("p0"), digest("u1"), 7, ()))
    assert bench.machine.participant.kept
    until = bench.now + 60.0
    while bench.machine.wake_at() <= until:
        for ask in asked(bench.wake(), Read):
            bench.reply(ask, Buried(JOB, "finished", 3, digest("model"), 9))
    assert bench.machine.is_settled
    assert bench.machine.participant.kept == set(), "kept until 500 more jobs are over"


def test_a_region_seeks_no_rounds_of_a_job_that_left_a_tombstone() -> None:
    """Its sites were away; all others have buried the job, and its region's rounds with it."""
    north = Region("north", (ANNA, BERT))
    whole = job(committee=(ANNA, BERT, CARL), regions=(north,))
    within = regional(whole, north)
    around = Around(ANNA, BERT, CARL)
    around.regions = dict.fromkeys((ME, ANNA, BERT), "north")
    numbers = count(1)
    read_last = value(job=within.id, round=2, contributions=digest("c2"), parameters=digest("n2"))
    stored = {
        JOB: Restored(value=value(round=0)),
        within.id: Restored(value=read_last),
    }
    workshop = Workshop(ME, 1, lambda: next(numbers), around, Random(1), stored, "")
    workshop.open(whole, 0.0)
    now = 0.0
    fetched = 0
    for _ in range(400):
        now = max(now, workshop.wake_at())
        if now == NEVER or now > 600.0:
            break
        effects = workshop.woke(now)
        while effects:
            later: list[JobEffect] = []
            for effect in effects:
                if isinstance(effect, FetchBlob):
                    fetched += now > 300.0
                    later += workshop.blob(BlobMissing(effect.digest, ""), now)
                elif isinstance(effect, Ask):
                    is_whole = effect.message.job == JOB  # type: ignore[union-attr]
                    told = Buried(JOB, "finished", 3, digest("model"), 9) if is_whole else None
                    later += workshop.replied(Replied(effect.call, told), now) or []
            effects = later
    assert workshop.machines[JOB].is_over
    assert workshop.machines[within.id].is_over
    assert workshop.wake_at() == NEVER, f"{fetched} fetches from 300 s to {now:.0f} s, for ever"


# --- audit ---------------------------------------------------------------------------------------
def test_two_sites_with_the_same_bytes_are_no_finding() -> None:
    """The identity of an update is (site, round): decision 18. A copy of a small data set is enough."""
    first, data, _ = contributions(
        1, None, Contribution(ANNA, digest("same"), 5), Contribution(BERT, digest("same"), 5)
    )
    held = value(round=1, contributions=first, parameters=digest("p1"))
    assert verify(ME, held, {first: data}.get, []).findings == ()


def test_a_region_whose_register_was_recovered_is_no_finding() -> None:
    """The whole job counted rounds 2 and 3 of the region; its majority was lost with them. Recovered at
    round 1, the region sees them counted, adopts the newest parameters and makes round 2 anew."""
    rounds = [contributions(n, None)[2] for n in (1, 2)]
    last, blobs = inclusion.a_chain(
        replace(rounds[0], base=digest("g0"), parameters=digest("n1"), above=1),
        replace(rounds[1], base=digest("g2"), parameters=digest("n2 anew"), above=3),
    )
    above = Above(0, 2, digest("g2"), 1)
    region = value(
        round=2, contributions=last, parameters=digest("n2 anew"), above=above, recoveries=1
    )
    whole, more = inclusion.a_whole(
        inclusion.of_region("n1", 0, 1), inclusion.of_region("n3", 1, 3),
        inclusion.of_region("n2 anew", 1, 2),
    )  # fmt: skip
    found = verify_region("north", whole, region, {**blobs, **more}.get)
    assert found.findings == ()


# --- names ---------------------------------------------------------------------------------------
def test_a_region_of_a_job_with_a_long_name_can_be_called_about() -> None:
    """A job's name may have 64 characters, its id 73, its regions' ids 82: calls about them have 80."""
    whole = job(id=JobId("n" * 64 + "-12345678"), regions=(Region("north", (ANNA,)),))
    assert is_job_id(whole.id)
    asked_about = Read(regional(whole, whole.regions[0]).id)
    assert CALLS.unpack(CALLS.pack(asked_about)) == asked_about


# --- strangers -----------------------------------------------------------------------------------
def test_a_stranger_cannot_fill_the_disk_of_a_member() -> None:
    """``Keep`` is taken from any site of the mesh, of any epoch, and promised until the job is over."""
    evil = site_id("evil")
    bench, _ = jobs.follower(value(round=1), ANNA, BERT, CARL, evil)
    for call in range(100):
        blobs = tuple(digest(f"junk {call} {n}") for n in range(8))
        bench.step(Called(call, evil, Keep(JOB, blobs)))
        for blob in blobs:
            bench.around.held.add(blob)
            bench.step(BlobArrived(blob))
    needed = sum(bench.machine.needs(blob) for blob in bench.around.held)
    assert needed < 100, f"{needed} blobs of a stranger are kept"


# --- forged news ---------------------------------------------------------------------------------
def test_a_site_that_holds_no_register_cannot_name_its_holders() -> None:
    """One Notice from any member of the mesh, and its word is the job's end."""
    evil = site_id("evil")
    bench, _ = jobs.follower(value(round=1), ANNA, BERT, CARL, evil)
    bench.step(Called(77, evil, Notice(JOB, 1, 1, ANNA, 2, (evil,), ())))
    until = bench.now + 60.0
    asked_of = set()
    while bench.machine.wake_at() <= until and not bench.machine.is_over:
        for ask in asked(bench.wake(), Read):
            asked_of.add(ask.site)
            if ask.site == evil:
                bench.reply(ask, Buried(JOB, "finished", 3, digest("poison"), 9))
            else:
                held = encode_value(value(round=1))
                bench.reply(ask, ReadReply(Ballot(3, b"x" * 48), held))
    assert not bench.machine.is_over, f"ended by {evil.hex()[:6]} alone: {bench.machine.value}"


def test_who_was_away_learns_the_end_after_the_committee_has_changed() -> None:
    """The committee that this site knows is gone; those that followed it have buried the job."""
    dora = site_id("dora")
    bench, _ = jobs.follower(value(round=1), dora)
    until, told = bench.now + 600.0, 0
    while bench.machine.wake_at() <= until and not bench.machine.is_over:
        effects = bench.wake()
        while asks := of(effects, Ask):
            effects = []
            for ask in asks:
                told += ask.site == dora
                is_known = ask.site == dora
                buried = Buried(JOB, "finished", 3, digest("m"), 9)
                effects += bench.reply(ask, buried if is_known else None)
    assert bench.machine.is_over, f"a living site said {told} times that the job is over"
    assert told >= 20, "not at its first word: it may lie"


def test_an_update_with_the_bytes_of_another_sites_is_still_offered() -> None:
    """ANNA's was counted in round 1, this site's came too late for it: it is closed as counted, and lost."""
    bench = participants.Bench(staleness_max=2)
    bench.participant.follow(value(), 0.0)
    bench.trained(1, "same")
    first = contributions(1, None, Contribution(ANNA, digest("same"), 5))[2]
    bench.settled(first)
    assert "counted" not in participants.states(bench.desk.take())
    assert bench.participant.update is not None, "nobody has counted it, two more rounds may"
