"""The OpenAPI document of the applications' port: what can be asked, how, and what comes back.

``OPERATIONS`` is the table of all routes: ``endpoints`` takes its routes from it, so that what is served
and what is described cannot differ. Schemas state what is answered (no property more); a request's
schema is what a client should send, not all that is refused.

Source: OpenAPI Specification 3.1.1; kserve/open-inference-protocol ``open_inference_rest.yaml``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import agent
from agent.gateway.applications import needs
from agent.gateway.asked import ONCE_CHARS_MAX, ONCE_HEADER
from agent.gateway.precedence import APPLICATION_HEADER, PRIORITY_HEADER
from agent.serving.datatypes import DATATYPES
from agent.serving.fair import APPLICATION_PATTERN, Priority
from agent.serving.request import HEADER_NAME

Schema = dict[str, Any]

MODEL_PATH: Final = "/v2/models/{model}"
VERSION_PATH: Final = MODEL_PATH + "/versions/{version}"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    answers_by: str
    """The method of ``Endpoints``."""
    summary: str
    content: str
    """Name of the schema of a good answer; empty: text."""
    scope: str
    """What a token must be for: ``agent.gateway.applications.needs``; empty: open to all."""
    statuses: tuple[int, ...] = ()
    """Other statuses that it answers with, all with an ``Error``, besides ``_ALWAYS``."""
    body: str = ""
    """Name of the schema of the request's body."""


_MODEL = (400, 403, 404)
_OPERATIONS_OF_A_MODEL = (
    ("GET", "", "model_metadata", "What a model takes and gives", "ModelMetadata", "model",
     (*_MODEL, 504)),
    ("GET", "/ready", "model_ready", "Whether a request would find a site now", "ModelReady",
     "model", _MODEL),
    ("GET", "/config", "model_config", "The same as Triton words it", "ModelConfig", "model",
     (*_MODEL, 504)),
    ("GET", "/stats", "statistics", "Counters of a model", "Statistics", "read", _MODEL),
    ("POST", "/infer", "infer", "Run a model", "InferResponse", "infer",
     (*_MODEL, 408, 409, 413, 422, 499, 500, 504)),
)  # fmt: skip
OPERATIONS: Final = (
    Operation("GET", "/v2", "server_metadata", "What this server is", "ServerMetadata", "read"),
    Operation("GET", "/v2/", "server_metadata", "The same", "ServerMetadata", "read"),
    Operation("GET", "/v2/openapi.json", "openapi", "This document", "Document", "read"),
    Operation("GET", "/v2/health/live", "live", "Whether this process answers", "Live", ""),
    Operation("GET", "/v2/health/ready", "ready", "Whether requests are taken", "Ready", "",
              (400,)),
    Operation("GET", "/v2/models/stats", "statistics", "Counters of all models", "Statistics",
              "read"),
    Operation("POST", "/v2/repository/index", "repository_index", "The models of the cluster",
              "RepositoryIndex", "read", (400, 408, 413), "IndexRequest"),
    Operation("POST", "/v2/repository/models/{model}/load", "repository_load",
              "Serve a model of the catalog at this site; answered when it is ready", "Done",
              "repository", (*_MODEL, 408, 413), "LoadRequest"),
    Operation("POST", "/v2/repository/models/{model}/unload", "repository_unload",
              "Serve a model at this site no more, until it is loaded again", "Done",
              "repository", (*_MODEL, 408, 413), "UnloadRequest"),
    Operation("GET", "/metrics", "metrics", "Counters for Prometheus", "", "read"),
    *(
        Operation(method, base + path, by, summary, content, scope, statuses,
                  "InferRequest" if method == "POST" else "")
        for base in (MODEL_PATH, VERSION_PATH)
        for method, path, by, summary, content, scope, statuses in _OPERATIONS_OF_A_MODEL
    ),
)  # fmt: skip
"""Every route that applications have."""
METRICS: Final = tuple(one for one in OPERATIONS if one.answers_by == "metrics")
"""Those of the port of the counters."""

