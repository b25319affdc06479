"""The search that judges histories, on histories small enough to judge by hand."""

from linearizability import is_linearizable

from agent.simulation.register_checker import History, Kind, Ledger, Operation


def operation(
    number: int,
    kind: Kind,
    began_at: float,
    ended_at: float,
    seen: tuple[int, int, int] | None,
    *,
    epoch: int = 0,
    outcome: str = "decided",
) -> Operation:
    observed = None if seen is None else Ledger(*seen, ())
    return Operation(number, kind, 7, epoch, began_at, ended_at, outcome, observed)  # type: ignore[arg-type]


CLAIM = operation(1, "claim", 0.0, 1.0, (1, 7, 0))


def test_one_after_the_other_is_linearizable() -> None:
    commit = operation(2, "commit", 2.0, 3.0, (1, 7, 1), epoch=1)
    assert is_linearizable(History([CLAIM, commit, operation(3, "read", 4.0, 5.0, (1, 7, 1))]))


def test_a_read_of_what_was_overwritten_before_it_began_is_not() -> None:
    commit = operation(2, "commit", 2.0, 3.0, (1, 7, 1), epoch=1)
    assert not is_linearizable(History([CLAIM, commit, operation(3, "read", 4.0, 5.0, (1, 7, 0))]))


def test_a_read_beside_a_change_may_see_either() -> None:
    for round_ in (0, 1):
        commit = operation(2, "commit", 2.0, 5.0, (1, 7, 1), epoch=1)
        seen = operation(3, "read", 3.0, 4.0, (1, 7, round_))
        assert is_linearizable(History([CLAIM, commit, seen]))


def test_two_reads_beside_a_change_may_not_see_it_come_and_go() -> None:
    commit = operation(2, "commit", 2.0, 9.0, (1, 7, 1), epoch=1)
    reads = [operation(3, "read", 3.0, 4.0, (1, 7, 1)), operation(4, "read", 5.0, 6.0, (1, 7, 0))]
    assert not is_linearizable(History([CLAIM, commit, *reads]))


def test_an_unknown_outcome_may_happen_late_or_never_but_once() -> None:
    lost = operation(2, "commit", 2.0, float("inf"), None, epoch=1, outcome="unknown")
    for rounds in ((0, 0), (0, 1), (1, 1)):
        reads = [
            operation(3 + n, "read", 3.0 + 2 * n, 4.0 + 2 * n, (1, 7, r))
            for n, r in enumerate(rounds)
        ]
        assert is_linearizable(History([CLAIM, lost, *reads]))
    twice = operation(9, "read", 8.0, 9.0, (1, 7, 2))
    assert not is_linearizable(History([CLAIM, lost, twice]))


def test_a_commit_of_another_epoch_never_happens() -> None:
    commit = operation(2, "commit", 2.0, 3.0, (1, 7, 1), epoch=4)
    assert not is_linearizable(History([CLAIM, commit]))


def test_a_commit_of_the_present_epoch_is_not_declined() -> None:
    declined = operation(2, "commit", 2.0, 3.0, (1, 7, 0), epoch=1, outcome="declined")
    assert not is_linearizable(History([CLAIM, declined]))
    outdated = operation(2, "commit", 2.0, 3.0, (1, 7, 0), epoch=3, outcome="declined")
    assert is_linearizable(History([CLAIM, outdated]))
