from dataclasses import replace

from federated_site import (
    ANNA,
    BERT,
    CARL,
    JOB,
    ME,
    Bench,
    answered,
    asked,
    contributions,
    digest,
    job,
    of,
    value,
)

from agent.federation.events import (
    Aggregate,
    Ask,
    BlobArrived,
    BlobRead,
    Called,
    Cancelled,
    Counting,
    Export,
    FetchBlob,
    Finished,
    ForgetBlob,
    Initialise,
    JobEffect,
    Label,
    ReadBlob,
    ReleaseTrainer,
    Train,
    Trained,
    ViewChanged,
    WorkDone,
    WorkFailed,
)
from agent.federation.history import Counted
from agent.federation.participant import Update
from agent.federation.restored import Restored
from agent.federation.value import JobValue, decode
from agent.foundation.machine import NEVER
from agent.wire.mesh import (
    Accept,
    Accepted,
    Ballot,
    Buried,
    Declined,
    Done,
    Keep,
    Notice,
    NoticeReply,
    Offer,
    OfferReply,
    Prepare,
    Promise,
    Read,
    ReadReply,
    Reply,
    Watch,
)
from agent.wire.schema import pack

BALLOT = Ballot(3, b"x" * 48)


def row(held: JobValue) -> dict[str, object]:
    return {
        "job": JOB, "promised_number": 3, "promised_proposer": BALLOT.proposer,
        "accepted_number": 3, "accepted_proposer": BALLOT.proposer, "value": pack(held),
    }  # fmt: skip


def restored(held: JobValue, **more: object) -> Restored:
    return Restored(value=held, register=row(held), **more)  # type: ignore[arg-type]


def tell(bench: Bench, effects: list[JobEffect], held: JobValue | None) -> list[JobEffect]:
    """Every reading of the register finds ``held``."""
    reply = ReadReply(None, None) if held is None else ReadReply(BALLOT, pack(held))
    made: list[JobEffect] = []
    for ask in asked(effects, Read):
        made += bench.reply(ask, reply)
    return made


def follower(held: JobValue, *alive: bytes, **changes: object) -> tuple[Bench, list[JobEffect]]:
    """A site outside the committee that has just read ``held``."""
    bench = Bench(job(committee=(ANNA, BERT, CARL), **changes), *(alive or (ANNA, BERT, CARL)))  # type: ignore[arg-type]
    bench.around.held.add(digest("p0"))
    bench.start()
    return bench, tell(bench, bench.wake(), held)


# --- a job of one site, from nothing to the end --------------------------------------------------
def alone(**changes: object) -> Bench:
    bench = Bench(job(**changes)).start()
    bench.run_to(1.0)
    (work,) = of(bench.effects, Initialise)
    bench.around.held.add(digest("p0"))
    bench.step(WorkDone(work.token, digest("p0"), 10))
    return bench


def a_round(bench: Bench, number: int) -> list[JobEffect]:
    train = of(bench.effects, Train)[-1]
    assert train.round == number
    update = digest(f"u{number}")
    bench.around.held.add(update)
    bench.step(Trained(number, train.base, update, 7, ()))
    mean = of(bench.effects, Aggregate)[-1]
    assert mean.updates == [Counting(update, 7)]
    bench.around.held.add(digest(f"p{number}"))
    return bench.step(WorkDone(mean.token, digest(f"p{number}"), 10))


def test_a_site_alone_takes_a_job_to_its_end_and_falls_silent() -> None:
    bench = alone()
    a_round(bench, 1)
    a_round(bench, 2)
    effects = a_round(bench, 3)
    (finished,) = of(effects, Finished)
    assert finished.round == 3
    assert of(effects, ReleaseTrainer)
    assert sorted(bench.machine.history.rounds) == [1, 2, 3]
    assert bench.machine.wake_at() == NEVER
    assert not of(bench.effects, Ask)


def test_parameters_of_two_rounds_ago_are_forgotten_and_no_later_ones() -> None:
    bench = alone()
    a_round(bench, 1)
    assert digest("p0") not in {f.digest for f in of(bench.effects, ForgetBlob)}
    a_round(bench, 2)
    forgotten = {f.digest for f in of(bench.effects, ForgetBlob)}
    assert digest("p0") in forgotten
    assert not {digest("p1"), digest("p2")} & forgotten


