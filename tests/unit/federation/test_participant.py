import json

from federated_site import (
    ANNA,
    BERT,
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

from agent.federation.events import (
    FetchBlob,
    ForgetBlob,
    JobEffect,
    Label,
    Persist,
    Train,
    Trained,
)
from agent.federation.offering import RETRY_AFTER_MAX_S, Ears
from agent.federation.participant import ATTEMPTS_MAX, Participant, Update
from agent.federation.value import Contribution, Contributions
from agent.foundation.machine import NEVER
from agent.wire.mesh import Declined, Done, Offer, OfferReply, Withdraw


class Bench:
    def __init__(self, **changes: object) -> None:
        self.desk, self.around = desk(), Around(ANNA)
        self.around.held.add(digest("p0"))
        self.refreshed = 0
        self.withdrawn: list[str] = []
        self.own = OfferReply("stale")
        self.rounds: dict[int, Contributions] = {}
        self.participant = Participant(
            job(**changes), ME, self.desk, self.around, lambda: (ANNA,),
            Ears(lambda *_: self.own, self._refresh),
            lambda _s, _r, reason, _n: self.withdrawn.append(reason), self.rounds.get,
        )  # fmt: skip

    def _refresh(self, now: float) -> None:  # noqa: ARG002
        self.refreshed += 1

    def settled(self, content: Contributions) -> None:
        self.rounds[content.round] = content
        self.participant.settled()

    def trained(self, round_: int = 1, name: str = "u1") -> list[JobEffect]:
        self.around.held.add(digest(name))
        base = digest(f"p{round_ - 1}")
        self.participant.trained(Trained(round_, base, digest(name), 7, (("loss", 1.0),)), 1.0)
        return self.desk.take()


def states(effects: list[JobEffect]) -> list[object]:
    return [w.row["state"] for p in of(effects, Persist) for w in p.writes if hasattr(w, "row")]


def test_parameters_are_fetched_once_then_trained_on() -> None:
    bench = Bench()
    bench.around.held.clear()
    bench.participant.follow(value(), 0.0)
    bench.participant.follow(value(), 0.0)
    assert [f.digest for f in of(bench.desk.take(), FetchBlob)] == [digest("p0")]
    bench.around.held.add(digest("p0"))
    bench.participant.blob_arrived(digest("p0"), 1.0)
    assert [t.round for t in of(bench.desk.take(), Train)] == [1]


def test_parameters_that_cannot_be_had_are_asked_for_again_more_and_more_slowly() -> None:
    bench = Bench()
    bench.around.held.clear()
    bench.participant.follow(value(), 0.0)
    now, pauses = 0.0, []
    for _ in range(8):
        bench.participant.blob_missing(digest("p0"), now)
        pauses.append(bench.participant.wake_at() - now)
        now = bench.participant.wake_at()
        bench.participant.woke(now)
        assert len(of(bench.desk.take(), FetchBlob)) >= 1
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert pauses[-1] == RETRY_AFTER_MAX_S


def test_an_update_is_durable_before_it_is_offered() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    effects = bench.trained()
    kinds = [type(effect).__name__ for effect in effects if not isinstance(effect, Train)]
    assert kinds.index("Persist") < kinds.index("Ask")
    (row,) = [w.row for p in of(effects, Persist) for w in p.writes if hasattr(w, "row")]
    assert json.loads(str(row["metrics"])) == [["loss", 1.0]]


def test_an_offer_that_is_not_taken_is_repeated_after_growing_pauses() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    effects, now = bench.trained(), 1.0
    pauses = []
    for _ in range(6):
        (offer,) = asked(effects, Offer)
        bench.desk.replied(offer.call, OfferReply("stale"), now)
        pauses.append(bench.participant.wake_at() - now)
        now = bench.participant.wake_at()
        bench.participant.woke(now)
        effects = bench.desk.take()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0]
    assert bench.refreshed == 6


def test_reading_the_register_again_does_not_hasten_an_offer_that_was_not_taken() -> None:
    """The register is read after each refusal; on a fast network that was an offer a round trip."""
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    (offer,) = asked(bench.trained(), Offer)
    bench.desk.replied(offer.call, OfferReply("stale"), 1.0)
    bench.desk.take()
    bench.participant.follow(value(), 1.01)
    assert asked(bench.desk.take(), Offer) == []
    bench.participant.follow(value(epoch=2), 1.02)
    (again,) = asked(bench.desk.take(), Offer)
    bench.desk.replied(again.call, OfferReply("stale"), 1.1)
    bench.participant.woke(bench.participant.wake_at())
    assert len(asked(bench.desk.take(), Offer)) == 1


def test_the_same_update_is_offered_to_the_next_aggregator() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    (offer,) = asked(bench.trained(), Offer)
    bench.desk.replied(offer.call, OfferReply("collected"), 1.0)
    assert bench.participant.wake_at() == NEVER
    bench.participant.follow(value(epoch=2, aggregator=BERT), 2.0)
    (again,) = asked(bench.desk.take(), Offer)
    assert again.site == BERT
    assert isinstance(again.message, Offer)
    assert again.message.update == digest("u1")


