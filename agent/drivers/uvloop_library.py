"""uvloop, and what it complains of without a fault.

A TLS connection that is given up (the deadline has passed, the other site is gone) may still have bytes
to decrypt; uvloop then answers on the transport that is closed already and calls that fatal, with a
traceback (MagicStack/uvloop issue 506). Nothing is lost by it: whoever used the connection knows.
"""

import asyncio
import logging
from typing import Any, Final

_CLOSED: Final = "the handler is closed"
_FATAL: Final = "Fatal error on SSL protocol"

_log = logging.getLogger("atoll.connections")


def heed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's exception handler: all but that complaint is logged as asyncio does."""
    error = context.get("exception")
    is_known = isinstance(error, RuntimeError) and _CLOSED in str(error)
    if is_known and context.get("message") == _FATAL:
        _log.debug("a connection was closed before all that came over it was read: %s", error)
        return
    loop.default_exception_handler(context)
