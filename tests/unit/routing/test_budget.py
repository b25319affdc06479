"""Extra requests never exceed their share."""

from random import Random

from agent.routing.budget import Budget


def test_extra_requests_are_at_most_their_share_and_what_was_saved() -> None:
    for seed in range(50):
        rng, budget = Random(seed), Budget(0.05, 5.0, 1.0)
        requests = extra = 0
        for _ in range(2000):
            if rng.random() < 0.5:
                requests += 1
                budget.deposit()
            else:
                extra += budget.withdraw()
            assert extra <= 1.0 + 0.05 * requests + 1e-6
            assert 0 <= budget.saved <= 5.0


def test_what_is_saved_is_bounded_and_then_spent() -> None:
    budget = Budget(0.2, 3.0, 0.0)
    assert not budget.withdraw()
    for _ in range(1000):
        budget.deposit()
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]
