"""What a worker's link to a gateway hears, and when its memory goes."""

import os
from collections.abc import Iterator

import pytest

from agent.drivers.shared_memory import SharedSlots, doorbell_pair
from agent.foundation.errors import Malformed
from agent.serving.doorbell import AnswerRing, InferRing
from agent.serving.fair import Priority, Turn
from agent.workers.inference_work import Link

TURN = Turn(0, 1, Priority.NORMAL, 1000)


class Ends:
    """A gateway's end and the worker's link."""

    def __init__(self) -> None:
        self.slots = SharedSlots.create(2, 4096)
        self.gateway, theirs = doorbell_pair()
        self.link = Link(theirs, SharedSlots(os.dup(self.slots.fileno())), listeners=1)

    def ring(self, number: int, slot: int = 0, body_bytes: int = 0) -> None:
        ring = InferRing(number, slot, 0, body_bytes, None, b"12345678", 9.0, 1.0, TURN)
        self.gateway.send(ring.pack())


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.gateway.close()
    made.slots.close()
    made.link.doorbell.close()
    made.link.slots.close()


def test_requests_are_heard_in_order_and_silence_is_no_end(ends: Ends) -> None:
    assert ends.link.receive(is_waiting=False) is None
    ends.link.look()
    assert not ends.link.is_over
    ends.ring(1)
    ends.ring(2, slot=1)
    works = [ends.link.receive(), ends.link.receive()]
    assert [work.ring.number for work in works if work is not None] == [1, 2]
    assert ends.link.pending == {1, 2}


def test_a_request_is_cancelled_by_its_number_in_its_slot(ends: Ends) -> None:
    ends.ring(7)
    work = ends.link.receive()
    assert work is not None
    ends.slots.cancel(0, 6)
    assert not work.is_cancelled
    ends.slots.cancel(0, 7)
    assert work.is_cancelled


def test_the_end_is_noticed_although_nobody_listens_and_cancels_what_is_left(ends: Ends) -> None:
    ends.ring(1)
    work = ends.link.receive()
    ends.ring(2)
    ends.gateway.close()
    assert work is not None
    ends.link.look()
    assert work.is_cancelled
    late = ends.link.receive()
    assert late is not None
    assert late.is_cancelled
    assert ends.link.receive() is None


def test_memory_goes_with_the_last_request_and_the_last_listener(ends: Ends) -> None:
    ends.ring(1)
    ends.link.receive()
    ends.gateway.close()
    assert ends.link.receive() is None
    ends.link.leave()
    assert ends.link.doorbell.fileno() >= 0, "a request is not answered"
    ends.link.pending.discard(1)
    ends.link.close_if_idle()
    assert ends.link.doorbell.fileno() == -1


@pytest.mark.parametrize(("slot", "body_bytes"), [(2, 0), (0, 4097)])
def test_memory_that_is_not_there_is_malformed(ends: Ends, slot: int, body_bytes: int) -> None:
    ends.ring(1, slot, body_bytes)
    with pytest.raises(Malformed, match="not there"):
        ends.link.receive()


def test_an_answer_is_no_request(ends: Ends) -> None:
    ends.gateway.send(AnswerRing(1, 0, 200, None, 0, 0, 0).pack())
    with pytest.raises(Malformed, match="rang an answer"):
        ends.link.receive()
