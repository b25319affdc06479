"""Reading back what is durable; the boot epoch; what a lost database costs."""

from pathlib import Path

import pytest

from agent.cli.join import SEEDS_KEY
from agent.daemon.restore import (
    BOOT_EPOCH_JUMP,
    barred_because,
    raise_boot_epoch,
    restore,
    token_seeds,
)
from agent.drivers.blobs import BlobStore
from agent.drivers.store import Store
from agent.federation.history import Counted
from agent.federation.value import Contribution, Contributions, JobValue, State
from agent.foundation.ids import Digest, JobId, SiteId
from agent.foundation.writes import Put, Scalar
from agent.membership.coordinates import Coordinate
from agent.site.duplicates import COPIED
from agent.site.overrides import Override
from agent.site.stored import COORDINATE_KEY, VOTING_BARRED_KEY
from agent.wire.schema import pack

ME, NEW = SiteId(b"\1" * 32), SiteId(b"\2" * 32)


async def opened(folder: Path) -> Store:
    return await Store.open(folder / "atoll.db")


async def test_a_boot_epoch_is_never_used_twice(tmp_path: Path) -> None:
    epochs = []
    for _ in range(3):
        store = await opened(tmp_path)
        epochs.append(await raise_boot_epoch(store, ME))
        await store.close()
    assert epochs == [1, 2, 3]


async def test_a_damaged_database_bars_this_identity_for_ever_and_no_other(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    await raise_boot_epoch(store, ME)
    await store.close()
    path = tmp_path / "atoll.db"
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 8192)
    store = await opened(tmp_path)
    assert store.findings
    assert await raise_boot_epoch(store, ME) >= BOOT_EPOCH_JUMP
    await store.close()
    store = await opened(tmp_path)
    assert store.findings == (), "acted on: not reported again"
    assert await raise_boot_epoch(store, ME) < 3 * BOOT_EPOCH_JUMP
    assert "does not vote" in await barred_because(store, ME)
    assert await barred_because(store, NEW) == ""
    blobs = BlobStore(tmp_path / "blobs")
    assert "join again" in (await restore(store, blobs, ME)).barred_because
    await store.close()


async def test_a_copied_identity_stays_barred_and_the_mend_is_named(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    row = {"key": VOTING_BARRED_KEY, "value": f"{ME.hex()} 2026-05-01 {COPIED}"}
    await store.commit([Put("meta", row)])
    text = await barred_because(store, ME)
    assert text.startswith("duplicate identity: on 2026-05-01 another process")
    assert "join it again with a new token" in text
    assert await barred_because(store, NEW) == ""
    await store.close()


async def test_a_row_that_does_not_decode_is_left_out_and_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = await opened(tmp_path)
    noise: dict[str, Scalar] = {"kind": "job", "name": "j", "document": b"noise"}
    await store.commit([
        Put("documents", noise),
        Put("jobs", {"job": "j-1", "value": b"noise", "note": ""}),
        Put("models", {"key": b"12345678", "crashes": 2, "reason": "x"}),
    ])  # fmt: skip
    stored = await restore(store, BlobStore(tmp_path / "blobs"), ME)
    assert stored.documents == ()
    assert stored.crashes == {b"12345678": 2}
    assert stored.jobs[JobId("j-1")].value is None
    assert stored.barred_because == ""
    assert "left out" in caplog.text
    await store.close()


async def test_a_promise_and_an_open_update_come_back(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    promise: dict[str, Scalar] = {
        "job": "j-1", "promised_number": 7, "promised_proposer": b"p", "accepted_number": None,
        "accepted_proposer": None, "value": None,
    }  # fmt: skip
    update: dict[str, Scalar] = {
        "job": "j-2", "round": 3, "base": b"\1" * 32, "digest": b"\2" * 32, "samples": 9,
        "metrics": '[["loss", 0.5]]', "state": "open",
    }  # fmt: skip
    await store.commit([Put("register", promise), Put("updates", update)])
    jobs = (await restore(store, BlobStore(tmp_path / "blobs"), ME)).jobs
    register = jobs[JobId("j-1")].register
    assert register is not None
    assert register["promised_number"] == 7
    open_ = jobs[JobId("j-2")].update
    assert open_ is not None
    assert (open_.round, open_.samples, open_.metrics) == (3, 9, (("loss", 0.5),))
    await store.close()


@pytest.mark.parametrize(
    ("state", "recoveries", "read"),
    # The round after one that is not here is read too: it may name another.
    [
        ("running", 0, {1, 2, *range(4, 13)}),
        ("finished", 0, {4, 11, 12}),
        ("finished", 1, {1, 2, *range(4, 13)}),
    ],
)
async def test_of_a_job_that_is_over_the_last_rounds_are_read(
    tmp_path: Path, state: State, recoveries: int, read: set[int]
) -> None:
    store, blobs = await opened(tmp_path), BlobStore(tmp_path / "blobs")
    job, made = JobId("job-1"), [Digest(bytes(32))]
    for number in range(1, 13):
        entry = Contribution(ME, made[-1], 100, (("accuracy", 0.5), ("holdout", 10.0)))
        content = Contributions(
            job, number, 1, ME, made[-1], made[-1], (entry,), made[-1] if number > 1 else None
        )
        made.append(await blobs.put_bytes(pack(content)))
        row: dict[str, Scalar] = {
            "job": job, "round": number, "epoch": 1, "aggregator": ME, "parameters": made[-2],
            "contributions": made[-1], "counted": "[]", "committed_at": 1.0,
        }  # fmt: skip
        await store.commit([Put("rounds", row)])
    value = JobValue(job, 1, ME, 12, made[0], made[-1], state, None, 0, "", (), None, recoveries)
    await store.commit([Put("jobs", {"job": job, "value": pack(value), "note": ""})])
    await blobs.remove(made[3])
    rounds = (await restore(store, blobs, ME)).jobs[job].rounds
    assert [one.contributions for one in rounds] == [*made[1:3], *made[4:]]
    assert [one.previous for one in rounds] == [None, made[1], *made[3:-1]]
    assert {one.round for one in rounds if isinstance(one, Counted)} == read
    await store.close()


async def test_the_addresses_that_a_join_left_are_read_back(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    assert await token_seeds(store) == ()
    await store.commit(
        (Put("meta", {"key": SEEDS_KEY, "value": "192.0.2.1:7411 [2001:db8::1]:7411 nonsense"}),)
    )
    assert await token_seeds(store) == (("192.0.2.1", 7411), ("2001:db8::1", 7411))
    await store.close()


async def test_the_place_comes_back_and_what_is_none_does_not(tmp_path: Path) -> None:
    store, blobs = await opened(tmp_path), BlobStore(tmp_path / "blobs")
    assert (await restore(store, blobs, ME)).coordinate == b""
    place = Coordinate((0.01, 0.0, 0.0, 0.0), 0.001, 0.0, 0.2).pack()
    rows: list[tuple[Scalar, bytes]] = [(place, place), (b"noise", b""), ("x" * 19, b"")]
    for value, expected in rows:
        await store.commit([Put("meta", {"key": COORDINATE_KEY, "value": value})])
        assert (await restore(store, blobs, ME)).coordinate == expected
    await store.close()


async def test_what_was_decided_against_the_catalog_is_read_back(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    row: dict[str, Scalar] = {
        "name": "m", "version": "", "is_served": False, "who": "me", "at_s": 5.0,
    }  # fmt: skip
    await store.commit([Put("overrides", row)])
    stored = await restore(store, BlobStore(tmp_path / "blobs"), ME)
    assert stored.overrides == (Override("m", "", False, "me", 5.0),)
    await store.close()
