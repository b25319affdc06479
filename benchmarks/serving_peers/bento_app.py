"""BentoML at its best: a mounted ASGI application that reads the raw body (its own form is JSON)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bentoml
import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from work import Sessions

sessions: list[Sessions] = []


async def infer(request: Request) -> Response:
    length, answer = await run_in_threadpool(
        sessions[0].answer,
        request.path_params["model"],
        await request.body(),
        int(request.headers["inference-header-content-length"]),
    )
    headers = {"Inference-Header-Content-Length": str(length)}
    return Response(answer, media_type="application/octet-stream", headers=headers)


application = Starlette(routes=[Route("/v2/models/{model}/infer", infer, methods=["POST"])])


@bentoml.asgi_app(application, path="/raw")
@bentoml.service(
    workers=1, threads=2, traffic={"timeout": 60}, logging={"access": {"enabled": False}},
    metrics={"enabled": True},
)  # fmt: skip
class Edge:
    def __init__(self) -> None:
        sessions.append(Sessions(orjson.loads, orjson.dumps))

    @bentoml.api
    def ping(self) -> str:
        return "ok"
