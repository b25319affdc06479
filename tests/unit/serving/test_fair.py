"""Who is next: by weight among applications, by priority within one, and nobody starves."""

from collections import Counter

import pytest

from agent.foundation.errors import UsageError
from agent.serving.fair import (
    WEIGHT_MAX,
    FairQueue,
    Priority,
    Turn,
    is_application_name,
    read_priority,
    read_share,
)

HIGH, NORMAL, LOW = Priority


def turn(
    application: int = 0, priority: Priority = NORMAL, cost_us: int = 1000, weight: int = 1
) -> Turn:
    return Turn(application, weight, priority, cost_us)


def fill(queue: FairQueue[str], name: str, count: int, of: Turn) -> None:
    for number in range(count):
        queue.push(of, f"{name}{number}")


def drain(queue: FairQueue[str], count: int) -> list[str]:
    found = [queue.pop() for _ in range(count)]
    return [one[1] for one in found if one is not None]


def test_one_application_is_served_in_order() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 4, turn())
    assert len(queue) == 4
    assert list(queue) == ["a0", "a1", "a2", "a3"]
    assert drain(queue, 4) == ["a0", "a1", "a2", "a3"]
    assert queue.pop() is None
    assert len(queue) == 0


def test_one_that_comes_to_a_full_queue_is_next() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 100, turn())
    drain(queue, 10)
    fill(queue, "b", 1, turn(1))
    assert drain(queue, 2) == ["b0", "a10"]


def test_applications_take_turns_by_the_work_they_cause() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 100, turn(0, cost_us=1000))
    fill(queue, "b", 100, turn(1, cost_us=4000))
    served = Counter(name[0] for name in drain(queue, 50))
    assert served == {"a": 40, "b": 10}


def test_twice_the_weight_is_twice_the_work() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 100, turn(0, weight=1))
    fill(queue, "b", 100, turn(1, weight=2))
    served = Counter(name[0] for name in drain(queue, 60))
    assert served == {"a": 20, "b": 40}


def test_rest_is_not_saved_up() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 200, turn(0))
    fill(queue, "b", 1, turn(1))
    drain(queue, 100)  # b has rested meanwhile
    fill(queue, "b", 100, turn(1))
    served = Counter(name[0] for name in drain(queue, 20))
    assert served["b"] <= 11


def test_work_of_an_idle_site_is_nobodys_debt() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.pass_by(turn(0, cost_us=100_000))
    queue.pass_by(turn(0, HIGH, cost_us=100_000))
    queue.rest()
    fill(queue, "b", 20, turn(1))
    fill(queue, "a", 20, turn(0))
    fill(queue, "high", 1, turn(0, HIGH))
    served = drain(queue, 10)
    assert Counter(name[0] for name in served) == {"a": 4, "b": 5, "h": 1}
    assert "high0" in served[:2]


def test_an_urgent_request_goes_before_all_others_of_its_application() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "low", 50, turn(priority=LOW))
    fill(queue, "normal", 50, turn(priority=NORMAL))
    drain(queue, 7)
    fill(queue, "high", 1, turn(priority=HIGH))
    assert drain(queue, 1) == ["high0"]


def test_calling_everything_urgent_gains_nothing_from_others() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 100, turn(0, HIGH))
    fill(queue, "b", 100, turn(1, LOW))
    served = Counter(name[0] for name in drain(queue, 40))
    assert served == {"a": 20, "b": 20}


def test_low_priority_has_a_small_part_of_its_own() -> None:
    queue: FairQueue[str] = FairQueue()
    for one in Priority:
        fill(queue, one.name, 500, turn(priority=one))
    served = Counter(name.rstrip("0123456789") for name in drain(queue, 420))
    assert served == {"HIGH": 320, "NORMAL": 80, "LOW": 20}


