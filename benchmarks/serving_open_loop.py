"""Requests at a fixed rate, whether or not the earlier ones are answered: what overload means.

A connection for each request under way, kept and used again; every answer's status and time.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

import uvloop
from serving_servers import Body, Server

CONNECTIONS_MAX = 900
"""Below what the gateway takes."""
LAST_S = 2.0
"""Answers that come later than this after the last request do not count."""


@dataclass(slots=True)
class Seen:
    """Of one run."""

    status_and_s: list[tuple[int, float]] = field(default_factory=list)
    without_retry_after: int = 0
    """Answers 503 that do not say when to come again."""
    not_sent: int = 0
    """Too many were under way already."""

    def times(self, status: int) -> list[float]:
        """Seconds of all answers with this status, sorted."""
        return sorted(took for given, took in self.status_and_s if given == status)


class _Caller(asyncio.Protocol):
    """One connection; reads answers with a Content-Length."""

    transport: asyncio.Transport

    def __init__(self, run: "_Run") -> None:
        self._run, self._got, self._begun = run, bytearray(), 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def send(self, request: bytes) -> None:
        self._got.clear()
        self._begun = time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, split, rest = self._got.partition(b"\r\n\r\n")
        if not split:
            return
        lower = bytes(head).lower()
        if len(rest) >= int(lower.partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0]):
            status = int(lower[9:12])
            self._run.seen.status_and_s.append((status, time.perf_counter() - self._begun))
            self._run.seen.without_retry_after += status == 503 and b"retry-after" not in lower
            self._run.idle.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._run.open -= 1


class _Run:
    def __init__(self) -> None:
        self.seen = Seen()
        self.idle: deque[_Caller] = deque()
        self.open = 0

    async def go(
        self, server: Server, model: str, body: Body, rate_per_s: float, seconds: float
    ) -> Seen:
        headers = "".join(f"{name}: {value}\r\n" for name, value in body.headers.items())
        request = (
            f"POST {server.path % model} HTTP/1.1\r\nHost: {server.host}\r\n{headers}"
            f"Content-Length: {len(body.content)}\r\n\r\n"
        ).encode() + body.content
        loop = asyncio.get_running_loop()
        begun = time.perf_counter()
        for number in range(round(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, begun + number / rate_per_s - time.perf_counter()))
            while self.idle and self.idle[0].transport.is_closing():
                self.idle.popleft()
            if self.idle:
                caller = self.idle.pop()
            elif self.open < CONNECTIONS_MAX:
                self.open += 1
                _, caller = await loop.create_connection(
                    lambda: _Caller(self), server.host, server.port
                )
            else:
                self.seen.not_sent += 1
                continue
            caller.send(request)
        await asyncio.sleep(LAST_S)
        return self.seen


def drive(server: Server, model: str, rate_per_s: float, seconds: float) -> Seen:
    """Send ``rate_per_s`` requests a second for so long; wait for the answers."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Run().go(server, model, server.bodies[model], rate_per_s, seconds))
