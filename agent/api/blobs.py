"""The blobs of a site over the admin API.

======  ==================  ===========================================================
GET     /1/blobs            those that are here, and how much room there is
POST    /1/blobs/collect    ``{"removed": [hex]}``: what nothing names goes now
======  ==================  ===========================================================
"""

from typing import Protocol

from aiohttp import web

from agent.api.bodies import Json, answer


class BlobOperations(Protocol):
    """What the daemon offers of blobs; failures are ``AtollError``."""

    async def blobs(self) -> Json:
        """What is here.

        Keys: blobs [{digest, bytes (on disk), state (``whole`` | ``partial`` | ``fetching``), standing
        (``wanted`` | ``named`` | ``unnamed``), names [str], residency [str], goes_in_s (None: stays)}],
        used_bytes and bytes_max of all (0: no bound), free_bytes and reserve_bytes of the disk.

        Raises:
            Malformed: a newer version has decided something that this one cannot read.
        """
        ...

    async def collect(self) -> list[str]:
        """Remove blobs that nothing names, and parts of those that nobody wants here; digests in hex."""
        ...


def routes(operations: BlobOperations) -> list[web.RouteDef]:
    """To be added to the admin server."""

    async def show(_: web.Request) -> web.Response:
        return answer(await operations.blobs())

    async def collect(_: web.Request) -> web.Response:
        return answer({"removed": await operations.collect()})

    return [web.get("/1/blobs", show), web.post("/1/blobs/collect", collect)]
