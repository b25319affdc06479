"""What a web page may not do: reach this site's applications' port through somebody's browser.

Any page can send requests to 127.0.0.1, and a name that its owner points there makes the answers
readable too (DNS rebinding). So a request is taken only if the name it asks for can be this machine's
own, and, where a browser says which page it comes from, if that page is local as well. Clients that
are no browsers send the address they connect to and no origin: they notice nothing.

Source: RFC 9110 section 7.2 (Host), RFC 6454 section 7 (Origin).
"""

from collections.abc import Collection
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from agent.foundation.errors import Refused

LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa")
"""Names that public DNS never answers (RFC 6761, 6762, 8375; ICANN reserves .internal)."""
SHOWN_CHARS = 80
REMEMBERED_MAX = 64
"""Pairs of Host and Origin that were let through: clients name a site in a few ways only."""


def is_local_name(host: str, names: Collection[str]) -> bool:
    """Whether only somebody inside could have chosen ``host``.

    True for an address, a name without a domain, a name that public DNS does not answer, and one of
    ``names`` (lower case).
    """
    host = host.lower().rstrip(".")
    if host in names or host.endswith(LOCAL_ENDINGS):
        return True
    try:
        ip_address(host)
    except ValueError:
        return "." not in host and host != ""
    return True


def check_names(host: str | None, origin: str | None, names: Collection[str]) -> None:
    """Let through what a browser on a foreign page cannot have sent.

    Args:
        host: the header, with or without a port; None as HTTP/1.0 allows.
        origin: the header; None if there is none.
        names: further names of this machine, lower case.

    Raises:
        Refused: says which header, and what to set if the name is this machine's.
    """
    if host is not None and not is_local_name(_host_of(f"//{host}"), names):
        raise Refused(
            f"this site does not answer to the name {host[:SHOWN_CHARS]!r}",
            why="a foreign name may lead a browser here (DNS rebinding)",
            mend="use its address, or add the name to [listen] http_names",
        )
    if origin is not None and (origin == "null" or not is_local_name(_host_of(origin), names)):
        raise Refused(
            f"pages of {origin[:SHOWN_CHARS]!r} may not use this site",
            why="the request comes from a browser on a foreign page",
            mend="call from a program, or add the page's host to [listen] http_names",
        )


def local_names_only(names: Collection[str]) -> Middleware:
    """The check as a middleware of the applications' door."""
    lower = frozenset(name.lower() for name in names)
    check = lru_cache(REMEMBERED_MAX)(lambda host, origin: check_names(host, origin, lower))

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = request.headers
        check(headers.get("Host"), headers.get("Origin"))
        return await handler(request)

    return guard


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