def test_an_update_that_is_the_mean_itself_is_not_forgotten() -> None:
    bench = alone()
    train = of(bench.effects, Train)[-1]
    bench.around.held.add(digest("same"))
    bench.step(Trained(1, train.base, digest("same"), 7, ()))
    mean = of(bench.effects, Aggregate)[-1]
    bench.step(WorkDone(mean.token, digest("same"), 10))
    assert bench.machine.value is not None
    assert bench.machine.value.parameters == digest("same")
    assert digest("same") not in {f.digest for f in of(bench.effects, ForgetBlob)}


def test_a_restart_with_an_open_update_does_not_recurse() -> None:
    held = value(aggregator=ME)
    update = Update(1, digest("p0"), digest("u1"), 7, ())
    bench = Bench(job(), restored=restored(held, update=update))
    bench.around.held |= {digest("p0"), digest("u1")}
    bench.start().run_to(5.0)
    assert bench.machine.value is not None
    assert bench.machine.value.epoch == 2
    assert of(bench.effects, Aggregate)[-1].updates == [Counting(digest("u1"), 7)]


def test_a_restart_in_the_export_phase_goes_on_with_the_export() -> None:
    held = value(aggregator=ME, state="exporting", round=3, contributions=contributions(3)[0])
    bench = Bench(job(publish="model"), restored=restored(held))
    bench.start().run_to(5.0)
    assert not of(bench.effects, Export), "not without the parameters"
    fetched = {f.digest for f in of(bench.effects, FetchBlob)}
    assert digest("p0") in fetched
    bench.around.held.add(digest("p0"))
    bench.step(BlobArrived(digest("p0")))
    assert of(bench.effects, Export)


# --- failing work --------------------------------------------------------------------------------
def test_initialising_that_always_fails_ends_the_job_after_bounded_tries() -> None:
    bench = Bench(job()).start()
    bench.run_to(1.0)
    for _ in range(100):
        if bench.machine.is_over:
            break
        work = of(bench.effects, Initialise)[-1]
        bench.step(WorkFailed(work.token, "no such recipe"))
        if not bench.machine.is_over:
            bench.run_to(bench.now + 61.0)
    assert bench.machine.value is not None
    assert bench.machine.value.state == "failed"
    assert "no such recipe" in bench.machine.value.reason
    assert len(of(bench.effects, Initialise)) < 20


def test_a_failed_mean_is_tried_again_with_the_same_updates() -> None:
    bench = alone()
    train = of(bench.effects, Train)[-1]
    bench.around.held.add(digest("u1"))
    bench.step(Trained(1, train.base, digest("u1"), 7, ()))
    first = of(bench.effects, Aggregate)[-1]
    bench.step(WorkFailed(first.token, "out of memory"))
    bench.run_to(bench.now + 5.0)
    second = of(bench.effects, Aggregate)[-1]
    assert second.token != first.token
    assert second.updates == first.updates


# --- claims --------------------------------------------------------------------------------------
def decide(bench: Bench, effects: list[JobEffect], held: JobValue | None) -> list[JobEffect]:
    """The committee promises and accepts whatever is proposed; effects after the decision."""
    made = effects
    for ask in asked(effects, Prepare):
        call = ask.message
        assert isinstance(call, Prepare)
        old = (None, None) if held is None else (BALLOT, pack(held))
        made = made + bench.reply(ask, Promise(call.ballot, *old))
    after: list[JobEffect] = []
    for ask in asked(made, Accept):
        call = ask.message
        assert isinstance(call, Accept)
        after += bench.reply(ask, Accepted(call.ballot))
    return after


def claimed(bench: Bench) -> list[JobEffect]:
    """Wake until the site proposes."""
    for _ in range(50):
        effects = bench.wake()
        if asked(effects, Prepare):
            return effects
    raise AssertionError("the site never claims")


def test_an_aggregator_that_reads_its_own_claim_first_still_begins() -> None:
    bench, effects = follower(value(parameters=None), ANNA)
    del bench.around.living[ANNA]
    bench.step(ViewChanged())
    effects = claimed(bench)
    promised: list[JobEffect] = []
    for ask in asked(effects, Prepare):
        call = ask.message
        assert isinstance(call, Prepare)
        promised += bench.reply(ask, Promise(call.ballot, BALLOT, pack(value(parameters=None))))
    accepts = asked(promised, Accept)
    call = accepts[0].message
    assert isinstance(call, Accept)
    mine = decode(call.value)
    assert mine is not None
    assert mine.aggregator == ME
    # A read that was under way tells first.
    notice = bench.step(Called(900, BERT, Notice(JOB, mine.epoch, mine.round, ME)))
    for ask in asked(notice, Read):
        bench.reply(ask, ReadReply(call.ballot, call.value))
    for ask in accepts:
        bench.reply(ask, Accepted(call.ballot))
    assert bench.machine.aggregation is not None
    assert bench.machine.aggregation.phase == "initialising"
    assert len(of(bench.effects, Initialise)) == 1


