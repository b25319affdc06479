"""Requests out of a site's own network namespace, so that they cross no link: a program for the site's side.

Standard input: ``{"host", "at_once", "asks": [{"path", "headers", "body"}]}``, the body in base64, GET
without one. Standard output: ``[status, headers, body]`` of each, in order; status 0 and the reason
if the connection failed.
"""

import base64
import http.client
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request."""

    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Told:
    """Its answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def by(self) -> str:
        """The site that answered."""
        return self.headers.get("atoll-served-by", "")


def ask_within(
    within: Sequence[str], host: str, asks: Sequence[Ask], *, port: int = 8000, at_once: int = 1
) -> list[Told]:
    """Ask the site at ``host`` from inside its namespace."""
    given = {
        "host": host, "port": port, "at_once": at_once,
        "asks": [
            {"path": one.path, "headers": dict(one.headers),
             "body": base64.b64encode(one.body).decode()}
            for one in asks
        ],
    }  # fmt: skip
    done = subprocess.run(
        [*within, sys.executable, __file__],
        input=json.dumps(given), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Told(row[0], row[1], base64.b64decode(row[2])) for row in json.loads(done.stdout)]


def _answer(given: Mapping[str, Any], one: Mapping[str, Any]) -> list[Any]:
    body = base64.b64decode(one["body"])
    connection = http.client.HTTPConnection(given["host"], given["port"], timeout=TIMEOUT_S)
    try:
        connection.request("POST" if body else "GET", one["path"], body or None, one["headers"])
        response = connection.getresponse()
        content = response.read()
    except OSError as error:
        return [0, {}, base64.b64encode(str(error).encode()).decode()]
    finally:
        connection.close()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return [response.status, headers, base64.b64encode(content).decode()]


if __name__ == "__main__":
    told = json.load(sys.stdin)
    with ThreadPoolExecutor(told["at_once"]) as pool:
        json.dump(list(pool.map(lambda one: _answer(told, one), told["asks"])), sys.stdout)
