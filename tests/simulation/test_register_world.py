"""The register under faults, and the proof that the checker sees: each mutant removes one guard."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace

import pytest
from linearizability import is_linearizable

from agent.election import proposer as proposer_module
from agent.election import reader as reader_module
from agent.election.acceptor import Acceptor, AcceptorState, Answer, RegisterReply
from agent.election.ballots import PROPOSER_BYTES
from agent.election.proposer import Decided, NoQuorum, OutcomeUnknown, Proposer, Refusal
from agent.election.reader import Reader
from agent.election.roster import Parts as Sets
from agent.election.roster import Roster
from agent.simulation.register_checker import Ledger, Operation, read, written
from agent.simulation.register_world import (
    Parts,
    Scenario,
    add_arguments,
    change_of,
    run,
    simulate,
)
from agent.wire.mesh import Accepted, Ballot, Conflict, Promise, ReadReply

BAD = Scenario(seconds=20.0, operations=200, fault_every_s=0.5)
"""Busier and worse than the default, so that few seeds are needed."""
SEEDS = range(1, 41)


def first_violations(parts: Parts, scenario: Scenario = BAD) -> list[str]:
    for seed in SEEDS:
        if found := simulate(seed, scenario, parts).violations:
            return found
    return []


def is_caught_by_search(parts: Parts, scenario: Scenario = BAD) -> bool:
    """The second judge, which sees no ledger."""
    return any(not is_linearizable(simulate(seed, scenario, parts).history) for seed in SEEDS)


# --- the real parts ------------------------------------------------------------------------------
@pytest.mark.parametrize(("committee", "sites"), [(3, 6), (5, 8), (1, 4)])
def test_histories_under_faults_are_those_of_one_register(committee: int, sites: int) -> None:
    scenario = replace(BAD, committee=committee, sites=sites, wipes=0 if committee == 1 else 1)
    for seed in range(1, 9):
        report = simulate(seed, scenario)
        assert report.violations == [], f"seed {seed}"
        assert report.is_final_read_decided, f"seed {seed}"
        assert report.outcomes["decided"] > 20, f"seed {seed}"
        assert is_linearizable(report.history), f"seed {seed}"


def test_one_seed_gives_one_history() -> None:
    first, second = simulate(7, BAD), simulate(7, BAD)
    assert first.history.operations == second.history.operations
    assert first.messages == second.messages


def test_the_command_takes_a_seed_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(Namespace(seed=3, runs=1, sites=None)) == 0
    assert "1 of 1 seeds are good" in capsys.readouterr().out


def test_the_command_reports_good_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--runs", "2", "--seconds", "5"])) == 0
    assert "2 of 2 seeds are good" in capsys.readouterr().out


# --- mutants: quorums ----------------------------------------------------------------------------
class OneIsEnough(Proposer):
    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._voters.have = bool  # type: ignore[assignment]


class ReadsFromOne(Reader):
    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._voters.have = bool  # type: ignore[assignment]


def test_a_quorum_of_one_in_three_is_caught() -> None:
    assert first_violations(Parts(proposer=OneIsEnough))


def test_a_read_from_one_member_is_caught() -> None:
    assert first_violations(Parts(reader=ReadsFromOne))


# --- mutants: durability -------------------------------------------------------------------------
SLOW_DISK = replace(BAD, commit_mean_s=0.1, wipes=0, fault_every_s=0.3)


def test_a_reply_before_its_row_is_durable_is_caught() -> None:
    assert first_violations(Parts(is_durable_before_reply=False), SLOW_DISK)


class ForgetsToCarryTheRow(Acceptor):
    """Gives a row to be written only once: the answer to a Read may disclose what a crash undoes."""

    def _answer(self, reply: RegisterReply) -> Answer:
        if isinstance(reply, ReadReply):
            return Answer((), reply)
        return super()._answer(reply)


def test_a_read_of_what_is_not_yet_durable_is_caught() -> None:
    assert first_violations(Parts(acceptor=ForgetsToCarryTheRow), SLOW_DISK)


def test_a_wiped_site_that_votes_again_is_caught() -> None:
    assert first_violations(Parts(is_wiped_site_barred=False), replace(BAD, wipes=2))


# --- mutants: ballots ----------------------------------------------------------------------------
class AcceptsLower(Acceptor):
    def _accept(self, ballot: Ballot, value: bytes) -> Accepted | Conflict:
        self._state = AcceptorState(max(ballot, self._state.promised), ballot, value)
        return Accepted(ballot)


class PromisesLower(Acceptor):
    def _prepare(self, ballot: Ballot) -> Promise | Conflict:
        self._state = AcceptorState(ballot, self._state.accepted, self._state.value)
        return Promise(ballot, self._state.accepted, self._state.value)


class PromisesEqual(Acceptor):
    def _prepare(self, ballot: Ballot) -> Promise | Conflict:
        if ballot < self._state.promised:
            return Conflict(self._state.promised)
        self._state = AcceptorState(ballot, self._state.accepted, self._state.value)
        return Promise(ballot, self._state.accepted, self._state.value)


class AcceptsEqual(PromisesEqual):
    def _accept(self, ballot: Ballot, value: bytes) -> Accepted | Conflict:
        if ballot < self._state.promised:
            return Conflict(self._state.promised)
        self._state = AcceptorState(ballot, ballot, value)
        return Accepted(ballot)


class SameName(Proposer):
    """One identity for every leadership of a site (palantir/atlasdb#1937)."""

    def __init__(self, **arguments: object) -> None:
        super().__init__(**arguments)  # type: ignore[arg-type]
        self._name = self._me + bytes(PROPOSER_BYTES - len(self._me))


def test_accepting_a_lower_ballot_is_caught() -> None:
    assert first_violations(Parts(acceptor=AcceptsLower))


def test_promising_a_lower_ballot_is_caught() -> None:
    # No crashes here: on restart the check of the stored row may find it first.
    calm = replace(BAD, fault_every_s=1e9, wipes=0, loss=0.1)
    assert first_violations(Parts(acceptor=PromisesLower), calm)


def test_a_reused_proposer_id_is_caught() -> None:
    found = first_violations(Parts(proposer=SameName))
    assert any("was used by 2 proposers" in violation for violation in found)


def test_a_reused_proposer_id_and_equal_ballots_break_the_history() -> None:
    parts = Parts(acceptor=AcceptsEqual, proposer=SameName)
    histories = (simulate(seed, BAD, parts).violations for seed in SEEDS)
    assert any("operation" in violation for found in histories for violation in found)


# --- mutants: outcomes ---------------------------------------------------------------------------
class SaysItFailed(Proposer):
    """Calls an unknown outcome a failure."""

    def _end(self, outcome: object) -> list:  # type: ignore[type-arg]
        if isinstance(outcome, OutcomeUnknown):
            outcome = NoQuorum(outcome.reason)
        return super()._end(outcome)  # type: ignore[arg-type]


class BelievesTheNewest(Proposer):
    """Refuses on the strength of a value that nobody may ever have committed."""

    def _is_settled(self, accepted: Ballot | None) -> bool:  # noqa: ARG002
        return True


class ReadsTheNewest(Reader):
    def _looked(self, now: float) -> list:  # type: ignore[type-arg]  # noqa: ARG002
        if not self._voters.have(self._replies):
            return []
        newest = max(self._replies.values(), key=lambda reply: reply.accepted or Ballot(0, b""))
        return self._end(Decided(newest.value, newest.accepted))


def without_operation_ids(operation: Operation):  # type: ignore[no-untyped-def]
    def change(value: bytes | None) -> bytes | Refusal:
        ledger = Ledger(0, 0, 0, ()) if value is None else read(value)
        operations = (*ledger.operations, operation.id)
        if operation.kind == "claim":
            return written(Ledger(ledger.epoch + 1, operation.site, ledger.round, operations))
        if operation.epoch != ledger.epoch:
            return Refusal("", value)
        return written(Ledger(ledger.epoch, ledger.holder, ledger.round + 1, operations))

    return change


def without_fence(operation: Operation):  # type: ignore[no-untyped-def]
    def change(value: bytes | None) -> bytes | Refusal:
        ledger = Ledger(0, 0, 0, ()) if value is None else read(value)
        if operation.id in ledger.operations:
            assert value is not None
            return value
        operations = (*ledger.operations, operation.id)
        if operation.kind == "claim":
            return written(Ledger(ledger.epoch + 1, operation.site, ledger.round, operations))
        return written(Ledger(ledger.epoch, ledger.holder, ledger.round + 1, operations))

    return change


def test_calling_an_unknown_outcome_failed_is_caught() -> None:
    found = first_violations(Parts(proposer=SaysItFailed))
    assert any("was failed and took effect" in violation for violation in found)


def test_refusing_on_an_uncommitted_value_is_caught() -> None:
    assert first_violations(Parts(proposer=BelievesTheNewest))


def test_reading_an_uncommitted_value_is_caught() -> None:
    assert first_violations(Parts(reader=ReadsTheNewest))


def test_a_change_without_operation_ids_is_caught() -> None:
    found = first_violations(Parts(change_of=without_operation_ids))
    assert any("twice" in violation for violation in found)


def test_a_commit_without_the_fencing_token_is_caught() -> None:
    found = first_violations(Parts(change_of=without_fence))
    assert any("committed for epoch" in violation for violation in found)


def with_ids_of_a_counter_that_starts_anew(operation: Operation):  # type: ignore[no-untyped-def]
    """As after a restart without the boot epoch: another operation bears an id that was used."""
    return change_of(replace(operation, id=operation.id % 16 + 1))


def test_a_reused_operation_id_is_caught() -> None:
    found = first_violations(Parts(change_of=with_ids_of_a_counter_that_starts_anew))
    assert any("decided without its effect" in violation for violation in found)


# --- the holders change --------------------------------------------------------------------------
TURNOVER = replace(
    BAD, sites=8, seconds=40.0, operations=300, wipes=0, swaps=0.15, turnover=3
)  # fmt: skip
"""All three first members may lose their disks for good, one after another: each is replaced before."""


def test_a_register_outlives_its_first_holders() -> None:
    for seed in range(1, 13):
        report = simulate(seed, TURNOVER)
        assert report.violations == [], f"seed {seed}"
        assert report.is_final_read_decided, f"seed {seed}"
        assert report.generation >= 8, f"seed {seed}"
        assert is_linearizable(report.history), f"seed {seed}"


def one_set_alone(self: Roster, *, is_committed: bool) -> Sets:  # noqa: ARG001
    return (self.members,)


def test_a_change_of_holders_that_carries_nothing_over_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No rescan on a swap: the old holders decide alone that the new ones hold the register."""
    monkeypatch.setattr(Roster, "parts", one_set_alone)
    monkeypatch.setattr(proposer_module, "is_behind", lambda *_: False)
    monkeypatch.setattr(reader_module, "is_behind", lambda *_: False)
    assert first_violations(Parts(), TURNOVER)
    assert is_caught_by_search(Parts(), TURNOVER)


# --- the second judge ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("parts", "scenario"),
    [
        (Parts(proposer=OneIsEnough), BAD),
        (Parts(reader=ReadsFromOne), BAD),
        (Parts(is_durable_before_reply=False), SLOW_DISK),
        (Parts(is_wiped_site_barred=False), replace(BAD, wipes=2)),
        (Parts(acceptor=AcceptsEqual, proposer=SameName), BAD),
        (Parts(change_of=without_operation_ids), BAD),
        (Parts(change_of=without_fence), BAD),
        (Parts(change_of=with_ids_of_a_counter_that_starts_anew), BAD),
        (Parts(proposer=SaysItFailed), BAD),
    ],
    ids=[
        "quorum-of-one", "read-of-one", "reply-before-fsync", "wiped-votes", "proposer-id-reused",
        "no-operation-ids", "no-fence", "operation-id-reused", "unknown-called-failed",
    ],
)  # fmt: skip
def test_a_search_that_sees_no_ledger_catches_it_too(parts: Parts, scenario: Scenario) -> None:
    assert is_caught_by_search(parts, scenario)
