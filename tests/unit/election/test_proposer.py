from collections.abc import Callable, Sequence

import pytest

from agent.election.acceptor import Acceptor, AcceptorState
from agent.election.ballots import proposer_id
from agent.election.proposer import (
    TRIES_MAX,
    Ask,
    Decided,
    Declined,
    NoQuorum,
    OutcomeUnknown,
    Proposer,
    Refusal,
    RegisterEffect,
    Replied,
)
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.randomness import Rng
from agent.wire.limits import REGISTER_VALUE_BYTES_MAX
from agent.wire.mesh import Accept, Accepted, Ballot, Conflict, Prepare, Promise
from agent.wire.mesh import Declined as CallDeclined

JOB = JobId("mnist-12345678")
A, B, C, X = (SiteId(letter * 32) for letter in (b"a", b"b", b"c", b"x"))
OTHER = proposer_id(X, 1, Rng(9))


def append(value: bytes | None) -> bytes:
    return (value or b"") + b"+"


def refuse(value: bytes | None) -> Refusal:
    return Refusal("no", value)


def proposer(
    change: Callable[[bytes | None], bytes | Refusal] = append,
    *,
    after: int = 0,
    is_retry: bool = False,
    tries_max: int = TRIES_MAX,
    committee: tuple[SiteId, ...] = (A, B, C),
) -> Proposer:
    return Proposer(
        job=JOB,
        committee=committee,
        me=B,
        boot_epoch=1,
        rng=Rng(1),
        now=0.0,
        change=change,
        after=after,
        is_retry=is_retry,
        tries_max=tries_max,
    )


def committee_with(*states: AcceptorState | None) -> dict[SiteId, Acceptor]:
    return {site: Acceptor(JOB, state) for site, state in zip((A, B, C), states, strict=True)}


def accepted(number: int, value: bytes) -> AcceptorState:
    return AcceptorState(Ballot(number, OTHER), Ballot(number, OTHER), value)


def exchange(
    machine: Proposer,
    effects: Sequence[RegisterEffect],
    acceptors: dict[SiteId, Acceptor],
    now: float = 0.0,
) -> list[RegisterEffect]:
    """One round trip: every Ask is answered, unreachable sites with None; what comes of it."""
    result: list[RegisterEffect] = []
    for effect in effects:
        assert isinstance(effect, Ask)
        acceptor = acceptors.get(effect.site)
        reply = None if acceptor is None else acceptor.step(effect.call, B).reply
        result += machine.step(Replied(effect.site, reply), now)
    return result


def asked(effects: Sequence[RegisterEffect]) -> list[SiteId]:
    return [effect.site for effect in effects if isinstance(effect, Ask)]


def ballot_of(effects: Sequence[RegisterEffect]) -> Ballot:
    effect = effects[0]
    assert isinstance(effect, Ask)
    assert isinstance(effect.call, Prepare | Accept)
    return effect.call.ballot


def test_a_first_change_takes_two_round_trips() -> None:
    machine, acceptors = proposer(), committee_with(None, None, None)
    prepares = machine.start()
    accepts = exchange(machine, prepares, acceptors)
    outcome = exchange(machine, accepts, acceptors)
    assert asked(prepares) == asked(accepts) == [B, A, C]
    assert outcome == [Decided(b"+", ballot_of(prepares))]
    assert {acceptor.state.value for acceptor in acceptors.values()} == {b"+"}
    assert machine.wake_at() == NEVER


def test_a_change_with_a_hint_takes_two_round_trips_on_a_used_register() -> None:
    machine = proposer(after=41)
    acceptors = committee_with(*[accepted(41, b"v")] * 3)
    accepts = exchange(machine, machine.start(), acceptors)
    outcome = exchange(machine, accepts, acceptors)
    assert isinstance(outcome[0], Decided)
    assert outcome[0].value == b"v+"


@pytest.mark.parametrize("after", [0, 30])
def test_without_a_fresh_hint_a_third_round_trip_learns_the_ballot(after: int) -> None:
    machine = proposer(after=after)
    acceptors = committee_with(*[accepted(41, b"v")] * 3)
    again = exchange(machine, machine.start(), acceptors)
    assert ballot_of(again).number == 42
    outcome = exchange(machine, exchange(machine, again, acceptors), acceptors)
    assert isinstance(outcome[0], Decided)


