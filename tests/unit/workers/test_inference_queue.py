"""First come, first served; fellows of the first are taken along."""

import socket
import threading
from typing import cast

from agent.serving.doorbell import InferRing
from agent.workers.inference_queue import WorkQueue
from agent.workers.inference_work import Link, Work

LINK = Link(cast("socket.socket", None), cast("object", None))  # type: ignore[arg-type]


def work(number: int, key: bytes) -> Work:
    return Work(LINK, InferRing(number, 0, 0, 0, None, key, 9.0), 0.0, 9.0)


def numbers(works: list[Work]) -> list[int]:
    return [one.ring.number for one in works]


def filled(queue: WorkQueue) -> WorkQueue:
    for number, key in enumerate([b"a", b"b", b"a", b"a", b"b", b"a"]):
        queue.put(work(number, key))
    return queue


def test_fellows_of_the_first_are_taken_along_in_order() -> None:
    queue = filled(WorkQueue(1, lambda key: 3 if key == b"a" else 1))
    assert numbers(queue.take()) == [0, 2, 3]
    assert numbers(queue.take()) == [1]
    assert numbers(queue.take()) == [4]
    assert numbers(queue.take()) == [5]


def test_several_runners_each_get_their_share() -> None:
    queue = filled(WorkQueue(2, lambda _: 8))
    assert numbers(queue.take()) == [0, 2]
    assert numbers(queue.take()) == [1]
    assert numbers(queue.take()) == [3]


def test_a_runner_waits_for_the_first() -> None:
    queue = WorkQueue(1, lambda _: 1)
    taken: list[Work] = []
    waiting = threading.Thread(target=lambda: taken.extend(queue.take()))
    waiting.start()
    queue.put(work(7, b"a"))
    waiting.join(5)
    assert numbers(taken) == [7]
