"""The operator's tokens: made, ended, kept within their bound."""

from dataclasses import replace

import pytest

from agent.foundation.errors import NotFound, UsageError
from agent.foundation.writes import Delete, Put
from agent.serving.token_book import TABLE, TOKENS_MAX, KeptToken, TokenBook

SHOP = KeptToken("shop", b"h" * 32, ("infer:m", "read"), 10.0)


def made(book: TokenBook, token: KeptToken, now: float) -> None:
    book.apply(book.create(token, now))


def test_nothing_holds_before_it_is_on_disk() -> None:
    book = TokenBook()
    change = book.create(SHOP, 10.0)
    assert book.all() == []
    assert change.writes() == (SHOP.put(),)
    book.apply(change)
    (token,) = book.valid(10.0)
    assert (token.name, token.hash, token.scopes, token.expires_at) == (
        "shop", b"h" * 32, ("infer:m", "read"), 0.0,
    )  # fmt: skip


def test_one_application_has_one_valid_token() -> None:
    book = TokenBook([SHOP])
    with pytest.raises(UsageError, match="atoll app token revoke shop"):
        book.create(replace(SHOP, hash=b"n" * 32), 20.0)
    book.apply(book.revoke("shop", 20.0))
    assert book.valid(20.0) == ()
    assert book.all()[0].state(20.0) == "revoked"
    made(book, replace(SHOP, hash=b"n" * 32), 21.0)
    assert [token.hash for token in book.valid(21.0)] == [b"n" * 32]


def test_a_token_that_has_ended_gives_its_name_free() -> None:
    book = TokenBook([replace(SHOP, expires_at=30.0)])
    assert len(book.valid(29.9)) == 1
    assert book.valid(30.0) == ()
    assert book.all()[0].state(30.0) == "ended"
    made(book, replace(SHOP, hash=b"n" * 32, created_at=30.0), 30.0)
    assert len(book.valid(30.0)) == 1


def test_revoking_again_changes_nothing_and_what_is_unknown_is_said() -> None:
    book = TokenBook([SHOP])
    book.apply(book.revoke("shop", 20.0))
    assert book.revoke("shop", 99.0).token.revoked_at == 20.0
    with pytest.raises(NotFound, match="no application 'shops'"):
        book.revoke("shops", 20.0)


@pytest.mark.parametrize("name", ["local", "others"])
def test_no_application_can_be_taken_for_another(name: str) -> None:
    with pytest.raises(UsageError, match="requests without a token"):
        TokenBook().create(replace(SHOP, name=name), 0.0)


def test_a_full_book_lets_go_of_what_is_over_first_of_the_oldest() -> None:
    valid = [replace(SHOP, name=f"a{n}") for n in range(TOKENS_MAX - 2)]
    over = [replace(SHOP, name="x", revoked_at=15.0), replace(SHOP, name="y", expires_at=14.0)]
    book = TokenBook([*valid, *over])
    change = book.create(SHOP, 20.0)
    assert change.writes() == (Delete(TABLE, ("y",)), SHOP.put())
    book.apply(change)
    made(book, replace(SHOP, name="shop2"), 20.0)
    assert len(book.all()) == TOKENS_MAX
    with pytest.raises(UsageError, match=f"{TOKENS_MAX} applications"):
        book.create(replace(SHOP, name="shop3"), 20.0)


def test_a_row_is_what_the_database_takes() -> None:
    put = replace(SHOP, expires_at=1.0, revoked_at=2.0).put()
    assert isinstance(put, Put)
    assert put.row["scopes"] == "infer:m read"
    assert (put.row["expires_at"], put.row["revoked_at"]) == (1.0, 2.0)
