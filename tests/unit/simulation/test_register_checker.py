"""The checker is checked by histories written by hand: a good one, and one for each rule."""

from math import inf

import pytest

from agent.simulation.register_checker import (
    OPERATIONS_MAX,
    History,
    Ledger,
    Operation,
    read,
    violations,
    written,
)


def claim(number: int, began_at: float, ended_at: float, *ledger: int) -> Operation:
    observed = Ledger(len(ledger), 0, 0, ledger)
    return Operation(number, "claim", 0, 0, began_at, ended_at, "decided", observed)


def look(number: int, began_at: float, ended_at: float, *ledger: int) -> Operation:
    observed = Ledger(len(ledger), 0, 0, ledger) if ledger else None
    return Operation(number, "read", 0, 0, began_at, ended_at, "decided", observed)


def lost(number: int, began_at: float, outcome: str) -> Operation:
    return Operation(number, "claim", 0, 0, began_at, inf, outcome)  # type: ignore[arg-type]


def found(*operations: Operation) -> str:
    return "\n".join(violations(History(list(operations))))


def test_a_history_of_one_register_is_good() -> None:
    commit = Operation(5, "commit", 1, 2, 5.0, 6.0, "decided", Ledger(2, 0, 1, (1, 2, 5)))
    stale = Operation(6, "commit", 1, 1, 6.5, 7.0, "declined", Ledger(2, 0, 1, (1, 2, 5)))
    assert not found(
        look(9, 0.0, 0.5),
        claim(1, 0.0, 1.0, 1),
        claim(2, 2.0, 3.0, 1, 2),
        look(3, 2.5, 2.7, 1),
        look(4, 3.5, 4.0, 1, 2),
        commit,
        stale,
        lost(7, 6.0, "unknown"),
        lost(8, 6.0, "failed"),
    )


def test_a_ledger_survives_its_encoding() -> None:
    ledger = Ledger(3, 2, 1, tuple(range(1, OPERATIONS_MAX + 1)))
    assert read(written(ledger)) == ledger
    assert len(written(ledger)) < 4096


@pytest.mark.parametrize(
    ("operations", "rule"),
    [
        ([claim(1, 0, 1, 1), claim(2, 0, 1, 2)], "not on the one history"),
        ([claim(1, 0, 1, 1), look(2, 2, 3)], "saw less than was seen before it began"),
        ([claim(1, 2, 3, 1, 2), claim(2, 0, 1, 1, 2)], "which had not begun"),
        ([claim(1, 0, 1, 1), claim(2, 2, 3, 2, 1)], "took effect before it began"),
        ([claim(1, 0, 1, 1), lost(2, 0, "failed"), look(3, 2, 3, 1, 2)], "was failed and took"),
        ([claim(1, 0, 1, 1), claim(2, 2, 3, 1, 2, 2)], "took effect twice"),
        ([claim(1, 0, 1, 1), claim(2, 0, 3, 1)], "decided without its effect"),
        ([look(1, 0, 1, 7)], "was never asked for"),
    ],
)
def test_each_broken_rule_is_named(operations: list[Operation], rule: str) -> None:
    assert rule in found(*operations)


def test_an_epoch_that_the_ledger_does_not_make_is_named() -> None:
    wrong = Operation(2, "read", 0, 0, 2.0, 3.0, "decided", Ledger(7, 0, 0, (1,)))
    assert "which the ledger does not make" in found(claim(1, 0, 1, 1), wrong)


def test_a_commit_for_another_epoch_is_named() -> None:
    stale = Operation(2, "commit", 0, 9, 2.0, 3.0, "decided", Ledger(1, 0, 1, (1, 2)))
    assert "committed for epoch 9 in 1" in found(claim(1, 0, 1, 1), stale)


def test_a_refusal_without_reason_is_named() -> None:
    refused = Operation(2, "commit", 0, 1, 2.0, 3.0, "declined", Ledger(1, 0, 0, (1,)))
    assert "declined without reason" in found(claim(1, 0, 1, 1), refused)


def test_a_ballot_of_two_proposers_or_with_two_values_is_named() -> None:
    history = History(ballots={(1, b"p"): {1, 2}}, proposals={(1, b"p"): {b"v", b"w"}})
    assert violations(history) == [
        "ballot 1 was used by 2 proposers",
        "ballot 1 carried 2 values",
    ]
