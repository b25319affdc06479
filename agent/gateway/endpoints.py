"""The Open Inference Protocol v2 over HTTP, as existing clients speak it.

The same routes serve applications (plain HTTP on loopback) and members (mutual TLS); a member's
requests carry how often they were passed on, and are checked again. Every error is
``{"error": "..."}``.

Source: kserve/open-inference-protocol ``inference_rest.md``; triton-inference-server/server
``docs/protocol/extension_{binary_data,model_repository,statistics,model_configuration}.md``.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from math import ceil
from typing import Any

import orjson
from aiohttp import web
from aiohttp.hdrs import WWW_AUTHENTICATE

from agent.drivers.clock import monotonic_s
from agent.foundation.errors import AtollError, Busy, UsageError
from agent.foundation.ids import SiteId
from agent.gateway.about import About
from agent.gateway.applications import APPLICATION, Porter, told
from agent.gateway.asked import (
    REPLAYED_HEADER,
    Answered,
    Asked,
    read_deadline,
    read_once,
    read_question,
    read_request_id,
)
from agent.gateway.bodies import Bodies
from agent.gateway.elsewhere import RETRY_HEADER
from agent.gateway.inference import Inference
from agent.gateway.members import DEADLINE_HEADER, ID_HEADER, LOST_HEADER, SERVED_BY_HEADER
from agent.gateway.openapi import OPERATIONS, Operation, document
from agent.gateway.precedence import application_of, priority_of
from agent.gateway.repository import PUSH, Repository, read_parameters
from agent.gateway.site import SiteState
from agent.routing.policy import Question
from agent.serving.failures import (
    RequestLost,
    ScopeLacking,
    TooLarge,
    Unauthenticated,
    error_body,
    status_of,
)
from agent.serving.request import HEADER_NAME
from agent.serving.signature import Signature
from agent.serving.trace import read_trace

CALLER: web.RequestKey[SiteId] = web.RequestKey("caller", SiteId)
"""The member that sent the request; absent for applications."""
REPOSITORY_BODY_BYTES_MAX = 1 << 16
STATUS_CLIENT_GONE = 499

_JSON = "application/json"
_log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes the protocol's error object; nothing of this program's inside shows."""
    try:
        return await handler(request)
    except AtollError as error:
        return _error(status_of(error), str(error), error)
    except web.HTTPException as error:
        if error.status < 400:  # noqa: PLR2004
            raise
        text = f"{error.reason}: {request.method} {request.path[:200]}"
        response = _error(error.status, text)
        if isinstance(error, web.HTTPMethodNotAllowed):
            response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except Exception:  # noqa: BLE001 - a fault of one request must not end the others
        _log.exception("request failed: %s %s", request.method, request.path)
        return _error(500, "internal error of the gateway; see its log")


def _error(status: int, text: str, error: AtollError | None = None) -> web.Response:
    response = web.Response(status=status, body=error_body(text), content_type=_JSON)
    if isinstance(error, Busy):
        response.headers[RETRY_HEADER] = str(max(1, ceil(error.retry_after_s)))
    elif isinstance(error, Unauthenticated | ScopeLacking):
        response.headers[WWW_AUTHENTICATE] = error.challenge
    elif status in (429, 503):
        response.headers[RETRY_HEADER] = "1"
    if isinstance(error, RequestLost):
        response.headers[LOST_HEADER] = "true"
    return response


def _json(content: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(content), content_type=_JSON)