_ALWAYS = (403, 503)
"""A browser on a foreign page; a site that is starting, busy or full."""
_HEADERS = ("Atoll-Residency", "Atoll-Request-Id", "Atoll-Deadline-Ms")
_WORDS: Mapping[int, str] = {
    400: "The request is wrong, or the server or model is not ready",
    401: "The request needs a token, or the token is not valid (RFC 6750)",
    403: "The token is for something else, or the request may not be answered here or anywhere that"
    " serves the model",
    404: "There is no such model or version",
    408: "The body came too slowly",
    409: "The request of this idempotency key was run before, or may have been",
    413: "The body is too large",
    422: "The idempotency key was used for another request",
    499: "The client went away",
    500: "The model failed on this input",
    503: "The site cannot take the request now; Retry-After says when it may",
    504: "The deadline passed before the answer was there",
}


def _object(required: Mapping[str, Schema], **optional: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_TOKEN: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": "Made by the site's operator with `atoll app token create`; the names beside it are the"
    " scopes that it needs one of",
}
_TEXT: Schema = {"type": "string"}
_ONCE: Schema = {
    "type": "string",
    "pattern": f"^[A-Za-z0-9._:-]{{1,{ONCE_CHARS_MAX}}}$",
    "description": "The model runs at most once for it; who asks the same again gets the same answer",
}
_NAME: Schema = {"type": "string", "minLength": 1}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_SIZE: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
_FREE_SIZE: Schema = {"type": "integer", "minimum": -1}
_PRIORITY: Schema = {"enum": ["high", "normal", "low", "0", *(str(int(one)) for one in Priority)]}
_APPLICATION: Schema = {"type": "string", "pattern": f"^{APPLICATION_PATTERN}$"}
_DATATYPE: Schema = {"enum": list(DATATYPES)}
_DATA: Schema = {"type": "array", "description": "Flat in row-major order, or nested as the shape"}
_PARAMETERS: Schema = {"type": "object"}
_TIMES = _object({"count": _COUNT, "ns": _COUNT})
_BINARY = {"binary_data_size": {**_SIZE, "description": "Its bytes follow the JSON, in order"}}
_CONFIG_TENSOR = _object({"name": _NAME, "data_type": _NAME, "dims": _list(_FREE_SIZE)})
_SCHEMAS: Mapping[str, Schema] = {
    "Error": _object({"error": _NAME}),
    "Document": {"type": "object", "required": ["openapi", "info", "paths"]},
    "ServerMetadata": _object({"name": _NAME, "version": _NAME, "extensions": _list(_NAME)}),
    "Live": _object({"live": {"const": True}}),
    "Ready": _object({"ready": _FLAG}, error=_NAME),
    "ModelReady": _object({"name": _NAME, "ready": _FLAG}),
    "TensorMetadata": _object({"name": _NAME, "datatype": _DATATYPE, "shape": _list(_FREE_SIZE)}),
    "ModelMetadata": _object(
        {
            "name": _NAME,
            "versions": _list(_NAME),
            "platform": _NAME,
            "inputs": _list(_ref("TensorMetadata")),
            "outputs": _list(_ref("TensorMetadata")),
        }
    ),
    "ModelConfig": _object(
        {
            "name": _NAME,
            "platform": _NAME,
            "backend": _NAME,
            "version_policy": _object({"specific": _object({"versions": _list(_NAME)})}),
            "max_batch_size": _COUNT,
            "input": _list(_CONFIG_TENSOR),
            "output": _list(_CONFIG_TENSOR),
        }
    ),
    "Statistics": _object(
        {
            "model_stats": _list(
                _object(
                    {
                        "name": _NAME,
                        "version": _NAME,
                        "inference_count": _COUNT,
                        "execution_count": _COUNT,
                        "inference_stats": _object(
                            dict.fromkeys(("success", "fail", "queue", "compute_infer"), _TIMES)
                        ),
                        "batch_stats": _list(
                            _object({"batch_size": _COUNT, "compute_infer": _TIMES})
                        ),
                    }
                )
            )
        }
    ),
    "IndexRequest": {"type": "object", "properties": {"ready": _FLAG}},
    "Done": _object({}),
    "LoadRequest": {
        "type": "object",
        "properties": {"parameters": {"type": "object", "maxProperties": 0}},
    },
    "UnloadRequest": {
        "type": "object",
        "properties": {"parameters": _object({}, unload_dependents=_FLAG)},
    },
    "RepositoryIndex": _list(
        _object(
            {
                "name": _NAME,
                "version": _NAME,
                "state": {"enum": ["READY", "UNAVAILABLE"]},
                "reason": _TEXT,
            }
        )
    ),
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": 1024},
            "parameters": {
                "type": "object",
                "properties": {
                    "binary_data_output": _FLAG,
                    "timeout": {**_COUNT, "description": "Microseconds; 0: none of its own"},
                    "priority": {
                        "enum": [0, *map(int, Priority)],
                        "description": "1 high, 2 or 0 normal, 3 low; Atoll-Priority goes before it",
                    },
                },
            },
            "inputs": _list(
                {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": _NAME,
                        "datatype": _DATATYPE,
                        "shape": _list(_SIZE),
                        "data": _DATA,
                        "parameters": {"type": "object", "properties": _BINARY},
                    },
                }
            ),
            "outputs": _list(
                {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": _NAME,
                        "parameters": {"type": "object", "properties": {"binary_data": _FLAG}},
                    },
                }
            ),
        },
    },
    "InferResponse": _object(
        {
            "model_name": _NAME,
            "model_version": _NAME,
            "outputs": _list(
                _object(
                    {"name": _NAME, "datatype": _DATATYPE, "shape": _list(_SIZE)},
                    data=_DATA,
                    parameters=_object(_BINARY),
                )
            ),
        },
        id=_TEXT,
        parameters=_PARAMETERS,
    ),
}


