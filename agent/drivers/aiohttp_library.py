"""aiohttp without what it loads for others. ``agent.daemon`` imports this before anything else does.

When aiohttp is imported it reads the system's list of certificate authorities (1 MiB, 40 ms), for
connections to the web. This process makes none: each of its contexts trusts one root, its cluster's.
"""

import contextlib
import ssl
from collections.abc import Iterator


def _trusts_nobody(*_: object, **__: object) -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@contextlib.contextmanager
def _without_authorities() -> Iterator[None]:
    """Inside the block, ``ssl.create_default_context`` reads no file and trusts nobody."""
    original = ssl.create_default_context
    ssl.create_default_context = _trusts_nobody
    try:
        yield
    finally:
        ssl.create_default_context = original


with _without_authorities():
    import aiohttp

__all__ = ["aiohttp"]
