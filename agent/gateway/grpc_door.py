"""The gateway's third door: the Open Inference Protocol over gRPC, for applications.

The same questions as over HTTP, asked of the same parts; only the form differs. Every failure is a
gRPC status with the text that HTTP would give. A client's deadline is the request's deadline, and a
client that goes away cancels its request. Metadata ``authorization``, ``atoll-residency``,
``atoll-request-id``, ``atoll-priority``, ``atoll-application``, ``traceparent`` and ``tracestate`` are
what the headers of those names are over HTTP; who needs a token and has none is refused before its
message is read.

Bounds: connections, the size of a message, requests under way, and connections that say nothing.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final

import grpc
import grpc.aio
from multidict import CIMultiDict

from agent.drivers.clock import monotonic_s
from agent.drivers.served_certificate import ServedCertificate
from agent.foundation.errors import AtollError, ConfigError
from agent.gateway.about import About
from agent.gateway.applications import Porter, needs, told
from agent.gateway.asked import (
    ONCE_HEADER,
    Answered,
    Asked,
    read_deadline,
    read_once,
    read_question,
    read_request_id,
)
from agent.gateway.grpc_crowd import CONNECTIONS_MAX, GrpcCrowd, read_peer
from agent.gateway.grpc_messages import METHODS, SERVICE, message
from agent.gateway.grpc_tensors import body_of, response_of
from agent.gateway.inference import Inference
from agent.gateway.members import DEADLINE_HEADER, ID_HEADER, SERVED_BY_HEADER
from agent.gateway.precedence import PRIORITY_HEADER, application_of
from agent.gateway.repository import Repository
from agent.gateway.site import SiteState
from agent.routing.policy import Question
from agent.serving.access import LOCAL
from agent.serving.failures import error_text, status_of, told_in
from agent.serving.fair import Priority, read_priority
from agent.serving.trace import read_trace

CALLS_MAX = 256
"""Under way at once; each may hold one message of the largest allowed size while it is read."""
FRAME_BYTES = 64 << 10
"""Beside the tensors: names, shapes, parameters."""
IDLE_MS = 300_000
"""A connection without a call is closed after five minutes."""
HANDSHAKE_MS = 10_000
"""A connection that never says it speaks HTTP/2 is closed; the library would wait two minutes."""
DRAIN_S = 2.0
"""Calls under way at the end have this long."""

_log = logging.getLogger(__name__)
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.UNAVAILABLE,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_TYPES = message("ModelInput").DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
_SCOPES: Final = {
    "ServerLive": "",
    "ServerReady": "",
    "ServerMetadata": "read",
    "ModelReady": "model",
    "ModelMetadata": "model",
    "ModelConfig": "model",
    "ModelStatistics": "read",
    "ModelInfer": "infer",
    "ModelStreamInfer": "infer",
    "RepositoryIndex": "read",
    "RepositoryModelLoad": "repository",
    "RepositoryModelUnload": "repository",
}
"""What a token must be for, as ``openapi.Operation`` has it; inference asks for each request."""

Context = Any
"""``grpc.aio.ServicerContext``; the library's own type is generic over what it does not use."""
Method = Callable[[Any, Context], Awaitable[Any]]


