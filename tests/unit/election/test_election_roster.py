"""Who holds a register while its holders change."""

from agent.election.proposer import Ask, Decided, NoQuorum, Proposer, Replied
from agent.election.reader import Reader
from agent.election.roster import (
    Known,
    Roster,
    Voters,
    is_behind,
    newer_in,
    pinned,
    released,
    replaced,
)
from agent.foundation.ids import JobId, SiteId
from agent.foundation.randomness import Rng
from agent.wire.mesh import Accept, Ballot, Prepare, Promise, Read, ReadReply

A, B, C, D = (SiteId(bytes([number]) * 32) for number in range(1, 5))
JOB = JobId("job-00000001")
AT_REST = pinned((A, B, C)).roster
JOINT = replaced(AT_REST, C, D)
IN_PLACE = released(JOINT)


def roster_of(value: bytes) -> Roster | None:
    return {b"joint": JOINT, b"in place": IN_PLACE}.get(value)


def reader(known: Known) -> Reader:
    return Reader(
        job=JOB, committee=(A, B, C), me=A, boot_epoch=1, rng=Rng(1), now=0.0, known=known,
        roster_of=roster_of,
    )  # fmt: skip


def proposer(known: Known) -> Proposer:
    return Proposer(
        job=JOB, committee=(A, B, C), me=A, boot_epoch=1, rng=Rng(1), now=0.0, known=known,
        roster_of=roster_of, change=lambda value: (value or b"") + b"!",
    )  # fmt: skip


def ballot(number: int) -> Ballot:
    return Ballot(number, A + bytes(16))


def test_a_member_is_replaced_in_two_changes() -> None:
    assert Roster(1, (A, B, C), (A, B, D)) == JOINT
    assert Roster(2, (A, B, D), (A, B, C)) == IN_PLACE


def test_both_sets_count_from_the_first_change_until_the_second_is_known_to_be_committed() -> None:
    both = {(A, B, C), (A, B, D)}
    assert Known(AT_REST).parts == ((A, B, C),)
    assert set(Known(JOINT).parts) == set(Known(JOINT, is_committed=False).parts) == both
    assert set(Known(IN_PLACE, is_committed=False).parts) == both
    assert Known(IN_PLACE).parts == ((A, B, D),)


def test_a_majority_of_each_set_is_needed() -> None:
    voters = Voters(((A, B, C), (A, B, D)), D)
    assert voters.everyone[0] == D
    assert voters.have([A, B])
    assert voters.have([A, C, D])
    assert not voters.have([A, C])
    assert voters.can_have([A])
    assert not voters.can_have([A, B])


def test_newer_holders_are_followed_and_older_ones_are_not() -> None:
    assert newer_in(b"joint", pinned((A, B, C)), roster_of) == JOINT
    assert newer_in(b"joint", Known(IN_PLACE), roster_of) is None
    assert newer_in(b"plain", pinned((A, B, C)), roster_of) is None
    assert newer_in(None, pinned((A, B, C)), roster_of) is None


def test_holders_who_stand_alone_hold_at_least_what_put_them_in_place() -> None:
    assert is_behind(None, Known(IN_PLACE), roster_of)
    assert is_behind(b"joint", Known(IN_PLACE), roster_of)
    assert not is_behind(b"in place", Known(IN_PLACE), roster_of)
    assert not is_behind(None, Known(JOINT), roster_of)
    assert not is_behind(None, pinned((A, B, C)), roster_of)


def test_a_reader_asks_the_sites_that_an_answer_names() -> None:
    machine = reader(pinned((A, B, C)))
    assert {ask.site for ask in machine.start() if isinstance(ask, Ask)} == {A, B, C}
    effects = machine.step(Replied(A, ReadReply(ballot(3), b"in place")), 0.1)
    assert effects == [Ask(D, Read(JOB))]
    assert machine.step(Replied(D, ReadReply(ballot(3), b"in place")), 0.1) == []
    assert machine.step(Replied(B, ReadReply(ballot(3), b"in place")), 0.1) == [
        Decided(b"in place", ballot(3))
    ]


def test_a_reader_is_not_told_nothing_by_holders_that_were_never_given_the_register() -> None:
    machine = reader(Known(IN_PLACE))
    machine.start()
    machine.step(Replied(B, ReadReply(None, None)), 0.1)
    (outcome,) = machine.step(Replied(D, ReadReply(None, None)), 0.1)
    assert isinstance(outcome, NoQuorum)


def test_a_proposer_begins_anew_with_the_sites_that_a_promise_names() -> None:
    machine = proposer(pinned((A, B, C)))
    (first, *_) = machine.start()
    assert isinstance(first, Ask)
    assert isinstance(first.call, Prepare)
    effects = machine.step(Replied(A, Promise(first.call.ballot, ballot(3), b"joint")), 0.1)
    asks = [effect for effect in effects if isinstance(effect, Ask)]
    assert {ask.site for ask in asks} == {A, B, C, D}
    second = asks[0].call
    assert isinstance(second, Prepare)
    assert second.ballot > first.call.ballot
    for site in (A, C):
        promise = Promise(second.ballot, ballot(3), b"joint")
        assert machine.step(Replied(site, promise), 0.1) == []
    effects = machine.step(Replied(D, Promise(second.ballot, None, None)), 0.1)
    assert [e.call for e in effects if isinstance(e, Ask)] == [
        Accept(JOB, second.ballot, b"joint!")
    ] * 4
