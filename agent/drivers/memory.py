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
import os
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 128 << 10
"""glibc's own first value; setting it keeps it from growing."""


def hold_little() -> bool:
    """Settle this for the process; False where the C library is not glibc (nothing is lost then)."""
    return _set(_M_ARENA_MAX, 1) and keep_free(_LARGE_BYTES)


def keep_free(most_bytes: int) -> bool:
    """Keep up to so much free memory on the heap, larger blocks apart; False as for ``hold_little``."""
    return _set(_M_MMAP_THRESHOLD, most_bytes) and _set(_M_TRIM_THRESHOLD, most_bytes)


def _set(option: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(option, value) == 1


def give_back() -> None:
    """Return what starting has left free."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes(pid: int | None) -> int:
    """Memory that a process holds now (proc(5) ``statm``); 0 if it is gone."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    return 0


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
