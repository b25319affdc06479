from random import Random

import pytest
from federated_site import (
    ANNA,
    BERT,
    CARL,
    ME,
    OPERATION,
    asked,
    desk,
    digest,
    job,
    of,
    site_id,
    value,
)

from agent.election.proposer import Refusal
from agent.election.roster import Roster
from agent.federation.desk import Desk
from agent.federation.events import JobEffect, Persist
from agent.federation.register import CONVERSATIONS_MAX, Outcome, Register, Settled, Unknown
from agent.federation.value import JobValue, claim, encode_value, initialise
from agent.foundation.ids import SiteId
from agent.foundation.machine import NEVER
from agent.wire.mesh import Accept, Ballot, Declined, Prepare, Promise, Read, ReadReply

DORA = site_id("dora")


class Bench:
    def __init__(self, *committee: bytes, barred_because: str = "") -> None:
        self.desk: Desk = desk()
        self.register = Register(
            job(committee=committee), ME, 1, self.desk, Random(1), None, barred_because
        )
        self.outcomes: list[Outcome] = []

    def then(self, outcome: Outcome, _now: float) -> None:
        self.outcomes.append(outcome)

    def save(self) -> list[JobEffect]:
        """Everything becomes durable, until nothing is left to write."""
        seen: list[JobEffect] = []
        while effects := self.desk.take():
            seen += effects
            for persist in of(effects, Persist):
                assert persist.token is not None
                self.register.persisted(persist.token, 0.0)
        return seen


def test_an_own_vote_counts_only_when_it_is_durable() -> None:
    bench = Bench(ME)
    bench.register.change(claim(job(), ME, 0, OPERATION), 0.0, bench.then)
    (promise,) = of(bench.desk.take(), Persist)
    assert bench.outcomes == []
    bench.register.persisted(promise.token or 0, 0.0)
    (accept,) = of(bench.desk.take(), Persist)
    assert bench.outcomes == []
    bench.register.persisted(accept.token or 0, 0.0)
    (outcome,) = bench.outcomes
    assert isinstance(outcome, Settled)
    assert outcome.is_ours
    assert outcome.value is not None
    assert outcome.value.aggregator == ME


def test_rows_that_never_became_durable_end_in_an_unknown_outcome() -> None:
    bench = Bench(ME)
    bench.register.change(claim(job(), ME, 0, OPERATION), 0.0, bench.then)
    now = 0.0
    for _ in range(100):
        if bench.outcomes:
            break
        now = bench.register.wake_at()
        bench.register.woke(now)
    assert isinstance(bench.outcomes[0], Unknown)
    assert bench.register.wake_at() == NEVER


def test_a_refused_change_tells_the_committed_value() -> None:
    bench = Bench(ME)
    bench.register.change(claim(job(), ME, 0, OPERATION), 0.0, bench.then)
    bench.save()
    bench.register.change(initialise(digest("p"), 7, b"x"), 0.0, bench.then)
    bench.save()
    outcome = bench.outcomes[-1]
    assert isinstance(outcome, Settled)
    assert not outcome.is_ours
    assert outcome.value is not None
    assert outcome.value.parameters is None


def test_a_read_asks_the_others_and_takes_a_majority() -> None:
    bench = Bench(ANNA, BERT, ME)
    bench.register.read(0.0, bench.then)
    reads = asked(bench.save(), Read)
    assert {ask.site for ask in reads} == {ANNA, BERT}
    bench.desk.replied(reads[0].call, ReadReply(None, None), 0.1)
    assert bench.outcomes == [Settled(None, is_ours=True)]


def test_a_value_of_another_version_is_unknown_not_an_error() -> None:
    bench = Bench(ANNA, BERT, ME)
    bench.register.read(0.0, bench.then)
    strange = ReadReply(Ballot(1, b"x" * 48), b"\x01")
    for ask in asked(bench.save(), Read):
        bench.desk.replied(ask.call, strange, 0.1)
    assert isinstance(bench.outcomes[0], Unknown)


def test_more_conversations_than_any_job_needs_are_refused() -> None:
    bench = Bench(ANNA, BERT)
    for _ in range(CONVERSATIONS_MAX + 1):
        bench.register.read(0.0, bench.then)
    assert len(bench.outcomes) == 1
    assert isinstance(bench.outcomes[0], Unknown)


def test_a_hushed_register_starts_nothing_and_still_votes() -> None:
    bench = Bench(ANNA, BERT, ME)
    bench.register.read(0.0, bench.then)
    reads = asked(bench.save(), Read)
    bench.register.hush(None)
    assert bench.register.wake_at() == NEVER
    bench.desk.replied(reads[0].call, ReadReply(None, None), 0.1)
    assert bench.outcomes == []
    ballot = Ballot(1, ANNA + b"\0" * 16)
    assert isinstance(bench.register.called(ANNA, Prepare(job().id, ballot)), Promise)


def test_a_barred_site_does_not_vote() -> None:
    barred = Bench(ME, ANNA, BERT, barred_because="its database was lost")
    assert barred.register.called(ANNA, Read(job().id)) == Declined("its database was lost")


def test_a_site_votes_before_it_has_heard_that_it_is_a_member_by_now() -> None:
    assert Bench(ANNA).register.called(ANNA, Read(job().id)) == ReadReply(None, None)


