"""Idempotency keys on disk, in the order of their keys."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.daemon import once_keys as module
from agent.daemon.once_keys import OnceKeys
from agent.drivers.store import Store
from agent.foundation.errors import StoreFault
from agent.foundation.writes import Write


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


async def test_a_key_is_claimed_once_also_across_a_restart(tmp_path: Path) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    keys = await OnceKeys.open(store)
    assert [await keys.claim(key(1)), await keys.claim(key(1))] == [True, False]
    await store.close()
    store = await Store.open(tmp_path / "atoll.db")
    keys = await OnceKeys.open(store)
    assert [await keys.claim(key(1)), await keys.claim(key(2))] == [False, True]
    await keys.release(key(1))
    assert await keys.claim(key(1))
    await store.close()


async def test_the_oldest_key_is_forgotten_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ONCE_KEYS_MAX", 2)
    store = await Store.open(tmp_path / "atoll.db")
    keys = await OnceKeys.open(store)
    for number in (3, 1, 2):
        assert await keys.claim(key(number))
    reopened = await OnceKeys.open(store)
    assert [await reopened.claim(key(number)) for number in (1, 2, 3)] == [False, False, True]
    await store.close()


async def test_a_key_that_cannot_be_written_is_not_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await Store.open(tmp_path / "atoll.db")
    keys, commit = await OnceKeys.open(store), store.commit

    async def full(_: Sequence[Write]) -> None:
        raise StoreFault("the disk is full")

    monkeypatch.setattr(store, "commit", full)
    with pytest.raises(StoreFault):
        await keys.claim(key(1))
    monkeypatch.setattr(store, "commit", commit)
    assert await keys.claim(key(1))
    await store.close()
