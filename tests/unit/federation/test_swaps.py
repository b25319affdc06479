"""A committee that changes, and one that has lost its majority, on the bench of one site."""

from random import Random

import pytest
from federated_site import ANNA, BERT, CARL, ME, Around, asked, desk, digest, job, of, value

from agent.election.roster import Roster
from agent.federation.events import Ask, FetchBlob, JobEffect, Label, Persist
from agent.federation.register import Register
from agent.federation.swaps import RETRY_S, Swap, Swaps
from agent.federation.value import (
    EPOCH_JUMP,
    JobValue,
    commit_round,
    decode,
    encode_value,
    recover,
    release_member,
    replace_member,
    roster_of,
    under,
)
from agent.foundation.machine import NEVER
from agent.wire.mesh import (
    Accept,
    Accepted,
    Ballot,
    Declined,
    Done,
    Keep,
    Prepare,
    Promise,
    Read,
    ReadReply,
)

DORA = CARL
THE_JOB = job(committee=(ME, ANNA, BERT))


class Bench:
    """``ME``, ``ANNA`` and ``BERT`` hold a register that was claimed; ``DORA`` lives beside them."""

    def __init__(self, held: JobValue) -> None:
        self.desk, self.around = desk(), Around(ANNA, BERT, DORA)
        self.register = Register(THE_JOB, ME, 1, self.desk, Random(1), None)
        self.adopted: list[JobValue] = []
        self.swaps = Swaps(
            THE_JOB, ME, self.desk, self.around, self.register,
            lambda value, _now: self.adopted.append(value),
        )  # fmt: skip
        self.held: dict[bytes, tuple[Ballot, bytes]] = {}
        for site in (ANNA, BERT):
            self.held[site] = (Ballot(1, ANNA + bytes(16)), encode_value(held))
        self.dead: set[bytes] = set()
        self.full: set[bytes] = set()
        self.asks: list[tuple[bytes, str]] = []
        self.around.held = set(held.blobs)

    def settle(self) -> None:
        """Everybody but the dead answers; rows are durable at once."""
        while effects := self.desk.take():
            for persist in of(effects, Persist):
                assert persist.token is not None
                self.register.persisted(persist.token, 0.0)
            self._answer(effects)

    def fetches(self) -> list[FetchBlob]:
        """What is asked for once all have answered."""
        found: list[FetchBlob] = []
        while effects := self.desk.take():
            found += of(effects, FetchBlob)
            self._answer(effects)
        return found

    def _answer(self, effects: list[JobEffect]) -> None:
        for ask in of(effects, Ask):
            self.asks.append((ask.site, type(ask.message).__name__))
            accepted, held = self.held.get(ask.site, (None, None))
            if ask.site in self.dead:
                self.desk.replied(ask.call, None, 0.0)
                continue
            match ask.message:
                case Prepare(_, ballot):
                    self.desk.replied(ask.call, Promise(ballot, accepted, held), 0.0)
                case Accept(_, ballot, data):
                    self.held[ask.site] = (ballot, data)
                    self.desk.replied(ask.call, Accepted(ballot), 0.0)
                case Read():
                    self.desk.replied(ask.call, ReadReply(accepted, held), 0.0)
                case Keep():
                    is_full = ask.site in self.full
                    self.desk.replied(ask.call, Declined("full") if is_full else Done(), 0.0)
                case _:
                    raise AssertionError("no other call changes a committee")


def test_a_revoked_member_is_replaced_by_the_aggregator_in_two_changes() -> None:
    held = value(aggregator=ME)
    bench = Bench(held)
    bench.around.gone = {BERT}
    bench.dead = {BERT}
    bench.swaps.consider(held, 0.0, is_aggregator=True)
    bench.settle()
    assert bench.asks[0] == (DORA, "Keep"), "it holds the parameters before it may be named"
    (joint,) = bench.adopted
    assert joint.roster == Roster(1, (ME, ANNA, BERT), (ME, ANNA, DORA))
    bench.swaps.consider(joint, 0.0, is_aggregator=True)
    bench.settle()
    assert bench.adopted[-1].roster == Roster(2, (ME, ANNA, DORA), (ME, ANNA, BERT))
    assert decode(bench.held[DORA][1]) == bench.adopted[-1]
    assert bench.register.members == (ME, ANNA, DORA)
    bench.swaps.consider(bench.adopted[-1], 0.0, is_aggregator=True)
    assert bench.desk.take() == []