class Endpoints:
    """The routes and what answers them."""

    def __init__(
        self,
        state: SiteState,
        inference: Inference,
        bodies: Bodies,
        about: About,
        repository: Repository,
    ) -> None:
        self._state = state
        self._inference = inference
        self._bodies = bodies
        self._about = about
        self._repository = repository

    def routes(
        self, porter: Porter | None, operations: Sequence[Operation] = OPERATIONS
    ) -> list[web.RouteDef]:
        """The routes of a door: of the protocol, and the counters.

        Inference first: routes of one prefix are tried in their order.

        Args:
            porter: of the doors for applications; None where members ask, who need no token.
            operations: those that are offered there.
        """
        made_by = {"GET": web.get, "POST": web.post}  # the former answers HEAD too
        routes = []
        for one in sorted(operations, key=lambda one: one.answers_by != "infer"):
            handler: Handler = getattr(self, one.answers_by)
            if porter is not None:
                handler = porter.guard(one.scope, handler)
            routes.append(made_by[one.method](one.path, handler))
        return routes

    # --- the server ------------------------------------------------------------------------------
    async def server_metadata(self, _: web.Request) -> web.Response:
        """``GET /v2``."""
        return _json(self._about.server())

    async def openapi(self, _: web.Request) -> web.Response:
        """``GET /v2/openapi.json``: what can be asked of this port."""
        return _json(document(is_token_required=self._state.limits.is_token_required))

    async def live(self, _: web.Request) -> web.Response:
        """``GET /v2/health/live``: this process answers."""
        return _json({"live": True})

    async def ready(self, _: web.Request) -> web.Response:
        """``GET /v2/health/ready``: requests are taken; 400 if not, as Triton answers."""
        if why := self._state.why_not_ready:
            return _json({"ready": False, "error": why}, 400)
        return _json({"ready": True})

    async def metrics(self, _: web.Request) -> web.Response:
        """``GET /metrics``: Prometheus text."""
        state = self._state
        gauges = (
            ("nv_inference_pending_request_count", "Requests under way", state.admission.in_flight),
            ("atoll_slots", "Requests the model workers can hold", state.slots),
            ("atoll_ready", "Whether requests are taken", float(not state.why_not_ready)),
            ("atoll_wait_seconds", "Predicted wait", state.admission.wait_s(state.runners)),
        )
        text = state.figures.render(gauges) + state.render_workers()
        text += state.lag.render() + state.waits.render()
        text += await state.figures_of_control()
        return web.Response(text=text, content_type="text/plain", charset="utf-8")

    async def repository_index(self, request: web.Request) -> web.Response:
        """``POST /v2/repository/index``: the models of the catalog and their state here."""
        is_ready_only = await self._wants_ready_only(request)
        return _json(self._about.repository(is_ready_only=is_ready_only))

    async def repository_load(self, request: web.Request) -> web.Response:
        """``POST /v2/repository/models/M/load``: serve it here; answered when it is ready."""
        return await self._control(request, self._repository.load)

    async def repository_unload(self, request: web.Request) -> web.Response:
        """``POST /v2/repository/models/M/unload``: serve it here no more."""
        return await self._control(request, self._repository.unload)

    async def _control(
        self, request: web.Request, carry_out: Callable[..., Awaitable[None]]
    ) -> web.Response:
        try:
            async with self._bodies.body(
                request, request[APPLICATION], REPOSITORY_BODY_BYTES_MAX
            ) as body:
                parameters = read_parameters(body)
        except TooLarge:
            raise TooLarge(
                "the body is too large",
                why="a model is not sent with its load: it comes from the cluster's catalog",
                mend=f"publish it with {PUSH}, then load it by its name",
            ) from None
        who = told(request[APPLICATION], request.remote or "")
        await carry_out(request.match_info["model"], parameters, who, request.get(CALLER))
        return _json({})

    async def _wants_ready_only(self, request: web.Request) -> bool:
        async with self._bodies.body(
            request, request[APPLICATION], REPOSITORY_BODY_BYTES_MAX
        ) as body:
            if not body:
                return False
            try:
                content = orjson.loads(body)
            except orjson.JSONDecodeError as error:
                raise UsageError("the request is not JSON", why=str(error)) from None
        if not isinstance(content, dict) or not isinstance(content.get("ready", False), bool):
            raise UsageError("the request is not an object with ready: true or false")
        return bool(content.get("ready", False))

    # --- models ----------------------------------------------------------------------------------
    async def model_metadata(self, request: web.Request) -> web.Response:
        """``GET /v2/models/M[/versions/V]``, of a model that is served here or elsewhere."""
        return await self._signature(request, lambda signature: signature.metadata())

    async def model_config(self, request: web.Request) -> web.Response:
        """``GET /v2/models/M[/versions/V]/config``, as Triton words it."""
        return await self._signature(request, lambda signature: signature.config())

    async def model_ready(self, request: web.Request) -> web.Response:
        """``GET /v2/models/M[/versions/V]/ready``: whether a request would find a site now."""
        question = self._question(request)
        is_ready = self._about.is_ready(question)
        return _json({"name": question.model.name, "ready": is_ready}, 200 if is_ready else 400)

    async def statistics(self, request: web.Request) -> web.Response:
        """``GET /v2/models[/M[/versions/V]]/stats``: counters of requests answered through here."""
        found = request.match_info
        return _json(self._about.statistics(found.get("model"), found.get("version")))

    def _question(self, request: web.Request, *, is_data: bool = False) -> Question:
        return read_question(
            self._state,
            request.match_info["model"],
            request.match_info.get("version"),
            request.headers,
            request.get(CALLER),
            request[APPLICATION],
            is_data=is_data,
        )

    async def _signature(
        self, request: web.Request, form: Callable[[Signature], bytes]
    ) -> web.Response:
        request_id = read_request_id(request.headers)
        signature = await self._about.signature(self._question(request), request_id)
        return web.Response(body=form(signature), content_type=_JSON)

    # --- inference -------------------------------------------------------------------------------
    async def infer(self, request: web.Request) -> web.Response:
        """``POST /v2/models/M[/versions/V]/infer``."""
        state = self._state
        state.figures.requests += 1
        state.figures.received += CALLER in request
        asking = state.figures.of_application(request[APPLICATION])
        asking.requests += 1
        begun = monotonic_s()
        request_id = read_request_id(request.headers)
        question: Question | None = None
        status = 500
        try:
            question = self._question(request, is_data=True)
            answered = await self._infer(request, question, request_id)
            status = answered.status
            response = _response(answered)
            if status < 400:  # noqa: PLR2004
                state.figures.of(question.model.name, question.model.version).succeeded(
                    round((monotonic_s() - begun) * 1e6),
                    answered.queue_us,
                    answered.run_us,
                    answered.together,
                    is_first=answered.is_first,
                )
        except AtollError as error:
            status = status_of(error)
            response = _error(status, str(error), error)
        except BaseException:  # the client is gone (cancelled), or a fault: counted, not hidden
            asking.errors += 1
            self._failed(question, STATUS_CLIENT_GONE)
            raise
        if status >= 400:  # noqa: PLR2004
            asking.errors += 1
            self._failed(question, status)
        response.headers[ID_HEADER] = request_id
        return response

    async def _infer(self, request: web.Request, question: Question, request_id: str) -> Answered:
        headers = request.headers
        deadline = read_deadline(self._state, headers, DEADLINE_HEADER)
        if len(headers.getall(HEADER_NAME, ())) > 1:
            raise UsageError(f"{HEADER_NAME} is given more than once")
        header = headers.get(HEADER_NAME)
        application = application_of(request[APPLICATION], headers)
        async with self._bodies.body(request, application) as body:
            return await self._inference.answer(
                Asked(
                    id=request_id,
                    model=question.model,
                    question=question,
                    header=header,
                    body=body,
                    deadline=deadline,
                    trace=read_trace(request.headers),
                    application=application,
                    is_default="version" not in request.match_info,
                    priority=priority_of(headers, header, body),
                    once=read_once(headers) if CALLER not in request else None,
                )
            )

    def _failed(self, question: Question | None, status: int) -> None:
        self._state.figures.errors += 1
        if question is not None:
            self._state.figures.of(question.model.name, question.model.version).failed(status)


def _response(answered: Answered) -> web.Response:
    headers = {SERVED_BY_HEADER: answered.served_by}
    if answered.json_bytes is None:
        headers["Content-Type"] = _JSON
    else:
        headers["Content-Type"] = "application/octet-stream"
        headers[HEADER_NAME] = str(answered.json_bytes)
    if answered.retry_after is not None:
        headers[RETRY_HEADER] = answered.retry_after
    if answered.is_replayed:
        headers[REPLAYED_HEADER] = "true"
    return web.Response(status=answered.status, body=answered.body, headers=headers)
