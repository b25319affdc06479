import pytest

from agent.election.acceptor import TABLE, Acceptor, AcceptorState
from agent.election.ballots import NUMBER_JUMP_MAX, proposer_id
from agent.foundation.errors import Corruption
from agent.foundation.ids import JobId, SiteId
from agent.foundation.randomness import Rng
from agent.foundation.writes import Put
from agent.wire.limits import REGISTER_VALUE_BYTES_MAX
from agent.wire.mesh import (
    Accept,
    Accepted,
    Ballot,
    Conflict,
    Declined,
    Prepare,
    Promise,
    Read,
    ReadReply,
)

JOB = JobId("mnist-12345678")
ANNA, BERT = SiteId(b"a" * 32), SiteId(b"b" * 32)
NAME = proposer_id(ANNA, 1, Rng(1))


def ballot(number: int, name: bytes = NAME) -> Ballot:
    return Ballot(number, name)


def acceptor_that_accepted(number: int, value: bytes) -> Acceptor:
    acceptor = Acceptor(JOB)
    acceptor.saved(acceptor.step(Accept(JOB, ballot(number), value)))
    return acceptor


def test_a_higher_ballot_is_promised_with_what_was_accepted_last() -> None:
    acceptor = acceptor_that_accepted(3, b"v")
    assert acceptor.step(Prepare(JOB, ballot(4))).reply == Promise(ballot(4), ballot(3), b"v")


@pytest.mark.parametrize("number", [2, 3])
def test_a_lower_or_equal_ballot_is_not_promised(number: int) -> None:
    acceptor = acceptor_that_accepted(3, b"v")
    answer = acceptor.step(Prepare(JOB, ballot(number)))
    assert answer.reply == Conflict(ballot(3))
    assert answer.writes == ()


def test_a_value_below_the_promise_is_not_accepted() -> None:
    acceptor = Acceptor(JOB)
    acceptor.step(Prepare(JOB, ballot(5)))
    assert acceptor.step(Accept(JOB, ballot(4), b"v")).reply == Conflict(ballot(5))
    assert acceptor.state.value is None


def test_a_value_above_the_promise_is_accepted_and_raises_it() -> None:
    acceptor = acceptor_that_accepted(3, b"v")
    assert acceptor.step(Accept(JOB, ballot(9), b"w")).reply == Accepted(ballot(9))
    assert acceptor.state == AcceptorState(ballot(9), ballot(9), b"w")


def test_a_repeated_accept_gets_the_same_answer_and_writes_nothing() -> None:
    acceptor = acceptor_that_accepted(3, b"v")
    answer = acceptor.step(Accept(JOB, ballot(3), b"v"))
    assert answer.reply == Accepted(ballot(3))
    assert answer.writes == ()


def test_a_second_value_under_one_ballot_is_refused() -> None:
    acceptor = acceptor_that_accepted(3, b"v")
    assert isinstance(acceptor.step(Accept(JOB, ballot(3), b"w")).reply, Declined)
    assert acceptor.state.value == b"v"


def test_a_ballot_after_a_promise_but_not_accepted_is_accepted_at_the_same_ballot() -> None:
    acceptor = acceptor_that_accepted(3, b"v")
    acceptor.step(Prepare(JOB, ballot(4)))
    assert acceptor.step(Accept(JOB, ballot(4), b"w")).reply == Accepted(ballot(4))


def test_equal_numbers_are_ordered_by_proposer() -> None:
    acceptor = Acceptor(JOB)
    acceptor.step(Prepare(JOB, ballot(1, proposer_id(BERT, 1, Rng(1)))))
    assert isinstance(acceptor.step(Prepare(JOB, ballot(1))).reply, Conflict)


def test_nobody_uses_the_ballot_of_another_site() -> None:
    acceptor = Acceptor(JOB)
    for call in (Prepare(JOB, ballot(1)), Accept(JOB, ballot(1), b"v")):
        answer = acceptor.step(call, BERT)
        assert answer.reply == Declined("the ballot belongs to another site")
        assert answer.writes == ()
    assert isinstance(acceptor.step(Prepare(JOB, ballot(1)), ANNA).reply, Promise)


@pytest.mark.parametrize("bad", [Ballot(1, b""), Ballot(0, NAME), Ballot(7, b"x" * 47)])
def test_a_ballot_that_names_no_proposer_is_refused(bad: Ballot) -> None:
    assert isinstance(Acceptor(JOB).step(Prepare(JOB, bad)).reply, Declined)


def test_a_ballot_far_above_all_others_cannot_use_up_the_numbers() -> None:
    acceptor = Acceptor(JOB)
    reply = acceptor.step(Prepare(JOB, ballot(NUMBER_JUMP_MAX + 1))).reply
    assert isinstance(reply, Declined)
    assert acceptor.state == AcceptorState()
    assert isinstance(acceptor.step(Prepare(JOB, ballot(NUMBER_JUMP_MAX))).reply, Promise)


def test_a_value_over_the_bound_is_refused() -> None:
    big = bytes(REGISTER_VALUE_BYTES_MAX + 1)
    assert isinstance(Acceptor(JOB).step(Accept(JOB, ballot(1), big)).reply, Declined)


def test_a_reading_of_an_empty_register_writes_nothing() -> None:
    answer = Acceptor(JOB).step(Read(JOB))
    assert answer.reply == ReadReply(None, None)
    assert answer.writes == ()


def test_a_reply_carries_the_row_until_that_row_is_saved() -> None:
    acceptor = Acceptor(JOB)
    accepted = acceptor.step(Accept(JOB, ballot(1), b"v"))
    early = acceptor.step(Read(JOB))
    assert early.reply == ReadReply(ballot(1), b"v")
    assert early.writes == accepted.writes
    acceptor.saved(accepted)
    assert acceptor.step(Read(JOB)).writes == ()


def test_a_save_of_an_older_row_does_not_count_for_a_newer_one() -> None:
    acceptor = Acceptor(JOB)
    first = acceptor.step(Accept(JOB, ballot(1), b"v"))
    second = acceptor.step(Accept(JOB, ballot(2), b"w"))
    acceptor.saved(first)
    assert acceptor.step(Read(JOB)).writes == second.writes


def test_a_restored_acceptor_keeps_its_promise_and_its_value() -> None:
    acceptor = acceptor_that_accepted(3, b"v")
    answer = acceptor.step(Prepare(JOB, ballot(8)))
    (write,) = answer.writes
    assert isinstance(write, Put)
    assert write.table == TABLE
    restored = Acceptor.restored(write.row)
    assert restored.job == JOB
    assert restored.state == AcceptorState(ballot(8), ballot(3), b"v")
    assert restored.step(Read(JOB)).writes == ()


@pytest.mark.parametrize(
    "damage",
    [
        {"job": None},
        {"promised_number": None},
        {"promised_number": "3"},
        {"promised_proposer": None},
        {"accepted_number": None, "accepted_proposer": None},
        {"accepted_number": 99},
        {"value": None},
        {"value": "text"},
    ],
)
def test_a_damaged_row_is_corruption(damage: dict[str, object]) -> None:
    (write,) = Acceptor(JOB).step(Accept(JOB, ballot(3), b"v")).writes
    assert isinstance(write, Put)
    with pytest.raises(Corruption, match="damaged"):
        Acceptor.restored({**write.row, **damage})  # type: ignore[dict-item]
