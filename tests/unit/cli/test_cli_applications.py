"""``atoll app token`` and the admin API behind it, over a real socket."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from agent.api.admin import AdminServer
from agent.api.applications import routes
from agent.api.bodies import Json
from agent.cli.client import AdminClient
from agent.drivers.clock import wall_s
from agent.foundation.errors import NotFound, UsageError
from agent.serving.access import Access
from agent.serving.fleet_tokens import valid_here
from agent.wire.documents import Scope

if TYPE_CHECKING:
    from conftest import Atoll, CannedSite

SECRET = "atoll_" + "x" * 43
ROW: Json = {
    "name": "shop", "scopes": ["infer:m", "read"], "created_at": 0.0, "expires_at": 86_400.0,
    "revoked_at": None, "state": "valid", "is_fleet": False,
}  # fmt: skip


class Tokens:
    """Answers plainly, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.rows: list[Json] = [ROW]
        self.is_in_force = True

    def tokens(self) -> list[Json]:
        return self.rows

    async def create(self, name: str, scopes: tuple[str, ...], life_s: float) -> Json:
        self.asked.append((name, scopes, life_s))
        return {**ROW, "token": SECRET, "is_in_force": self.is_in_force}

    async def revoke(self, name: str) -> Json:
        self.asked.append(name)
        if name != "shop":
            raise NotFound(f"no application {name!r} has a token here")
        return {**ROW, "is_in_force": self.is_in_force}


@pytest.fixture
def tokens() -> Tokens:
    return Tokens()


@pytest.fixture
def app(
    tokens: Tokens, canned: "CannedSite", loop_thread: Any, bare: "Atoll", tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    path = tmp_path / "app.sock"
    server = loop_thread.run(AdminServer.start(cast("Any", canned), path, routes(tokens)))
    yield lambda *words: bare("--socket", path, "app", "token", *words)
    loop_thread.run(server.close())


def test_a_new_token_stands_alone_on_the_first_line(app: Any, tokens: Tokens) -> None:
    found = app("create", "shop", "--scope", "read", "--scope", "infer:m", "--expires", "90d")
    assert (found.code, found.out, found.err) == (0, f"{SECRET}\n", "")
    assert tokens.asked == [("shop", ("infer:m", "read"), 90 * 86_400.0)]
    assert json.loads(app("create", "shop", "--scope", "read", "--json").out)["token"] == SECRET
    assert tokens.asked[1] == ("shop", ("read",), 0.0)


def test_what_the_gateway_has_not_confirmed_is_said(app: Any, tokens: Tokens) -> None:
    tokens.is_in_force = False
    found = app("create", "shop", "--scope", "read")
    assert found.out == f"{SECRET}\n"
    assert "has not confirmed it yet" in found.err
    found = app("revoke", "shop")
    assert found.out.startswith("revoked, for good; but the gateway has not confirmed")


def test_tokens_are_listed_without_their_secrets(app: Any, tokens: Tokens) -> None:
    found = app("list")
    assert "shop" in found.out
    assert "infer:m, read" in found.out
    assert "1970-01-02 00:00" in found.out
    assert json.loads(app("list", "--json").out) == {"tokens": [ROW]}
    tokens.rows = []
    assert "atoll app token create NAME" in app("list").out


def test_revoking_says_what_holds_from_now_on(app: Any, tokens: Tokens) -> None:
    assert app("revoke", "shop").out == "revoked: the next request of shop is refused\n"
    assert json.loads(app("revoke", "shop", "--json").out)["is_in_force"]
    found = app("revoke", "shops")
    assert (found.code, tokens.asked) == (1, ["shop", "shop", "shops"])
    assert "no application 'shops'" in found.err


@pytest.mark.parametrize(
    "words",
    [
        ("create", "shop"),
        ("create", "Shop", "--scope", "read"),
        ("create", "shop", "--scope", "write"),
        ("create", "shop", "--scope", "infer:"),
        ("create", "shop", "--scope", "read", "--expires", "soon"),
        ("revoke",),
    ],
)
def test_wrong_words_are_found_before_anything_is_sent(
    app: Any, tokens: Tokens, words: tuple[str, ...]
) -> None:
    assert (app(*words).code, tokens.asked) == (2, [])


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"name": "Shop", "scopes": ["read"]}, "is not the name of an application"),
        ({"name": "shop", "scopes": "read"}, "expected a list of scopes"),
        ({"name": "shop", "scopes": ["write"]}, "there is no scope 'write'"),
        ({"name": "shop", "scopes": []}, "1 to 64 scopes"),
        ({"name": "shop", "scopes": ["read"], "life_s": 1}, "expected 60 to"),
        ({"name": "shop", "scopes": ["read"], "life_s": True}, "expected 60 to"),
        ({"name": "shop", "scopes": ["read"], "secret": 1}, "unknown key 'secret'"),
    ],
)
def test_the_admin_api_checks_what_others_send(
    tokens: Tokens, tmp_path: Path, body: Json, text: str
) -> None:

    with pytest.raises(UsageError, match=text):
        AdminClient(tmp_path / "app.sock").post("/1/applications/tokens", body)
    assert tokens.asked == []


@pytest.fixture
def fleet(atoll: "Atoll", founded: Path, admin_of: Callable[[Path], None]) -> Callable[..., Any]:
    admin_of(founded)
    return lambda *words: atoll("app", "token", *words, "--fleet", "--config", founded)


def test_a_token_of_the_fleet_is_signed_and_its_secret_goes_nowhere(
    fleet: Callable[..., Any], canned: "CannedSite"
) -> None:
    found = fleet("create", "shop", "--scope", "read", "--scope", "infer:m", "--expires", "1d", "--jurisdictions", "DE")  # fmt: skip
    assert found.code == 0
    (body,) = canned.bodies
    assert isinstance(body, Scope)
    assert (body.name, body.scopes, body.jurisdictions) == ("shop", ("infer:m", "read"), ("DE",))
    assert abs(body.expires_at_s - wall_s() - 86_400) < 60
    tokens = valid_here([body], "DE", ())
    judge = Access(is_required=True, tokens=tokens)
    assert judge.authenticate([f"Bearer {found.out.strip()}"], 0.0).name == "shop"
    assert found.out.strip() not in repr(canned.bodies)
    canned.known = [body]
    again = fleet("create", "shop", "--scope", "read")
    assert again.code == 1
    assert "atoll app token revoke shop --fleet" in again.err
    canned.known = [replace(body, expires_at_s=5)]
    assert fleet("create", "shop", "--scope", "read").code == 0, "the former has ended"


def test_a_token_of_the_fleet_is_revoked_everywhere(
    fleet: Callable[..., Any], canned: "CannedSite"
) -> None:
    assert "no application 'shop' has a token at every site" in fleet("revoke", "shop").err
    scope = Scope("scope", "shop", (bytes(32),), ("read",))
    canned.known = [scope]
    found = fleet("revoke", "shop")
    assert (found.code, canned.bodies) == (0, [replace(scope, is_active=False)])
    assert "each site refuses shop" in found.out
    canned.known = [*canned.bodies]
    assert fleet("revoke", "shop").code == 0
    assert len(canned.bodies) == 1, "it is revoked already"
    assert "is the name of requests without" in fleet("create", "local", "--scope", "read").err


def test_only_tokens_of_the_fleet_have_jurisdictions(app: Any) -> None:
    found = app("create", "shop", "--scope", "read", "--jurisdictions", "DE")
    assert found.code == 1
    assert "give --fleet too" in found.err
