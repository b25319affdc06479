"""First come, first served; fellows of the first are taken along."""

import socket
import threading
from collections.abc import Iterator

import pytest

from agent.drivers.shared_memory import SharedSlots, doorbell_pair
from agent.serving.doorbell import InferRing
from agent.workers.inference_queue import WorkQueue
from agent.workers.inference_work import Link, Work


class Bell:
    """The gateway's end, and the link that the queue reads."""

    def __init__(self) -> None:
        self.gateway, theirs = doorbell_pair()
        self.link = Link(theirs, SharedSlots.create(1, 4096))

    def ring(self, number: int, key: bytes) -> None:
        self.gateway.send(InferRing(number, 0, 0, 0, None, key, 9.0, 0.0).pack())

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
    queue._waiting += 1  # another one, on its way to the next ring
    assert numbers(queue.take()) == [0]
    queue._waiting -= 1
    assert numbers(queue.take()) == [1, 4]