def test_an_offer_to_this_very_site_needs_no_call_and_never_a_read() -> None:
    bench = Bench()
    mine = value(aggregator=ME)
    bench.participant.follow(mine, 0.0)
    assert not asked(bench.trained(), Offer)
    assert bench.refreshed == 0
    assert bench.participant.wake_at() > 1.0
    bench.own = OfferReply("collected")
    bench.participant.woke(bench.participant.wake_at())
    assert bench.participant.wake_at() == NEVER


def test_an_update_is_kept_until_its_round_is_settled() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    bench.trained()
    entry = Contribution(ME, digest("u1"), 7)
    bench.settled(contributions(2, None, entry)[2])
    assert bench.participant.update is not None
    bench.settled(contributions(1, None, entry)[2])
    effects = bench.desk.take()
    assert states(effects) == ["counted"]
    assert [f.digest for f in of(effects, ForgetBlob)] == [digest("u1")]


def test_an_update_that_was_not_counted_is_marked_as_missed() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    bench.trained()
    bench.settled(contributions(1)[2])
    assert states(bench.desk.take()) == ["missed"]


def test_training_on_closes_the_update_of_a_committed_round_and_learns_later_that_it_counted() -> (
    None
):
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    bench.trained()
    bench.around.held.add(digest("p1"))
    bench.participant.follow(value(round=1, parameters=digest("p1")), 2.0)
    effects = bench.trained(2, "u2")
    assert states(effects) == ["missed", "open"]
    entry = Contribution(ME, digest("u1"), 7)
    bench.settled(contributions(1, None, entry)[2])
    assert states(bench.desk.take()) == ["counted"]
    assert bench.participant.update is not None
    assert bench.participant.update.round == 2


def test_a_late_update_is_dropped_and_the_next_round_begins() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    bench.around.held.add(digest("p1"))
    bench.participant.follow(value(round=1, parameters=digest("p1")), 1.0)
    bench.desk.take()
    effects = bench.trained()
    assert states(effects) == ["missed"]
    assert [t.round for t in of(effects, Train)] == [2]


def test_an_attempt_that_failed_for_an_old_round_is_no_failure_of_the_new_one() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    bench.around.held.add(digest("p1"))
    bench.participant.follow(value(round=1, parameters=digest("p1")), 1.0)
    bench.participant.attempt_ended(1, "its parameters are gone", 2.0)
    assert [t.round for t in of(bench.desk.take(), Train)] == [1, 2]


def fail_all(bench: Bench) -> float:
    now = 0.0
    for _ in range(ATTEMPTS_MAX):
        bench.participant.attempt_ended(1, "bad data", now)
        if (at := bench.participant.wake_at()) != NEVER:
            now = at
            bench.participant.woke(now)
    return now


def test_a_site_that_gives_up_tells_every_aggregator_until_it_has_understood() -> None:
    bench = Bench()
    bench.participant.follow(value(), 0.0)
    now = fail_all(bench)
    (withdraw,) = asked(bench.desk.take(), Withdraw)
    bench.desk.replied(withdraw.call, Declined("not the aggregator"), now)
    now = bench.participant.wake_at()
    bench.participant.woke(now)
    (withdraw,) = asked(bench.desk.take(), Withdraw)
    bench.desk.replied(withdraw.call, Done(), now)
    bench.participant.woke(bench.participant.wake_at())
    assert asked(bench.desk.take(), Withdraw) == []
    bench.participant.follow(value(epoch=2, aggregator=BERT), now)
    assert [ask.site for ask in asked(bench.desk.take(), Withdraw)] == [BERT]


def test_an_aggregator_that_gives_up_its_own_training_tells_itself() -> None:
    bench = Bench()
    bench.participant.follow(value(aggregator=ME), 0.0)
    fail_all(bench)
    assert bench.withdrawn == ["bad data"]
    assert asked(bench.desk.take(), Withdraw) == []


def test_an_update_whose_bytes_are_gone_is_made_anew() -> None:
    bench = Bench()
    bench.participant.restore(Update(1, digest("p0"), digest("gone"), 7, ()))
    bench.participant.follow(value(), 0.0)
    assert [t.round for t in of(bench.desk.take(), Train)] == [1]


def test_the_end_drops_what_no_round_can_count_and_keeps_what_one_may_have() -> None:
    bench = Bench()
    bench.participant.restore(Update(1, digest("p0"), digest("u1"), 7, ()))
    bench.participant.end(value(round=1, state="finished"))
    kept = bench.participant.update
    assert kept is not None
    bench.participant.end(value(round=0, state="failed"))
    assert states(bench.desk.take()) == ["missed"]
    bench.participant.follow(value(), 0.0)
    assert bench.desk.take() == []