class _Failed(AtollError):
    """A request failed with a status that another part has decided."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class GrpcDoor:
    """The service and its listening port."""

    def __init__(
        self,
        state: SiteState,
        porter: Porter,
        inference: Inference,
        about: About,
        repository: Repository,
    ) -> None:
        """Needs a running loop."""
        self._state, self._porter = state, porter
        self._inference, self._about = inference, about
        self._repository = repository
        self._crowd = GrpcCrowd()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def open(self, host: str, port: int, shown: ServedCertificate | None = None) -> None:
        """Listen; over TLS if there is a certificate to be ``shown``.

        Raises:
            ConfigError: the address cannot be bound.
        """
        largest = self._state.limits.request_bytes_max + FRAME_BYTES
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=CALLS_MAX,
            interceptors=(_EarlyRefusal(self._porter),) if self._porter.is_token_required else (),
            options=(
                ("grpc.max_allowed_incoming_connections", CONNECTIONS_MAX),
                ("grpc.max_receive_message_length", largest),
                ("grpc.max_send_message_length", largest),
                ("grpc.max_connection_idle_ms", IDLE_MS),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
                ("grpc.so_reuseport", 0),
            ),
        )
        self._server.add_generic_rpc_handlers((self._service(),))
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if shown is None:
                self.port = self._server.add_insecure_port(where)
            else:
                self.port = self._server.add_secure_port(where, _credentials(shown))
        except RuntimeError:
            raise ConfigError(
                f"cannot listen for gRPC at {where}",
                why="the port is taken, or the address is not this machine's",
                mend="choose another [listen] grpc_port, or 0 for no gRPC",
            ) from None
        await self._server.start()
        self._crowd.start(self.port)

    async def close(self) -> None:
        """Take no more calls; let those under way end for ``DRAIN_S``."""
        self._crowd.stop()
        if self._server is not None:
            await self._server.stop(DRAIN_S)

    # --- the service -----------------------------------------------------------------------------
    def _service(self) -> grpc.GenericRpcHandler:
        answers: dict[str, Method] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ServerMetadata": self._server_metadata,
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._statistics,
            "ModelInfer": self._infer,
            "RepositoryIndex": self._index,
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
        }
        handlers = {}
        for name, (request, response, is_stream) in METHODS.items():
            if is_stream:
                handlers[name] = grpc.stream_stream_rpc_method_handler(
                    self._infer_stream, request.FromString, response.SerializeToString
                )
            else:
                handlers[name] = grpc.unary_unary_rpc_method_handler(
                    partial(self._answered, name, answers[name]),
                    request.FromString,
                    response.SerializeToString,
                )
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _live(self, _: Any, __: Context) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _ready(self, _: Any, __: Context) -> Any:
        return message("ServerReadyResponse")(ready=not self._state.why_not_ready)

    async def _server_metadata(self, _: Any, __: Context) -> Any:
        return message("ServerMetadataResponse")(**self._about.server())

    # --- models ----------------------------------------------------------------------------------
    async def _model_ready(self, request: Any, context: Context) -> Any:
        question = self._question(request.name, request.version, _headers(context))
        return message("ModelReadyResponse")(ready=self._about.is_ready(question))

    async def _model_metadata(self, request: Any, context: Context) -> Any:
        headers = _headers(context)
        question = self._question(request.name, request.version, headers)
        signature = await self._about.signature(question, read_request_id(headers))
        described = signature.description()
        return message("ModelMetadataResponse")(**described)

    async def _model_config(self, request: Any, context: Context) -> Any:
        headers = _headers(context)
        question = self._question(request.name, request.version, headers)
        signature = await self._about.signature(question, read_request_id(headers))
        config = signature.configuration()
        policy = config.pop("version_policy")["specific"]["versions"]
        for tensor in (*config["input"], *config["output"]):
            tensor["data_type"] = _TYPES[tensor["data_type"]].number
        response = message("ModelConfigResponse")(config=config)
        numbers = [int(version) for version in policy if version.isdecimal()]
        response.config.version_policy.specific.versions.extend(numbers)
        return response

    async def _statistics(self, request: Any, _: Context) -> Any:
        found = self._about.statistics(request.name or None, request.version or None)
        return message("ModelStatisticsResponse")(**found)

    async def _index(self, request: Any, _: Context) -> Any:
        models = self._about.repository(is_ready_only=request.ready)
        return message("RepositoryIndexResponse")(models=models)

    async def _load(self, request: Any, context: Context) -> Any:
        await self._repository.load(request.model_name, _parameters(request), self._who(context))
        return message("RepositoryModelLoadResponse")()

    async def _unload(self, request: Any, context: Context) -> Any:
        await self._repository.unload(request.model_name, _parameters(request), self._who(context))
        return message("RepositoryModelUnloadResponse")()

    def _who(self, context: Context) -> str:
        application = self._porter.authenticate(_tokens(context), context.peer())
        return told(application.name, read_peer(context.peer())[0])

    def _question(
        self, name: str, version: str, headers: CIMultiDict[str], application: str = ""
    ) -> Question:
        """``application``: who brings data; empty = a question about the model only."""
        return read_question(
            self._state, name, version or None, headers, None, application or LOCAL,
            is_data=bool(application),
        )  # fmt: skip

    # --- inference -------------------------------------------------------------------------------
    async def _infer(self, request: Any, context: Context) -> Any:
        headers = _headers(context)
        request_id = read_request_id(headers)
        await context.send_initial_metadata(((ID_HEADER.lower(), request_id),))
        response, served_by = await self._answer(request, context, headers, request_id)
        context.set_trailing_metadata(((SERVED_BY_HEADER.lower(), served_by),))
        return response

    async def _infer_stream(self, requests: AsyncIterator[Any], context: Context) -> Any:
        """Requests of one stream are answered in their order; an error does not end the stream."""
        headers = _headers(context)
        made = message("ModelStreamInferResponse")
        headers.pop(ONCE_HEADER, None)  # of one request, not of all in the stream
        async for request in requests:
            try:
                request_id = read_request_id(CIMultiDict())
                with self._crowd.asking(context.peer()):
                    response, _ = await self._answer(request, context, headers, request_id)
                yield made(infer_response=response)
            except AtollError as error:
                failed = made(error_message=error_text(str(error)))
                failed.infer_response.id = request.id
                yield failed
            except Exception:  # noqa: BLE001 - as for a single request: see _answered
                _log.exception("request failed: ModelStreamInfer")
                yield made(error_message="internal error of the gateway; see its log")

    async def _answer(
        self, request: Any, context: Context, headers: CIMultiDict[str], request_id: str
    ) -> tuple[Any, str]:
        """The response and the name of the site that made it; counted however it ends."""
        application = self._porter.admit(
            _tokens(context), needs("infer", request.model_name), context.peer()
        )
        figures, begun = self._state.figures, monotonic_s()
        asking = figures.of_application(application)
        figures.requests += 1
        asking.requests += 1
        question: Question | None = None
        status = 499  # unless the code below says otherwise, the client is gone (cancelled)
        try:
            question = self._question(
                request.model_name, request.model_version, headers, application
            )
            body, json_bytes = body_of(request)
            asked = Asked(
                id=request_id,
                model=question.model,
                question=question,
                header=str(json_bytes),
                body=body,
                deadline=self._deadline(context, headers),
                trace=read_trace(headers),
                application=application_of(application, headers),
                priority=_priority(request, headers),
                is_default=not request.model_version,
                once=read_once(headers),
            )
            answered = await self._inference.answer(asked)
            response = _response(answered)
            status = answered.status
        except AtollError as error:
            status = _status(error)
            raise
        except Exception:
            status = 500
            raise
        finally:
            if status >= 400:  # noqa: PLR2004
                figures.errors += 1
                asking.errors += 1
                if question is not None:
                    figures.of(question.model.name, question.model.version).failed(status)
        figures.of(question.model.name, question.model.version).succeeded(
            round((monotonic_s() - begun) * 1e6),
            answered.queue_us,
            answered.run_us,
            answered.together,
            is_first=answered.is_first,
        )
        return response, answered.served_by

    async def _answered(self, name: str, method: Method, request: Any, context: Context) -> Any:
        """The method's answer, or its failure as a gRPC status; nothing of the inside shows."""
        try:
            scope = _SCOPES[name]
            if scope and scope != "infer":
                model = getattr(request, "name", "") or getattr(request, "model_name", "")
                self._porter.admit(_tokens(context), needs(scope, model), context.peer())
            with self._crowd.asking(context.peer()):
                return await method(request, context)
        except AtollError as error:
            await context.abort(*_failure(error))
        except grpc.aio.AbortError:
            raise
        except Exception:  # noqa: BLE001 - a fault of one request must not end the others
            _log.exception("request failed: %s", name)
            text = "internal error of the gateway; see its log"
            await context.abort(grpc.StatusCode.INTERNAL, text)

    def _deadline(self, context: Context, headers: CIMultiDict[str]) -> float:
        allowed = read_deadline(self._state, headers, DEADLINE_HEADER)
        left_s = context.time_remaining()
        return allowed if left_s is None else min(allowed, monotonic_s() + left_s)