def test_a_claim_that_was_overtaken_before_it_was_known_makes_no_aggregator() -> None:
    bench, _ = follower(value(parameters=None), ANNA)
    del bench.around.living[ANNA]
    bench.step(ViewChanged())
    effects = claimed(bench)
    promised: list[JobEffect] = []
    for ask in asked(effects, Prepare):
        call = ask.message
        assert isinstance(call, Prepare)
        promised += bench.reply(ask, Promise(call.ballot, BALLOT, pack(value(parameters=None))))
    accepts = asked(promised, Accept)
    call = accepts[0].message
    assert isinstance(call, Accept)
    later = value(parameters=None, epoch=9, aggregator=BERT)
    notice = bench.step(Called(900, BERT, Notice(JOB, 9, 0, BERT)))
    for ask in asked(notice, Read):
        bench.reply(ask, ReadReply(Ballot(99, b"y" * 48), pack(later)))
    for ask in accepts:
        bench.reply(ask, Accepted(call.ballot))
    assert bench.machine.aggregation is None
    assert bench.machine.value is not None
    assert bench.machine.value.aggregator == BERT


def test_a_site_that_has_just_started_does_not_claim_because_it_has_seen_nobody() -> None:
    bench, effects = follower(value(), BERT)
    assert ANNA not in bench.around.living
    assert asked(effects, Watch)
    effects = bench.run_to(bench.now + 3.0)
    assert not asked(effects, Prepare)


def test_an_aggregator_that_was_seen_and_has_gone_is_replaced() -> None:
    bench, _ = follower(value(), ANNA)
    del bench.around.living[ANNA]
    bench.step(ViewChanged())
    assert asked(claimed(bench), Prepare)


def test_an_aggregator_that_denies_it_twice_is_replaced_though_it_lives() -> None:
    held = value()
    bench, effects = follower(held, ANNA)
    pending = effects
    for _ in range(40):
        made: list[JobEffect] = []
        for ask in asked(pending, Watch):
            made += bench.reply(ask, Declined("not the aggregator"))
        made += tell(bench, pending, held)
        if asked(made, Prepare):
            return
        pending = made if asked(made, Read) or asked(made, Watch) else bench.wake()
        if asked(pending, Prepare):
            return
    raise AssertionError("nobody replaces it")


def test_a_watch_that_is_always_answered_at_once_does_not_spin() -> None:
    held = value()
    bench, effects = follower(held, ANNA)
    bench.around.aggregates = False
    pending, reads = effects, 0
    while bench.now < 60.0:
        made: list[JobEffect] = []
        for ask in asked(pending, Watch):
            made += bench.reply(ask, Done())
        reads += len(asked(pending, Read))
        made += tell(bench, pending, held)
        pending = made if asked(made, Read) or asked(made, Watch) else bench.wake()
    assert reads < 3 * 30


# --- the end -------------------------------------------------------------------------------------
def test_an_ended_job_reads_nothing_when_a_late_reply_comes() -> None:
    bench, effects = follower(value(), ANNA)
    (train,) = of(effects, Train)
    bench.around.held.add(digest("u1"))
    effects = bench.step(Trained(1, train.base, digest("u1"), 7, ()))
    (offer,) = asked(effects, Offer)
    bench.step(Cancelled())
    after = bench.reply(offer, None)
    after += bench.reply(offer, OfferReply("stale"))
    assert not of(after, Ask)
    assert bench.machine.wake_at() == NEVER


def test_a_cancelled_job_trains_no_more_and_drops_its_update() -> None:
    bench, effects = follower(value(), ANNA)
    (train,) = of(effects, Train)
    effects = bench.step(Cancelled())
    assert of(effects, Finished)
    effects = bench.step(Trained(1, train.base, digest("u1"), 7, ()))
    assert bench.rows["updates"]["state"] == "missed"
    assert digest("u1") in {f.digest for f in of(effects, ForgetBlob)}
    assert not of(effects, Ask)


def test_a_job_that_was_cancelled_before_a_restart_stays_over() -> None:
    held = value()
    bench = Bench(job(is_cancelled=True), ANNA, restored=restored(held))
    bench.around.held.add(digest("p0"))
    bench.start()
    while bench.machine.wake_at() != NEVER:
        bench.wake()
    assert bench.machine.is_over
    assert not of(bench.effects, Ask)
    assert not of(bench.effects, Train)


