from agent.election.acceptor import Acceptor, AcceptorState
from agent.election.ballots import proposer_id
from agent.election.proposer import Ask, Decided, NoQuorum, RegisterEffect, Replied
from agent.election.reader import Reader
from agent.foundation.ids import JobId, SiteId
from agent.foundation.machine import NEVER, Woke
from agent.foundation.randomness import Rng
from agent.wire.mesh import Accept, Ballot, Prepare, Read, ReadReply

JOB = JobId("mnist-12345678")
A, B, C, X = (SiteId(letter * 32) for letter in (b"a", b"b", b"c", b"x"))
OTHER = proposer_id(X, 1, Rng(9))
LOW, HIGH = Ballot(3, OTHER), Ballot(9, OTHER)


def reader() -> Reader:
    return Reader(
        job=JOB, committee=(A, B, C), me=X, boot_epoch=1, rng=Rng(1), now=0.0, timeout_s=2.0
    )


def test_a_majority_with_one_ballot_is_the_committed_value_in_one_round_trip() -> None:
    machine = reader()
    assert machine.start() == [Ask(site, Read(JOB)) for site in (A, B, C)]
    assert machine.step(Replied(A, ReadReply(LOW, b"v")), 0.1) == []
    assert machine.step(Replied(C, ReadReply(LOW, b"v")), 0.2) == [Decided(b"v", LOW)]
    assert machine.wake_at() == NEVER
    assert machine.step(Replied(B, ReadReply(LOW, b"v")), 0.3) == []


def test_a_majority_with_nothing_means_that_nothing_was_committed() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(None, None)), 0.1)
    assert machine.step(Replied(B, ReadReply(None, None)), 0.2) == [Decided(None, None)]


def test_two_replies_of_one_member_are_one_vote() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(LOW, b"v")), 0.1)
    assert machine.step(Replied(A, ReadReply(LOW, b"v")), 0.2) == []


def test_a_third_member_is_waited_for_while_it_can_still_make_a_majority() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(LOW, b"v")), 0.1)
    assert machine.step(Replied(B, ReadReply(HIGH, b"w")), 0.2) == []
    assert machine.step(Replied(C, ReadReply(HIGH, b"w")), 0.3) == [Decided(b"w", HIGH)]


def test_a_late_answer_undoes_an_early_failure() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, None), 0.1)
    assert machine.step(Replied(A, ReadReply(LOW, b"v")), 0.2) == []
    assert machine.step(Replied(B, ReadReply(HIGH, b"w")), 0.3) == [], "C may still decide it"
    assert machine.step(Replied(C, ReadReply(LOW, b"v")), 0.4) == [Decided(b"v", LOW)]


def test_an_unreachable_majority_ends_the_read_at_once() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, None), 0.1)
    assert machine.step(Replied(B, None), 0.1) == [NoQuorum("0 of 3 members answered")]


def test_a_silent_majority_ends_the_read_in_time() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(LOW, b"v")), 0.1)
    assert machine.step(Woke(), machine.wake_at() - 0.1) == []
    assert machine.step(Woke(), machine.wake_at()) == [NoQuorum("1 of 3 members answered")]


def settle(machine: Reader, effects: list[RegisterEffect]) -> list[RegisterEffect]:
    """Answer the write-back; C is unreachable."""
    acceptors = {
        A: Acceptor(JOB, AcceptorState(LOW, LOW, b"v")),
        B: Acceptor(JOB, AcceptorState(HIGH, HIGH, b"w")),
    }
    while effects and isinstance(effects[0], Ask):
        following: list[RegisterEffect] = []
        for effect in effects:
            assert isinstance(effect, Ask)
            acceptor = acceptors.get(effect.site)
            reply = None if acceptor is None else acceptor.step(effect.call, X).reply
            following += machine.step(Replied(effect.site, reply), 0.5)
        effects = following
    assert all(acceptor.state.value == b"w" for acceptor in acceptors.values())
    return effects


def test_a_disagreement_is_settled_by_writing_the_newest_value_back() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(LOW, b"v")), 0.1)
    machine.step(Replied(B, ReadReply(HIGH, b"w")), 0.2)
    prepares = list(machine.step(Replied(C, None), 0.3))
    assert isinstance(prepares[0], Ask)
    assert isinstance(prepares[0].call, Prepare)
    assert prepares[0].call.ballot.number == HIGH.number + 1
    (outcome,) = settle(machine, prepares)
    assert isinstance(outcome, Decided)
    assert outcome.value == b"w"


def test_a_disagreement_with_a_silent_member_is_settled_after_the_time_out() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(LOW, b"v")), 0.1)
    machine.step(Replied(B, ReadReply(HIGH, b"w")), 0.2)
    prepares = list(machine.step(Woke(), machine.wake_at()))
    assert machine.step(Replied(C, ReadReply(LOW, b"v")), 2.1) == []
    assert isinstance(settle(machine, prepares)[0], Decided)


def test_a_write_back_that_finds_nothing_is_an_empty_register() -> None:
    # B's value was never committed, and B cannot be reached when the read is settled.
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(None, None)), 0.1)
    machine.step(Replied(B, ReadReply(HIGH, b"w")), 0.2)
    prepares = machine.step(Replied(C, None), 0.3)
    outcome: list[RegisterEffect] = []
    for effect in prepares:
        assert isinstance(effect, Ask)
        if effect.site != B:
            promise = Acceptor(JOB).step(effect.call).reply
            outcome += machine.step(Replied(effect.site, promise), 0.4)
    assert outcome == [Decided(None, None)]


def test_a_write_back_that_is_not_answered_is_no_quorum() -> None:
    machine = reader()
    machine.start()
    machine.step(Replied(A, ReadReply(LOW, b"v")), 0.1)
    machine.step(Replied(B, ReadReply(HIGH, b"w")), 0.2)
    effects: list[RegisterEffect] = list(machine.step(Replied(C, None), 0.3))
    accepts, now = 0, 0.3
    outcomes: list[RegisterEffect] = []
    while not outcomes:
        following: list[RegisterEffect] = []
        for effect in effects:
            if isinstance(effect, Ask):
                accepts += isinstance(effect.call, Accept)
                following += machine.step(Replied(effect.site, None), now)
        outcomes = [effect for effect in following if not isinstance(effect, Ask)]
        now = machine.wake_at()
        effects = list(machine.step(Woke(), now)) if now < NEVER else []
    assert isinstance(outcomes[0], NoQuorum)
    assert accepts == 0