def test_nobody_but_the_aggregator_and_the_operator_changes_a_committee() -> None:
    held = value(aggregator=ANNA)
    bench = Bench(held)
    bench.around.gone = {BERT}
    bench.swaps.consider(held, 0.0, is_aggregator=False)
    assert bench.desk.take() == []
    bench.swaps.replace(Swap(BERT, DORA), held, 0.0)
    bench.settle()
    bench.swaps.consider(bench.adopted[-1], 0.0, is_aggregator=False)
    bench.settle()
    assert bench.register.members == (ME, ANNA, DORA)


def test_a_site_without_the_parameters_says_why_it_cannot_and_tries_again_later() -> None:
    held = value(aggregator=ANNA)
    bench = Bench(held)
    bench.around.held = set()
    bench.swaps.replace(Swap(BERT, DORA), held, 0.0)
    assert bench.desk.take() == []
    assert "does not hold" in bench.swaps.trouble
    assert bench.swaps.wake_at() == RETRY_S
    bench.around.held = set(held.blobs)
    bench.swaps.woke(held, RETRY_S, is_aggregator=False)
    assert [ask.site for ask in asked(bench.desk.take(), Keep)] == [DORA]
    bench.swaps.stop()
    assert bench.swaps.wake_at() == NEVER


def test_an_unknown_outcome_is_asked_again_as_the_same_operation() -> None:
    held = value(aggregator=ME)
    bench = Bench(held)
    bench.around.gone, bench.dead = {BERT}, {ANNA, BERT}
    bench.swaps.consider(held, 0.0, is_aggregator=True)
    now = 0.0
    for _ in range(60):
        bench.settle()
        if bench.swaps.trouble:
            break
        now = bench.register.wake_at()
        bench.register.woke(now)
    assert bench.swaps.trouble
    bench.dead = {BERT}
    bench.swaps.woke(held, bench.swaps.wake_at(), is_aggregator=True)
    bench.settle()
    assert bench.adopted[-1].roster is not None


def test_a_recovery_takes_the_best_that_any_survivor_holds_and_jumps() -> None:
    held = value(aggregator=BERT, round=2, contributions=digest("c2"))
    bench = Bench(held)
    bench.dead = {BERT}
    bench.swaps.recover((ME, ANNA), (ME, ANNA, DORA), value(round=1), 0.0)
    bench.settle()
    assert {(ANNA, "Keep"), (DORA, "Keep")} <= set(bench.asks)
    (found,) = bench.adopted
    assert (found.round, found.recoveries, found.aggregator) == (2, 1, ME)
    assert found.epoch == held.epoch + EPOCH_JUMP
    assert found.roster == Roster(EPOCH_JUMP, (ME, ANNA, DORA), ())
    assert found.progress > held.progress
    assert bench.register.members == (ME, ANNA, DORA)
    assert (BERT, "Prepare") not in bench.asks, "who is left out is not asked"


def test_a_recovery_waits_for_every_survivor() -> None:
    bench = Bench(value())
    bench.dead = {ANNA}
    bench.swaps.recover((ME, ANNA), (ME, ANNA, DORA), value(), 0.0)
    bench.settle()
    assert bench.adopted == []
    assert "does not answer" in bench.swaps.trouble


def test_a_recovery_needs_the_parameters_here_and_on_a_majority_of_the_new_committee() -> None:
    bench = Bench(value())
    bench.around.held = set()
    bench.swaps.recover((ME, ANNA), (ME, ANNA, DORA), value(), 0.0)
    (fetch,) = bench.fetches()
    assert "fetching" in bench.swaps.trouble
    bench.swaps.blob_missing(fetch.digest, 1.0)
    assert "does not hold what the register names" in bench.swaps.trouble
    bench.around.held, bench.full = set(value().blobs), {ANNA, DORA}
    bench.swaps.recover((ME, ANNA), (ME, ANNA, DORA), value(), 0.0)
    bench.settle()
    assert "does not keep what is named" in bench.swaps.trouble
    assert bench.adopted == []
    bench.full = {ANNA}
    bench.swaps.recover((ME, ANNA), (ME, ANNA, DORA), value(), 0.0)
    bench.settle()
    assert bench.adopted[-1].recoveries == 1


def test_a_recovery_of_nothing_is_refused() -> None:
    bench = Bench(value())
    bench.swaps.recover((ME,), (ME,), None, 0.0)
    assert "submit the job anew" in bench.swaps.trouble


