"""Who holds a connection, for how long, and who gives way when all are taken."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from agent.gateway import crowd
from agent.gateway.listeners import Door, open_door

ANSWER_BYTES = 32 << 20
"""More than both sockets' buffers hold."""
SILENT = b""
DRIPPING = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx"
GET = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n"

Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def door() -> AsyncIterator[Door]:
    async def read(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async def small(_: web.Request) -> web.Response:
        return web.Response(text="small")

    async def large(_: web.Request) -> web.Response:
        return web.Response(body=bytes(ANSWER_BYTES))

    async def work(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError

    routes = [
        web.post("/read", read),
        web.get("/small", small),
        web.get("/large", large),
        web.post("/work", work),
    ]
    opened = await open_door("127.0.0.1", 0, routes)
    yield opened
    await opened.close()


async def come(door: Door, start: bytes = b"") -> Client:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(start)
    await writer.drain()
    return reader, writer


async def status_of(client: Client) -> int:
    """Of the next answer; 0 if the connection ended instead."""
    try:
        async with asyncio.timeout(5):
            line = await client[0].readline()
    except ConnectionError:
        return 0
    return int(line.split()[1]) if line else 0


async def settle(door: Door, connections: int) -> None:
    """Until the door has that many."""
    server = door._runner.server
    assert server is not None
    async with asyncio.timeout(5):
        while len(server.connections) != connections:  # noqa: ASYNC110 - the door tells nobody
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("held", [SILENT, b"GET /small HTTP/1.1\r\nHost:", DRIPPING])
async def test_the_connection_that_keeps_the_door_waiting_longest_gives_way(
    door: Door, monkeypatch: pytest.MonkeyPatch, held: bytes
) -> None:
    monkeypatch.setattr(crowd, "CONNECTIONS_MAX", 3)
    monkeypatch.setattr(crowd, "GIVE_WAY_AFTER_S", 0.05)
    slow = []
    for number in range(3):
        slow.append(await come(door, held))
        await settle(door, number + 1)
    await asyncio.sleep(0.1)
    client = await come(door, GET)
    assert await status_of(client) == 200
    assert await status_of(slow[0]) == 0
    for _, writer in (*slow, client):
        writer.close()


async def test_of_a_slow_body_and_one_who_has_just_come_the_slow_one_gives_way(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "CONNECTIONS_MAX", 2)
    monkeypatch.setattr(crowd, "SPARED_S", 60.0)
    monkeypatch.setattr(crowd, "GIVE_WAY_AFTER_S", 0.0)
    slow = await come(door, DRIPPING)
    await settle(door, 1)
    await asyncio.sleep(0.05)
    new = await come(door)
    await settle(door, 2)
    client = await come(door, GET)
    assert await status_of(client) == 200
    assert await status_of(slow) == 0
    new[1].write(GET)
    assert await status_of(new) == 200
    for _, writer in (slow, new, client):
        writer.close()


async def test_an_idle_connection_gives_way_after_a_moment_and_not_before(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(crowd, "GIVE_WAY_AFTER_S", 0.3)
    idle = await come(door, GET)
    assert await status_of(idle) == 200
    refused = await come(door, GET)
    assert await status_of(refused) == 503
    await asyncio.sleep(0.4)
    client = await come(door, GET)
    assert await status_of(client) == 200
    for _, writer in (idle, refused, client):
        writer.close()


async def test_a_door_full_of_requests_at_work_turns_away_with_a_short_answer(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crowd, "CONNECTIONS_MAX", 1)
    monkeypatch.setattr(crowd, "GIVE_WAY_AFTER_S", 0.0)
    working = await come(door, b"POST /work HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    await settle(door, 1)
    await asyncio.sleep(0.05)
    reader, writer = await come(door, GET)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert answer.endswith(b'\r\n\r\n{"error":"too many connections"}')
    for one in (working[1], writer):
        one.close()


async def test_an_answer_that_nobody_reads_does_not_keep_its_connection(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("REVIEW_S", 0.05), ("BODY_TIMEOUT_S", 0.2)):
        monkeypatch.setattr(crowd, name, value)
    monkeypatch.setattr(crowd, "BODY_BYTES_PER_S_MIN", 1 << 30)
    reader, writer = await come(door, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    await settle(door, 1)
    await settle(door, 0)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await reader.readexactly(ANSWER_BYTES)
    writer.close()


async def test_an_answer_that_is_read_steadily_may_take_long(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("REVIEW_S", 0.02), ("BODY_TIMEOUT_S", 0.0)):
        monkeypatch.setattr(crowd, name, value)
    monkeypatch.setattr(crowd, "BODY_BYTES_PER_S_MIN", 4 << 20)  # 8 s for the whole
    reader, writer = await come(door, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.sleep(0.3)
    await reader.readuntil(b"\r\n\r\n")
    assert len(await reader.readexactly(ANSWER_BYTES)) == ANSWER_BYTES
    writer.close()


async def test_many_who_come_and_go_leave_nothing_behind(door: Door) -> None:
    server = door._runner.server
    assert server is not None
    for _ in range(50):
        _, writer = await come(door)
        writer.close()
    client = await come(door, GET)
    assert await status_of(client) == 200
    await settle(door, 1)
    (one,) = server.connections
    assert isinstance(one, crowd.Connection)
    assert len(one._crowd) == 1
    client[1].close()


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (b"NONSENSE\r\n\r\n", "Invalid method encountered"),
        (
            b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n",
            "Duplicate Content-Length",
        ),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
            "Transfer-Encoding can't be present with Content-Length",
        ),
        (b"GET /small HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "Duplicate 'Host' header found."),
    ],
)
async def test_what_is_no_http_is_refused_in_the_protocols_form_without_noise(
    door: Door, caplog: pytest.LogCaptureFixture, start: bytes, told: str
) -> None:
    reader, writer = await come(door, start)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.split(b"\r\n")[0].endswith(b" 400 Bad Request")
    assert b"Content-Type: application/json" in head
    answer = json.loads(await reader.read())
    assert answer["error"] == f"the request is not valid HTTP; {told}"
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    writer.close()
