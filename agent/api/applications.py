"""Tokens of applications over the admin API.

======  ==========================  ================================================
GET     /1/applications/tokens      ``{"tokens": [...]}``
POST    /1/applications/tokens      ``{"name", "scopes", "life_s"}`` -> with the token, this once
POST    /1/applications/revoke      ``{"name"}`` -> the token's row
======  ==========================  ================================================
"""

from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web

from agent.api.bodies import Json, answer, read_object
from agent.api.names import NAME
from agent.foundation.errors import UsageError
from agent.serving.access import check_scopes

LIFE_S = (60.0, 10 * 365 * 86_400.0)
"""Ten years is a mistyped unit rather than a plan; without any limit is for ``life_s`` 0 to say."""


class ApplicationOperations(Protocol):
    """What the daemon offers of tokens; failures are ``AtollError``.

    Keys of a token's row: name, scopes [str], created_at, expires_at, revoked_at (Unix seconds or None),
    state (``valid`` | ``ended`` | ``revoked``, and of the fleet's ``elsewhere``: it is not valid at this
    site), is_fleet (a document of the catalog says so).
    """

    def tokens(self) -> list[Json]:
        """Every token that is kept."""
        ...

    async def create(self, name: str, scopes: tuple[str, ...], life_s: float) -> Json:
        """Make a token that ends after ``life_s`` (0: never); durable when this returns.

        Returns:
            Its row, ``token``: the secret itself, told nowhere else, and ``is_in_force``: whether the
            gateway has confirmed that it lets it in (otherwise it does so within moments).

        Raises:
            UsageError: the name is taken, or there are too many.
        """
        ...

    async def revoke(self, name: str) -> Json:
        """Refuse the token of ``name`` from now on; durable when this returns.

        Returns:
            Its row, and ``is_in_force``: whether the gateway has confirmed that the next request with
            it will be refused.

        Raises:
            NotFound: there is none.
        """
        ...


def routes(operations: ApplicationOperations) -> list[web.RouteDef]:
    """To be added to the admin server."""

    async def show(_: web.Request) -> web.Response:
        return answer({"tokens": operations.tokens()})

    async def create(request: web.Request) -> web.Response:
        body = await read_object(request, {"name", "scopes", "life_s"})
        scopes = body.get("scopes")
        if not isinstance(scopes, list) or not all(isinstance(one, str) for one in scopes):
            raise UsageError("scopes: expected a list of scopes")
        life_s, (low, high) = body.get("life_s", 0), LIFE_S
        if type(life_s) not in (int, float) or not (life_s == 0 or low <= life_s <= high):
            raise UsageError(
                f"life_s: {life_s!r}", why=f"expected {low:g} to {high:g} seconds, or 0: no end"
            )
        return answer(await operations.create(_name(body), check_scopes(scopes), float(life_s)))

    async def revoke(request: web.Request) -> web.Response:
        return answer(await operations.revoke(_name(await read_object(request, {"name"}))))

    return [
        web.get("/1/applications/tokens", show),
        web.post("/1/applications/tokens", create),
        web.post("/1/applications/revoke", revoke),
    ]


def _name(body: Mapping[str, Any]) -> str:
    name = body.get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(f"name: {name!r:.80} is not the name of an application")
    return name
