"""The queue is bounded by predicted time."""

import pytest

from agent.foundation.errors import Busy
from agent.serving.admission import SERVICE_US_UNKNOWN, Admission

KEY = b"k" * 8


def test_requests_are_admitted_until_the_wait_is_too_long() -> None:
    admission = Admission(queue_max_s=1.0, waiting_max=1000)
    admission.seed(KEY, 100_000)
    tickets = [admission.admit(KEY, runners=1, left_s=60) for _ in range(11)]
    assert admission.wait_s(1) == pytest.approx(1.1)
    with pytest.raises(Busy) as caught:
        admission.admit(KEY, runners=1, left_s=60)
    assert caught.value.retry_after_s == pytest.approx(0.6)
    admission.release(tickets.pop(), 100_000)
    admission.admit(KEY, runners=1, left_s=60)


def test_more_runners_wait_less() -> None:
    admission = Admission(queue_max_s=1.0, waiting_max=1000)
    admission.seed(KEY, 1_000_000)
    for _ in range(5):
        admission.admit(KEY, runners=4, left_s=60)
    with pytest.raises(Busy):
        admission.admit(KEY, runners=4, left_s=60)


def test_work_that_cannot_end_in_time_is_not_begun() -> None:
    admission = Admission(queue_max_s=10.0, waiting_max=1000)
    admission.seed(KEY, 500_000)
    admission.admit(KEY, runners=1, left_s=0.1)  # nothing in front: the run itself is cut off
    with pytest.raises(Busy):
        admission.admit(KEY, runners=1, left_s=0.9)
    admission.admit(KEY, runners=1, left_s=1.1)


def test_an_idle_site_takes_a_request_however_slow_its_model() -> None:
    admission = Admission(queue_max_s=0.5, waiting_max=10)
    admission.seed(KEY, 30_000_000)
    admission.admit(KEY, runners=1, left_s=60)


def test_the_count_is_bounded_too() -> None:
    admission = Admission(queue_max_s=1000.0, waiting_max=2)
    admission.admit(KEY, runners=1, left_s=600)
    admission.admit(KEY, runners=1, left_s=600)
    assert admission.in_flight == 2
    with pytest.raises(Busy):
        admission.admit(KEY, runners=1, left_s=600)


def test_run_times_are_learnt_and_forgotten() -> None:
    admission = Admission(queue_max_s=1.0, waiting_max=1000)
    assert admission.service_us(KEY) == SERVICE_US_UNKNOWN
    admission.seed(KEY, 100)
    admission.seed(KEY, 7)
    assert admission.service_us(KEY) == 100
    admission.release(admission.admit(KEY, runners=1, left_s=60), 2000)
    assert admission.service_us(KEY) == 2000  # the first real run replaces the warm-up's
    admission.release(admission.admit(KEY, runners=1, left_s=60), 3000)
    assert admission.service_us(KEY) == 2100
    admission.release(admission.admit(KEY, runners=1, left_s=60))
    assert admission.known_services() == {KEY: 2100}
    assert admission.wait_s(1) == 0
    admission.forget(set())
    assert admission.known_services() == {}
