"""Whether the write-ahead log lost commits that had been acknowledged.

SQLite ends recovery at the first frame whose checksum is wrong and says nothing, because that is how
a torn last transaction looks. But with ``synchronous=FULL`` each commit was flushed before the next
began, so a wrong frame that is followed by two commits (of the same log, by its salts) is no torn
end: acknowledged commits would be dropped silently. A flip in the very last commit cannot be told
from a torn one.

Source: sqlite.org/fileformat2.html, section 4 (the write-ahead log).
"""

import struct
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct(">8I")
_FRAME: Final = struct.Struct(">6I")
_MAGIC_LITTLE: Final = 0x377F0682
_MAGIC_BIG: Final = 0x377F0683
_WORD: Final = 0xFFFF_FFFF
_PAGE_BYTES: Final = (512, 65_536)
LOG_EXAMINED_BYTES_MAX: Final = 16 << 20
"""Four times the usual log; a longer one is checked up to here (about 0.6 s of one slow core)."""


def _sums(data: bytes, order: str, first: int, second: int) -> tuple[int, int]:
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & _WORD
        second = (second + odd + first) & _WORD
    return first, second


def log_damage(log: Path) -> str:
    """Empty if the log is sound or torn only at its end; else what is wrong.

    Args:
        log: the ``-wal`` file; it may be absent. Nobody may be writing it.
    """
    try:
        with log.open("rb") as stream:
            header = stream.read(_HEADER.size)
            body = stream.read(LOG_EXAMINED_BYTES_MAX)
    except FileNotFoundError:
        return ""
    if len(header) < _HEADER.size:
        return ""
    magic, _, page_bytes, _, salt1, salt2, *stored = _HEADER.unpack(header)
    order = ">" if magic == _MAGIC_BIG else "<"
    sums = _sums(header[:24], order, 0, 0)
    if magic not in (_MAGIC_LITTLE, _MAGIC_BIG) or sums != tuple(stored):
        return "the header of the write-ahead log is damaged" if body else ""
    if not _PAGE_BYTES[0] <= page_bytes <= _PAGE_BYTES[1]:
        return "the write-ahead log names an impossible page size"
    size = _FRAME.size + page_bytes
    is_sound, commits_lost = True, 0
    for start in range(0, len(body) - size + 1, size):
        frame = body[start : start + size]
        _, pages, one, two, *stored = _FRAME.unpack_from(frame)
        if is_sound:
            if (one, two) == (salt1, salt2):
                sums = _sums(frame[:8] + frame[_FRAME.size :], order, *sums)
                is_sound = sums == tuple(stored)
            else:
                is_sound = False
        if not is_sound and (one, two) == (salt1, salt2) and pages:
            commits_lost += 1
    if commits_lost > 1:
        return f"the write-ahead log is damaged before {commits_lost - 1} or more durable commits"
    return ""
