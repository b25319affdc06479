"""The catalog's documents over the admin API.

======  =====================  =====================================================
GET     /1/documents           ``{"documents": [...]}``; ``?kind=K``, ``?name=N`` narrow it
GET     /1/documents/history   ``?kind=K&name=N``: ``{"history": [...]}``, newest first
======  =====================  =====================================================

Keys of a document: kind, name, wall_ms, count (its stamp), author (hex), body (base64 of
``wire.documents.BODIES``). They are submitted at ``POST /1/documents``.
"""

from typing import Protocol

from aiohttp import web

from agent.api.bodies import Json, answer
from agent.foundation.errors import UsageError
from agent.wire.documents import KINDS, Key


class CatalogOperations(Protocol):
    """What the daemon offers of the catalog; failures are ``AtollError``."""

    def documents(self, kind: str, name: str) -> list[Json]:
        """The newest document of each key; empty texts match all."""
        ...

    async def history(self, key: Key) -> list[Json]:
        """What this site knows that the document has said, newest first.

        Raises:
            NotFound: there is no such document.
        """
        ...


def routes(operations: CatalogOperations) -> list[web.RouteDef]:
    """To be added to the admin server."""

    async def show(request: web.Request) -> web.Response:
        kind = request.query.get("kind", "")
        _check_kind(kind, "", *KINDS)
        return answer({"documents": operations.documents(kind, request.query.get("name", ""))})

    async def history(request: web.Request) -> web.Response:
        kind, name = request.query.get("kind", ""), request.query.get("name", "")
        _check_kind(kind, *KINDS)
        return answer({"history": await operations.history(Key(kind, name))})

    return [web.get("/1/documents", show), web.get("/1/documents/history", history)]


def _check_kind(kind: str, *known: str) -> None:
    if kind not in known:
        raise UsageError(f"kind: {kind!r:.80} is none", why=f"known: {', '.join(KINDS)}")
