"""Each in its turn; fellows of the first are taken along."""

import socket
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import pytest

from agent.drivers.shared_memory import SharedSlots, doorbell_pair
from agent.serving.batching import Company
from agent.serving.doorbell import InferRing
from agent.serving.fair import Priority, Turn
from agent.workers.inference_queue import JUMP_US_MAX, WorkQueue
from agent.workers.inference_work import Link, Work


class Bell:
    """The gateway's end, and the link that the queue reads."""

    def __init__(self) -> None:
        self.gateway, theirs = doorbell_pair()
        self.link = Link(theirs, SharedSlots.create(1, 4096))

    def ring(
        self,
        number: int,
        key: bytes,
        application: int = 0,
        priority: Priority = Priority.NORMAL,
        cost_us: int = 1000,
        asked_at: float = 0.0,
    ) -> None:
        turn = Turn(application, 1, priority, cost_us)
        ring = InferRing(number, 0, 0, 0, None, key, asked_at + 99.0, asked_at, turn)
        self.gateway.send(ring.pack())

    def fill(self) -> None:
        for number, key in enumerate([b"a" * 8, b"b" * 8, b"a" * 8, b"a" * 8, b"b" * 8, b"a" * 8]):
            self.ring(number, key)


@pytest.fixture
def bell() -> Iterator[Bell]:
    found = Bell()
    yield found
    found.gateway.close()
    found.link.doorbell.close()
    found.link.slots.close()


def numbers(works: list[Work]) -> list[int]:
    return [one.ring.number for one in works]


def test_fellows_of_the_first_are_taken_along_in_order(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda key: 3 if key == b"a" * 8 else 1)
    bell.fill()
    assert numbers(queue.take()) == [0, 2, 3]
    assert numbers(queue.take()) == [1]
    assert numbers(queue.take()) == [4]
    assert numbers(queue.take()) == [5]


def test_several_runners_each_get_their_share(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 2, lambda _: 8)
    bell.fill()
    assert numbers(queue.take()) == [0, 2]
    assert numbers(queue.take()) == [1]
    assert numbers(queue.take()) == [3]
    assert numbers(queue.take()) == [4]


def test_a_runner_waits_for_the_first_and_ends_with_the_gateway(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 8)
    taken: list[list[Work]] = []

    def take() -> None:
        while works := queue.take():
            taken.append(works)

    waiting = threading.Thread(target=take)
    waiting.start()
    bell.ring(7, b"a" * 8)
    bell.gateway.shutdown(socket.SHUT_RDWR)
    waiting.join(5)
    assert not waiting.is_alive()
    assert [numbers(works) for works in taken] == [[7]]


def test_what_another_runner_waits_for_is_left_to_it(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 8)
    bell.fill()
    queue._at_socket += 1  # another one, on its way to the next ring
    assert numbers(queue.take()) == [0]
    queue._at_socket -= 1
    assert numbers(queue.take()) == [1, 4]
    assert numbers(queue.take()) == [2, 3, 5]


def test_another_application_is_next_however_many_wait(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 1)
    for number in range(5):
        bell.ring(number, b"a" * 8)
    assert numbers(queue.take()) == [0]
    bell.ring(7, b"b" * 8, application=1)
    bell.ring(8, b"a" * 8, priority=Priority.HIGH)
    assert numbers(queue.take()) == [7]
    assert numbers(queue.take()) == [8]
    assert numbers(queue.take()) == [1]


def test_fellows_come_from_every_application_and_pay_for_it(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda key: 8 if key == b"a" * 8 else 1)
    bell.ring(0, b"a" * 8, application=0)
    bell.ring(1, b"a" * 8, application=1)
    bell.ring(2, b"c" * 8, application=1)
    bell.ring(3, b"c" * 8, application=2)
    assert numbers(queue.take()) == [0, 1]
    assert numbers(queue.take()) == [3], "application 1 has had its turn"
    assert numbers(queue.take()) == [2]


def test_fellows_of_another_priority_wait_for_their_turn(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 8)
    bell.ring(0, b"a" * 8, priority=Priority.HIGH)
    bell.ring(1, b"a" * 8, priority=Priority.LOW)
    bell.ring(2, b"a" * 8, priority=Priority.HIGH)
    assert numbers(queue.take()) == [0, 2]
    assert numbers(queue.take()) == [1]


