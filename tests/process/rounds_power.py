"""The power of an acceptor is cut while it promises and votes: nothing that it has answered may be gone."""

import contextlib
import fcntl
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from daemon_cluster import ROOT, scratch

REGISTERS = 8
SHUTDOWN, WITHOUT_FLUSHING_THE_LOG = 0x8004587D, (2).to_bytes(4, "little")

ACCEPTOR = """
import asyncio, sys
from pathlib import Path
from agent.drivers.store import Store
from agent.election.acceptor import Acceptor
from agent.foundation.ids import JobId, SiteId
from agent.wire.mesh import Accept, Accepted, Ballot, Prepare, Promise

PROPOSER, CALLER = b"p" * 48, SiteId(b"p" * 32)

async def answer(store, acceptor, call, wanted):
    answer = acceptor.step(call, CALLER)
    assert isinstance(answer.reply, wanted), answer.reply
    await store.commit(answer.writes)
    acceptor.saved(answer)

async def serve(store, job, number):
    rows = await store.read(lambda db: [dict(r) for r in db.query("SELECT * FROM register WHERE job = ?", [job])])
    rows = [{k: v for k, v in row.items() if k != "row_hash"} for row in rows]
    acceptor = Acceptor.restored(rows[0]) if rows else Acceptor(JobId(job))
    while True:
        ballot = Ballot(number, PROPOSER)
        await answer(store, acceptor, Prepare(job, ballot), Promise)
        print("promised", job, number, flush=True)
        await answer(store, acceptor, Accept(job, ballot, b"%d" % number), Accepted)
        print("accepted", job, number, flush=True)
        number += 1

async def main():
    store = await Store.open(Path(sys.argv[1]))
    assert not store.findings, store.findings
    if sys.argv[4] == "loose":
        await store.read(lambda db: db.execute("PRAGMA synchronous = OFF").fetchall())
    await asyncio.gather(*[serve(store, f"job-{n:08x}", int(sys.argv[2])) for n in range(int(sys.argv[3]))])

asyncio.run(main())
"""


def cuts(number: int, chance: Random, *, is_loose: bool = False) -> tuple[int, int]:
    """Cut the power ``number`` times; how many answers were acknowledged, how many of them were lost.

    ``is_loose``: for control, with a store that does not wait for its disk.
    """
    acknowledged = lost = 0
    first = 1
    with scratch() as folder:
        image, disk = folder / "image", folder / "disk"
        disk.mkdir()
        with image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
        for turn in range(number):
            # Under a name of its own: another namespace's copy of the mount keeps the dead one alive.
            left = folder / f"image-{turn % 2}"
            shutil.copy(image, left)
            image = left
            subprocess.run(["mount", "-t", "ext4", "-o", "loop", str(image), str(disk)], check=True)
            try:
                said = _serve_and_cut(disk, first, chance.uniform(0.05, 1.0), is_loose=is_loose)
            finally:
                subprocess.run(["umount", "-l", str(disk)], check=True)
            kept = _kept(image, folder)
            for word, job, ballot in said:
                acknowledged += 1
                promised, accepted = kept.get(job, (0, 0))
                lost += ballot > (promised if word == "promised" else accepted)
            first = max([first, *(ballot for _, _, ballot in said)]) + 1
    return acknowledged, lost


def _serve_and_cut(
    disk: Path, first: int, after_s: float, *, is_loose: bool
) -> list[tuple[str, str, int]]:
    """What the acceptors had answered when their power went."""
    child = subprocess.Popen(
        [sys.executable, "-c", ACCEPTOR, str(disk / "atoll.db"), str(first), str(REGISTERS),
         "loose" if is_loose else "as shipped"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    try:
        ready, _, _ = select.select([child.stdout], [], [], 30)
        assert ready, child.stderr.read1()  # type: ignore[attr-defined]
        said = b""
        deadline = time.monotonic() + after_s
        while (left_s := deadline - time.monotonic()) > 0:
            if select.select([child.stdout], [], [], left_s)[0]:
                said += os.read(child.stdout.fileno(), 1 << 16)
        child.send_signal(signal.SIGSTOP)
        descriptor = os.open(disk, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, WITHOUT_FLUSHING_THE_LOG)
        finally:
            os.close(descriptor)
    finally:
        child.kill()
    said += child.stdout.read()
    child.wait()
    child.stdout.close()
    child.stderr.close()
    words = [text.split() for text in said.decode().splitlines()]
    return [(one[0], one[1], int(one[2])) for one in words if len(one) == 3]


def _kept(image: Path, folder: Path) -> dict[str, tuple[int, int]]:
    """Promised and accepted ballot of each register, as the disk has them after the cut."""
    seen, copy = folder / "seen", folder / "copy"
    seen.mkdir(exist_ok=True)
    shutil.copy(image, copy)  # reading repairs the log: what the next start finds is left alone
    subprocess.run(["mount", "-t", "ext4", "-o", "loop", str(copy), str(seen)], check=True)
    try:
        if not (seen / "atoll.db").exists():
            return {}
        with contextlib.closing(sqlite3.connect(seen / "atoll.db")) as database:
            rows = database.execute("SELECT job, promised_number, accepted_number FROM register")
            return {job: (promised, accepted or 0) for job, promised, accepted in rows}
    finally:
        subprocess.run(["umount", "-l", str(seen)], check=True)