def _credentials(shown: ServedCertificate) -> grpc.ServerCredentials:
    """The certificate as it is at each handshake."""
    used = shown.pair

    def fetch() -> Any:  # called by the library's threads; None: as before
        nonlocal used
        if used == shown.pair:
            return None
        used = shown.pair
        return grpc.ssl_server_certificate_configuration([used])

    return grpc.dynamic_ssl_server_credentials(
        grpc.ssl_server_certificate_configuration([used]), fetch
    )


class _EarlyRefusal(grpc.aio.ServerInterceptor):
    """Turns away who has no valid token, before anything that may be large is read."""

    def __init__(self, porter: Porter) -> None:
        self._porter = porter

    async def intercept_service(self, continuation: Any, call: Any) -> Any:
        """The handler of the call, or one that reads nothing and refuses."""
        if not _SCOPES.get(call.method.rpartition("/")[2], ""):
            return await continuation(call)
        given = [value for key, value in call.invocation_metadata if key == "authorization"]
        try:
            self._porter.authenticate(given, None)
        except AtollError as error:
            return grpc.stream_stream_rpc_method_handler(partial(_refuse, error))
        return await continuation(call)


async def _refuse(error: AtollError, _: AsyncIterator[Any], context: Context) -> None:
    await context.abort(*_failure(error))


def _failure(error: AtollError) -> tuple[grpc.StatusCode, str]:
    return _CODES.get(_status(error), grpc.StatusCode.INTERNAL), error_text(str(error))


def _parameters(request: Any) -> dict[str, Any]:
    """Of a load or unload, whichever of its kinds each has."""
    return {
        name: getattr(value, value.WhichOneof("parameter_choice") or "string_param")
        for name, value in request.parameters.items()
    }


def _response(answered: Answered) -> Any:
    if answered.status >= 400:  # noqa: PLR2004
        raise _Failed(answered.status, told_in(answered.body))
    return response_of(answered.body, answered.json_bytes)


def _status(error: AtollError) -> int:
    return error.status if isinstance(error, _Failed) else status_of(error)


def _tokens(context: Context) -> list[str]:
    return [value for key, value in context.invocation_metadata() or () if key == "authorization"]


def _priority(request: Any, headers: CIMultiDict[str]) -> Priority:
    """By the metadata, or else by the request's parameter."""
    given: object = headers.get(PRIORITY_HEADER)
    if given is None and "priority" in request.parameters:
        parameter = request.parameters["priority"]
        choice = parameter.WhichOneof("parameter_choice")
        given = None if choice is None else getattr(parameter, choice)
    return Priority.NORMAL if given is None else read_priority(given)


def _headers(context: Context) -> CIMultiDict[str]:
    """The call's metadata, as HTTP's headers; binary values are nobody's."""
    return CIMultiDict(
        (key, value) for key, value in context.invocation_metadata() or () if isinstance(value, str)
    )
