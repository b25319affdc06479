"""The admin API: JSON over HTTP on a Unix socket, for this site's user and root only.

======  ==========================  ================================================
GET     /1/status                   ``Operations.status``
GET     /1/members                  ``{"members": [...]}``
GET     /1/peers                    ``{"peers": [...]}``
GET     /1/models                   ``{"models": [...]}``
GET     /1/jobs, /1/jobs/ID         ``{"jobs": [...]}``, one job
GET     /1/jobs/ID/watch            newline-delimited JSON; empty lines keep it alive
GET     /1/route/explain            ``?model=M&residency=DE,FR``
GET     /1/doctor                   ``{"checks": [...]}``
GET     /1/stamp                    ``{"wall_ms", "count"}`` for the next document, and ``clock()``
POST    /1/documents                ``{"documents": [base64]}`` -> ``{"results": [...]}``
POST    /1/jobs/draft               a job's keys -> ``{"body": base64, "id", "committee"}``
POST    /1/blobs                    the bytes, with a Content-Length -> digest and size
POST    /1/tokens                   a TokenRequest's keys -> ``{"token"}``
POST    /1/renew                    ``{}`` -> ``Operations.renew``
POST    /1/models/release           ``{"model": "name:version"}`` -> how it was before
POST    /1/models/load, .../unload  ``{"model": "name[:version]"}`` -> ``{}``, when it is so
POST    /1/draining                 ``{"draining": bool}``
POST    /1/leave, /1/stop           ``{}``
        /1/trust...                 see ``agent.api.trust``
        /1/applications...          see ``agent.api.applications``
        /1/documents...             see ``agent.api.catalog``
======  ==========================  ================================================

A failure is ``{"error": {"what", "why", "mend"}}`` with 400 (wrong input), 403 (not allowed), 404,
409 (the outcome is unknown, or the configuration forbids it), 503 (try again), or 500 (a defect).
"""

import asyncio
import base64
import binascii
import contextlib
import logging
import os
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Any, Self

import orjson
from aiohttp import web

from agent.api import unix_socket
from agent.api.bodies import Json, answer, read_object
from agent.api.job_spec import parse_job_spec
from agent.api.names import LABEL, NAME
from agent.api.operations import Operations, TokenRequest
from agent.foundation.errors import (
    AtollError,
    Busy,
    ConfigError,
    Malformed,
    NotFound,
    OutcomeUnknown,
    Refused,
    RemoteFault,
    Unreachable,
    UsageError,
)
from agent.identity.claims import LIFE_S_MAX, check_place
from agent.serving.access import LOCAL
from agent.serving.fair import is_application_name
from agent.wire.documents import BODIES
from agent.wire.limits import BLOB_BYTES_MAX, DOCUMENT_BYTES_MAX

DOCUMENTS_PER_REQUEST_MAX = 64
"""An operator's change is a handful of documents."""
BODY_BYTES_MAX = DOCUMENTS_PER_REQUEST_MAX * (DOCUMENT_BYTES_MAX + 1024) * 4 // 3 + 4096
"""The largest JSON body: that many documents in base64."""
WATCHERS_MAX = 32
"""Open job streams: each is one subscription in the daemon."""
UPLOADS_MAX = 4
"""More at once would only share one disk."""
KEEP_ALIVE_S = 15.0
"""An empty line this often on an idle stream finds out that the reader is gone."""
SHUTDOWN_S = 2.0
"""How long a request in progress may take to end when the site stops."""
READ_BYTES = 256 << 10
TOKEN_TTL_S = (60.0, 604_800.0)

_log = logging.getLogger("atoll.api")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AdminServer:
    """The socket, served until closed."""

    def __init__(self, runner: web.AppRunner, api: "_Api", path: Path, inode: int) -> None:
        """Use ``start``."""
        self._runner = runner
        self._api = api
        self._path = path
        self._inode = inode

    @classmethod
    async def start(
        cls, operations: Operations, path: Path, more: Sequence[web.RouteDef] = ()
    ) -> Self:
        """Listen at ``path`` and answer from ``operations``; ``more`` adds routes of other parts.

        Raises:
            ConfigError: the socket cannot be created, or another agent answers there.
        """
        api = _Api(operations, frozenset({0, os.geteuid()}))
        runner = web.AppRunner(
            api.application(more),
            access_log=None,
            shutdown_timeout=SHUTDOWN_S,
            handle_signals=False,
        )
        await runner.setup()
        try:
            listener, inode = unix_socket.bind(path)
            await web.SockSite(runner, listener).start()
        except BaseException:
            await runner.cleanup()
            raise
        return cls(runner, api, path, inode)

    async def close(self) -> None:
        """Stop listening, end open streams, remove the socket's file."""
        unix_socket.remove(self._path, self._inode)
        self._api.end_streams()
        await self._runner.cleanup()


