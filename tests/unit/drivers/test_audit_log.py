import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.audit.chain import START, Decision, Head, decoded
from agent.drivers import audit_log
from agent.drivers.audit_log import AuditLog
from agent.drivers.store import Store
from agent.foundation.errors import Busy, StoreFault
from agent.foundation.ids import SiteId
from agent.foundation.writes import Put, Write

ME = SiteId(bytes([1]) * 32)


class Seal:
    """A stand-in for Ed25519 with the same contract."""

    def sign(self, body: bytes) -> bytes:
        return hashlib.sha512(ME + body).digest()

    def is_signed_by(self, site: SiteId, body: bytes, signature: bytes) -> bool:
        return signature == hashlib.sha512(site + body).digest()


def decision(n: int) -> Decision:
    return Decision("forward", f"request {n}", ME, (), n)


async def test_an_entry_is_durable_when_write_returns(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    assert log.head == START
    await log.write(decision(1), 10)
    head = await log.write(decision(2), 11)
    assert head == log.head
    await store.close()
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    assert log.head == head
    await log.write(decision(3), 12)
    assert await log.findings(head) == []
    assert "not the one known" in (await log.findings(Head(2, bytes(32))))[0]
    await store.close()


async def test_many_at_once_make_one_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "PAGE_ROWS", 7)
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    heads = await asyncio.gather(*[log.write(decision(n), n) for n in range(100)])
    assert [head.sequence for head in heads] == list(range(1, 101))
    assert await log.findings(log.head) == []
    await log.close()
    await store.close()


async def test_a_failed_commit_refuses_its_decisions_and_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    await log.write(decision(0), 0)
    real, calls = store.commit, 0

    async def sometimes_full(writes: Sequence[Write]) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise StoreFault("the disk is full")
        await real(writes)

    monkeypatch.setattr(store, "commit", sometimes_full)
    first = asyncio.create_task(log.write(decision(1), 1))
    await asyncio.sleep(0)
    second = asyncio.create_task(log.write(decision(2), 2))
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(outcomes[0], StoreFault)
    later = await log.write(decision(3), 3)
    assert await log.findings(later) == []
    await log.close()
    await store.close()


async def test_a_cancelled_caller_leaves_the_others_their_entries(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    tasks = [asyncio.create_task(log.write(decision(n), n)) for n in range(4)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(one) for one in outcomes] == [asyncio.CancelledError, Head, Head, Head]
    assert await log.findings(log.head) == []
    await store.close()


async def test_the_queue_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_log, "WAITING_MAX", 2)
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    outcomes = await asyncio.gather(
        *[log.write(decision(n), n) for n in range(5)], return_exceptions=True
    )
    assert [type(one) for one in outcomes] == [Head, Head, Busy, Busy, Busy]
    await store.close()


async def test_a_damaged_row_is_told_by_its_number(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    for n in range(3):
        await log.write(decision(n), n)
    await store.commit([Put("audit", {"sequence": 2, "entry": b"garbage", "hash": bytes(32)})])
    assert "audit entry 2" in (await log.findings())[0]
    await store.close()


def outcome(n: int) -> Decision:
    return Decision("outcome", f"request {n}", ME, (), n, "200")


async def kinds(log: AuditLog) -> list[str]:
    return [decoded(row).decision.kind async for rows in log.pages() for row in rows]


async def test_an_outcome_goes_with_the_next_decision_and_holds_up_none(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    await log.write(decision(1), 1)
    log.note(outcome(1), 2)
    assert await kinds(log) == ["forward"]
    await log.write(decision(2), 3)
    assert await kinds(log) == ["forward", "outcome", "forward"]
    log.note(outcome(2), 4)
    await log.close()
    assert await kinds(log) == ["forward", "outcome", "forward", "outcome"]
    assert await log.findings(log.head) == []
    await store.close()


@pytest.mark.parametrize(("name", "value"), [("NOTE_DELAY_S", 0.0), ("NOTES_MAX", 1)])
async def test_an_outcome_is_written_soon_though_no_decision_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float
) -> None:
    monkeypatch.setattr(audit_log, name, value)
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    commit, committed = store.commit, asyncio.Event()

    async def watched(writes: Sequence[Write]) -> None:
        await commit(writes)
        committed.set()

    monkeypatch.setattr(store, "commit", watched)
    log.note(outcome(1), 1)
    async with asyncio.timeout(5):
        await committed.wait()
    await log.close()
    assert await kinds(log) == ["outcome"]
    await store.close()


async def test_an_outcome_that_cannot_be_written_is_told_and_leaves_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    log = await AuditLog.open(store, site=ME, notary=Seal())
    commit = store.commit

    async def full(_: Sequence[Write]) -> None:
        raise StoreFault("the disk is full")

    monkeypatch.setattr(store, "commit", full)
    log.note(outcome(1), 1)
    await log.close()
    assert "not in the audit log: 200 of request 1: the disk is full" in caplog.text
    monkeypatch.setattr(store, "commit", commit)
    await log.write(decision(2), 2)
    assert await log.findings(log.head) == []
    await store.close()
