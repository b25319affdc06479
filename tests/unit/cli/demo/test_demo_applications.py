"""The demo's application: a site that is not ready yet is asked again, not given up."""

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from agent.cli.demo.applications import classify
from agent.cli.demo.data import Images
from agent.foundation.errors import Unreachable

REFUSAL = "model is not ready: being loaded"


class Loading(http.server.BaseHTTPRequestHandler):
    """A site whose gateway has not heard yet that the model is loaded."""

    def do_POST(self) -> None:
        body = json.dumps({"error": REFUSAL}).encode()
        self.send_response(503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def site() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Loading) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_refusal_is_an_error_that_until_waits_out(site: str) -> None:
    with pytest.raises(Unreachable, match=REFUSAL):
        classify(site, "digits", Images(2, bytes(4), bytes(1)))
