"""Who holds a job's register, and whether a site's updates were counted, over the admin API.

======  =======================  ======================================================
GET     /1/jobs/{job}/audit      what became of this site's updates
POST    /1/jobs/{job}/replace    ``{"gone": NAME, "by": NAME or ""}``
POST    /1/jobs/{job}/recover    ``{"members": [NAME, ...]}``
======  =======================  ======================================================
"""

from collections.abc import Mapping
from typing import Any, Protocol

from aiohttp import web

from agent.api.bodies import Json, answer, read_object
from agent.foundation.errors import UsageError

MEMBERS_MAX = 5
NAME_CHARS_MAX = 64


class CommitteeOperations(Protocol):
    """What the daemon offers; failures are ``AtollError``."""

    async def audit(self, job: str) -> Json:
        """Check the committed rounds, and this site's part in them, from the blobs themselves.

        Keys: job, round (committed, as read last), checked (rounds), findings [str] (empty: sound),
        rows [{round, update, samples, standing, counted_in (round, or None), whole_round, among, epoch,
        aggregator}], region (the id of its job, whose rounds these are; empty: the job's own).
        ``whole_round``: of the whole job, which has counted the region's.

        Raises:
            NotFound: no such job in the catalog.
        """
        ...

    async def replace(self, job: str, gone: str, by: str) -> Json:
        """Put ``by`` (empty: the best living site) in the place of ``gone`` in the job's committee.

        Keys: committee [name].

        Raises:
            NotFound: no such job, or no such site.
            Refused: the job is over or unclaimed, ``gone`` is no member, ``by`` is or may hold nothing.
            Busy: it is not done yet; it goes on.
        """
        ...

    async def recover(self, job: str, members: tuple[str, ...]) -> Json:
        """Take the register over at ``members`` after the loss of a majority for good.

        Keys: committee [name], epoch, round.

        Raises:
            NotFound: no such job, or no such site.
            Refused: a majority is left, or a member that is left out is not revoked.
            Busy: it is not done yet.
        """
        ...


def routes(operations: CommitteeOperations) -> list[web.RouteDef]:
    """To be added to the admin server."""

    async def audit(request: web.Request) -> web.Response:
        return answer(await operations.audit(request.match_info["job"]))

    async def replace(request: web.Request) -> web.Response:
        body = await read_object(request, ("gone", "by"))
        gone, by = _name(body, "gone"), _name(body, "by")
        return answer(await operations.replace(request.match_info["job"], gone, by))

    async def recover(request: web.Request) -> web.Response:
        members = (await read_object(request, ("members",))).get("members")
        if not isinstance(members, list) or len(members) not in (1, 3, MEMBERS_MAX):
            raise UsageError("members: expected a list of 1, 3 or 5 names")
        names = tuple(_name({"members": one}, "members") for one in members)
        return answer(await operations.recover(request.match_info["job"], names))

    return [
        web.get("/1/jobs/{job}/audit", audit),
        web.post("/1/jobs/{job}/replace", replace),
        web.post("/1/jobs/{job}/recover", recover),
    ]


def _name(body: Mapping[str, Any], key: str) -> str:
    found = body.get(key, "")
    if not isinstance(found, str) or len(found) > NAME_CHARS_MAX:
        raise UsageError(f"{key}: expected the name of a site")
    return found
