"""The way out for blobs, where it is rationed (what is given to whom: process/test_forwarding_process)."""

import asyncio

import pytest

from agent.foundation.errors import Busy
from agent.foundation.ids import Digest, SiteId
from agent.gateway import blob_endpoints as module
from agent.gateway.blob_endpoints import READER_S, Line, Readers

BLOB = Digest(b"b" * 32)
ONE, OTHER = SiteId(b"1" * 32), SiteId(b"2" * 32)


async def test_turns_come_in_time_and_one_that_is_given_up_holds_up_nobody() -> None:
    line = Line(100_000.0)
    async with asyncio.timeout(5):
        await line.turn(ONE, 25_000)  # the burst
        waiting = [asyncio.create_task(line.turn(ONE, 1000)) for _ in range(3)]
        other = asyncio.create_task(line.turn(OTHER, 1000))
        await asyncio.sleep(0)
        waiting[1].cancel()
        await asyncio.gather(waiting[0], waiting[2], other)
    assert waiting[1].cancelled()


async def test_who_would_wait_too_long_is_refused() -> None:
    line = Line(100.0)
    first = asyncio.create_task(line.turn(ONE, 2000))
    await first
    long = asyncio.create_task(line.turn(ONE, 2000))
    await asyncio.sleep(0)
    with pytest.raises(Busy, match="more is asked for than this site may send"):
        await line.turn(OTHER, 1)
    long.cancel()


def test_a_reader_counts_itself_whatever_was_forgotten_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A slow disk, or many other blobs, between its question and the answer."""
    monkeypatch.setattr(module, "BLOBS_MAX", 1)
    readers = Readers()
    readers.note(BLOB, ONE, 0.0)
    readers.note(BLOB, OTHER, 1.0)
    assert [readers.crowd(BLOB, site, 1.0) for site in (ONE, OTHER)] == [(2, 0), (2, 1)]
    assert readers.crowd(BLOB, ONE, READER_S + 0.5) == (2, 0), "it asks now, however late"
    assert readers.crowd(BLOB, OTHER, 99.0) == (1, 0)
    readers.note(Digest(b"o" * 32), OTHER, 99.0)
    assert readers.crowd(BLOB, ONE, 99.0) == (1, 0), "the blob's readers are forgotten"
    assert not readers.is_one(BLOB, ONE, 99.0)


def test_readers_of_one_blob_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READERS_MAX", 2)
    readers = Readers()
    for at_s, site in enumerate((ONE, OTHER, SiteId(b"3" * 32))):
        readers.note(BLOB, site, float(at_s))
    assert not readers.is_one(BLOB, ONE, 2.0)
    assert readers.crowd(BLOB, ONE, 2.0) == (2, 0), "never more than a holding can say"