# --- the changes ---------------------------------------------------------------------------------
def test_a_value_that_names_its_holders_is_unreadable_to_versions_that_know_of_none() -> None:
    plain, moved = value(), value(roster=Roster(2, (ME, ANNA, DORA), (ME, ANNA, BERT)))
    assert decode(encode_value(plain)) == plain
    assert decode(encode_value(moved)) == moved
    assert encode_value(plain)[0] == 0x9B, "as it always was: an array of eleven"
    assert encode_value(moved)[0] == 0x91
    assert roster_of(encode_value(plain)) is None
    assert roster_of(encode_value(moved)) == moved.roster
    assert roster_of(b"\xc1") is None


@pytest.mark.parametrize(
    ("held", "gone", "by", "kept", "reason"),
    [
        (value(), BERT, DORA, set(), "moved on"),
        (value(), DORA, BERT, {digest("p0")}, "has changed"),
        (value(), BERT, ANNA, {digest("p0")}, "has changed"),
        (
            value(roster=Roster(1, (ME, ANNA, BERT), (ME, ANNA, DORA))),
            BERT, DORA, {digest("p0")}, "under way",
        ),
    ],
)  # fmt: skip
def test_a_change_that_does_not_fit_is_refused(held, gone, by, kept, reason) -> None:  # type: ignore[no-untyped-def]
    refusal = replace_member(THE_JOB, gone, by, frozenset(kept), b"x")(encode_value(held))
    assert not isinstance(refusal, bytes)
    assert reason in refusal.reason


def test_nothing_is_released_before_the_new_member_keeps_what_the_register_names() -> None:
    joint = value(roster=Roster(1, (ME, ANNA, BERT), (ME, ANNA, DORA)))
    assert not isinstance(release_member(frozenset(), b"x")(encode_value(joint)), bytes)
    assert not isinstance(release_member(frozenset(), b"x")(encode_value(value())), bytes)
    done = decode(release_member(frozenset(joint.blobs), b"x")(encode_value(joint)))  # type: ignore[arg-type]
    assert done is not None
    assert done.roster == Roster(2, (ME, ANNA, DORA), (ME, ANNA, BERT))


def test_a_round_is_not_committed_for_a_committee_that_has_changed_since_it_was_kept() -> None:
    commit = commit_round(
        1, digest("p1"), digest("c1"), 1, b"x", rounds=3, publishes=False, base=digest("p0")
    )
    joint = encode_value(value(roster=Roster(1, (ME, ANNA, BERT), (ME, ANNA, DORA))))
    refusal = under(commit, 0)(joint)
    assert not isinstance(refusal, bytes)
    assert "generation 1, not 0" in refusal.reason
    done = under(commit, 1)(joint)
    assert isinstance(done, bytes)
    assert under(commit, 0)(done) == done, "a change that is in it already is not refused"
    assert isinstance(under(commit, 0)(encode_value(value())), bytes)


def test_of_two_recoveries_one_wins() -> None:
    change = recover(value(), (ME,), ME, b"one")
    taken = change(encode_value(value()))
    assert isinstance(taken, bytes)
    assert change(taken) == taken
    second = recover(value(), (ANNA,), ANNA, b"two")(taken)
    assert not isinstance(second, bytes)
    assert "another recovery" in second.reason


def test_a_change_that_was_prepared_when_the_job_ended_is_not_made() -> None:
    """Seed 222 of the whole jobs found it: the new member's answer came after the end."""
    held = value(aggregator=ME)
    bench = Bench(held)
    bench.around.gone = {BERT}
    bench.swaps.consider(held, 0.0, is_aggregator=True)
    (keep,) = asked(bench.desk.take(), Keep)
    bench.swaps.stop()
    bench.desk.replied(keep.call, Done(), 1.0)
    assert bench.desk.take() == []
    assert bench.swaps.wake_at() == NEVER


def test_a_recovery_gives_what_it_goes_on_from_to_the_new_committee() -> None:
    """This site had accepted the value and never read it, and was restarted: its blobs bear no label."""
    far = value(aggregator=BERT, round=1, parameters=digest("p1"), contributions=digest("c1"))
    bench = Bench(far)
    bench.around.held = set(far.blobs)
    bench.swaps.recover((ME, ANNA), (ME, ANNA, DORA), value(), 0.0)
    labels: set[bytes] = set()
    while effects := bench.desk.take():
        labels |= {one.digest for one in of(effects, Label)}
        keeps = [one for one in of(effects, Ask) if isinstance(one.message, Keep)]
        assert not keeps or labels == far.blobs, "before anybody is asked to fetch them"
        bench._answer(effects)
    assert labels == far.blobs