def test_what_cost_more_than_expected_is_paid_for_afterwards() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 100, turn(0))
    fill(queue, "b", 100, turn(1))
    served: Counter[str] = Counter()
    for _ in range(60):
        found = queue.pop()
        assert found is not None
        served[found[1][0]] += 1
        queue.settle(found[0], 5000 if found[1][0] == "a" else 1000)
    assert served["b"] == pytest.approx(5 * served["a"], abs=2)


def test_what_did_not_run_costs_nothing() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 100, turn(0))
    fill(queue, "b", 100, turn(1))
    served: Counter[str] = Counter()
    for _ in range(40):
        found = queue.pop()
        assert found is not None
        is_refused = found[1][0] == "a" and served["a"] < 15
        served[found[1][0]] += 1
        queue.settle(found[0], 0 if is_refused else 1000)
    assert served == {"a": 15 + 13, "b": 12}


def test_who_was_served_at_once_is_charged_too() -> None:
    queue: FairQueue[str] = FairQueue()
    for _ in range(3):
        queue.pass_by(turn(0))
    fill(queue, "a", 5, turn(0))
    fill(queue, "b", 5, turn(1))
    assert drain(queue, 3) == ["b0", "a0", "b1"]
    assert len(queue) == 7


def test_only_those_that_may_are_taken() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 2, turn(0, HIGH))
    fill(queue, "low", 2, turn(0, LOW))
    fill(queue, "b", 2, turn(1))
    found = queue.pop(lambda application, priority: application == 0 and priority == LOW)
    assert found is not None
    assert found[1] == "low0"
    assert queue.pop(lambda *_: False) is None
    assert len(queue) == 5


def test_fellows_are_charged_as_if_it_were_their_turn() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 10, turn(0))
    fill(queue, "b", 10, turn(1))
    fill(queue, "urgent", 1, turn(0, HIGH))
    fellows = queue.fellows(NORMAL, lambda name: name[-1] in "02")
    assert [name for _, name in fellows] == ["a0", "a2", "b0", "b2"]
    for of, name in fellows[:2]:
        queue.take(of, name)
    queue.take(*fellows[0])  # it is gone already
    assert len(queue) == 19
    assert drain(queue, 3) == ["b0", "b1", "urgent0"]


def test_one_that_waits_no_more_leaves_at_no_charge() -> None:
    queue: FairQueue[str] = FairQueue()
    fill(queue, "a", 3, turn(0))
    second = list(queue)[1]
    assert queue.remove(turn(0), second)
    assert not queue.remove(turn(0), second)
    fill(queue, "b", 2, turn(1))
    assert drain(queue, 4) == ["a0", "b0", "a2", "b1"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [(0, NORMAL), (1, HIGH), (2, NORMAL), (3, LOW), ("", NORMAL), ("1", HIGH), ("High", HIGH),
     ("normal", NORMAL), ("low", LOW), ("0", NORMAL)],
)  # fmt: skip
def test_priorities_are_written_as_numbers_or_words(given: object, meant: Priority) -> None:
    assert read_priority(given) is meant


@pytest.mark.parametrize("given", [4, -1, 1.0, True, None, "urgent", "01", "٣", [1], "x" * 999])
def test_another_priority_is_an_error_that_names_them(given: object) -> None:
    with pytest.raises(UsageError, match=r"it may be 1 \(high\), 2 or 0 \(normal\), 3 \(low\)"):
        read_priority(given)


def test_shares_are_names_with_weights() -> None:
    assert read_share("camera=4") == ("camera", 4)
    assert read_share(f"site paris={WEIGHT_MAX}") == ("site paris", WEIGHT_MAX)
    for wrong in (
        "camera",
        "=4",
        "camera=0",
        "camera=1001",
        "camera=1.5",
        "a b=1",
        "camera=+4",
        "",
    ):
        with pytest.raises(UsageError, match="camera=4"):
            read_share(wrong)


def test_names_of_applications_are_plain() -> None:
    assert is_application_name("Line-2.camera_7")
    for wrong in ("", "a" * 65, "site paris", 'a"', "ü", "a\n"):
        assert not is_application_name(wrong)
