"""For whom a request is and how urgent: what orders it among the others (``serving.fair``).

Priority: the header ``Atoll-Priority`` (in gRPC: metadata of that name), or else the parameter
``priority`` of the request, as Triton's clients send it. The gateway never decodes a large JSON body;
the parameter is read where it stands in at most ``LOOKED_AT_BYTES_MAX`` of JSON, which every request
with binary tensors keeps. A larger JSON body needs the header; its parameter is checked, not obeyed.

Application: by its token; who shares this machine with the site and needs no token may say a name.
"""

from collections.abc import Mapping

import orjson

from agent.foundation.errors import UsageError
from agent.serving.access import LOCAL
from agent.serving.fair import (
    APPLICATION_CHARS_MAX,
    Priority,
    is_application_name,
    read_priority,
)
from agent.serving.request import header_length

PRIORITY_HEADER = "Atoll-Priority"
APPLICATION_HEADER = "Atoll-Application"
LOOKED_AT_BYTES_MAX = 4096
"""Decoded in 20 us at most, and only if the word stands in it."""

_WORD = b'"priority"'


def priority_of(headers: Mapping[str, str], header: str | None, body: bytes) -> Priority:
    """The priority that a request asks for.

    Args:
        headers: of the request, or metadata.
        header: its ``Inference-Header-Content-Length``.
        body: of the request.

    Raises:
        UsageError: it is none, or ``header`` is no length.
    """
    if (given := headers.get(PRIORITY_HEADER)) is not None:
        return read_priority(given)
    json_bytes = len(body) if header is None else header_length(header, len(body)) or 0
    if json_bytes > LOOKED_AT_BYTES_MAX or body.find(_WORD, 0, json_bytes) < 0:
        return Priority.NORMAL
    try:
        parameters = orjson.loads(body[:json_bytes])["parameters"]
        return read_priority(parameters.get("priority", 0))
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return Priority.NORMAL  # the worker says what is wrong with it


def application_of(application: str, headers: Mapping[str, str]) -> str:
    """The name under which a request counts.

    Args:
        application: by its token; ``LOCAL`` for one that needs none.
        headers: of the request, or metadata.

    Raises:
        UsageError: it says a name that is none.
    """
    if application != LOCAL or (name := headers.get(APPLICATION_HEADER)) is None:
        return application
    if not is_application_name(name):
        raise UsageError(
            f"{APPLICATION_HEADER} is not a name",
            why=f"given {name[:40]!r}; it has letters, digits, '.', '_' and '-',"
            f" {APPLICATION_CHARS_MAX} at most",
        )
    return name
