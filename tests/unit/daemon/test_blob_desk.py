"""What the operator sees of blobs."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.daemon.blob_desk import BlobDesk
from agent.daemon.driver import Driver
from agent.daemon.outside import Outside
from agent.distribution.retention import Standing
from agent.drivers.blobs import BlobStore
from agent.drivers.clock import monotonic_s
from agent.foundation.errors import StoreFault
from agent.foundation.ids import Digest
from agent.foundation.machine import NEVER
from agent.site.events import BlobsFull, CollectRequested


class Keeping:
    """In the place of ``site.keeping.Keeping``."""

    def __init__(self) -> None:
        self.named: dict[Digest, list[tuple[str, Standing]]] = {}
        self.due: dict[Digest, float] = {}

    def names(self) -> dict[Digest, list[tuple[str, Standing]]]:
        return self.named

    def goes_at(self, digest: Digest) -> float:
        return self.due.get(digest, NEVER)


class Desk:
    """A desk, the store it reads, and what it has fed."""

    def __init__(self, folder: Path) -> None:
        self.keeping, self.fed = Keeping(), list[object]()
        self.labels: dict[Digest, tuple[str, ...]] = {}
        site = SimpleNamespace(keeping=self.keeping, labels=self.labels)
        self.store = BlobStore(folder / "blobs", reserve_bytes=1, bytes_max=1000)
        self.answers: dict[int, asyncio.Future[tuple[str, ...]]] = {}
        driver = SimpleNamespace(site=site, feed=self.fed.append)
        outside = SimpleNamespace(expect=self.expect)
        self.desk = BlobDesk(cast("Driver", driver), cast("Outside", outside), self.store)

    def expect(self) -> Any:
        self.answers[7] = asyncio.get_running_loop().create_future()
        return 7, self.answers[7]


async def test_each_blob_says_what_names_it_and_when_it_goes(tmp_path: Path) -> None:
    found = Desk(tmp_path)
    assert (await found.desk.blobs())["blobs"] == []
    named, nobodys = await found.store.put_bytes(b"named"), await found.store.put_bytes(b"nobodys")
    part = await found.store.put_bytes(b"part")
    found.store.demote(part)
    found.keeping.named = {
        named: [("model m:2", Standing.NAMED), ("model m:1, ready here", Standing.WANTED)]
    }
    found.keeping.due = {nobodys: monotonic_s() + 50.0}
    found.labels[named] = ("DE",)
    told = await found.desk.blobs()
    rows = {row["digest"]: row for row in told["blobs"]}
    assert rows[named.hex()] == {
        "digest": named.hex(), "bytes": 5, "state": "whole", "standing": "wanted",
        "names": ["model m:1, ready here", "model m:2"], "residency": ["DE"], "goes_in_s": None,
    }  # fmt: skip
    assert rows[nobodys.hex()]["standing"] == "unnamed"
    assert rows[nobodys.hex()]["goes_in_s"] in (49, 50)
    assert rows[part.hex()]["state"] == "partial"
    assert (told["used_bytes"], told["bytes_max"], told["reserve_bytes"]) == (16, 1000, 1)
    assert told["free_bytes"] > 0


async def test_collecting_is_asked_of_the_machine(tmp_path: Path) -> None:
    found = Desk(tmp_path)
    collecting = asyncio.create_task(found.desk.collect())
    await asyncio.sleep(0)
    assert found.fed == [CollectRequested(7)]
    found.answers[7].set_result(("ab",))
    assert await collecting == ["ab"]


async def test_the_machine_hears_of_a_full_disk(tmp_path: Path) -> None:
    found = Desk(tmp_path)
    with pytest.raises(StoreFault):
        await found.store.put_bytes(bytes(1001))
    await asyncio.sleep(0)
    assert found.fed == [BlobsFull()]
