"""Rollouts over the admin API.

======  =============  =============================================================
GET     /1/rollouts    ``{"rollouts": [...]}``; ``?model=M``: of that model only
======  =============  =============================================================
"""

from typing import Protocol

from aiohttp import web

from agent.api.bodies import Json, answer


class RolloutOperations(Protocol):
    """What the daemon offers of rollouts."""

    def rollouts(self, model: str) -> list[Json]:
        """Those under way or ended, by model; an empty text matches all.

        Keys: model, version, previous, established (the version that serves until the new one has
        proved itself), is_stopped (it has failed, here or elsewhere), terms (as in a catalog file),
        waves [[{name, presence, stage, requests, errors, p99_ms, gate}]] as each site tells of itself,
        and here {stage, reason, waiting, requests, errors, p99_ms} as this site knows itself.
        """
        ...


def routes(operations: RolloutOperations) -> list[web.RouteDef]:
    """To be added to the admin server."""

    async def show(request: web.Request) -> web.Response:
        return answer({"rollouts": operations.rollouts(request.query.get("model", ""))})

    return [web.get("/1/rollouts", show)]
