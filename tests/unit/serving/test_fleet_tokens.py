from dataclasses import replace

import pytest

from agent.serving import fleet_tokens
from agent.serving.fleet_tokens import valid_here
from agent.wire.documents import Scope
from agent.wire.inside import ApplicationToken
from agent.wire.residency import Group

HASH, OTHER = b"h" * 32, b"o" * 32
SHOP = Scope("scope", "shop", (HASH,), ("infer:m", "read"), 500)


def test_a_scope_lets_its_application_in_until_it_ends() -> None:
    found = valid_here([SHOP], "DE", ())
    assert found == (ApplicationToken("shop", HASH, ("infer:m", "read"), 500.0),)
    assert valid_here([replace(SHOP, is_active=False)], "DE", ()) == ()


def test_while_one_token_takes_the_place_of_another_both_hold() -> None:
    both = replace(SHOP, tokens=(HASH, OTHER))
    assert [token.hash for token in valid_here([both], "DE", ())] == [HASH, OTHER]


def test_it_holds_in_its_jurisdictions_only() -> None:
    bound = replace(SHOP, jurisdictions=("EU",))
    assert valid_here([bound], "FR", ()) == ()
    assert len(valid_here([bound], "FR", (Group("EU", ("FR",)),))) == 1


def test_nobody_takes_the_name_of_requests_without_a_token() -> None:
    assert valid_here([replace(SHOP, name="local"), replace(SHOP, name="others")], "DE", ()) == ()


def test_those_beyond_the_bound_let_nobody_in_at_any_site_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_tokens, "FLEET_TOKENS_MAX", 2)
    scopes = [replace(SHOP, name=name) for name in ("c", "a", "b")]
    assert [token.name for token in valid_here(scopes, "DE", ())] == ["a", "b"]