def test_the_ballot_is_learned_without_waiting_once_only() -> None:
    machine = proposer()
    machine.start()
    machine.step(Replied(A, Conflict(Ballot(7, OTHER))), 0.0)
    assert asked(machine.step(Replied(B, Conflict(Ballot(7, OTHER))), 0.0))
    machine.step(Replied(A, Conflict(Ballot(17, OTHER))), 0.0)
    assert machine.step(Replied(B, Conflict(Ballot(17, OTHER))), 0.0) == []
    assert ballot_of(machine.step(Woke(), machine.wake_at())).number == 18


def test_one_site_is_a_committee() -> None:
    machine = proposer(committee=(X,))
    prepares = machine.start()
    accepts = machine.step(Replied(X, Promise(ballot_of(prepares), None, None)), 0.0)
    assert machine.step(Replied(X, Accepted(ballot_of(accepts))), 0.0) == [
        Decided(b"+", ballot_of(prepares))
    ]


def test_a_minority_is_not_needed() -> None:
    machine, acceptors = proposer(), committee_with(None, None, None)
    del acceptors[A]
    accepts = exchange(machine, machine.start(), acceptors)
    assert isinstance(exchange(machine, accepts, acceptors)[0], Decided)


def test_the_newest_accepted_value_of_the_majority_is_changed() -> None:
    machine = proposer(after=9)
    acceptors = committee_with(accepted(3, b"old"), accepted(9, b"new"), accepted(3, b"old"))
    accepts = exchange(machine, machine.start(), acceptors)
    outcome = exchange(machine, accepts, acceptors)
    assert isinstance(outcome[0], Decided)
    assert outcome[0].value == b"new+"


def test_one_conflict_does_not_stop_a_majority() -> None:
    machine = proposer(after=5)
    acceptors = committee_with(AcceptorState(Ballot(99, OTHER)), None, None)
    accepts = exchange(machine, machine.start(), acceptors)
    assert isinstance(exchange(machine, accepts, acceptors)[0], Decided)


def test_repeated_replies_count_once() -> None:
    machine = proposer()
    ballot = ballot_of(machine.start())
    promise = Replied(A, Promise(ballot, None, None))
    assert machine.step(promise, 0.0) == []
    assert machine.step(promise, 0.0) == []


def test_replies_of_strangers_and_of_other_ballots_change_nothing() -> None:
    machine = proposer()
    ballot = ballot_of(machine.start())
    machine.step(Replied(A, Promise(ballot, None, None)), 0.0)
    assert machine.step(Replied(X, Promise(ballot, None, None)), 0.0) == []
    assert machine.step(Replied(B, Promise(Ballot(1, OTHER), None, None)), 0.0) == []
    assert machine.step(Replied(B, Accepted(ballot)), 0.0) == []


def test_a_conflict_with_the_own_ballot_is_a_repeated_delivery() -> None:
    machine = proposer()
    ballot = ballot_of(machine.start())
    for site in (A, B, C):
        assert machine.step(Replied(site, Conflict(ballot)), 0.0) == []
    assert machine.step(Replied(A, Promise(ballot, None, None)), 0.0) == []
    assert asked(machine.step(Replied(B, Promise(ballot, None, None)), 0.0))


def test_a_pre_empted_proposer_waits_with_full_jitter_and_goes_above() -> None:
    waits = set()
    for seed in range(20):
        machine = Proposer(
            job=JOB,
            committee=(A, B, C),
            me=B,
            boot_epoch=1,
            rng=Rng(seed),
            now=0.0,
            change=append,
            after=1,
        )
        machine.start()
        for site in (A, B):
            assert machine.step(Replied(site, Conflict(Ballot(2, OTHER))), 0.1) == []
        waits.add(machine.wake_at())
        assert machine.step(Woke(), machine.wake_at() - 1e-6) == []
        again = machine.step(Woke(), machine.wake_at())
        assert ballot_of(again).number == 3
    assert len(waits) == 20
    assert all(0.1 <= wait <= 0.1 + 0.04 for wait in waits)


