"""The queue is bounded by predicted time, for each application by its own part."""

import pytest

from agent.foundation.errors import Busy
from agent.serving.admission import OTHERS, SERVICE_US_UNKNOWN, Admission, Ticket, most_of_one
from agent.serving.fair import APPLICATIONS_MAX, Priority, Turn

KEY = b"k" * 8
HIGH, NORMAL, LOW = Priority


def admit(
    admission: Admission,
    application: str = "local",
    priority: Priority = NORMAL,
    *,
    runners: int = 1,
    left_s: float = 60,
) -> Ticket:
    return admission.admit(KEY, application, priority, runners=runners, left_s=left_s)


def fill(admission: Admission, application: str = "local", priority: Priority = NORMAL) -> int:
    """How many more are let in before one is refused."""
    for count in range(10_000):
        try:
            admit(admission, application, priority)
        except Busy:
            return count
    raise AssertionError("there is no bound")


def busy(service_us: int = 10_000, **weights: int) -> Admission:
    admission = Admission(queue_max_s=1.0, waiting_max=1000, weights=weights)
    admission.seed(KEY, service_us)
    return admission


def test_requests_are_admitted_until_the_wait_is_too_long() -> None:
    admission = busy(100_000)
    tickets = [admit(admission) for _ in range(11)]
    assert admission.wait_s(1) == pytest.approx(1.1)
    with pytest.raises(Busy) as caught:
        admit(admission)
    assert caught.value.retry_after_s == pytest.approx(0.6)
    admission.release(tickets.pop(), 100_000)
    admit(admission)


def test_more_runners_wait_less() -> None:
    admission = busy(1_000_000)
    for _ in range(5):
        admit(admission, runners=4)
    with pytest.raises(Busy):
        admit(admission, runners=4)


def test_while_a_runner_is_free_nobody_waits() -> None:
    admission = Admission(queue_max_s=0.03, waiting_max=1000)
    admission.seed(KEY, 500_000)
    admit(admission, runners=2)
    admit(admission, runners=2)
    with pytest.raises(Busy):
        admit(admission, runners=2)


def test_work_that_cannot_end_in_time_is_not_begun() -> None:
    admission = Admission(queue_max_s=10.0, waiting_max=1000)
    admission.seed(KEY, 500_000)
    admit(admission, left_s=0.1)  # nothing in front: the run itself is cut off
    with pytest.raises(Busy):
        admit(admission, left_s=0.9)
    admit(admission, left_s=1.1)


def test_an_idle_site_takes_a_request_however_slow_its_model() -> None:
    admit(busy(30_000_000))


def test_the_count_is_bounded_too() -> None:
    admission = Admission(queue_max_s=1000.0, waiting_max=2)
    admit(admission, "a")
    with pytest.raises(Busy, match="1 such requests of a are in already"):
        admit(admission, "a")
    admit(admission, "b")
    assert admission.in_flight == 2
    with pytest.raises(Busy):
        admit(admission, "c")


def test_run_times_are_learnt_and_forgotten() -> None:
    admission = Admission(queue_max_s=1.0, waiting_max=1000)
    assert admission.service_us(KEY) == SERVICE_US_UNKNOWN
    admission.seed(KEY, 100)
    admission.seed(KEY, 7)
    assert admission.service_us(KEY) == 100
    admission.release(admit(admission), 2000)
    assert admission.service_us(KEY) == 2000  # the first real run replaces the warm-up's
    admission.release(admit(admission), 3000)
    assert admission.service_us(KEY) == 2100
    admission.release(admit(admission))
    assert admission.known_services() == {KEY: 2100}
    assert admission.wait_s(1) == 0
    admission.forget(set())
    assert admission.known_services() == {}


def test_a_site_where_nothing_is_under_way_tells_what_its_models_take_alone() -> None:
    """After a rush nobody asks it: it would be thought slow for ever."""
    admission = Admission(queue_max_s=10.0, waiting_max=1000)
    admission.release(admit(admission), 1000)
    rush = [admit(admission) for _ in range(40)]
    for ticket in rush[:-1]:
        admission.release(ticket, 3000)
    assert admission.known_services()[KEY] > 2500
    admission.release(rush[-1], 3000)
    assert admission.service_us(KEY) > 2500
    assert admission.known_services() == {KEY: 1200}  # the first of the rush had met nobody


