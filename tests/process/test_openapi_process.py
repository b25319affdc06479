"""A live site against its own OpenAPI document, attacked by what schemathesis makes of it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from serving_models import echo_model
from serving_site import ServingSite, found, image_model, open_site

pytestmark = pytest.mark.process

EXAMPLES = 20
"""For each operation and phase; some seven hundred requests in all."""
ALLOWED = """
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]
"""
KNOWN = """
[parameters]
model = "cls"
version = "1"
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServingSite]:
    folder = tmp_path_factory.mktemp("openapi")
    with open_site(found(folder / "identity"), folder / "blobs") as opened:
        opened.start_worker()
        opened.serve("cls", image_model(folder / "cls.onnx"))
        opened.serve("int8", echo_model(folder / "int8.onnx", ("INT8",)))
        yield opened


@pytest.mark.parametrize("names", ["", KNOWN], ids=["any names", "a known model"])
def test_no_generated_request_gets_an_answer_that_the_document_does_not_know(
    site: ServingSite, tmp_path: Path, names: str
) -> None:
    """Checked of each: status, content type, schema, wrong methods, and that wrong data is refused.

    Left out is that right data is taken: whether a tensor fits its model is beyond a schema.
    """
    (tmp_path / "schemathesis.toml").write_text(ALLOWED + names)
    done = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            "--config-file", tmp_path / "schemathesis.toml", "run",
            f"http://127.0.0.1:{site.http_port}/v2/openapi.json",
            "--phases", "coverage,fuzzing", "--max-examples", str(EXAMPLES), "--seed", "1",
            "--exclude-checks", "positive_data_acceptance", "--continue-on-failure", "--no-color",
        ],
        capture_output=True, text=True, timeout=55, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    generated = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert generated, done.stdout
    assert int(generated[1]) > 500
    assert site.get("/v2/health/ready")[0] == 200


def test_good_answers_fit_their_schemas(site: ServingSite) -> None:
    document = json.loads(site.get("/v2/openapi.json")[2])

    def check(method: str, path: str, body: Any = None, like: str = "", status: int = 200) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        got, headers, answer = site.request(method, path, content)
        assert got == status, answer
        described = document["paths"][like or path][method.lower()]["responses"][str(status)]
        schema = described["content"][headers["content-type"]]["schema"]
        whole = {**schema, "components": document["components"]}
        jsonschema_rs.validate(whole, json.loads(answer))

    for path in ("/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats"):
        check("GET", path)
    for base, like in (
        ("/v2/models/cls", "/v2/models/{model}"),
        ("/v2/models/cls/versions/1", "/v2/models/{model}/versions/{version}"),
    ):
        image = {"name": "x", "shape": [1, 3, 48, 192], "datatype": "FP32", "data": [0] * 27648}
        check("POST", f"{base}/infer", {"inputs": [image], "id": "a"}, f"{like}/infer")
        for end in ("", "/ready", "/config", "/stats"):
            check("GET", base + end, like=like + end)
    check("POST", "/v2/repository/index", {"ready": True})
    for word, given in (("load", {}), ("unload", {"unload_dependents": True})):
        like = f"/v2/repository/models/{{model}}/{word}"
        check("POST", f"/v2/repository/models/cls/{word}", {"parameters": given}, like)
    site.show(is_draining=True)
    try:
        site.wait(lambda: site.get("/v2/health/ready")[0] == 400)
        check("GET", "/v2/health/ready", status=400)
        check("GET", "/v2/models/cls/ready", like="/v2/models/{model}/ready", status=400)
    finally:
        site.show(is_draining=False)
        site.wait(lambda: site.get("/v2/health/ready")[0] == 200)
