"""A fetch and a put against real SIGKILLs."""

import asyncio
import hashlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.distribution.holding import Holding
from agent.drivers.blobs import BlobStore
from agent.foundation.errors import NotFound
from agent.foundation.ids import Digest
from agent.wire.limits import CHUNK_BYTES

pytestmark = pytest.mark.process

CHUNKS = 40
FETCHER = """
import asyncio, sys
from pathlib import Path
from agent.distribution.holding import Holding
from agent.drivers.blobs import BlobStore

class Source:
    name = "origin"
    store = BlobStore(Path(sys.argv[1]))
    async def manifest(self, digest):
        return self.store.read_manifest(digest)
    async def held(self, digest):
        return Holding(self.store.read_map(digest))
    async def chunk(self, digest, index):
        print(index, flush=True)
        await asyncio.sleep(0.02)
        return self.store.read_chunk(digest, index)

async def main():
    await BlobStore(Path(sys.argv[2])).fetch(bytes.fromhex(sys.argv[3]), [Source()])

asyncio.run(main())
"""
PUTTER = """
import asyncio, sys
from pathlib import Path
from agent.drivers.blobs import BlobStore

async def endless():
    while True:
        yield bytes(100_000)
        print("more", flush=True)

asyncio.run(BlobStore(Path(sys.argv[1])).put_stream(endless()))
"""


class Source:
    name = "origin"

    def __init__(self, store: BlobStore) -> None:
        self.store, self.asked = store, 0

    async def manifest(self, digest: Digest) -> bytes:
        return self.store.read_manifest(digest)

    async def held(self, digest: Digest) -> Holding:
        return Holding(self.store.read_map(digest))

    async def chunk(self, digest: Digest, index: int) -> bytes:
        self.asked += 1
        return self.store.read_chunk(digest, index)


def _kill_after(command: list[str], lines: int) -> None:
    with subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(lines):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)


def test_a_killed_fetch_goes_on_with_what_it_had(tmp_path: Path) -> None:
    origin = BlobStore(tmp_path / "origin")
    data = b"".join(
        hashlib.sha256(bytes([n])).digest() * (CHUNK_BYTES // 32) for n in range(CHUNKS)
    )
    digest = asyncio.run(origin.put_bytes(data))
    _kill_after([FETCHER, str(tmp_path / "origin"), str(tmp_path / "here"), digest.hex()], 24)
    here = BlobStore(tmp_path / "here")
    assert not here.is_held(digest)
    kept = 0
    for index in range(CHUNKS):
        try:
            assert here.read_chunk(digest, index) == data[index * CHUNK_BYTES :][:CHUNK_BYTES]
        except NotFound:
            continue
        kept += 1
    assert kept >= 12
    source = Source(origin)
    path = asyncio.run(here.fetch(digest, [source]))
    assert path.read_bytes() == data
    assert source.asked == CHUNKS - kept


def test_a_killed_put_leaves_only_what_the_sweep_removes(tmp_path: Path) -> None:
    _kill_after([PUTTER, str(tmp_path)], 20)
    store = BlobStore(tmp_path)
    assert store.list() == []
    assert len(list((tmp_path / "incoming").iterdir())) == 1
    assert asyncio.run(store.sweep()) == 1
