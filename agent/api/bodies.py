"""JSON bodies of the admin API: what is asked, and what is answered."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson
from aiohttp import web

from agent.foundation.errors import UsageError

Json = dict[str, Any]


async def read_object(
    request: web.Request, known: Collection[str] | None = None
) -> Mapping[str, Any]:
    """The object that is the request's body; ``known`` are the only keys it may have.

    The server bounds its length (``api.admin.BODY_BYTES_MAX``).

    Raises:
        UsageError: it is none, or has another key.
    """
    try:
        value = orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise UsageError("the request's body is not JSON", why=str(error)) from None
    if not isinstance(value, dict):
        raise UsageError("the request's body is not a JSON object")
    if known is not None and (unknown := sorted(set(value) - set(known))):
        raise UsageError(
            f"unknown key {unknown[0]!r:.80}", why=f"known: {', '.join(sorted(known))}"
        )
    return value


def answer(value: Json, status: int = 200) -> web.Response:
    """The answer with a JSON body."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")