class _Api:
    def __init__(self, operations: Operations, allowed_uids: frozenset[int]) -> None:
        self._operations = operations
        self._allowed_uids = allowed_uids
        self._watchers: set[asyncio.Task[Any]] = set()
        self._uploads = 0

    def application(self, more: Sequence[web.RouteDef] = ()) -> web.Application:
        application = web.Application(
            middlewares=[self._guard],
            client_max_size=BODY_BYTES_MAX,
        )
        application.router.add_routes(
            [
                *more,
                web.get("/1/status", self._status),
                web.get("/1/members", self._members),
                web.get("/1/peers", self._peers),
                web.get("/1/models", self._models),
                web.get("/1/jobs", self._jobs),
                web.post("/1/jobs/draft", self._draft),
                web.get("/1/jobs/{job}", self._job),
                web.get("/1/jobs/{job}/watch", self._watch),
                web.get("/1/route/explain", self._explain),
                web.get("/1/doctor", self._doctor),
                web.get("/1/stamp", self._stamp),
                web.post("/1/documents", self._submit),
                web.post("/1/blobs", self._blob),
                web.post("/1/tokens", self._token),
                web.post("/1/renew", self._renew),
                web.post("/1/models/release", self._release),
                web.post("/1/models/load", self._load),
                web.post("/1/models/unload", self._unload),
                web.post("/1/draining", self._draining),
                web.post("/1/leave", self._leave),
                web.post("/1/stop", self._stop),
            ]
        )
        return application

    def end_streams(self) -> None:
        for task in self._watchers:
            task.cancel()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._check_peer(request)
            return await handler(request)
        except AtollError as error:
            return _failure(error)
        except web.HTTPRequestEntityTooLarge:
            return _failure(
                UsageError("the request is too large", why=f"the bound is {BODY_BYTES_MAX:,} bytes")
            )
        except web.HTTPException as error:
            return answer(
                {"error": {"what": f"{request.method} {request.path}: {error.reason}", "why": "",
                           "mend": "the command line and the agent may be of different versions"}},
                error.status,
            )  # fmt: skip
        except ConnectionError:
            raise  # the operator hung up
        except Exception:  # noqa: BLE001 - one defect must not cost the operator the other answers
            _log.exception("admin request %s %s failed", request.method, request.path)
            return answer(
                {"error": {"what": f"{request.method} {request.path} failed",
                           "why": "a defect in the agent; its log has the details",
                           "mend": "journalctl -u atoll"}},
                500,
            )  # fmt: skip

    def _check_peer(self, request: web.Request) -> None:
        connection = request.get_extra_info("socket")
        if connection is None:
            raise ConnectionResetError("the operator hung up")
        if (uid := unix_socket.peer_uid(connection)) not in self._allowed_uids:
            raise Refused(
                f"user {uid} may not administer this site",
                why="only root and the user that runs the agent may",
                mend="run the command as root (sudo)",
            )

    # --- reading ---------------------------------------------------------------------------------
    async def _status(self, _: web.Request) -> web.Response:
        return answer(self._operations.status())

    async def _members(self, _: web.Request) -> web.Response:
        return answer({"members": self._operations.members()})

    async def _peers(self, _: web.Request) -> web.Response:
        return answer({"peers": self._operations.peers()})

    async def _models(self, _: web.Request) -> web.Response:
        return answer({"models": self._operations.models()})

    async def _jobs(self, _: web.Request) -> web.Response:
        return answer({"jobs": self._operations.jobs()})

    async def _job(self, request: web.Request) -> web.Response:
        return answer(await self._operations.job(request.match_info["job"]))

    async def _explain(self, request: web.Request) -> web.Response:
        model = _named(request.query.get("model", ""))
        residency = [label for label in request.query.get("residency", "").split(",") if label]
        for label in residency:
            if not LABEL.fullmatch(label):
                raise UsageError(f"{label!r} is no jurisdiction")
        application = request.query.get("application", LOCAL)
        if not is_application_name(application):
            raise UsageError(f"{application[:80]!r} is no name of an application")
        return answer(self._operations.explain(model, residency, application))

    async def _doctor(self, _: web.Request) -> web.Response:
        return answer({"checks": await self._operations.doctor()})

    async def _stamp(self, _: web.Request) -> web.Response:
        stamp = self._operations.stamp()
        return answer({"wall_ms": stamp.wall_ms, "count": stamp.count, **self._operations.clock()})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if len(self._watchers) >= WATCHERS_MAX:
            raise Busy("too many open job streams", why=f"the bound is {WATCHERS_MAX}")
        task = asyncio.current_task()
        assert task is not None
        self._watchers.add(task)
        try:
            return await self._stream(
                request, self._operations.watch_job(request.match_info["job"])
            )
        finally:
            self._watchers.discard(task)

    async def _stream(self, request: web.Request, items: AsyncIterator[Json]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        async with contextlib.AsyncExitStack() as stack:
            if (close := getattr(items, "aclose", None)) is not None:
                stack.push_async_callback(close)
            try:
                first = await anext(items)  # a wrong id is a plain 404, so look before the header
            except StopAsyncIteration:
                return answer({"error": {"what": "the stream ended", "why": "", "mend": ""}}, 503)
            # Left in reverse order: the step that waits inside ``items`` ends before it is closed.
            lines = await stack.enter_async_context(contextlib.aclosing(_lines(items)))
            try:
                await response.prepare(request)
                await response.write(orjson.dumps(first) + b"\n")
                async for line in lines:
                    await response.write(line)
                await response.write_eof()
            except ConnectionError:
                _log.debug("the reader of %s is gone", request.path)
        return response

    # --- changing --------------------------------------------------------------------------------
    async def _draft(self, request: web.Request) -> web.Response:
        job = await self._operations.draft_job(parse_job_spec(await read_object(request)))
        return answer(
            {
                "id": job.id,
                "committee": [site.hex() for site in job.committee],
                "body": base64.b64encode(BODIES.pack(job)).decode(),
            }
        )

    async def _submit(self, request: web.Request) -> web.Response:
        given = (await read_object(request)).get("documents")
        if not isinstance(given, list) or not 0 < len(given) <= DOCUMENTS_PER_REQUEST_MAX:
            raise UsageError(f"documents: expected a list of 1 to {DOCUMENTS_PER_REQUEST_MAX}")
        try:
            documents = [base64.b64decode(text, validate=True) for text in given]
        except (binascii.Error, TypeError, ValueError):
            raise UsageError("documents: expected base64 text") from None
        return answer({"results": await self._operations.submit(documents)})

    async def _blob(self, request: web.Request) -> web.Response:
        size = request.content_length
        if size is None:
            raise UsageError("an upload needs a Content-Length")
        if size > BLOB_BYTES_MAX:
            raise Refused(f"a blob of {size:,} bytes", why=f"the bound is {BLOB_BYTES_MAX:,}")
        if self._uploads >= UPLOADS_MAX:
            raise Busy("too many uploads at once", why=f"the bound is {UPLOADS_MAX}")
        self._uploads += 1
        try:
            return answer(await self._operations.store_blob(_upload(request, size)))
        finally:
            self._uploads -= 1

    async def _token(self, request: web.Request) -> web.Response:
        body = await read_object(request)
        wanted = _token_request(body)
        return answer({"token": await self._operations.create_token(wanted)})

    async def _renew(self, _: web.Request) -> web.Response:
        return answer(await self._operations.renew())

    async def _release(self, request: web.Request) -> web.Response:
        model = (await read_object(request)).get("model")
        if not isinstance(model, str):
            raise UsageError("model: expected name:version")
        return answer(await self._operations.release_model(model))

    async def _load(self, request: web.Request) -> web.Response:
        await self._operations.control_model(await _model(request), is_load=True)
        return answer({})

    async def _unload(self, request: web.Request) -> web.Response:
        await self._operations.control_model(await _model(request), is_load=False)
        return answer({})

    async def _draining(self, request: web.Request) -> web.Response:
        draining = (await read_object(request)).get("draining")
        if not isinstance(draining, bool):
            raise UsageError("draining: expected true or false")
        await self._operations.set_draining(draining)
        return answer({"draining": draining})

    async def _leave(self, _: web.Request) -> web.Response:
        await self._operations.leave()
        return answer({})

    async def _stop(self, _: web.Request) -> web.Response:
        await self._operations.stop()
        return answer({})


async def _lines(items: AsyncIterator[Json]) -> AsyncGenerator[bytes]:
    """Each item as a line; an empty line whenever ``KEEP_ALIVE_S`` pass without one."""
    following: asyncio.Future[Json | None] = asyncio.ensure_future(anext(items, None))
    try:
        while True:
            await asyncio.wait({following}, timeout=KEEP_ALIVE_S)
            if not following.done():
                yield b"\n"
                continue
            if (item := following.result()) is None:
                return
            yield orjson.dumps(item) + b"\n"
            following = asyncio.ensure_future(anext(items, None))
    finally:
        if not following.done():
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following


async def _upload(request: web.Request, size: int) -> AsyncIterator[bytes]:
    """The body, whole or not at all: a connection that broke must not become a shorter blob."""
    received = 0
    try:
        async for chunk in request.content.iter_chunked(READ_BYTES):
            received += len(chunk)
            yield chunk
    except (web.RequestPayloadError, ConnectionError) as error:
        raise Malformed("the upload broke off", why=f"{received:,} of {size:,} bytes") from error
    if received != size:
        raise Malformed("the upload broke off", why=f"{received:,} of {size:,} bytes")


async def _model(request: web.Request) -> str:
    return _named((await read_object(request)).get("model"))


def _named(model: object) -> str:
    if not isinstance(model, str) or not all(map(NAME.fullmatch, model.split(":", 1))):
        raise UsageError(f"{model!r:.80} names no model", mend="give NAME or NAME:VERSION")
    return model


def _token_request(body: Mapping[str, Any]) -> TokenRequest:
    known = ("name", "region", "tier", "jurisdiction", "roles", "ttl_s", "life_s")
    if unknown := [key for key in body if key not in known]:
        raise UsageError(f"unknown key {unknown[0]!r}", why="known: " + ", ".join(known))
    for key in ("name", "region", "tier", "jurisdiction"):
        if not isinstance(body.get(key), str):
            raise UsageError(f"{key}: expected text, not {body.get(key)!r}")
    roles = body.get("roles", [])
    if not isinstance(roles, list) or not all(isinstance(role, str) for role in roles):
        raise UsageError(f"roles: {roles!r} is not a list of names")
    roles = tuple(dict.fromkeys(roles))
    check_place(body["name"], body["region"], body["tier"], body["jurisdiction"], roles)
    ttl_s = body.get("ttl_s", 3600.0)
    low, high = TOKEN_TTL_S
    if type(ttl_s) not in (int, float) or not low <= ttl_s <= high:
        raise UsageError(f"ttl_s: {ttl_s!r}", why=f"expected {low:g} to {high:g} seconds")
    life_s = body.get("life_s", 0)
    if type(life_s) is not int or not 0 <= life_s <= LIFE_S_MAX:
        raise UsageError(f"life_s: {life_s!r}", why=f"expected at most {LIFE_S_MAX} seconds")
    return TokenRequest(
        name=body["name"],
        region=body["region"],
        tier=body["tier"],
        jurisdiction=body["jurisdiction"],
        roles=roles,
        ttl_s=float(ttl_s),
        life_s=life_s,
    )


def _status_of(error: AtollError) -> int:
    match error:
        case Refused():
            return 403
        case NotFound():
            return 404
        case Busy() | Unreachable():
            return 503
        case UsageError() | RemoteFault():
            return 400
        case OutcomeUnknown() | ConfigError():
            return 409
        case _:
            return 503  # the store or the disk: mended by the operator, then tried again


def _failure(error: AtollError) -> web.Response:
    response = answer(
        {"error": {"what": error.what, "why": error.why, "mend": error.mend}}, _status_of(error)
    )
    if isinstance(error, Busy):
        response.headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    return response
