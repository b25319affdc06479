"""Which models are not run again when their worker has ended."""

from agent.serving.suspects import SUSPECTS_MAX, Suspects

A, B = b"a" * 8, b"b" * 8


def test_the_first_loss_is_nobodys_fault_and_the_second_is_the_models() -> None:
    suspects = Suspects()
    assert not suspects.lost(A)
    assert not suspects.lost(B)
    assert suspects.lost(A)


def test_a_model_that_has_answered_since_is_no_suspect() -> None:
    suspects = Suspects()
    suspects.answered(A)
    suspects.lost(A)
    suspects.answered(A)
    assert not suspects.lost(A)


def test_only_so_many_are_remembered_and_the_oldest_goes_first() -> None:
    suspects = Suspects()
    for number in range(SUSPECTS_MAX + 1):
        suspects.lost(number.to_bytes(8, "big"))
    assert not suspects.lost((0).to_bytes(8, "big"))
    assert suspects.lost((2).to_bytes(8, "big"))