def document(*, is_token_required: bool) -> Schema:
    """The whole document, as Python objects."""
    paths: dict[str, Schema] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(
            operation, is_token_required=is_token_required
        )
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "Atoll: the Open Inference Protocol v2 at one site",
            "version": agent.__version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": dict(_SCHEMAS), "securitySchemes": {"token": _TOKEN}},
    }


def _describe(operation: Operation, *, is_token_required: bool) -> Schema:
    described: Schema = {
        "operationId": (operation.method + operation.path).translate(_PLAIN),
        "summary": operation.summary,
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": _NAME}
            for name in ("model", "version")
            if f"{{{name}}}" in operation.path
        ],
        "responses": {str(status): _response(operation, status) for status in _statuses(operation)},
    }
    if operation.scope:
        either: list[Schema] = [{"token": [one]} for one in needs(operation.scope, "{model}")]
        described["security"] = either if is_token_required else [{}, *either]
    if operation.path.startswith(MODEL_PATH):
        described["parameters"] += [
            {"name": name, "in": "header", "schema": _TEXT} for name in _HEADERS
        ]
    if operation.body:
        described["requestBody"] = {
            "required": operation.body == "InferRequest",
            "content": {"application/json": {"schema": _ref(operation.body)}},
        }
    if operation.answers_by == "infer":
        described["requestBody"]["content"]["application/octet-stream"] = {
            "schema": {
                "type": "string",
                "description": f"{HEADER_NAME} bytes of JSON, then the binary tensors in order",
            }
        }
        more = {
            HEADER_NAME: _TEXT,
            PRIORITY_HEADER: _PRIORITY,
            APPLICATION_HEADER: _APPLICATION,
            ONCE_HEADER: _ONCE,
        }
        described["parameters"] += [
            {"name": name, "in": "header", "schema": schema} for name, schema in more.items()
        ]
    return described


def _statuses(operation: Operation) -> tuple[int, ...]:
    tokens = (401,) if operation.scope else ()
    return tuple(dict.fromkeys((200, *sorted({*operation.statuses, *tokens, *_ALWAYS}))))


def _response(operation: Operation, status: int) -> Schema:
    if status == 200:  # noqa: PLR2004 - HTTP OK
        words, content = "As asked", _content(operation.content)
        if operation.answers_by == "infer":
            content["application/octet-stream"] = {}
    else:
        words, content = _WORDS[status], _content("Error")
        if status == 400 and operation.answers_by in ("ready", "model_ready"):  # noqa: PLR2004
            either = [_ref(operation.content), _ref("Error")]
            content = {"application/json": {"schema": {"anyOf": either}}}
    return {"description": words, "content": content}


def _content(name: str) -> Schema:
    if not name:
        return {"text/plain": {"schema": _TEXT}}
    return {"application/json": {"schema": _ref(name)}}


_PLAIN = str.maketrans("/.", "__", "{}")