def test_back_off_grows_and_is_bounded() -> None:
    machine = proposer(after=1)
    effects: Sequence[RegisterEffect] = machine.start()
    now, longest = 0.0, []
    while asked(effects):
        exchange(machine, effects, {}, now)
        longest.append(machine.wake_at() - now)
        now = machine.wake_at()
        effects = machine.step(Woke(), now) if now < NEVER else []
    assert len(longest) == TRIES_MAX
    assert max(longest[:-1]) <= 2.0
    assert max(longest[3:-1]) > longest[0]


def test_a_phase_without_a_majority_times_out() -> None:
    machine = proposer()
    machine.start()
    machine.step(Replied(A, None), 0.1)
    assert machine.wake_at() == 2.0
    assert machine.step(Woke(), 2.0) == []
    assert ballot_of(machine.step(Woke(), machine.wake_at())).number == 2


def test_a_late_promise_undoes_an_early_failure() -> None:
    machine = proposer()
    ballot = ballot_of(machine.start())
    machine.step(Replied(A, None), 0.1)
    machine.step(Replied(A, Promise(ballot, None, None)), 0.2)
    assert asked(machine.step(Replied(B, Promise(ballot, None, None)), 0.3))


def test_no_answer_before_any_accept_means_nothing_was_changed() -> None:
    machine = proposer(tries_max=1)
    assert exchange(machine, machine.start(), {}) == [NoQuorum("a majority cannot be reached")]


def test_an_answer_that_refuses_the_call_is_no_vote() -> None:
    machine = proposer(tries_max=1)
    machine.start()
    machine.step(Replied(A, CallDeclined("this site lost its database")), 0.0)
    outcome = machine.step(Replied(C, CallDeclined("this site lost its database")), 0.0)
    assert isinstance(outcome[0], NoQuorum)


def test_no_answer_after_an_accept_is_an_unknown_outcome() -> None:
    machine, acceptors = proposer(tries_max=1), committee_with(None, None, None)
    accepts = exchange(machine, machine.start(), acceptors)
    assert isinstance(exchange(machine, accepts, {})[0], OutcomeUnknown)


def test_a_retry_is_never_said_to_have_failed() -> None:
    machine = proposer(tries_max=1, is_retry=True)
    assert isinstance(exchange(machine, machine.start(), {})[0], OutcomeUnknown)


def test_a_refusal_of_a_committed_value_is_immediate_and_writes_nothing() -> None:
    machine = proposer(refuse, after=3)
    acceptors = committee_with(*[accepted(3, b"v")] * 3)
    assert exchange(machine, machine.start(), acceptors) == [Declined(Refusal("no", b"v"))]
    assert all(acceptor.state.accepted == Ballot(3, OTHER) for acceptor in acceptors.values())


def test_a_refusal_of_an_empty_register_is_immediate() -> None:
    machine, acceptors = proposer(refuse), committee_with(None, None, None)
    assert exchange(machine, machine.start(), acceptors) == [Declined(Refusal("no", None))]


def test_a_refused_value_that_may_be_uncommitted_is_written_back_first() -> None:
    machine = proposer(refuse, after=9)
    acceptors = committee_with(accepted(3, b"old"), accepted(9, b"new"), accepted(3, b"old"))
    accepts = exchange(machine, machine.start(), acceptors)
    assert {e.call.value for e in accepts if isinstance(e, Ask) and isinstance(e.call, Accept)} == {
        b"new"
    }
    assert exchange(machine, accepts, acceptors) == [Declined(Refusal("no", b"new"))]


def test_a_write_back_without_answer_changed_nothing_of_ours() -> None:
    machine = proposer(refuse, after=9, tries_max=1)
    acceptors = committee_with(accepted(3, b"old"), accepted(9, b"new"), accepted(3, b"old"))
    accepts = exchange(machine, machine.start(), acceptors)
    assert isinstance(exchange(machine, accepts, {})[0], NoQuorum)


def test_a_retry_supersedes_what_it_left_behind_before_it_reports_a_refusal() -> None:
    # The first proposer's value lies at C alone, above what A and B hold.
    machine = proposer(refuse, after=5, is_retry=True)
    acceptors = committee_with(accepted(3, b"v"), accepted(3, b"v"), accepted(5, b"v+"))
    reachable = {A: acceptors[A], B: acceptors[B]}
    accepts = exchange(machine, machine.start(), reachable)
    assert asked(accepts), "a bare refusal would leave v+ to be revived through C"
    assert exchange(machine, accepts, reachable) == [Declined(Refusal("no", b"v"))]
    newest = max(acceptors.values(), key=lambda acceptor: acceptor.state.promised)
    assert newest.state.value == b"v"


