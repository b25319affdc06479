"""Acknowledged commits against real SIGKILLs and a disk that fails."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest

from agent.drivers.store import Store

pytestmark = pytest.mark.process

WRITER = """
import asyncio, sys
from pathlib import Path
from agent.drivers.store import Store
from agent.foundation.writes import Put

async def one(store, n):
    await store.commit([Put("jobs", {"job": f"{n:08}", "value": bytes(500)})])
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()

async def main():
    store = await Store.open(Path(sys.argv[1]))
    assert not store.findings, store.findings
    n = int(sys.argv[2])
    while True:
        await asyncio.gather(*[one(store, n + k) for k in range(8)])
        n += 8

asyncio.run(main())
"""

FAULTY = """
import asyncio, sys
from pathlib import Path
from agent.drivers.store import Store
from agent.foundation.errors import StoreFault
from agent.foundation.writes import Put

FSYNC, SPACE = Path(sys.argv[2]), Path(sys.argv[3])

async def attempt(store, n):
    try:
        await store.commit([Put("jobs", {"job": f"{n}", "value": bytes(9000)})])
    except StoreFault as fault:
        return "fatal" if fault.is_fatal else fault.what
    return "ok"

async def main():
    store = await Store.open(Path(sys.argv[1]))
    said = [await attempt(store, 1)]
    SPACE.touch()
    said.append(await attempt(store, 2))
    SPACE.unlink()
    said.append(await attempt(store, 3))
    FSYNC.touch()
    said.append(await attempt(store, 4))
    FSYNC.unlink()
    said.append(await attempt(store, 5))
    print(",".join(said))

asyncio.run(main())
"""

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int is_set(const char *name) {
    const char *path = getenv(name);
    return path && access(path, F_OK) == 0;
}
int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    if (is_set("FAIL_FSYNC")) { errno = EIO; return -1; }
    return real(fd);
}
int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    if (is_set("FAIL_FSYNC")) { errno = EIO; return -1; }
    return real(fd);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    if (is_set("FAIL_SPACE")) { errno = ENOSPC; return -1; }
    return real(fd, data, size, at);
}
"""


async def _names(path: Path) -> set[str]:
    store = await Store.open(path)
    assert store.findings == ()
    rows = await store.read(lambda db: db.execute("SELECT job FROM jobs").fetchall())
    await store.close()
    return {row[0] for row in rows}


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_process_loses_no_acknowledged_commit(tmp_path: Path, seed: int) -> None:
    path, rng = tmp_path / "atoll.db", Random(seed)
    acknowledged: set[str] = set()
    for start in (0, 1_000_000):
        command = [sys.executable, "-c", WRITER, str(path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            first = writer.stdout.readline()
            assert first, "the writer did not start"
            time.sleep(rng.uniform(0.0, 0.15))
            writer.send_signal(signal.SIGKILL)
            lines = [first, *writer.stdout.readlines()]
        acknowledged |= {f"{int(line):08}" for line in lines if line.endswith(b"\n")}
        found = asyncio.run(_names(path))
        assert acknowledged <= found
        assert len(found) - len(acknowledged) <= 16  # two groups may not have been told


def test_a_failing_disk_is_told_apart_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    source, shim = tmp_path / "shim.c", tmp_path / "shim.so"
    source.write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    path, fsync, space = tmp_path / "atoll.db", tmp_path / "fsync", tmp_path / "space"
    environment = {
        **os.environ,
        "LD_PRELOAD": str(shim),
        "FAIL_FSYNC": str(fsync),
        "FAIL_SPACE": str(space),
    }
    done = subprocess.run(
        [sys.executable, "-c", FAULTY, path, fsync, space],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.strip() == "ok,the disk is full,ok,fatal,fatal"
    found = asyncio.run(_names(path))
    assert {"1", "3"} <= found
    assert not {"2", "5"} & found
