"""Tokens from the operator's wish to the disk and the gateway."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agent.catalog.catalog import Catalog
from agent.config.settings import ListenPart
from agent.daemon.applications import ApplicationDesk
from agent.drivers.store import Store
from agent.foundation.errors import StoreFault, UsageError
from agent.serving.access import Access, mint
from agent.site.site import Site
from agent.wire.documents import BODIES, Document, Scope, Stamp

LOCAL, OPEN = ListenPart(), ListenPart(http_host="0.0.0.0")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    opened = await Store.open(tmp_path / "atoll.db")
    yield opened
    await opened.close()


async def desk_of(store: Store, listen: ListenPart = LOCAL) -> ApplicationDesk:
    desk = await ApplicationDesk.open(store, listen)

    async def tell() -> bool:
        return True

    desk.tell = tell
    return desk


async def test_a_token_works_at_once_and_after_a_restart_until_it_is_revoked(store: Store) -> None:
    desk = await desk_of(store)
    made = await desk.create("shop", ("infer:m", "read"), 0.0)
    token = made.pop("token")
    assert (made["state"], made["is_in_force"], made["expires_at"]) == ("valid", True, None)
    for one in (desk, await desk_of(store)):
        judge = Access(is_required=True, tokens=one.valid())
        assert judge.authenticate([f"Bearer {token}"], 0.0).scopes == frozenset({"infer:m", "read"})
    gone = await desk.revoke("shop")
    assert gone["state"] == "revoked"
    for one in (desk, await desk_of(store)):
        assert one.valid() == ()
        assert [row["state"] for row in one.tokens()] == ["revoked"]


async def test_the_secret_is_neither_on_disk_nor_in_the_list(store: Store, tmp_path: Path) -> None:
    desk = await desk_of(store)
    token = (await desk.create("shop", ("read",), 3600.0))["token"]
    assert token not in str(desk.tokens())
    (row,) = desk.tokens()
    assert row["expires_at"] == row["created_at"] + 3600.0
    await store.close()
    assert token.removeprefix("atoll_").encode() not in (tmp_path / "atoll.db").read_bytes()


async def test_what_the_disk_refuses_does_not_hold(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await desk_of(store)

    async def full(_: object) -> None:
        raise StoreFault("the disk is full")

    monkeypatch.setattr(store, "commit", full)
    with pytest.raises(StoreFault):
        await desk.create("shop", ("read",), 0.0)
    assert desk.valid() == ()
    assert desk.tokens() == []


async def test_a_name_that_is_taken_is_told(store: Store) -> None:
    desk = await desk_of(store)
    await desk.create("shop", ("read",), 0.0)
    with pytest.raises(UsageError, match="has a valid token"):
        await desk.create("shop", ("read",), 0.0)


async def test_status_and_doctor_say_who_may_use_the_site(store: Store) -> None:
    desk = await desk_of(store)
    assert desk.reasons() == []
    assert desk.checks() == [("tokens", True, "not needed at 127.0.0.1:8000; 0 valid tokens", "")]
    desk = await desk_of(store, OPEN)
    (reason,) = desk.reasons()
    assert reason == "applications need a token at 0.0.0.0:8000; there is none: all are refused"
    ((_, ok, _, mend),) = desk.checks()
    assert not ok
    assert "atoll app token create" in mend
    await desk.create("shop", ("read",), 0.0)
    assert desk.reasons() == []
    desk = await desk_of(store, ListenPart(http_host="0.0.0.0", http_tokens="never"))
    assert desk.reasons() == [
        'whoever reaches 0.0.0.0:8000 may use this site: [listen] http_tokens = "never"'
    ]


async def test_tokens_of_the_fleet_hold_as_the_catalog_says(store: Store) -> None:
    token, digest = mint(bytes(32))
    scope = Scope("scope", "till", (digest,), ("infer:*",), 0, ("DE",))
    catalog = Catalog()
    claims = SimpleNamespace(claims=SimpleNamespace(jurisdiction="DE"))
    site = SimpleNamespace(catalog=catalog, identity=claims, trust=SimpleNamespace(groups=()))
    desk = await ApplicationDesk.open(store, LOCAL, cast("Site", site))
    assert desk.valid() == ()

    def say(body: Scope, wall_ms: int) -> list[str]:
        catalog.merge(Document(Stamp(wall_ms, 0), bytes(32), BODIES.pack(body), bytes(64)), body)
        return [row["state"] for row in desk.tokens() if row["is_fleet"]]

    assert say(scope, 1000) == ["valid"]
    (row,) = desk.tokens()
    assert (row["name"], row["created_at"], row["revoked_at"]) == ("till", 1.0, None)
    judge = Access(is_required=True, tokens=desk.valid())
    assert judge.authenticate([f"Bearer {token}"], 0.0).name == "till"
    assert say(replace(scope, expires_at_s=5), 2000) == ["ended"]
    assert say(replace(scope, jurisdictions=("FR",)), 3000) == ["elsewhere"]
    assert say(replace(scope, is_active=False), 4000) == ["revoked"]
    assert desk.valid() == ()