def test_an_own_earlier_try_is_superseded_before_a_refusal_is_reported() -> None:
    answers: list[bytes | Refusal] = [b"mine", Refusal("no", b"v"), Refusal("no", b"v")]
    machine = proposer(lambda _: answers.pop(0), after=3)
    acceptors = committee_with(*[accepted(3, b"v")] * 3)
    accepts = exchange(machine, machine.start(), acceptors)
    acceptors[C].step(Accept(JOB, ballot_of(accepts), b"mine"), B)  # reaches C only
    assert exchange(machine, accepts, {}) == []
    reachable = {A: acceptors[A], B: acceptors[B]}
    prepares = machine.step(Woke(), machine.wake_at())
    write_back = exchange(machine, prepares, reachable)
    assert asked(write_back)
    assert exchange(machine, write_back, reachable) == [Declined(Refusal("no", b"v"))]


def test_an_absence_cannot_supersede_an_own_earlier_try() -> None:
    answers: list[bytes | Refusal] = [b"mine", Refusal("no job")]
    machine, acceptors = proposer(lambda _: answers.pop(0)), committee_with(None, None, None)
    accepts = exchange(machine, machine.start(), acceptors)
    assert exchange(machine, accepts, {}) == []
    prepares = machine.step(Woke(), machine.wake_at())
    assert isinstance(exchange(machine, prepares, acceptors)[0], OutcomeUnknown)


def test_a_change_that_is_already_in_a_committed_value_needs_no_second_phase() -> None:
    machine = proposer(lambda value: value or b"", after=3)
    acceptors = committee_with(*[accepted(3, b"v")] * 3)
    outcome = exchange(machine, machine.start(), acceptors)
    assert isinstance(outcome[0], Decided)
    assert outcome[0].value == b"v"


def test_a_value_over_the_bound_is_declined_before_it_is_sent() -> None:
    machine = proposer(lambda _: bytes(REGISTER_VALUE_BYTES_MAX + 1), after=3)
    acceptors = committee_with(*[accepted(3, b"v")] * 3)
    outcome = exchange(machine, machine.start(), acceptors)
    assert isinstance(outcome[0], Declined)
    assert "4096" in outcome[0].refusal.reason


def test_accepts_of_an_earlier_try_do_not_count_for_a_later_one() -> None:
    machine, acceptors = proposer(after=1), committee_with(None, None, None)
    first = exchange(machine, machine.start(), acceptors)
    machine.step(Replied(A, Accepted(ballot_of(first))), 0.0)
    for site in (B, C):
        machine.step(Replied(site, Conflict(Ballot(7, OTHER))), 0.0)
    prepares = machine.step(Woke(), machine.wake_at())
    ballot = ballot_of(prepares)
    for site in (B, C):
        machine.step(Replied(site, Promise(ballot, None, None)), 1.0)
    assert machine.step(Replied(B, Accepted(ballot)), 1.0) == []
    assert machine.step(Replied(C, Accepted(ballot_of(first))), 1.0) == []
    assert machine.step(Replied(C, Accepted(ballot)), 1.0) == [Decided(b"+", ballot)]


def test_a_refusal_of_an_earlier_try_is_forgotten_by_a_later_one() -> None:
    answers: list[bytes | Refusal] = [Refusal("not yet", b"new"), b"new+"]
    machine = proposer(lambda _: answers.pop(0), after=9)
    acceptors = committee_with(accepted(3, b"old"), accepted(9, b"new"), accepted(3, b"old"))
    write_back = exchange(machine, machine.start(), acceptors)
    assert asked(write_back)
    assert exchange(machine, write_back, {}) == []
    prepares = machine.step(Woke(), machine.wake_at())
    outcome = exchange(machine, exchange(machine, prepares, acceptors), acceptors)
    assert outcome == [Decided(b"new+", ballot_of(prepares))]


def test_an_ended_proposer_is_deaf() -> None:
    machine = proposer(tries_max=1)
    ballot = ballot_of(machine.start())
    for site in (A, B):
        machine.step(Replied(site, None), 0.0)
    assert machine.step(Replied(A, Promise(ballot, None, None)), 0.1) == []
    assert machine.step(Woke(), 99.0) == []