def test_a_site_that_finds_itself_doubled_stops_voting_and_proposing_at_once() -> None:
    bench = Bench(ME, ANNA, BERT)
    ballot = Ballot(1, ANNA + b"\0" * 16)
    assert isinstance(bench.register.called(ANNA, Prepare(job().id, ballot)), Promise)
    bench.register.bar("duplicate identity")
    assert bench.register.called(ANNA, Read(job().id)) == Declined("duplicate identity")
    bench.save()
    bench.register.change(claim(job(), ME, 0, OPERATION), 0.0, bench.then)
    assert bench.outcomes == [Unknown("duplicate identity")]
    assert bench.desk.take() == []


def test_a_change_that_refuses_an_empty_register_settles_on_nothing() -> None:
    bench = Bench(ME)
    bench.register.change(lambda _: Refusal("no", None), 0.0, bench.then)
    bench.save()
    assert bench.outcomes == [Settled(None, is_ours=False)]


def test_a_site_tells_who_holds_the_register_by_now_and_believes_two_who_tell_it() -> None:
    bench = Bench(ANNA, BERT)
    now_held = Roster(4, (BERT, ME), (ANNA, BERT))
    bench.register.learn(now_held)
    told = bench.register.called(ANNA, Read(job().id))
    assert isinstance(told, ReadReply)
    assert (told.generation, told.members, told.others) == (4, (BERT, ME), (ANNA, BERT))
    other = Bench(ANNA, BERT)
    other.register.ask_who_holds_it(BERT, 0.0)
    (ask,) = asked(other.save(), Read)
    other.desk.replied(ask.call, told, 0.1)
    assert other.register.roster.generation == 0, "one alone may lie"
    other.register.hear(BERT, now_held, 0.2)
    assert other.register.roster.generation == 0, "however often"
    other.register.hear(ANNA, now_held, 0.3)
    assert other.register.roster == now_held
    other.register.learn(Roster(2, (ANNA,), ()))
    assert other.register.roster == now_held, "what is older is no news"


@pytest.mark.parametrize(
    ("generation", "members", "others"),
    [
        (3, (ANNA, BERT, CARL), (ANNA, BERT, CARL)),
        (3, (ANNA, BERT), (CARL, ME)),
        (3, (ANNA, BERT, CARL), ()),
        (3, (ANNA, BERT, CARL), (ANNA, BERT)),
        (2, (ANNA, ANNA, CARL), ()),
        (2, (), ()),
    ],
    ids=["the same", "two at once", "nobody to come", "fewer", "one twice", "nobody"],
)
def test_holders_that_no_change_has_made_are_not_believed(
    generation: int, members: tuple[SiteId, ...], others: tuple[SiteId, ...]
) -> None:
    """Whoever is asked next, or changes them, relies on there being one to come."""
    bench = Bench(ANNA, BERT, CARL)
    bench.register.learn(Roster(generation, members, others))
    assert bench.register.roster.generation == 0


def test_the_last_value_is_told_to_who_asks_and_believed_of_a_holder_or_of_two() -> None:
    """Whoever knows that the job is over says so; the committee may be gone by then."""
    end = value(round=3, state="finished", exported=digest("model"))
    knows = Bench(ANNA, BERT)
    knows.register.hush(end)
    told = knows.register.called(CARL, Read(job().id))
    assert isinstance(told, ReadReply)
    assert told.end == encode_value(end)
    running = Bench(ANNA, BERT)
    running.register.hush(value(round=3))
    assert running.register.called(CARL, Read(job().id)) == ReadReply(None, None)
    for tellers, is_believed in (((ANNA,), True), ((CARL,), False), ((CARL, DORA), True)):
        heard: list[JobValue] = []

        def ended(found: JobValue, _: float, heard: list[JobValue] = heard) -> None:
            heard.append(found)

        committee = job(committee=(ANNA, BERT))
        site = Register(committee, ME, 1, desk(), Random(1), None, ended=ended)
        for teller in tellers:
            site.hear(teller, end, 1.0)
        assert heard == ([end] if is_believed else []), tellers


def test_an_acceptor_tells_who_holds_the_register_by_the_value_that_it_voted_for() -> None:
    """After a recovery the new holders have the value, and have read nothing yet."""
    after = Roster(2**20, (ME, CARL, DORA), ())
    bench = Bench(ANNA, BERT)
    data = encode_value(value(roster=after))
    bench.register.called(CARL, Prepare(job().id, Ballot(7, CARL + bytes(16))))
    bench.save()
    bench.register.called(CARL, Accept(job().id, Ballot(7, CARL + bytes(16)), data))
    bench.save()
    told = bench.register.called(DORA, Read(job().id))
    assert isinstance(told, ReadReply)
    assert (told.generation, told.members) == (2**20, after.members)
    assert bench.register.roster.generation == 0, "it has read nothing yet"
    bench.register.ask_who_holds_it(CARL, 1.0)
    (ask,) = asked(bench.save(), Read)
    bench.desk.replied(ask.call, ReadReply(None, None, 2**20, after.members), 1.1)
    assert bench.register.roster == after, "its own vote, and another's word"


def test_what_goes_to_the_others_does_not_wait_until_the_own_vote_is_on_disk() -> None:
    bench = Bench(ME, ANNA, BERT)
    bench.register.change(claim(job(), ME, 0, OPERATION), 0.0, bench.then)
    assert [type(effect).__name__ for effect in bench.desk.take()] == ["Ask", "Ask", "Persist"]