def test_a_late_update_is_offered_in_the_next_round_while_the_site_trains_on() -> None:
    bench = Bench(staleness_max=1)
    bench.around.held.add(digest("p1"))
    bench.participant.follow(value(), 0.0)
    bench.desk.take()
    bench.participant.follow(value(round=1, parameters=digest("p1")), 0.5)
    effects = bench.trained()
    (offer,) = asked(effects, Offer)
    assert isinstance(offer.message, Offer)
    assert (offer.message.round, offer.message.base) == (1, digest("p0"))
    assert [train.round for train in of(effects, Train)] == [2]
    assert bench.participant.kept == {digest("u1"), digest("p0")}
    bench.desk.replied(offer.call, OfferReply("collected"), 1.0)
    bench.settled(contributions(1, None)[2])
    assert bench.participant.update is not None, "the next round may count it"
    late = Contribution(ME, digest("u1"), 7, (), 1, digest("p0"))
    bench.settled(contributions(2, None, late)[2])
    effects = bench.desk.take()
    assert states(effects) == ["counted"]
    assert {f.digest for f in of(effects, ForgetBlob)} == {digest("u1"), digest("p0")}


def test_a_late_update_that_no_round_in_reach_has_counted_is_dropped() -> None:
    bench = Bench(staleness_max=1)
    bench.participant.follow(value(), 0.0)
    bench.trained()
    bench.settled(contributions(2, None)[2])
    assert bench.participant.kept == {digest("u1"), digest("p0")}, "round 1 is not known"
    bench.settled(contributions(1, None)[2])
    assert not bench.participant.kept
    assert states(bench.desk.take()) == ["missed"]


def test_what_was_taken_but_not_counted_is_offered_to_the_next_round() -> None:
    bench = Bench(staleness_max=2)
    bench.participant.follow(value(), 0.0)
    (offer,) = asked(bench.trained(), Offer)
    bench.desk.replied(offer.call, OfferReply("collected"), 1.0)
    bench.participant.follow(value(round=1, parameters=digest("p1")), 2.0)
    (again,) = asked(bench.desk.take(), Offer)
    assert isinstance(again.message, Offer)
    assert (again.message.round, again.message.update) == (1, digest("u1"))


def test_the_end_of_the_job_drops_a_late_update_that_was_not_counted() -> None:
    bench = Bench(staleness_max=2)
    bench.participant.follow(value(), 0.0)
    bench.trained()
    bench.settled(contributions(1, None)[2])
    bench.participant.end(value(round=1, state="finished"))
    assert bench.participant.update is None
    assert states(bench.desk.take()) == ["missed"]


def cut_update(bench: Bench, *, held: bool = True) -> Trained:
    parts = tuple(digest(f"part {n}") for n in range(3))
    if held:
        bench.around.held.update((digest("u1"), *parts))
    return Trained(1, digest("p0"), digest("u1"), 7, (), parts)


def test_the_parts_of_a_cut_update_are_offered_labelled_and_forgotten_with_it() -> None:
    bench = Bench(ranges=3)
    bench.participant.follow(value(), 0.0)
    bench.desk.take()
    trained = cut_update(bench)
    bench.participant.trained(trained, 1.0)
    effects = bench.desk.take()
    (offer,) = [ask.message for ask in asked(effects, Offer)]
    assert isinstance(offer, Offer)
    assert (offer.update, offer.parts) == (digest("u1"), trained.parts)
    assert {one.digest for one in of(effects, Label)} >= {digest("u1"), *trained.parts}
    assert bench.participant.kept == {digest("u1"), *trained.parts}
    bench.settled(contributions(1)[2])
    gone = {one.digest for one in of(bench.desk.take(), ForgetBlob)}
    assert gone == {digest("u1"), *trained.parts}


def test_an_update_whose_parts_are_lost_or_unknown_is_made_anew() -> None:
    for parts in ((), tuple(digest(f"part {n}") for n in range(3))):
        bench = Bench(ranges=3)
        bench.around.held.add(digest("u1"))
        bench.participant.restore(Update(1, digest("p0"), digest("u1"), 7, (), parts))
        bench.participant.follow(value(), 0.0)
        effects = bench.desk.take()
        assert asked(effects, Offer) == []
        assert [one.round for one in of(effects, Train)] == [1]


def test_control_variates_are_fetched_with_the_parameters_and_kept_while_they_are_read() -> None:
    bench = Bench(correction="scaffold")
    second = value(round=1, parameters=digest("p1"), carried=digest("c1"))
    bench.around.held.add(digest("p1"))
    bench.participant.follow(second, 0.0)
    assert [one.digest for one in of(bench.desk.take(), FetchBlob)] == [digest("c1")]
    bench.around.held.add(digest("c1"))
    bench.participant.blob_arrived(digest("c1"), 1.0)
    (train,) = of(bench.desk.take(), Train)
    assert (train.round, train.base, train.carried) == (2, digest("p1"), digest("c1"))
    assert bench.participant.training_from == {digest("p1"), digest("c1")}


def test_what_an_outer_optimizer_carries_on_is_nothing_to_the_sites() -> None:
    bench = Bench(outer="momentum")
    bench.around.held.add(digest("p1"))
    bench.participant.follow(value(round=1, parameters=digest("p1"), carried=digest("c1")), 0.0)
    (train,) = of(bench.desk.take(), Train)
    assert train.carried is None
