"""Tokens and scopes: what is let in, what is refused, and with which words."""

import hashlib

import pytest

from agent.cli.parser_applications import _SCOPE as TYPED
from agent.foundation.errors import UsageError
from agent.serving import access
from agent.serving.access import Access, Application, check_scopes, infer, mint
from agent.serving.failures import ScopeLacking, Unauthenticated, status_of
from agent.wire.inside import ApplicationToken

SHOP, HASH = mint(b"s" * 32)
ENDS, ENDS_HASH = mint(b"e" * 32)
TOKENS = (
    ApplicationToken("shop", HASH, ("infer:m", "read"), 0.0),
    ApplicationToken("brief", ENDS_HASH, ("infer:*",), 1000.0),
)
DEMANDED = Access(is_required=True, tokens=TOKENS)
OPTIONAL = Access(is_required=False, tokens=TOKENS)


def test_a_token_is_text_for_a_header_and_only_its_hash_is_kept() -> None:
    assert SHOP == "atoll_c3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3Nzc3M"
    assert hashlib.sha256(SHOP.encode()).digest() == HASH
    assert len({mint(bytes([n]) * 32)[0] for n in range(256)}) == 256


@pytest.mark.parametrize("header", [f"Bearer {SHOP}", f"bearer {SHOP}", f"BEARER   {SHOP} "])
def test_a_valid_token_says_which_application_asks(header: str) -> None:
    for judge in (DEMANDED, OPTIONAL):
        assert judge.authenticate([header], 5.0) == Application(
            "shop", frozenset({"infer:m", "read"})
        )


def test_where_none_is_demanded_a_request_without_a_token_is_local_and_may_all() -> None:
    for headers in ([], ["Basic dTpw"], ["Negotiate x"], [""]):
        application = OPTIONAL.authenticate(headers, 5.0)
        assert application.name == "local"
        application.require(["infer:anything"])


@pytest.mark.parametrize(
    ("headers", "reason", "text"),
    [
        ([], "missing", "no token was given; send Authorization: Bearer"),
        (["Basic dTpw"], "missing", "another kind of Authorization"),
        (["Bearer"], "malformed", "no token of Atoll"),
        ([f"Bearer {SHOP[:-1]}"], "malformed", "no token of Atoll"),
        ([f"Bearer {SHOP}x"], "malformed", "no token of Atoll"),
        ([f"Bearer {SHOP[:-1]}\u0663"], "malformed", "no token of Atoll"),
        ([f"Bearer {SHOP}"] * 2, "malformed", "several Authorization headers"),
        ([f"Bearer {mint(bytes(32))[0]}"], "unknown", "revoked, belongs to another site"),
        ([f"Bearer {ENDS}"], "expired", "the token 'brief' ended 1970-01-01 00:16 UTC"),
    ],
)
def test_anything_else_is_refused_with_its_reason_and_the_command(
    headers: list[str], reason: str, text: str
) -> None:
    with pytest.raises(Unauthenticated, match=text) as refused:
        DEMANDED.authenticate(headers, 1000.0)
    assert (refused.value.reason, status_of(refused.value)) == (reason, 401)
    assert "atoll app token create" in refused.value.mend
    assert SHOP not in str(refused.value)
    given = reason != "missing"
    assert refused.value.challenge == ('Bearer error="invalid_token"' if given else "Bearer")
    if given:
        with pytest.raises(Unauthenticated):
            OPTIONAL.authenticate(headers, 1000.0)


def test_a_token_is_valid_until_the_very_second_of_its_end() -> None:
    assert DEMANDED.authenticate([f"Bearer {ENDS}"], 999.9).name == "brief"


def test_a_hash_that_only_begins_alike_lets_nobody_in() -> None:
    alike = ApplicationToken("shop", HASH[:8] + bytes(24), ("infer:*",), 0.0)
    with pytest.raises(Unauthenticated):
        Access(is_required=True, tokens=[alike]).authenticate([f"Bearer {SHOP}"], 0.0)


def test_without_any_token_the_text_says_so() -> None:
    with pytest.raises(Unauthenticated, match="there is no token at this site yet"):
        Access(is_required=True).authenticate([], 0.0)


def test_a_scope_covers_what_it_names_and_no_more() -> None:
    one, every = Application("a", frozenset({"infer:m"})), Application("b", frozenset({"infer:*"}))
    for application in (one, every):
        application.require([infer("m")])
        application.require(["read", infer("m")])
        for needs in (["read"], ["repository"]):
            with pytest.raises(ScopeLacking):
                application.require(needs)
    every.require([infer("n")])
    for wrong in ("n", "", "mm", "*"):
        with pytest.raises(ScopeLacking, match="'a' lacks the scope") as refused:
            one.require([infer(wrong)])
        assert status_of(refused.value) == 403


def test_a_models_name_does_not_break_out_of_the_header() -> None:
    with pytest.raises(ScopeLacking) as refused:
        Application("a", frozenset({"read"})).require([infer('m"\r\nSet-Cookie: \\é')])
    expected = 'Bearer error="insufficient_scope", scope="infer:mSet-Cookie: "'
    assert refused.value.challenge == expected


def test_scopes_are_checked_sorted_and_told_once() -> None:
    assert check_scopes(["read", "infer:*", "read"]) == ("infer:*", "read")
    for wrong in ("", "infer", "infer:", "infer:M", "infer:a*", "write", "read ", "infer:../x"):
        with pytest.raises(UsageError, match="there is no scope"):
            check_scopes([wrong])
    with pytest.raises(UsageError, match="not 0"):
        check_scopes([])
    with pytest.raises(UsageError, match="not 65"):
        check_scopes([f"infer:m{n}" for n in range(65)])


def test_what_can_be_typed_as_a_scope_is_what_exists() -> None:
    assert TYPED.pattern == access.SCOPE.pattern
