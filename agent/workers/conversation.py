"""One request, one reply, until the channel closes: how the training workers are driven."""

import os
from collections.abc import Callable

from agent.drivers.channel import BlockingChannel
from agent.foundation.errors import AtollError
from agent.training.contract import Failed
from agent.wire.schema import Tagged

REASON_CHARS_MAX = 1000
"""As ``agent.training.contract.Text``."""


def converse(
    channel: BlockingChannel,
    requests: Tagged,
    replies: Tagged,
    answer: Callable[[object, list[int]], object],
) -> None:
    """Answer each request with what ``answer`` says of it and of its descriptors.

    Wrong input and a full disk or memory are answered ``Failed``: the process goes on. A broken
    invariant ends it, and its owner sees the channel close.
    """
    while (frame := channel.receive()) is not None:
        data, descriptors = frame
        try:
            reply = answer(requests.unpack(data), descriptors)
        except AtollError as error:
            reply = Failed(str(error)[:REASON_CHARS_MAX])
        except (OSError, MemoryError) as error:
            reply = Failed(f"{type(error).__name__}: {error}"[:REASON_CHARS_MAX])
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        channel.send(replies.pack(reply))
