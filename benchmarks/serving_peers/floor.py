"""The floor an asyncio daemon starts from: aiohttp on uvloop, two threads, no checks, no isolation."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor

import orjson
import uvloop
from aiohttp import web
from work import Sessions

sessions = Sessions(orjson.loads, orjson.dumps)
threads = ThreadPoolExecutor(2)


async def infer(request: web.Request) -> web.Response:
    body = await request.read()
    given = request.headers.get("Inference-Header-Content-Length")
    length, answer = await asyncio.get_running_loop().run_in_executor(
        threads, sessions.answer, request.match_info["model"], body, given and int(given)
    )
    if length is None:
        return web.Response(body=answer, content_type="application/json")
    headers = {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(length),
    }
    return web.Response(body=answer, headers=headers)


application = web.Application(client_max_size=64 << 20)
application.router.add_post("/v2/models/{model}/infer", infer)
uvloop.install()
web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
