"""Programs notice nothing; a browser on a foreign page gets nothing."""

import pytest

from agent.foundation.errors import Refused
from agent.gateway.guard import check_names

NAMES = frozenset({"models.example.com"})


@pytest.mark.parametrize(
    "host",
    [
        None,
        "127.0.0.1:8000",
        "127.0.0.1",
        "10.1.2.3:8000",
        "[::1]:8000",
        "[fe80::1%25eth0]:8000",
        "localhost:8000",
        "LOCALHOST",
        "app.localhost:8000",
        "edge-7",
        "edge-7:8000",
        "edge-7.local.",
        "edge-7.internal:80",
        "Models.Example.com:8000",
    ],
)
def test_names_that_only_somebody_inside_can_choose_are_answered(host: str | None) -> None:
    check_names(host, None, NAMES)


@pytest.mark.parametrize(
    "host",
    ["evil.com", "evil.com:8000", "127.0.0.1.evil.com", "127.0.0.1@evil.com", "", "localhost.evil.io",
     "evil.com:8000:1", "[::1", "models.example.com.evil.com"],
)  # fmt: skip
def test_foreign_names_are_refused_and_told_how_to_be_allowed(host: str) -> None:
    with pytest.raises(Refused, match="http_names"):
        check_names(host, None, NAMES)


@pytest.mark.parametrize(
    ("origin", "taken"),
    [
        ("http://localhost:3000", True),
        ("http://192.168.0.7", True),
        ("https://models.example.com", True),
        ("https://evil.com", False),
        ("null", False),
        ("", False),
        ("http://127.0.0.1.evil.com", False),
        ("file://", False),
    ],
)
def test_pages_may_ask_only_if_they_are_local(origin: str, *, taken: bool) -> None:
    if taken:
        check_names("127.0.0.1:8000", origin, NAMES)
    else:
        with pytest.raises(Refused, match="foreign page"):
            check_names("127.0.0.1:8000", origin, NAMES)
