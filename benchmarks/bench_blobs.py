"""Blobs: a large one to several sites at once, beside one plain file transfer over the same TLS.

Run: make bench-blobs       (or: python benchmarks/bench_blobs.py [--quick])
Writes benchmarks/results/blobs.json and renews docs/status.md. Takes some 20 GB of disk meanwhile.

Every site is a real gateway process that gives chunks away, and a process that fetches as the control
process does: the same store, the same calls over mutual TLS, the same hashing, fsync at the end. What the
origin sends is what its gateway has written to sockets, as the kernel counts it. The plain transfer is
aiohttp's FileResponse, read and written by aiohttp's client. All on this machine's cores at once.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rows import Row, commit, line, row

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "process")]
RESULTS = ROOT / "benchmarks" / "results" / "blobs.json"

FETCHER = """
import asyncio, json, sys, time
from datetime import UTC, datetime
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from agent.drivers import keystore, tls
from agent.drivers.blobs import BlobStore
from agent.drivers.mesh import MeshClient, RemoteBlobs
from agent.foundation.ids import Digest, SiteId
from agent.wire.records import Endpoint

async def main():
    asked = json.loads(sys.stdin.readline())
    keys = keystore.load(Path(asked["identity"]))
    mesh = MeshClient(keys, tls.verifier(keys, frozenset, lambda: datetime.now(UTC)))
    store = BlobStore(Path(asked["blobs"]))
    sources = [
        RemoteBlobs(mesh, SiteId(bytes.fromhex(site)), Endpoint(host, 1, port))
        for site, host, port in asked["sources"]
    ]
    print("ready", flush=True)
    sys.stdin.readline()
    await store.fetch(Digest(bytes.fromhex(asked["digest"])), sources)
    print(time.monotonic(), flush=True)
    await mesh.close()

asyncio.run(main())
"""
SERVER = """
import asyncio, sys
from pathlib import Path
from aiohttp import web
sys.path.insert(0, sys.argv[1])
from agent.drivers import keystore, tls

