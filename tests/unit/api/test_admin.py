"""``agent.api.admin`` over a real socket, with a site that answers what the test wants."""

import asyncio
import base64
import io
import json
import os
import pwd
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from agent.api import admin
from agent.api.admin import AdminServer
from agent.api.bodies import Json
from agent.api.job_spec import JobSpec
from agent.api.operations import Operations, TokenRequest
from agent.foundation.errors import (
    AtollError,
    Busy,
    ConfigError,
    Malformed,
    NotFound,
    OutcomeUnknown,
    Refused,
    Unreachable,
    UsageError,
)
from agent.foundation.ids import JobId, SiteId
from agent.wire.documents import BODIES, Job, Stamp

JOB = {"name": "digits", "recipe": "mnist-2nn", "dataset": "mnist"}
TOKEN = {
    "name": "paris",
    "region": "eu-west",
    "tier": "edge",
    "jurisdiction": "FR",
    "roles": ["site"],
    "ttl_s": 600,
}


class Site:
    """Answers plainly, remembers what it was asked, fails on request."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.asked: list[object] = []
        self.changes: asyncio.Queue[Json | None] = asyncio.Queue()
        self.is_watched = asyncio.Event()
        self.watch_ended = asyncio.Event()
        self.gate: asyncio.Event | None = None

    def _note(self, *what: object) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error

    def status(self) -> Json:
        self._note("status")
        return {"state": "ready"}

    def members(self) -> list[Json]:
        return [{"name": "berlin"}]

    def peers(self) -> list[Json]:
        return [{"source": "seed"}]

    def models(self) -> list[Json]:
        return []

    def jobs(self) -> list[Json]:
        return []

    async def job(self, job: str) -> Json:
        self._note("job", job)
        return {"id": job}

    def explain(self, model: str, residency: Sequence[str], application: str) -> Json:
        self._note("explain", model, list(residency), application)
        return {"chosen": None}

    async def doctor(self) -> list[Json]:
        return [{"check": "x", "ok": True, "evidence": "", "mend": ""}]

    def stamp(self) -> Stamp:
        return Stamp(5, 2)

    def clock(self) -> Json:
        return {"clock_ahead_s": 0.0, "clocks_heard": 2}

    async def submit(self, documents: Sequence[bytes]) -> list[Json]:
        self._note("submit", list(documents))
        return [{"accepted": True} for _ in documents]

    async def draft_job(self, spec: JobSpec) -> Job:
        self._note("draft", spec.name)
        return spec.job(identifier=JobId("digits-00000001"), committee=(SiteId(b"\1" * 32),))

    async def store_blob(self, stream: AsyncIterator[bytes]) -> Json:
        data = bytearray()
        async for part in stream:
            data += part
            if self.gate is not None:
                await self.gate.wait()
        self._note("blob", bytes(data))
        return {"digest": "00" * 32, "bytes": len(data)}

    async def create_token(self, request: TokenRequest) -> str:
        self._note("token", request)
        return "atoll1.secret"

    async def renew(self) -> Json:
        self._note("renew")
        return {"expires_at": 2e9}

    async def release_model(self, model: str) -> Json:
        self._note("release", model)
        return {"name": "m", "version": "1", "state": "refused", "reason": "it crashed"}

    async def control_model(self, model: str, *, is_load: bool) -> None:
        self._note("control", model, is_load)

    async def set_draining(self, draining: bool) -> None:  # noqa: FBT001
        self._note("draining", draining)

    async def leave(self) -> None:
        self._note("leave")

    async def stop(self) -> None:
        self._note("stop")

    async def watch_job(self, job: str) -> AsyncIterator[Json]:
        self._note("watch", job)
        try:
            yield {"id": job, "round": 0}
            self.is_watched.set()
            while (change := await self.changes.get()) is not None:
                yield change
        finally:
            self.watch_ended.set()


@asynccontextmanager
async def served(site: Site, path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    server = await AdminServer.start(site, path)
    try:
        connector = aiohttp.UnixConnector(path=str(path))
        async with aiohttp.ClientSession("http://localhost", connector=connector) as client:
            yield client
    finally:
        await server.close()


@pytest.fixture
def site() -> Site:
    found = Site()
    _: Operations = found  # the types agree
    return found


@pytest.fixture
async def client(site: Site, tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with served(site, tmp_path / "agent.sock") as session:
        yield session


async def asked(
    client: aiohttp.ClientSession, method: str, path: str, **more: Any
) -> tuple[int, Json]:
    async with client.request(method, path, **more) as response:
        return response.status, cast("Json", await response.json())


async def test_reads_answer_what_the_site_says(client: aiohttp.ClientSession) -> None:
    assert await asked(client, "GET", "/1/status") == (200, {"state": "ready"})
    assert await asked(client, "GET", "/1/members") == (200, {"members": [{"name": "berlin"}]})
    assert await asked(client, "GET", "/1/peers") == (200, {"peers": [{"source": "seed"}]})
    assert await asked(client, "GET", "/1/models") == (200, {"models": []})
    assert await asked(client, "GET", "/1/jobs") == (200, {"jobs": []})
    assert await asked(client, "GET", "/1/jobs/digits-1") == (200, {"id": "digits-1"})
    stamp = {"wall_ms": 5, "count": 2, "clock_ahead_s": 0.0, "clocks_heard": 2}
    assert await asked(client, "GET", "/1/stamp") == (200, stamp)
    status, checks = await asked(client, "GET", "/1/doctor")
    assert (status, checks["checks"][0]["ok"]) == (200, True)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("w", why="y", mend="m"), 400),
        (Malformed("w", why="y", mend="m"), 400),
        (Refused("w", why="y", mend="m"), 403),
        (NotFound("w", why="y", mend="m"), 404),
        (OutcomeUnknown("w", why="y", mend="m"), 409),
        (ConfigError("w", why="y", mend="m"), 409),
        (Busy("w", why="y", mend="m"), 503),
        (Unreachable("w", why="y", mend="m"), 503),
        (AtollError("w", why="y", mend="m"), 503),
    ],
)
async def test_an_error_keeps_its_words_and_gets_its_status(
    client: aiohttp.ClientSession, site: Site, error: AtollError, status: int
) -> None:
    site.error = error
    assert await asked(client, "GET", "/1/status") == (
        status,
        {"error": {"what": "w", "why": "y", "mend": "m"}},
    )


async def test_a_busy_site_says_when_to_come_back(
    client: aiohttp.ClientSession, site: Site
) -> None:
    site.error = Busy("later", retry_after_s=7.2)
    async with client.get("/1/status") as response:
        assert response.headers["Retry-After"] == "7"


async def test_a_defect_is_a_500_without_its_insides(
    client: aiohttp.ClientSession, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    site.error = RuntimeError("secret detail")
    status, answer = await asked(client, "GET", "/1/status")
    assert status == 500
    assert "secret" not in json.dumps(answer)
    assert "secret detail" in caplog.text
    site.error = None
    assert (await asked(client, "GET", "/1/status"))[0] == 200


async def test_an_unknown_path_or_method_is_json_too(client: aiohttp.ClientSession) -> None:
    assert (await asked(client, "GET", "/1/nothing"))[0] == 404
    status, answer = await asked(client, "DELETE", "/1/status")
    assert status == 405
    assert "DELETE /1/status" in answer["error"]["what"]


async def test_explain_passes_model_version_and_labels(
    client: aiohttp.ClientSession, site: Site
) -> None:
    await asked(client, "GET", "/1/route/explain?model=magika:v1&residency=DE,FR")
    await asked(client, "GET", "/1/route/explain?model=magika&application=camera")
    assert site.asked == [
        ("explain", "magika:v1", ["DE", "FR"], "local"),
        ("explain", "magika", [], "camera"),
    ]
    for wrong in (
        "", "model=../x", "model=a:b:c", "model=a&residency=D%20E", "model=a&application=%20",
    ):  # fmt: skip
        assert (await asked(client, "GET", f"/1/route/explain?{wrong}"))[0] == 400
    assert len(site.asked) == 2


async def test_documents_arrive_as_the_bytes_that_were_signed(
    client: aiohttp.ClientSession, site: Site
) -> None:
    body = {"documents": [base64.b64encode(data).decode() for data in (b"one", b"\0\xff")]}
    status, answer = await asked(client, "POST", "/1/documents", json=body)
    assert (status, len(answer["results"])) == (200, 2)
    assert site.asked == [("submit", [b"one", b"\0\xff"])]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"documents": []}',
        b'{"documents": "YQ=="}',
        b'{"documents": ["*"]}',
        b'{"documents": [7]}',
        json.dumps({"documents": ["YQ=="] * 65}).encode(),
    ],
)
async def test_documents_that_are_none_never_reach_the_site(
    client: aiohttp.ClientSession, site: Site, data: bytes
) -> None:
    status, answer = await asked(client, "POST", "/1/documents", data=data)
    assert status == 400
    assert answer["error"]["what"]
    assert site.asked == []


async def test_a_body_above_the_bound_is_refused(client: aiohttp.ClientSession, site: Site) -> None:
    body = b'{"documents": ["' + b"A" * admin.BODY_BYTES_MAX + b'"]}'
    status, answer = await asked(client, "POST", "/1/documents", data=io.BytesIO(body))
    assert status == 400
    assert "too large" in answer["error"]["what"]
    assert site.asked == []


async def test_a_draft_carries_the_job_to_sign(client: aiohttp.ClientSession) -> None:
    status, answer = await asked(client, "POST", "/1/jobs/draft", json=JOB)
    assert status == 200
    job = BODIES.unpack(base64.b64decode(answer["body"]))
    assert (job.id, answer["committee"]) == ("digits-00000001", ["01" * 32])
    assert (await asked(client, "POST", "/1/jobs/draft", json={"name": "x"}))[0] == 400


async def test_a_blob_is_streamed_whole(client: aiohttp.ClientSession, site: Site) -> None:
    data = os.urandom(3 << 20)
    status, answer = await asked(client, "POST", "/1/blobs", data=io.BytesIO(data))
    assert (status, answer["bytes"]) == (200, len(data))
    assert site.asked == [("blob", data)]


async def test_an_upload_that_breaks_off_is_no_blob(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with served(site, path) as client:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"POST /1/blobs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nonly this")
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        await reader.read()
        assert (await asked(client, "GET", "/1/status"))[0] == 200
    assert not any(cast("tuple[str, ...]", item)[0] == "blob" for item in site.asked)


async def test_an_upload_needs_a_length_within_the_bound(
    client: aiohttp.ClientSession, site: Site
) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"x"

    assert (await asked(client, "POST", "/1/blobs", data=endless()))[0] == 400
    reader, writer = await asyncio.open_unix_connection(
        cast("aiohttp.UnixConnector", client.connector).path
    )
    writer.write(b"POST /1/blobs HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n")
    assert b"403" in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert site.asked == []


async def test_too_many_uploads_at_once_are_told_to_wait(
    client: aiohttp.ClientSession, site: Site
) -> None:
    site.gate = asyncio.Event()
    running = [
        asyncio.create_task(asked(client, "POST", "/1/blobs", data=b"x"))
        for _ in range(admin.UPLOADS_MAX + 1)
    ]
    done, rest = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result()[0] for task in done] == [503]
    site.gate.set()
    assert {(await task)[0] for task in rest} == {200}


async def test_a_token_request_is_checked_and_passed_on(
    client: aiohttp.ClientSession, site: Site
) -> None:
    status, answer = await asked(client, "POST", "/1/tokens", json=TOKEN)
    assert (status, answer) == (200, {"token": "atoll1.secret"})
    assert site.asked == [
        ("token", TokenRequest("paris", "eu-west", "edge", "FR", ("site",), 600.0))
    ]
    for key, wrong in {
        "name": "Paris!",
        "region": None,
        "tier": "big",
        "jurisdiction": "F R",
        "roles": "site",
        "ttl_s": 10,
        "uses": 2,
    }.items():
        assert (await asked(client, "POST", "/1/tokens", json={**TOKEN, key: wrong}))[0] == 400
    assert (await asked(client, "POST", "/1/tokens", json={**TOKEN, "ttl_s": True}))[0] == 400
    assert len(site.asked) == 1


async def test_loads_and_unloads_are_passed_on(client: aiohttp.ClientSession, site: Site) -> None:
    for word, model in (("load", "m"), ("unload", "m:1")):
        asking = {"model": model}
        assert await asked(client, "POST", f"/1/models/{word}", json=asking) == (200, {})
    assert site.asked == [("control", "m", True), ("control", "m:1", False)]
    for wrong in (3, "", "M", "m:", "m:1:2"):
        status, answer = await asked(client, "POST", "/1/models/load", json={"model": wrong})
        assert (status, answer["error"]["mend"]) == (400, "give NAME or NAME:VERSION")


async def test_a_release_of_a_model_is_passed_on(client: aiohttp.ClientSession, site: Site) -> None:
    status, answer = await asked(client, "POST", "/1/models/release", json={"model": "m:1"})
    assert (status, answer["reason"]) == (200, "it crashed")
    assert site.asked == [("release", "m:1")]
    status, answer = await asked(client, "POST", "/1/models/release", json={"model": 3})
    assert status == 400


async def test_draining_leaving_and_stopping_are_passed_on(
    client: aiohttp.ClientSession, site: Site
) -> None:
    assert await asked(client, "POST", "/1/draining", json={"draining": True}) == (
        200,
        {"draining": True},
    )
    assert (await asked(client, "POST", "/1/draining", json={"draining": 1}))[0] == 400
    assert await asked(client, "POST", "/1/renew") == (200, {"expires_at": 2e9})
    site.asked.remove(("renew",))
    assert await asked(client, "POST", "/1/leave") == (200, {})
    assert await asked(client, "POST", "/1/stop") == (200, {})
    assert site.asked == [("draining", True), ("leave",), ("stop",)]


async def test_watching_streams_each_change_and_ends_with_the_job(
    client: aiohttp.ClientSession, site: Site
) -> None:
    async with client.get("/1/jobs/d-1/watch") as response:
        assert json.loads(await response.content.readline()) == {"id": "d-1", "round": 0}
        await site.changes.put({"round": 1})
        assert json.loads(await response.content.readline()) == {"round": 1}
        await site.changes.put(None)
        assert await response.content.readline() == b""
    assert site.watch_ended.is_set()


async def test_watching_an_unknown_job_is_a_plain_404(
    client: aiohttp.ClientSession, site: Site
) -> None:
    site.error = NotFound("no such job")
    status, answer = await asked(client, "GET", "/1/jobs/d-1/watch")
    assert (status, answer["error"]["what"]) == (404, "no such job")


async def test_an_idle_stream_is_kept_alive_and_noticed_when_its_reader_is_gone(
    client: aiohttp.ClientSession, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "KEEP_ALIVE_S", 0.01)
    async with client.get("/1/jobs/d-1/watch") as response:
        await response.content.readline()
        assert await response.content.readline() == b"\n"
        response.close()
    await asyncio.wait_for(site.watch_ended.wait(), 5)


async def test_a_reader_that_vanishes_is_no_error(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admin, "KEEP_ALIVE_S", 0.01)
    path = tmp_path / "agent.sock"
    async with served(site, path) as client:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET /1/jobs/d-1/watch HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b'"round":0')
        await site.is_watched.wait()
        writer.close()
        await writer.wait_closed()
        await asyncio.wait_for(site.watch_ended.wait(), 5)
        assert (await asked(client, "GET", "/1/status"))[0] == 200
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


async def test_closing_ends_open_streams_and_removes_the_socket(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    server = await AdminServer.start(site, path)
    connector = aiohttp.UnixConnector(path=str(path))
    async with (
        aiohttp.ClientSession("http://localhost", connector=connector) as client,
        client.get("/1/jobs/d-1/watch") as response,
    ):
        await response.content.readline()
        await site.is_watched.wait()
        async with asyncio.timeout(admin.SHUTDOWN_S + 3):
            await server.close()
    assert site.watch_ended.is_set()
    assert not path.exists()


async def test_a_second_server_on_one_socket_is_refused(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with served(site, path) as client:
        with pytest.raises(ConfigError, match="another Atoll agent"):
            await AdminServer.start(site, path)
        assert (await asked(client, "GET", "/1/status"))[0] == 200


async def test_another_user_is_refused_even_with_the_socket_in_hand(
    site: Site, tmp_path: Path
) -> None:
    server = admin._Api(site, frozenset({os.geteuid() + 1}))
    path = tmp_path / "agent.sock"
    runner = web.AppRunner(server.application())
    await runner.setup()
    await web.UnixSite(runner, str(path)).start()
    try:
        connector = aiohttp.UnixConnector(path=str(path))
        async with aiohttp.ClientSession("http://localhost", connector=connector) as client:
            status, answer = await asked(client, "GET", "/1/status")
    finally:
        await runner.cleanup()
    assert status == 403
    assert "root" in answer["error"]["why"]
    assert site.asked == []


CONNECT_AS = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1])
except PermissionError:
    sys.exit("kept out")
s.sendall(b"GET /1/status HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
print(s.makefile("rb").readline().decode())
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
async def test_another_user_is_kept_out_by_the_file_and_again_by_the_kernels_word(
    site: Site,
) -> None:
    with tempfile.TemporaryDirectory(prefix="atoll-") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - the socket's own mode is all that stands in the way
        path = Path(folder) / "agent.sock"

        async def nobody() -> tuple[str, str]:
            found = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", CONNECT_AS, str(path), str(pwd.getpwnam("nobody").pw_uid)],
                capture_output=True,
                text=True,
                check=False,
            )
            return found.stdout, found.stderr

        async with served(site, path):
            assert "kept out" in (await nobody())[1]
            path.chmod(0o666)
            assert " 403 " in (await nobody())[0]
    assert site.asked == []
