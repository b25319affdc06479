"""``atoll infer``: one request to this site's HTTP endpoint, as any application would make it."""

import argparse
import http.client
import json
import ssl
import sys
import time
from pathlib import Path
from typing import Any

from agent.cli.client import whole
from agent.cli.output import clean, print_json
from agent.cli.site_files import admin_client
from agent.cli.text_files import unreadable
from agent.foundation.errors import AtollError, Busy, NotFound, Refused, Unreachable, UsageError

REQUEST_BYTES_MAX = 256 << 20
"""Far above what a site accepts by default; bounds what is read from a pipe."""
ANSWER_BYTES_MAX = 256 << 20
TOKEN_CHARS_MAX = 200
VALUES_SHOWN = 12
"""Of each output tensor; ``--json`` prints all."""
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - read, not bound


def infer(asked: argparse.Namespace) -> int:
    """Ask, print the outputs, and say which site answered."""
    body = _request(asked.input)
    model, _, version = asked.model.partition(":")
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    headers = {"Content-Type": "application/json"}
    if asked.residency:
        headers["Atoll-Residency"] = ",".join(asked.residency)
    if asked.token_file is not None:
        headers["Authorization"] = f"Bearer {_token(asked.token_file)}"
    address, context = _where(asked)
    before = time.perf_counter()
    answer, served_by = _ask(address, context, path, body, headers, asked.timeout)
    took_ms = (time.perf_counter() - before) * 1000
    if asked.json:
        print_json(answer)
        return 0
    for output in answer.get("outputs", []):
        print(_shown(output))
    print(
        f"{clean(answer.get('model_name'))}:{clean(answer.get('model_version'))}"
        f" served by {clean(served_by)} in {took_ms:.1f} ms"
    )
    return 0


def _where(asked: argparse.Namespace) -> tuple[str, ssl.SSLContext | None]:
    """The site's ``host:port``, and how it proves itself if it speaks TLS there."""
    if asked.url:
        scheme, is_url, rest = asked.url.rpartition("://")
        context = ssl.create_default_context() if scheme == "https" else None
        return (rest.rstrip("/") if is_url else asked.url), context
    status = admin_client(asked).get("/1/status")
    if not (shown := status.get("http_certificate")):
        return status["http"], None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # this very certificate is meant, whatever name it has
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.load_verify_locations(cafile=shown)
    except OSError as error:
        raise unreadable(shown, error) from None
    return status["http"], context


def _token(source: Path) -> str:
    try:
        with source.open(encoding="ascii") as file:
            token = file.readline(TOKEN_CHARS_MAX).strip()
    except OSError as error:
        raise unreadable(source, error) from None
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token:
        raise UsageError(f"{source} holds no token", mend="its first line must be one")
    return token


def _request(source: str) -> bytes:
    try:
        if source == "-":
            data = sys.stdin.buffer.read(REQUEST_BYTES_MAX + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(REQUEST_BYTES_MAX + 1)
    except OSError as error:
        raise unreadable(f"the input {source}", error) from None
    if len(data) > REQUEST_BYTES_MAX:
        raise UsageError("the input is too large", why=f"the bound is {REQUEST_BYTES_MAX:,} bytes")
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UsageError(f"the input {source} is not JSON", why=str(error)) from None
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list):
        raise UsageError(
            f"the input {source} is not an inference request",
            why='it has no list "inputs"',
            mend='write {"inputs": [{"name": ..., "shape": [...], "datatype": "FP32", "data": [...]}]}',
        )
    return data


def _ask(
    address: str,
    context: ssl.SSLContext | None,
    path: str,
    body: bytes,
    headers: dict[str, str],
    timeout_s: float,
) -> tuple[dict[str, Any], str]:
    host, _, port = address.rpartition(":")
    host = _WILDCARDS.get(host, host).strip("[]")
    if not port.isdecimal():
        raise UsageError(f"{address!r} is not HOST:PORT")
    if context is None:
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    else:
        connection = http.client.HTTPSConnection(
            host, int(port), timeout=timeout_s, context=context
        )
    try:
        connection.request("POST", path, body, headers)
        response = connection.getresponse()
        data = whole(response, ANSWER_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(
            f"no answer from {'http' if context is None else 'https'}://{address}",
            why=str(error) or type(error).__name__,
            mend="`atoll status` shows whether the gateway runs, and where",
        ) from error
    finally:
        connection.close()
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    if response.status != http.client.OK or not isinstance(answer, dict):
        raise _refusal(response.status, response.reason, answer)
    parameters = answer.get("parameters")
    served_by = parameters.get("served_by", "") if isinstance(parameters, dict) else ""
    return answer, response.headers.get("Atoll-Served-By", served_by)


def _refusal(status: int, reason: str, answer: object) -> AtollError:
    why = str(answer.get("error", "")) if isinstance(answer, dict) else ""
    what = f"the request was not answered ({status} {reason})"
    match status:
        case 401 | 403:
            explained = "`atoll route explain` names what removed each site"
            mend = "give --token-file FILE" if status == 401 else explained  # noqa: PLR2004
            return Refused(what, why=why, mend="" if "lacks the scope" in why else mend)
        case 404:
            return NotFound(what, why=why, mend="`atoll model list` shows what there is")
        case 429 | 503 | 504:
            return Busy(what, why=why, mend="try again, or see `atoll route explain`")
        case _ if status < 500:  # noqa: PLR2004 - HTTP's own border between the two sides
            return UsageError(what, why=why)
        case _:
            return AtollError(what, why=why, mend="the agent's log has the details")


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", [])
    values = data if isinstance(data, list) else [data]
    shown = ", ".join(clean(value) for value in values[:VALUES_SHOWN])
    rest = f", ... {len(values) - VALUES_SHOWN} more" if len(values) > VALUES_SHOWN else ""
    return (
        f"{clean(output.get('name'))} {clean(output.get('datatype'))}"
        f" [{clean(output.get('shape'))}]: {shown}{rest}"
    )