def test_fellows_keep_others_waiting_for_a_short_time_only(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda key: 64 if key == b"a" * 8 else 1)
    for number in range(9):
        bell.ring(number, b"a" * 8, cost_us=JUMP_US_MAX // 3)
    assert numbers(queue.take()) == [*range(9)], "nobody else waits"
    for number in range(9):
        bell.ring(number, b"a" * 8, cost_us=JUMP_US_MAX // 3)
    bell.ring(9, b"b" * 8, application=1, cost_us=4 * JUMP_US_MAX)
    assert numbers(queue.take()) == [9]
    bell.ring(10, b"b" * 8, application=1)
    assert numbers(queue.take()) == [0, 1, 2, 3]
    assert numbers(queue.take()) == [10]


def test_what_has_run_is_settled_by_its_time(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 1)
    for number in range(4):
        bell.ring(number, b"a" * 8, application=number % 2)
    first = queue.take()
    first[0].is_answered, first[0].run_us = True, 9000
    second = queue.take(first)
    second[0].is_answered, second[0].run_us = True, 0  # refused
    assert numbers(first + second) == [0, 1]
    assert numbers(third := queue.take(second)) == [3]
    assert numbers(queue.take(third)) == [2], "it is not answered: it counts as expected"


def test_when_all_runners_wait_nobody_owes_anything(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 1)
    bell.ring(0, b"a" * 8, cost_us=1_000_000)
    assert numbers(queue.take()) == [0]
    waiting = threading.Thread(target=lambda: taken.append(queue.take()))
    taken: list[list[Work]] = []
    waiting.start()
    while not queue._at_socket:  # it has gone to wait
        threading.Event().wait(0.001)
    bell.ring(1, b"b" * 8, application=1)
    waiting.join(5)
    for number in range(2, 8):
        bell.ring(number, b"x" * 8, application=number % 2)
    assert [numbers(queue.take()) for _ in range(3)] == [[2], [4], [3]], "not 3, 5, 7 first"


PATIENT = Company(delay_s=50.0)
"""Longer than any test: what comes back sooner did not wait for its end."""


def takes(queue: WorkQueue, runners: int = 1) -> SimpleQueue[list[int]]:
    """What runners take, each in its thread; an empty one when the gateway is gone."""
    taken: SimpleQueue[list[int]] = SimpleQueue()

    def take() -> None:
        while works := queue.take():
            taken.put(numbers(works))
        taken.put([])

    for _ in range(runners):
        threading.Thread(target=take, daemon=True).start()
    return taken


def test_the_first_waits_for_company_until_there_is_enough(bell: Bell) -> None:
    taken = takes(WorkQueue(bell.link, 2, lambda _: 3, PATIENT), runners=2)
    for number in range(6):
        bell.ring(number, b"a" * 8, asked_at=time.monotonic())
    assert sorted(taken.get(timeout=5) for _ in range(2)) == [[0, 1, 2], [3, 4, 5]]


def test_the_first_waits_no_longer_than_it_may_and_a_model_that_gains_nothing_not_at_all(
    bell: Bell,
) -> None:
    queue = WorkQueue(bell.link, 1, lambda key: 8 if key == b"a" * 8 else 1, PATIENT)
    bell.ring(0, b"a" * 8, asked_at=time.monotonic() - 51)
    assert numbers(queue.take()) == [0]
    bell.ring(1, b"b" * 8, asked_at=time.monotonic())
    assert numbers(queue.take()) == [1]


def test_the_first_waits_no_more_when_another_model_is_asked_for(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 8, PATIENT)
    bell.ring(0, b"a" * 8, asked_at=time.monotonic())
    bell.ring(1, b"a" * 8)
    taken = takes(queue)
    bell.ring(2, b"b" * 8)
    assert [taken.get(timeout=5) for _ in range(2)] == [[0, 1], [2]]


def test_a_gateway_that_is_gone_ends_the_waiting(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 8, PATIENT)
    bell.ring(0, b"a" * 8, asked_at=time.monotonic())
    taken = takes(queue)
    bell.gateway.shutdown(socket.SHUT_RDWR)
    assert [taken.get(timeout=5) for _ in range(2)] == [[0], []]


def test_a_preferred_number_ends_the_waiting_and_is_not_exceeded(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 8, Company(50.0, (2, 4)))
    for number in range(7):
        bell.ring(number, b"a" * 8, asked_at=time.monotonic())
    assert [numbers(queue.take()) for _ in range(2)] == [[0, 1, 2, 3], [4, 5]]


def test_a_preferred_number_is_not_exceeded_where_nobody_waits_either(bell: Bell) -> None:
    queue = WorkQueue(bell.link, 1, lambda _: 8, Company(preferred=(4,)))
    bell.fill()
    bell.ring(6, b"a" * 8)
    bell.ring(7, b"a" * 8)
    assert [numbers(queue.take()) for _ in range(3)] == [[0, 2, 3, 5], [1, 4], [6, 7]]
