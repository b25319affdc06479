"""The trust log through restarts and damaged disks."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent.daemon.restore import raise_boot_epoch
from agent.daemon.trust_store import open_trust
from agent.drivers.keystore import SiteKeys, found_cluster
from agent.drivers.store import Store
from agent.foundation.ids import SiteId
from agent.identity.trust import TrustLog
from agent.identity.trust_signing import sign_revocation
from agent.site.exchange import TRUST_DOUBTED

NOW = datetime.now(UTC)
SITES = tuple(SiteId(bytes([number]) * 32) for number in (1, 2, 3))


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteKeys:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)
    return found_cluster(
        tmp_path / "hub", name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=NOW,
    ).keys  # fmt: skip


async def reopened(path: Path, keys: SiteKeys, revoke: Sequence[SiteId] = ()) -> TrustLog:
    """One start of the site, which then revokes these."""
    store = await Store.open(path)
    try:
        log = await open_trust(store, keys)
        await raise_boot_epoch(store, keys.site)
        for site in revoke:
            assert keys.admin is not None
            await store.commit(log.submit(sign_revocation(log, site, "", keys.admin, NOW)))
        return log
    finally:
        await store.close()


def carry_out(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


async def test_the_first_start_takes_the_founding_copy_and_later_ones_the_table(
    tmp_path: Path, keys: SiteKeys
) -> None:
    path = tmp_path / "atoll.db"
    log = await reopened(path, keys, SITES)
    again = await reopened(path, keys)
    assert (again.head, again.trouble) == (log.head, "")
    assert again.revoked() == set(SITES)


async def test_an_emptied_table_is_not_taken_for_a_first_start(
    tmp_path: Path, keys: SiteKeys, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "atoll.db"
    await reopened(path, keys, SITES)
    carry_out(path, "DELETE FROM trust")
    log = await reopened(path, keys)
    assert "was empty although this site has run before" in log.trouble
    assert "may be older than it was" in caplog.text
    assert log.height == 1
    assert (await reopened(path, keys)).trouble, "said until a member has confirmed it"


async def test_a_lost_row_costs_its_own_revocation_at_most(tmp_path: Path, keys: SiteKeys) -> None:
    path = tmp_path / "atoll.db"
    await reopened(path, keys, SITES)
    carry_out(path, "DELETE FROM trust WHERE height = 3")
    log = await reopened(path, keys)
    assert log.trouble
    assert log.revoked() == {SITES[0], SITES[2]}


async def test_a_flipped_bit_moves_the_database_aside_and_keeps_what_is_sound(
    tmp_path: Path, keys: SiteKeys
) -> None:
    path = tmp_path / "atoll.db"
    await reopened(path, keys, SITES)
    carry_out(path, "UPDATE trust SET entry = zeroblob(9) WHERE height = 4")
    log = await reopened(path, keys)
    assert "damaged" in log.trouble
    assert log.revoked() == {SITES[0], SITES[1]}
    assert (await reopened(path, keys)).trouble


async def test_confirmed_is_confirmed_for_ever(tmp_path: Path, keys: SiteKeys) -> None:
    path = tmp_path / "atoll.db"
    log = await reopened(path, keys, SITES)
    carry_out(path, "DELETE FROM trust WHERE height = 3")
    store = await Store.open(path)
    doubted = await open_trust(store, keys)
    for entry in log.entries():
        await store.commit(doubted.append(entry))
    await store.commit(doubted.confirm())
    await store.close()
    carry_out(path, f"DELETE FROM meta WHERE key = '{TRUST_DOUBTED}'")
    again = await reopened(path, keys)
    assert (again.trouble, again.head) == ("", log.head)
