"""Calls to other sites: what a certificate that has ended, or was renewed, means for them."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.drivers import clock
from agent.drivers.keystore import SiteKeys, found_cluster
from agent.foundation.errors import Unreachable
from agent.foundation.ids import SiteId
from agent.gateway.members import Callers, Members, NotConnected
from agent.wire.inside import RemoteSite

REMOTE = RemoteSite(
    SiteId(b"r" * 32), "rome", "south", "edge", "IT", "127.0.0.1", 1, "alive", False, 1.0, 0.0, ()
)


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteKeys:
    monkeypatch.setattr("agent.drivers.keystore._SCRYPT_N", 2)
    return found_cluster(
        tmp_path / "hub", name="hub", region="north", tier="core", jurisdiction="DE", roles=(),
        passphrase="correct horse", now=datetime.now(UTC),
    ).keys  # fmt: skip


async def asked(members: Members) -> str:
    """Why a call failed: nobody listens there."""
    with pytest.raises(Unreachable) as caught:
        await members.call(
            REMOTE, "GET", "/v2", headers={}, body=None, deadline=clock.monotonic_s() + 5.0
        )
    return str(caught.value)


async def test_with_an_ended_certificate_nobody_is_called_until_it_is_renewed(
    keys: SiteKeys,
) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    ended = replace(keys, identity=replace(keys.identity, not_after=past))
    members = Members(ended, Callers(ended), 1 << 20)
    try:
        assert "this site's certificate ended" in await asked(members)
        assert members.under_way == {}
        members.renew(keys)
        assert "cannot be reached" in await asked(members)
    finally:
        await members.close()


async def test_a_site_that_cannot_be_connected_has_got_nothing(keys: SiteKeys) -> None:
    members = Members(keys, Callers(keys), 1 << 20)
    try:
        with pytest.raises(NotConnected):
            await members.call(
                REMOTE, "GET", "/v2", headers={}, body=None, deadline=clock.monotonic_s() + 5.0
            )
    finally:
        await members.close()
