"""The memory of a process that starts once and lives long: small after every burst, never searched twice.

glibc keeps a heap for each thread and, after the first large block was freed, takes large blocks from the
heap too, where one small survivor keeps all of them. A control process has three threads that allocate
little, and bursts of 256 KiB buffers (each TLS connection has two): one heap, and large blocks by mmap,
leave it as small after forty sites have joined as before (mallopt(3)).

Python's collector looks through all objects again and again while 600 modules are imported, and finds
nothing: that is a tenth of the time of a start.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterator

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 128 << 10
"""glibc's own first value; setting it keeps it from growing."""


def hold_little() -> bool:
    """Settle this for the process; False where the C library is not glibc (nothing is lost then)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(option, value) == 1
        for option, value in (
            (_M_ARENA_MAX, 1),
            (_M_MMAP_THRESHOLD, _LARGE_BYTES),
            (_M_TRIM_THRESHOLD, _LARGE_BYTES),
        )
    )


def give_back() -> None:
    """Return what starting has left free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Inside the block modules are imported, which live as long as the process: nothing is collected.

    Afterwards the collector leaves them alone, so that a collection in service costs less too.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