async def main():
    keys = keystore.load(Path(sys.argv[2]))
    application = web.Application()
    application.router.add_get("/file", lambda _: web.FileResponse(sys.argv[3], chunk_size=262_144))
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[4]), ssl_context=tls.server_context(keys)).start()
    print("ready", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""
CLIENT = """
import asyncio, sys, time
from pathlib import Path
import aiohttp
sys.path.insert(0, sys.argv[1])
from agent.drivers import keystore, tls

async def main():
    keys = keystore.load(Path(sys.argv[2]))
    async with aiohttp.ClientSession() as session:
        begun = time.monotonic()
        url = f"https://127.0.0.1:{sys.argv[4]}/file"
        async with session.get(url, ssl=tls.client_context(keys)) as response:
            with open(sys.argv[3], "wb") as file:
                async for data in response.content.iter_any():
                    file.write(data)
        print(time.monotonic() - begun, flush=True)

asyncio.run(main())
"""
PLAIN_PORT = 18_473


def main() -> int:
    """Measure, write, and print one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="little of all; nothing is written")
    asked = parser.parse_args()
    large, small = (64 << 20, 16 << 20) if asked.quick else (1 << 30, 100 << 20)
    found = [*_large(large, 8), *_crowd(small, 20)]
    rows = [one | {"commit": commit()} for one in found]
    for one in rows:
        print(line(one))
    if not asked.quick:
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
        subprocess.run([sys.executable, str(ROOT / "benchmarks" / "status.py")], check=True)
    return 0


def _large(size: int, sites: int) -> list[Row]:
    with _sites(sites, size) as (origin, others, file):
        plain = [size / _plain(origin.folder, file) / 1e6 for _ in range(3)]
        runs = [_fetch(origin, others, size) for _ in range(3)]
    what = f"{size >> 20} MiB to {sites} sites at once"
    middle = sorted(plain)[1]
    given = [sites * size / took_s / 1e6 for took_s, _ in runs]
    peer: dict[str, Any] = {"peer": "one plain aiohttp transfer", "peer_value": middle}
    return [
        row(f"{what}: all bytes that arrive, a second", given, "MB/s", 0.6 * middle, is_least=True, **peer),
        row(f"{what}: until the last has it", [took_s for took_s, _ in runs], "s"),
        row(f"{what}: sent by the origin, of the blob", [copies for _, copies in runs], "x", 2.0),
    ]  # fmt: skip


def _crowd(size: int, sites: int) -> list[Row]:
    with _sites(sites, size) as (origin, others, _):
        runs = [_fetch(origin, others, size) for _ in range(3)]
    what = f"{size >> 20} MiB to {sites} sites at once"
    return [
        row(f"{what}: sent by the origin, of the blob", [copies for _, copies in runs], "x", 2.0),
        row(f"{what}: until the last has it", [took_s for took_s, _ in runs], "s"),
    ]


class _Place:
    """One site: its identity, its blobs, and its gateway."""

    def __init__(self, folder: Path, keys: Any, site: Any) -> None:
        self.folder, self.keys, self.site = folder, keys, site

    def source(self) -> tuple[str, str, int]:
        return self.keys.site.hex(), self.site.host, self.site.data_port


@contextlib.contextmanager
def _sites(count: int, size: int) -> Iterator[tuple[_Place, list[_Place], Path]]:
    """An origin with a blob of random bytes, ``count`` others without, and the blob's file."""
    from serving_site import found, join, open_site

    with (
        tempfile.TemporaryDirectory(prefix="atoll-blobs-") as name,
        contextlib.ExitStack() as stack,
    ):
        root = Path(name)
        founder = found(root / "origin" / "identity")
        places = []
        for number in range(count + 1):
            folder = root / ("origin" if not number else f"s{number}")
            keys = founder if not number else join(founder, folder / "identity", f"s{number}", "DE")
            site = stack.enter_context(open_site(keys, folder / "blobs"))
            places.append(_Place(folder, keys, site))
        file = root / "file"
        with file.open("wb") as stream:
            for _ in range(size >> 20):
                stream.write(os.urandom(1 << 20))
        yield places[0], places[1:], file


def _plain(folder: Path, file: Path) -> float:
    """Seconds of one transfer."""
    arguments = [str(ROOT), str(folder / "identity")]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments, str(file), str(PLAIN_PORT)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        server.stdout.readline()
        there = file.with_suffix(".there")
        client = [sys.executable, "-c", CLIENT, *arguments, str(there), str(PLAIN_PORT)]
        took = subprocess.run(client, capture_output=True, text=True, check=True).stdout
        there.unlink()
        return float(took)
    finally:
        server.kill()
        server.wait()


def _fetch(origin: _Place, others: list[_Place], size: int) -> tuple[float, float]:
    """Seconds until the last site has the blob, and copies of it that the origin sent."""
    import asyncio

    from agent.drivers.blobs import BlobStore
    from agent.wire.inside import BlobLabel

    places = [origin, *others]
    store = BlobStore(origin.folder / "blobs")
    digest = next(iter(store.list()), None) or asyncio.run(
        store.put_file(origin.folder.parent / "file")
    )
    for place in places:
        place.site.show(blobs=(BlobLabel(digest, ()),))
    fetchers = []
    for place in others:
        process = subprocess.Popen(
            [sys.executable, "-c", FETCHER, str(ROOT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        assert process.stdin is not None
        sources = [origin.source(), *(one.source() for one in others if one is not place)][:16]
        asked = {"identity": str(place.folder / "identity"), "blobs": str(place.folder / "blobs"),
                 "digest": digest.hex(), "sources": sources}  # fmt: skip
        process.stdin.write(json.dumps(asked) + "\n")
        process.stdin.flush()
        fetchers.append(process)
    for process in fetchers:
        assert process.stdout is not None
        process.stdout.readline()
    sent = _written(origin)
    begun = time.monotonic()
    for process in fetchers:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    ended = []
    for process in fetchers:
        assert process.stdout is not None
        ended.append(float(process.stdout.readline()))
        process.wait()
    sent = _written(origin) - sent
    for place in others:
        asyncio.run(BlobStore(place.folder / "blobs").remove(digest))
    return max(ended) - begun, sent / size


def _written(place: _Place) -> int:
    import psutil

    return int(psutil.Process(place.site.gateway.process.pid).io_counters().write_chars)


if __name__ == "__main__":
    sys.exit(main())
