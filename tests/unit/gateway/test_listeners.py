"""What a client can hold: connections, time and memory, each with its limit."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator

import pytest
from aiohttp import web

from agent.gateway import bodies as bodies_module
from agent.gateway import crowd
from agent.gateway.bodies import Bodies
from agent.gateway.listeners import Door, open_door

LIMIT = 1000


@pytest.fixture
async def bodies() -> Bodies:
    return Bodies(LIMIT)


@pytest.fixture
async def door(bodies: Bodies, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Door]:
    monkeypatch.setattr(crowd, "HEADERS_TIMEOUT_S", 0.2)
    monkeypatch.setattr(bodies_module, "BODY_TIMEOUT_S", 0.2)

    async def count(request: web.Request) -> web.Response:
        async with bodies.body(request, request.headers.get("Name", "")) as body:
            return web.Response(text=str(len(body)))

    async def fail(_: web.Request) -> web.Response:
        raise RuntimeError("a secret of the inside")

    opened = await open_door("127.0.0.1", 0, [web.post("/count", count), web.get("/fail", fail)])
    yield opened
    await opened.close()


async def talk(door: Door, request: bytes) -> tuple[int, bytes]:
    """Send, then read until the other side has answered or closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    try:
        writer.write(request)
        async with asyncio.timeout(5):
            line = await reader.readline()
            if not line:
                return 0, b""
            length = 0
            while (header := await reader.readline()).strip():
                if header.lower().startswith(b"content-length:"):
                    length = int(header.split(b":")[1])
            return int(line.split()[1]), await reader.readexactly(length)
    finally:
        writer.close()
        await writer.wait_closed()


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        "POST /count HTTP/1.1",
        "Host: x",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


async def test_a_body_within_the_limit_is_read_whole(door: Door, bodies: Bodies) -> None:
    assert await talk(door, post(bytes(LIMIT))) == (200, b"1000")
    assert await talk(door, post(b"")) == (200, b"0")
    chunked = b"POST /count HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert await talk(door, chunked) == (200, b"3")
    assert bodies._held == 0


async def test_large_bodies_of_one_application_leave_room_for_another(
    door: Door, bodies: Bodies
) -> None:
    writers = []
    for _ in range(4):
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        writer.write(post(bytes(LIMIT - 200), "Name: flood", length=LIMIT))
        writers.append(writer)
    async with asyncio.timeout(0.15):
        while bodies._held_by["flood"] < 3 * (LIMIT - 200):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
        status, body = await talk(door, post(bytes(LIMIT), "Name: flood"))
        assert (status, b"too many large requests" in body) == (503, True)
        assert await talk(door, post(bytes(LIMIT // 2), "Name: other")) == (200, b"500")
    for writer in writers:
        writer.close()
        await writer.wait_closed()
    async with asyncio.timeout(5):
        while bodies._held_by:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.001)
    assert bodies._held == 0


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(door: Door) -> None:
    status, body = await talk(door, post(b"", length=LIMIT + 1))
    assert status == 413
    assert "1000 bytes" in json.loads(body)["error"]


async def test_a_small_body_that_inflates_is_refused(door: Door, bodies: Bodies) -> None:
    bomb = gzip.compress(bytes(10_000_000), 9)[:900]
    status, _ = await talk(door, post(gzip.compress(bytes(LIMIT + 1)), "Content-Encoding: gzip"))
    assert status == 413
    status, _ = await talk(door, post(bomb, "Content-Encoding: gzip"))
    assert status == 413
    assert await talk(door, post(gzip.compress(b"abc"), "Content-Encoding: gzip")) == (200, b"3")
    assert bodies._held == 0


async def test_bytes_that_do_not_inflate_are_the_callers_mistake(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    status, body = await talk(door, post(b"not gzip at all", "Content-Encoding: gzip"))
    assert status == 400
    assert json.loads(body)["error"] == (
        "the body cannot be read; Can not decode content-encoding: gzip"
    )
    assert (await talk(door, post(b"not gzip at all", "Content-Encoding: gzip")))[0] == 400
    assert (await talk(door, post(b"not Brotli", "Content-Encoding: br")))[0] == 400
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("encoding", ["br", "foo", "gzip, gzip", "x-gzip"])
async def test_a_body_encoded_in_an_unknown_way_is_not_taken_for_plain_bytes(
    door: Door, encoding: str
) -> None:
    status, body = await talk(door, post(b"{}", f"Content-Encoding: {encoding}"))
    assert status == 400
    assert json.loads(body)["error"] == (
        f"the body's encoding {encoding!r} is not supported; it may be identity, gzip, deflate"
    )


async def test_a_body_that_never_ends_is_given_up(door: Door, bodies: Bodies) -> None:
    status, body = await talk(door, post(b"{", length=10))
    assert status == 408
    assert "too slowly" in json.loads(body)["error"]
    assert bodies._held == 0


async def test_a_body_that_comes_steadily_may_take_long(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies_module, "BODY_BYTES_PER_S_MIN", 10)
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(post(b"", length=8))
    for _ in range(4):  # 0.4 s for a body that would have 0.2 s if nothing came
        await asyncio.sleep(0.1)
        writer.write(b"12")
    assert b" 200 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize("start", [b"POST /count HTTP/1.1\r\nHost:", b""])
async def test_headers_that_never_come_or_never_end_are_given_up(door: Door, start: bytes) -> None:
    assert await talk(door, start) == (0, b"")


async def test_a_connection_that_has_asked_once_may_stay(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    for _ in range(2):
        writer.write(post(b"abc"))
        assert b" 200 " in await reader.readline()
        await reader.readuntil(b"\r\n\r\n3")
        await asyncio.sleep(0.5)
    writer.close()


@pytest.mark.parametrize(
    "header", ["Host: evil.com", "Host: x\r\nOrigin: https://evil.com", "Host: x\r\nOrigin: null"]
)
async def test_a_browser_on_a_foreign_page_gets_nothing(door: Door, header: str) -> None:
    request = f"POST /count HTTP/1.1\r\nContent-Length: 0\r\n{header}\r\n\r\n"
    status, body = await talk(door, request.encode())
    assert status == 403
    assert "http_names" in json.loads(body)["error"]


async def test_the_memory_of_all_bodies_together_is_bounded(door: Door, bodies: Bodies) -> None:
    bodies._held = 4 * LIMIT
    status, _ = await talk(door, post(b"abc"))
    assert status == 503
    bodies._held = 0


@pytest.mark.parametrize(
    ("request_line", "expected"), [("GET /nope", 404), ("GET /count", 405), ("GET /fail", 500)]
)
async def test_every_failure_is_the_protocols_error_and_tells_nothing_of_the_inside(
    door: Door, request_line: str, expected: int
) -> None:
    status, body = await talk(door, f"{request_line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert status == expected
    assert "secret" not in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("version", "expectation", "expected"),
    [("1.1", "100-continue", 100), ("1.1", "pony", 417), ("1.0", "pony", 200)],
)
async def test_an_expectation_is_met_or_refused_in_the_protocols_form(
    door: Door, version: str, expectation: str, expected: int
) -> None:
    lines = (
        f"POST /count HTTP/{version}",
        "Host: x",
        f"Expect: {expectation}",
        "Content-Length: 1",
    )
    request = "\r\n".join((*lines, "", "")).encode()
    status, body = await talk(door, request + (b"" if expected == 100 else b"x"))
    assert status == expected
    if expected == 417:
        assert json.loads(body) == {
            "error": "nothing is known of the expectation 'pony'; it may be 100-continue"
        }