def test_an_update_that_comes_after_the_last_round_is_not_kept_open() -> None:
    bench, effects = follower(value(), ANNA, rounds=1)
    (train,) = of(effects, Train)
    done = value(round=1, state="finished", parameters=digest("p1"), contributions=digest("c1"))
    notice = bench.step(Called(900, ANNA, Notice(JOB, 1, 1, ANNA)))
    tell(bench, notice, done)
    assert bench.machine.is_over
    bench.step(Trained(1, train.base, digest("u1"), 7, ()))
    assert bench.rows["updates"]["state"] == "missed"


def test_a_finished_job_completes_its_history_after_a_restart() -> None:
    first, first_data, one = contributions(1)
    second, _, two = contributions(2, first)
    held = value(
        round=2, state="finished", parameters=digest("p2"), contributions=second, aggregator=ANNA
    )
    bench = Bench(job(rounds=2), ANNA, restored=restored(held, rounds=(Counted(second, two),)))
    bench.start()
    effects = bench.wake()
    assert {f.digest for f in of(effects, FetchBlob)} == {first}
    bench.around.held.add(first)
    (read,) = of(bench.step(BlobArrived(first)), ReadBlob)
    bench.step(BlobRead(read.digest, first_data))
    assert bench.machine.history.rounds[1].figures == Counted(first, one).figures
    assert bench.machine.wake_at() == NEVER
    assert not any(isinstance(one, Counted) for one in bench.machine.history.rounds.values())


def test_labels_go_out_after_a_restart_even_if_the_job_is_over() -> None:
    first, _, one = contributions(1)
    held = value(round=1, state="finished", parameters=digest("p1"), contributions=first)
    bench = Bench(job(rounds=1), restored=restored(held, rounds=(Counted(first, one),)))
    bench.around.held |= {first, digest("p1")}
    bench.start()
    labels = {label.digest for label in of(bench.wake(), Label)}
    assert labels >= {first, digest("p1")}
    assert bench.machine.wake_at() == NEVER


# --- calls ---------------------------------------------------------------------------------------
def test_an_ended_job_keeps_nothing_more_and_does_not_spin() -> None:
    bench, _ = follower(value(), ANNA)
    bench.around.held.discard(digest("p0"))
    bench.step(Cancelled())
    effects = bench.step(Called(7, ANNA, Keep(JOB, (digest("x"),))))
    assert answered(effects) == Declined("the job has ended here")
    assert not of(effects, FetchBlob)
    assert bench.machine.wake_at() == NEVER


def test_watchers_learn_at_once_that_the_job_was_cancelled() -> None:
    bench = alone()
    assert not bench.step(Called(5, ANNA, Watch(JOB, 1, 0)))
    assert isinstance(answered(bench.step(Cancelled())), Declined)
    assert isinstance(answered(bench.step(Called(6, ANNA, Watch(JOB, 1, 0)))), Declined)


def test_a_notice_of_the_same_round_is_looked_into_before_the_first_parameters() -> None:
    bench, _ = follower(value(parameters=None), ANNA)
    effects = bench.step(Called(5, ANNA, Notice(JOB, 1, 0, ANNA)))
    assert answered(effects) == NoticeReply(True)
    assert asked(effects, Read)


def test_a_member_that_forgot_its_promises_does_not_vote() -> None:
    damaged = row(value()) | {"promised_proposer": "text"}
    bench = Bench(
        job(committee=(ME, ANNA, BERT)),
        ANNA,
        BERT,
        restored=Restored(register=damaged),  # type: ignore[arg-type]
    ).start()
    reply: Reply = answered(bench.step(Called(5, ANNA, Read(JOB))))
    assert isinstance(reply, Declined)


def test_a_site_that_was_away_takes_the_end_from_a_tombstone_and_asks_nobody_more() -> None:
    bench, effects = follower(value(round=1, contributions=contributions(1)[0]), ANNA)
    assert of(effects, FetchBlob), "what round 1 counted is sought"
    told = Buried(JOB, "finished", 3, digest("model"), 9)

    def answer(reply: Buried) -> bool:
        """Whoever is asked says so, for a minute."""
        until = bench.now + 60.0
        while bench.machine.wake_at() <= until:
            for ask in asked(bench.wake(), Read):
                bench.reply(ask, reply)
        return bench.machine.is_over

    assert not answer(replace(told, job="another-00000001"))
    assert answer(told)
    (done,) = of(bench.effects, Finished)
    assert (done.exported, done.exported_bytes, done.round) == (digest("model"), 9, 3)
    assert bench.machine.wake_at() == NEVER
    assert bench.machine.is_settled
