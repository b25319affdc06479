import os
import socket

import pytest

from agent.drivers.channel import BlockingChannel, pair
from agent.foundation.errors import UsageError
from agent.training.contract import FROM_TRAINER, TO_TRAINER, Failed, Initialise, Written
from agent.workers.conversation import converse


def replies_to(*requests: bytes, descriptors: tuple[int, ...] = ()) -> list[object]:
    """What a worker that knows only ``good`` and ``full`` answers."""

    def answer(message: object, given: list[int]) -> object:
        match message:
            case Initialise(file="good"):
                return Written(float(len(given)))
            case Initialise(file="full"):
                raise OSError(28, "No space left on device")
            case Initialise(file="broken"):
                raise AssertionError("invariant")
            case _:
                raise UsageError("no such file", mend="name another")

    ours, theirs = pair()
    mine, channel = BlockingChannel(ours), BlockingChannel(theirs)
    try:
        for request in requests:
            mine.send(request, descriptors)
        ours.shutdown(socket.SHUT_WR)
        converse(channel, TO_TRAINER, FROM_TRAINER, answer)
        theirs.shutdown(socket.SHUT_WR)
        received = []
        while (frame := mine.receive()) is not None:
            received.append(FROM_TRAINER.unpack(frame[0]))
        return received
    finally:
        mine.close()
        channel.close()


def test_each_request_has_one_reply_until_the_channel_closes() -> None:
    good, bad, full = (TO_TRAINER.pack(Initialise(name)) for name in ("good", "bad", "full"))
    assert replies_to(good, bad, b"\x07", full, good) == [
        Written(0.0),
        Failed("no such file; name another"),
        Failed("message is not a tagged pair"),
        Failed("OSError: [Errno 28] No space left on device"),
        Written(0.0),
    ]


def test_descriptors_are_closed_after_each_reply() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counts only
    with open(os.devnull) as file:  # noqa: PTH123 - any descriptor
        good = TO_TRAINER.pack(Initialise("good"))
        assert replies_to(good, good, descriptors=(file.fileno(),)) == [Written(1.0)] * 2
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - counts only


def test_a_broken_invariant_ends_the_process() -> None:
    with pytest.raises(AssertionError, match="invariant"):
        replies_to(TO_TRAINER.pack(Initialise("broken")))