def test_one_that_has_nothing_waiting_is_let_in_however_much_another_sends() -> None:
    admission = busy()
    assert fill(admission, "flood") == 101
    admit(admission, "small")
    with pytest.raises(Busy):
        admit(admission, "flood")


def test_whose_turn_is_next_still_needs_the_time_until_a_run_ends() -> None:
    admission = busy(400_000)
    for _ in range(2):
        admit(admission, "flood")
    with pytest.raises(Busy, match=r"would wait 0\.20 s"):
        admit(admission, "small", left_s=0.55)
    admit(admission, "small", left_s=0.65)


def test_long_runs_of_one_do_not_keep_the_other_out() -> None:
    admission = Admission(queue_max_s=0.03, waiting_max=1000)
    admission.seed(KEY, 2_000_000)
    admit(admission, "flood")
    with pytest.raises(Busy):
        admit(admission, "flood")
    admit(admission, "small")


def test_two_that_flood_get_equal_parts_and_weights_count() -> None:
    admission = busy(camera=3)
    fill(admission, "flood")
    assert fill(admission, "other") == 51  # each of them waits for as much of the other
    admission = busy(camera=3)
    fill(admission, "flood")
    assert fill(admission, "camera") == 76


def test_the_wait_is_for_the_work_that_goes_before() -> None:
    admission = busy()
    for _ in range(20):
        admit(admission, "much")
    for _ in range(5):
        admit(admission, "little")
    share = admission._shares
    assert admission._ahead_us(share["little"], NORMAL) == 5 * 10_000 + 5 * 10_000
    assert admission._ahead_us(share["much"], NORMAL) == 20 * 10_000 + 5 * 10_000


def test_low_priority_is_not_refused_because_of_higher_ones() -> None:
    admission = busy()
    assert fill(admission, priority=HIGH) == 101
    assert 3 <= fill(admission, priority=LOW) <= 7
    assert 10 <= fill(admission, priority=NORMAL) <= 30


def test_a_ticket_says_whose_turn_it_is() -> None:
    admission = busy(camera=3)
    assert admit(admission, "camera", LOW) == Ticket(
        KEY, "camera", Turn(0, 3, LOW, 10_000), is_alone=True
    )
    assert admit(admission, "else").turn == Turn(1, 1, NORMAL, 10_000)


def test_applications_beyond_the_bound_share_one_place() -> None:
    admission = Admission(queue_max_s=1000.0, waiting_max=1000, weights={"camera": 3})
    tickets = [admit(admission, f"a{number}") for number in range(APPLICATIONS_MAX + 2)]
    assert [one.application for one in tickets[-3:]] == [OTHERS] * 3
    assert tickets[-1].turn.application == APPLICATIONS_MAX
    assert len({one.turn.application for one in tickets[:-3]}) == APPLICATIONS_MAX - 1
    assert admission.name_of("a65") == OTHERS
    assert admission.name_of("a0") == "a0"
    assert admit(admission, "camera").turn.weight == 3, "what the operator names keeps its place"
    admission.release(tickets[5])  # who rests gives its place away
    again = admit(admission, "late")
    assert (again.application, again.turn.application) == ("late", tickets[5].turn.application)
    assert admission.name_of("a5") == OTHERS
    for one in (*tickets[:5], *tickets[6:], again):
        admission.release(one)
    assert admission.in_flight == 1


def test_a_name_that_stands_for_the_rest_belongs_to_the_rest() -> None:
    admission = busy()
    assert admit(admission, OTHERS).turn.application == APPLICATIONS_MAX


def test_some_places_are_kept_from_each_flow() -> None:
    assert [most_of_one(places) for places in (1, 2, 8, 16, 256, 1024)] == [1, 1, 7, 14, 224, 896]
